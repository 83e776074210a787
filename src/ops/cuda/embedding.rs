//! Launches of `cuda/embedding.cu`: see [`crate::ops::embedding`] for the contract.

use anyhow::Result;

use super::by_type;
use crate::device::cuda::{Cuda, Launch};
use crate::device::{Ctx, Device, Float, SliceMut};
use crate::ops::embedding::Embedding;
use crate::ops::linear::Linear;

impl Embedding for Cuda {
    fn embedding_forward<R: Float>(
        &self,
        ctx: &Ctx<Self>,
        batch: &<Self as Device>::Batch,
        table: &<Self as Linear>::Table,
        out: SliceMut<Self, R>,
    ) -> Result<()> {
        let rows = batch.host.rows();
        let kernel = by_type::<R>("embedding_bf16", "embedding_f32")?;
        self.launch(
            ctx,
            Launch::new(kernel, [rows as u32, 1, 1], 128)
                .ptr("tokens", &batch.lists.tokens)
                .ptr("table", &table.weight)
                .ptr("out", &out)
                .u32("hidden", table.hidden),
        )
    }
}
