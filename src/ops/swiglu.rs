//! SwiGLU: act = silu(gate) * up, over `[rows, gate | up]`.

use anyhow::Result;

use crate::device::cpu::simd::{exp, vectorized};
use crate::device::cpu::{Cpu, pool};
use crate::device::{Ctx, Device, Float, Slice, SliceMut};

pub trait SwiGlu: Device {
    /// act `[rows, width]` = silu(gate) * up from gate_up `[rows, 2 width]`.
    /// On CUDA rows of act may be wider: their stride, a multiple of 8, is
    /// `act.stride(rows)`.
    fn swiglu_forward(
        &self,
        ctx: &Ctx<Self>,
        rows: usize,
        width: usize,
        gate_up: Slice<Self, Self::Act>,
        act: SliceMut<Self, Self::Act>,
    ) -> Result<()>;

    /// d_gate_up `[rows, 2 width]`, overwritten, from d_act `[rows, width]`.
    /// On CUDA rows of d_gate_up may be wider, as act's may.
    fn swiglu_backward(
        &self,
        ctx: &Ctx<Self>,
        rows: usize,
        width: usize,
        gate_up: Slice<Self, Self::Act>,
        d_act: Slice<Self, Self::Act>,
        d_gate_up: SliceMut<Self, Self::Act>,
    ) -> Result<()>;
}

vectorized! {
    fn forward_row<A: Float>(gate: &[A], up: &[A], act: &mut [A]) -> () {
        let n = act.len();
        let (gate, up) = (&gate[..n], &up[..n]);
        for i in 0..n {
            let g = gate[i].to_f32();
            let silu = A::from_f32(g / (1.0 + exp(-g))).to_f32();
            act[i] = A::from_f32(silu * up[i].to_f32());
        }
    }
}

vectorized! {
    fn backward_row<A: Float>(gate: &[A], up: &[A], d_act: &[A], d_gate: &mut [A], d_up: &mut [A]) -> () {
        let n = d_act.len();
        let (gate, up, d_gate, d_up) = (&gate[..n], &up[..n], &mut d_gate[..n], &mut d_up[..n]);
        for i in 0..n {
            let (g, d) = (gate[i].to_f32(), d_act[i].to_f32());
            let sigmoid = 1.0 / (1.0 + exp(-g));
            let silu = g * sigmoid;
            d_up[i] = A::from_f32(d * silu);
            d_gate[i] = A::from_f32(d * up[i].to_f32() * (sigmoid + silu * (1.0 - sigmoid)));
        }
    }
}

impl<A: Float> SwiGlu for Cpu<A> {
    fn swiglu_forward(
        &self,
        _: &Ctx<Self>,
        rows: usize,
        width: usize,
        gate_up: Slice<Self, A>,
        mut act: SliceMut<Self, A>,
    ) -> Result<()> {
        let act = act.shared();
        pool::parallel_rows(rows, 2 * width, |range| {
            for i in range {
                let (gate, up) = gate_up.host()[i * 2 * width..][..2 * width].split_at(width);
                // SAFETY: one row each.
                forward_row(gate, up, unsafe { act.slice_mut(i * width, width) });
            }
        });
        Ok(())
    }

    fn swiglu_backward(
        &self,
        _: &Ctx<Self>,
        rows: usize,
        width: usize,
        gate_up: Slice<Self, A>,
        d_act: Slice<Self, A>,
        mut d_gate_up: SliceMut<Self, A>,
    ) -> Result<()> {
        let out = d_gate_up.shared();
        pool::parallel_rows(rows, 4 * width, |range| {
            for i in range {
                let (gate, up) = gate_up.host()[i * 2 * width..][..2 * width].split_at(width);
                // SAFETY: one row each.
                let (d_gate, d_up) =
                    unsafe { out.slice_mut(i * 2 * width, 2 * width) }.split_at_mut(width);
                backward_row(gate, up, &d_act.host()[i * width..][..width], d_gate, d_up);
            }
        });
        Ok(())
    }
}
