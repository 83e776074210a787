//! Per-head RMSNorm of q and k, then rotary position embedding.
//!
//! For each head x of q (and of k): n = x * rstd(x) * weight, then the pairs
//! (i, i + head_dim / 2) of n are rotated by position * theta^(-2i / head_dim).

use anyhow::Result;

use crate::device::cpu::simd::{sum16, vectorized};
use crate::device::cpu::{Cpu, pool};
use crate::device::memory::Role;
use crate::device::{Ctx, Device, Float, Slice, SliceMut};
use crate::model::config::ModelShape;

/// cos and sin by position, `[positions, head_dim / 2]` each, f32.
pub struct RopeTable<D: Device> {
    pub cos: D::Buf<f32>,
    pub sin: D::Buf<f32>,
    pub positions: usize,
}

impl<D: Device> RopeTable<D> {
    /// Angles in f64, rounded once.
    pub fn new(device: &D, ctx: &Ctx<D>, shape: &ModelShape, positions: usize) -> Result<Self> {
        let half = shape.head_dim / 2;
        let mut tables = [vec![0f32; positions * half], vec![0f32; positions * half]];
        for i in 0..half {
            let inverse = shape
                .rope_theta
                .powf(-2.0 * i as f64 / shape.head_dim as f64);
            for p in 0..positions {
                let (sin, cos) = (p as f64 * inverse).sin_cos();
                tables[0][p * half + i] = cos as f32;
                tables[1][p * half + i] = sin as f32;
            }
        }
        let load = |values: &[f32]| -> Result<D::Buf<f32>> {
            let mut buf = device.alloc_for(Role::Weights, values.len())?;
            let slice = SliceMut {
                buf: &mut buf,
                start: 0,
                len: values.len(),
            };
            device.upload(ctx, slice, values)?;
            Ok(buf)
        };
        Ok(RopeTable {
            cos: load(&tables[0])?,
            sin: load(&tables[1])?,
            positions,
        })
    }
}

/// The learned weights of q_norm and k_norm, `[head_dim]` each.
pub struct QkNormWeights<D: Device> {
    pub q: D::Buf<f32>,
    pub k: D::Buf<f32>,
}

pub trait QkNormRope: Device {
    /// qk `[rows, q | k]`, overwritten, from qkv `[rows, q | k | v]`.
    #[allow(clippy::too_many_arguments)]
    fn qknorm_rope_forward(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        shape: &ModelShape,
        rows: usize,
        weights: &QkNormWeights<Self>,
        rope: &RopeTable<Self>,
        qkv: Slice<Self, Self::Act>,
        qk: SliceMut<Self, Self::Act>,
    ) -> Result<()>;

    /// Overwrites the q and k columns of d_qkv from d_qk. On CUDA rows of d_qkv
    /// may be wider than q | k | v: their stride, a multiple of 8, is
    /// `d_qkv.stride(rows)`.
    #[allow(clippy::too_many_arguments)]
    fn qknorm_rope_backward(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        shape: &ModelShape,
        rows: usize,
        weights: &QkNormWeights<Self>,
        rope: &RopeTable<Self>,
        qkv: Slice<Self, Self::Act>,
        d_qk: Slice<Self, Self::Act>,
        d_qkv: SliceMut<Self, Self::Act>,
    ) -> Result<()>;
}

vectorized! {
    fn forward_head<A: Float>(eps: f32, weight: &[f32], cos: &[f32], sin: &[f32], x: &[A], out: &mut [A]) -> () {
        let (n, half) = (x.len(), cos.len());
        let rstd = 1.0 / (sum16(n, |i| x[i].to_f32() * x[i].to_f32()) / n as f32 + eps).sqrt();
        let (x0, x1) = (&x[..half], &x[half..2 * half]);
        let (w0, w1) = (&weight[..half], &weight[half..2 * half]);
        let (out0, out1) = out[..2 * half].split_at_mut(half);
        let sin = &sin[..half];
        for i in 0..half {
            let a = A::from_f32(A::from_f32(x0[i].to_f32() * rstd).to_f32() * w0[i]).to_f32();
            let b = A::from_f32(A::from_f32(x1[i].to_f32() * rstd).to_f32() * w1[i]).to_f32();
            out0[i] = A::from_f32(a * cos[i] - b * sin[i]);
            out1[i] = A::from_f32(b * cos[i] + a * sin[i]);
        }
    }
}

