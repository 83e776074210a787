//! Launches of `cuda/residual.cu`: see [`crate::ops::residual`] for the contract.

use anyhow::Result;

use super::by_type;
use crate::device::cuda::{Cuda, Launch};
use crate::device::{Ctx, Device, Float, Slice, SliceMut};
use crate::ops::residual::Residual;

/// Pairs of one block: a warp each.
const PAIRS: usize = 4;

impl Residual for Cuda {
    fn residual_norms<R: Float>(
        &self,
        ctx: &Ctx<Self>,
        batch: &<Self as Device>::Batch,
        hidden: usize,
        h: Slice<Self, R>,
        norms: SliceMut<Self, f32>,
    ) -> Result<()> {
        let pairs = batch.host.residual_pairs.len();
        let kernel = by_type::<R>("residual_norms_bf16", "residual_norms_f32")?;
        self.launch(
            ctx,
            Launch::new(
                kernel,
                [pairs.div_ceil(PAIRS) as u32, 1, 1],
                32 * PAIRS as u32,
            )
            .ptr("h", &h)
            .ptr("on", &batch.lists.residual_on)
            .ptr("off", &batch.lists.residual_off)
            .ptr("norms", &norms)
            .u32("pairs", pairs)
            .u32("hidden", hidden),
        )
    }
}
