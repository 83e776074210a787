//! How far the adapter moves a hidden state: ||h_on - h_off||_2 by row pair,
//! the raw score of ARCA (arXiv 2606.00257).

use anyhow::Result;

use crate::device::cpu::simd::{sum16, vectorized};
use crate::device::cpu::{Cpu, pool};
use crate::device::{Ctx, Device, Float, Slice, SliceMut};

pub trait Residual: Device {
    /// norms[i] = ||h[on_i] - h[off_i]||_2 over the batch's `residual_pairs`;
    /// h is `[rows, hidden]`, the difference and the norm are f32.
    fn residual_norms<R: Float>(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        hidden: usize,
        h: Slice<Self, R>,
        norms: SliceMut<Self, f32>,
    ) -> Result<()>;
}

vectorized! {
    fn distance<R: Float>(on: &[R], off: &[R]) -> f32 {
        sum16(on.len(), |i| {
            let d = on[i].to_f32() - off[i].to_f32();
            d * d
        })
        .sqrt()
    }
}

impl<A: Float> Residual for Cpu<A> {
    fn residual_norms<R: Float>(
        &self,
        _: &Ctx<Self>,
        batch: &Self::Batch,
        hidden: usize,
        h: Slice<Self, R>,
        mut norms: SliceMut<Self, f32>,
    ) -> Result<()> {
        let pairs = &batch.batch.residual_pairs;
        let norms = norms.shared();
        let row = |r: u32| &h.host()[r as usize * hidden..][..hidden];
        pool::parallel_rows(pairs.len(), hidden, |range| {
            for i in range {
                // SAFETY: one pair each.
                let norm = unsafe { norms.slice_mut(i, 1) };
                norm[0] = distance(row(pairs[i].0), row(pairs[i].1));
            }
        });
        Ok(())
    }
}
