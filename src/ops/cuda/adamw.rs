//! Launches of `cuda/adamw.cu`: see [`crate::ops::adamw`] for the contract.

use anyhow::Result;

use super::stride_grid;
use crate::device::cuda::{Cuda, Launch};
use crate::device::{Ctx, Slice, SliceMut};
use crate::ops::adamw::{AdamW, AdamWStep};

/// Elements of one partial sum: `kChunk` of the kernel.
const CHUNK: usize = 8192;

/// Scratch of the norm: partial sums, then their total.
pub(crate) fn workspace_bytes(parameters: usize) -> usize {
    8 * (parameters.div_ceil(CHUNK) + 1)
}

impl AdamW for Cuda {
    fn squared_norm(&self, ctx: &Ctx<Self>, x: Slice<Self, f32>) -> Result<f64> {
        let count = x.len.div_ceil(CHUNK);
        if count == 0 {
            return Ok(0.0);
        }
        let partial = self.workspace(ctx, workspace_bytes(x.len))?;
        let total = partial + 8 * count as u64;
        self.launch(
            ctx,
            Launch::new("adamw_partial_norms", [count as u32, 1, 1], 256)
                .ptr("x", &x)
                .ptr("partial", &partial)
                .u64("n", x.len as u64),
        )?;
        self.launch(
            ctx,
            Launch::new("adamw_total_norm", [1, 1, 1], 256)
                .ptr("partial", &partial)
                .ptr("total", &total)
                .u32("count", count),
        )?;
        let mut sum = [0f64];
        self.driver
            .download(ctx.stream.id, total, bytemuck::cast_slice_mut(&mut sum))?;
        Ok(sum[0])
    }

    fn adamw(
        &self,
        ctx: &Ctx<Self>,
        step: &AdamWStep,
        grads: Slice<Self, f32>,
        params: SliceMut<Self, f32>,
        m: SliceMut<Self, f32>,
        v: SliceMut<Self, f32>,
    ) -> Result<()> {
        let c = step.constants();
        let fours = grads.len.div_ceil(4);
        self.launch(
            ctx,
            Launch::new("adamw_update", stride_grid(self, fours, 256), 256)
                .ptr("grads", &grads)
                .ptr("params", &params)
                .ptr("m", &m)
                .ptr("v", &v)
                .u64("n", grads.len as u64)
                .f32("clip", step.clip)
                .f32("decay", c.decay)
                .f32("keep1", c.keep1)
                .f32("keep2", c.keep2)
                .f32("beta2", step.beta2 as f32)
                .f32("size", c.size)
                .f32("root", c.root)
                .f32("epsilon", step.epsilon as f32),
        )
    }
}
