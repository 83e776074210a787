//! Launches of `cuda/qknorm_rope.cu`: see [`crate::ops::qknorm_rope`] for the contract.

use anyhow::Result;
use half::bf16;

use super::by_head_dim;
use crate::device::cuda::{Cuda, Launch};
use crate::device::{Ctx, Device, Slice, SliceMut};
use crate::model::config::ModelShape;
use crate::ops::qknorm_rope::{QkNormRope, QkNormWeights, RopeTable};

/// Heads of one block: a warp each.
const HEADS: usize = 8;

fn grid(rows: usize, shape: &ModelShape) -> [u32; 3] {
    let heads = rows * (shape.num_heads + shape.num_kv_heads);
    [heads.div_ceil(HEADS) as u32, 1, 1]
}

impl QkNormRope for Cuda {
    fn qknorm_rope_forward(
        &self,
        ctx: &Ctx<Self>,
        batch: &<Self as Device>::Batch,
        shape: &ModelShape,
        rows: usize,
        weights: &QkNormWeights<Self>,
        rope: &RopeTable<Self>,
        qkv: Slice<Self, bf16>,
        qk: SliceMut<Self, bf16>,
    ) -> Result<()> {
        let kernel = by_head_dim(shape, "qknorm_rope_forward_64", "qknorm_rope_forward_128")?;
        self.launch(
            ctx,
            Launch::new(kernel, grid(rows, shape), 32 * HEADS as u32)
                .ptr("qkv", &qkv)
                .ptr("positions", &batch.lists.positions)
                .ptr("q_weight", &weights.q)
                .ptr("k_weight", &weights.k)
                .ptr("cos", &rope.cos)
                .ptr("sin", &rope.sin)
                .ptr("qk", &qk)
                .u32("rows", rows)
                .u32("heads", shape.num_heads)
                .u32("kv_heads", shape.num_kv_heads)
                .f32("eps", shape.rms_norm_eps),
        )
    }

    fn qknorm_rope_backward(
        &self,
        ctx: &Ctx<Self>,
        batch: &<Self as Device>::Batch,
        shape: &ModelShape,
        rows: usize,
        weights: &QkNormWeights<Self>,
        rope: &RopeTable<Self>,
        qkv: Slice<Self, bf16>,
        d_qk: Slice<Self, bf16>,
        d_qkv: SliceMut<Self, bf16>,
    ) -> Result<()> {
        let kernel = by_head_dim(shape, "qknorm_rope_backward_64", "qknorm_rope_backward_128")?;
        self.launch(
            ctx,
            Launch::new(kernel, grid(rows, shape), 32 * HEADS as u32)
                .ptr("qkv", &qkv)
                .ptr("d_qk", &d_qk)
                .ptr("positions", &batch.lists.positions)
                .ptr("q_weight", &weights.q)
                .ptr("k_weight", &weights.k)
                .ptr("cos", &rope.cos)
                .ptr("sin", &rope.sin)
                .ptr("d_qkv", &d_qkv)
                .u32("rows", rows)
                .u32("heads", shape.num_heads)
                .u32("kv_heads", shape.num_kv_heads)
                .u32("d_stride", d_qkv.stride(rows))
                .f32("eps", shape.rms_norm_eps),
        )
    }
}