vectorized! {
    fn backward_head<A: Float>(eps: f32, weight: &[f32], cos: &[f32], sin: &[f32], x: &[A], d_out: &[A], dx: &mut [A], dn: &mut [f32]) -> () {
        let (n, half) = (x.len(), cos.len());
        let rstd = 1.0 / (sum16(n, |i| x[i].to_f32() * x[i].to_f32()) / n as f32 + eps).sqrt();
        let (d0, d1) = (&d_out[..half], &d_out[half..2 * half]);
        let (w0, w1) = (&weight[..half], &weight[half..2 * half]);
        let (dn0, dn1) = dn[..2 * half].split_at_mut(half);
        let sin = &sin[..half];
        for i in 0..half {
            let (a, b) = (d0[i].to_f32(), d1[i].to_f32());
            dn0[i] = (a * cos[i] + b * sin[i]) * w0[i];
            dn1[i] = (b * cos[i] - a * sin[i]) * w1[i];
        }
        let (dn, dx) = (&dn[..n], &mut dx[..n]);
        let c = sum16(n, |i| dn[i] * x[i].to_f32()) * rstd * rstd * rstd / n as f32;
        for i in 0..n {
            dx[i] = A::from_f32(dn[i] * rstd - x[i].to_f32() * c);
        }
    }
}

impl<A: Float> QkNormRope for Cpu<A> {
    fn qknorm_rope_forward(
        &self,
        _: &Ctx<Self>,
        batch: &Self::Batch,
        shape: &ModelShape,
        rows: usize,
        weights: &QkNormWeights<Self>,
        rope: &RopeTable<Self>,
        qkv: Slice<Self, A>,
        mut qk: SliceMut<Self, A>,
    ) -> Result<()> {
        let (hd, half) = (shape.head_dim, shape.head_dim / 2);
        let (wide, narrow) = (shape.qkv_width(), shape.q_width() + shape.kv_width());
        let out = qk.shared();
        pool::parallel_rows(rows, 2 * narrow, |range| {
            for row in range {
                let at = batch.batch.positions[row] as usize * half;
                let cos = &rope.cos.data[at..at + half];
                let sin = &rope.sin.data[at..at + half];
                // SAFETY: one row each.
                let out = unsafe { out.slice_mut(row * narrow, narrow) };
                let x = &qkv.host()[row * wide..row * wide + narrow];
                for (h, (x, out)) in x.chunks_exact(hd).zip(out.chunks_exact_mut(hd)).enumerate() {
                    let w = if h < shape.num_heads {
                        &weights.q
                    } else {
                        &weights.k
                    };
                    forward_head(shape.rms_norm_eps, &w.data, cos, sin, x, out);
                }
            }
        });
        Ok(())
    }

    fn qknorm_rope_backward(
        &self,
        _: &Ctx<Self>,
        batch: &Self::Batch,
        shape: &ModelShape,
        rows: usize,
        weights: &QkNormWeights<Self>,
        rope: &RopeTable<Self>,
        qkv: Slice<Self, A>,
        d_qk: Slice<Self, A>,
        mut d_qkv: SliceMut<Self, A>,
    ) -> Result<()> {
        let (hd, half) = (shape.head_dim, shape.head_dim / 2);
        let (wide, narrow) = (shape.qkv_width(), shape.q_width() + shape.kv_width());
        let out = d_qkv.shared();
        pool::parallel_rows(rows, 3 * narrow, |range| {
            let mut dn = vec![0f32; hd];
            for row in range {
                let at = batch.batch.positions[row] as usize * half;
                let cos = &rope.cos.data[at..at + half];
                let sin = &rope.sin.data[at..at + half];
                // SAFETY: one row each.
                let out = unsafe { out.slice_mut(row * wide, narrow) };
                let x = &qkv.host()[row * wide..row * wide + narrow];
                let d = &d_qk.host()[row * narrow..(row + 1) * narrow];
                for h in 0..shape.num_heads + shape.num_kv_heads {
                    let w = if h < shape.num_heads {
                        &weights.q
                    } else {
                        &weights.k
                    };
                    let span = h * hd..(h + 1) * hd;
                    backward_head(
                        shape.rms_norm_eps,
                        &w.data,
                        cos,
                        sin,
                        &x[span.clone()],
                        &d[span.clone()],
                        &mut out[span],
                        &mut dn,
                    );
                }
            }
        });
        Ok(())
    }
}
