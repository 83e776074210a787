//! RMSNorm with the residual add before it, as Qwen3 uses twice a layer.
//!
//! h = previous + y;  rstd = 1 / sqrt(mean(h^2) + eps);  x = h * rstd * weight.

use anyhow::Result;

use crate::device::cpu::simd::{sum16, vectorized};
use crate::device::cpu::{Cpu, pool};
use crate::device::{Ctx, Device, Float, Slice, SliceMut};

/// Sizes of a normalisation.
#[derive(Clone, Copy, Debug)]
pub struct NormShape {
    pub rows: usize,
    pub hidden: usize,
    pub eps: f32,
}

/// The stream before an addition, and what is added to it.
pub type ResidualAdd<'a, D, R> = (Slice<'a, D, R>, Slice<'a, D, <D as Device>::Act>);

pub trait RmsNorm: Device {
    /// With `add = Some((previous, y))` first writes h = previous + y, else
    /// reads h as it is; then writes x and rstd. `R` is the residual stream's
    /// type; `weight` is f32 `[hidden]`. On CUDA rows of x may be wider than
    /// `hidden`: the op finds their stride, a multiple of 8, by `x.stride(rows)`.
    #[allow(clippy::too_many_arguments)]
    fn rmsnorm_forward<R: Float>(
        &self,
        ctx: &Ctx<Self>,
        shape: NormShape,
        add: Option<ResidualAdd<Self, R>>,
        h: SliceMut<Self, R>,
        weight: &Self::Buf<f32>,
        x: SliceMut<Self, Self::Act>,
        rstd: SliceMut<Self, f32>,
    ) -> Result<()>;

    /// dh += d rmsnorm(h) / d h applied to dx (the residual path's own share is
    /// what `dh` holds on entry), and dy = dh rounded: the gradient of what
    /// was added to the stream before this norm. On CUDA rows of dy may be
    /// wider than `hidden`, as x's may.
    #[allow(clippy::too_many_arguments)]
    fn rmsnorm_backward<R: Float>(
        &self,
        ctx: &Ctx<Self>,
        shape: NormShape,
        h: Slice<Self, R>,
        weight: &Self::Buf<f32>,
        rstd: Slice<Self, f32>,
        dx: Slice<Self, Self::Act>,
        dh: SliceMut<Self, f32>,
        dy: SliceMut<Self, Self::Act>,
    ) -> Result<()>;
}

vectorized! {
    fn forward_row<A: Float, R: Float>(eps: f32, add: Option<(&[R], &[A])>, h: &mut [R], weight: &[f32], x: &mut [A]) -> f32 {
        let n = h.len();
        let (weight, x) = (&weight[..n], &mut x[..n]);
        if let Some((previous, y)) = add {
            let (previous, y) = (&previous[..n], &y[..n]);
            for i in 0..n {
                h[i] = R::from_f32(previous[i].to_f32() + y[i].to_f32());
            }
        }
        let mean = sum16(n, |i| h[i].to_f32() * h[i].to_f32()) / n as f32;
        let rstd = 1.0 / (mean + eps).sqrt();
        for i in 0..n {
            // transformers rounds the normalised value before the weight.
            x[i] = A::from_f32(A::from_f32(h[i].to_f32() * rstd).to_f32() * weight[i]);
        }
        rstd
    }
}

vectorized! {
    fn backward_row<A: Float, R: Float>(h: &[R], weight: &[f32], rstd: f32, dx: &[A], dh: &mut [f32], dy: &mut [A]) -> () {
        let n = h.len();
        let (weight, dx) = (&weight[..n], &dx[..n]);
        let (dh, dy) = (&mut dh[..n], &mut dy[..n]);
        let dot = sum16(n, |i| dx[i].to_f32() * weight[i] * h[i].to_f32());
        let c = dot * rstd * rstd * rstd / n as f32;
        for i in 0..n {
            dh[i] += dx[i].to_f32() * weight[i] * rstd - h[i].to_f32() * c;
            dy[i] = A::from_f32(dh[i]);
        }
    }
}

impl<A: Float> RmsNorm for Cpu<A> {
    fn rmsnorm_forward<R: Float>(
        &self,
        _: &Ctx<Self>,
        shape: NormShape,
        add: Option<ResidualAdd<Self, R>>,
        mut h: SliceMut<Self, R>,
        weight: &Self::Buf<f32>,
        mut x: SliceMut<Self, A>,
        mut rstd: SliceMut<Self, f32>,
    ) -> Result<()> {
        let n = shape.hidden;
        let (h, x, rstd) = (h.shared(), x.shared(), rstd.shared());
        pool::parallel_rows(shape.rows, n, |rows| {
            for i in rows {
                // SAFETY: one row each.
                let (h, x, rstd) = unsafe {
                    (
                        h.slice_mut(i * n, n),
                        x.slice_mut(i * n, n),
                        rstd.slice_mut(i, 1),
                    )
                };
                let add = add
                    .as_ref()
                    .map(|(p, y)| (&p.host()[i * n..][..n], &y.host()[i * n..][..n]));
                rstd[0] = forward_row(shape.eps, add, h, &weight.data, x);
            }
        });
        Ok(())
    }

    fn rmsnorm_backward<R: Float>(
        &self,
        _: &Ctx<Self>,
        shape: NormShape,
        h: Slice<Self, R>,
        weight: &Self::Buf<f32>,
        rstd: Slice<Self, f32>,
        dx: Slice<Self, A>,
        mut dh: SliceMut<Self, f32>,
        mut dy: SliceMut<Self, A>,
    ) -> Result<()> {
        let n = shape.hidden;
        let (dh, dy) = (dh.shared(), dy.shared());
        pool::parallel_rows(shape.rows, n, |rows| {
            for i in rows {
                // SAFETY: one row each.
                let (dh, dy) = unsafe { (dh.slice_mut(i * n, n), dy.slice_mut(i * n, n)) };
                let (h, dx) = (&h.host()[i * n..][..n], &dx.host()[i * n..][..n]);
                backward_row(h, &weight.data, rstd.host()[i], dx, dh, dy);
            }
        });
        Ok(())
    }
}
