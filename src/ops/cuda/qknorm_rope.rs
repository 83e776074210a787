//! Launches of `cuda/qknorm_rope.cu`: see [`crate::ops::qknorm_rope`] for the contract.

use anyhow::Result;
use half::bf16;

use super::by_head_dim;
use crate::device::cuda::{Cuda, Launch};
use crate::device::{Ctx, Device, Slice, SliceMut};
use crate::model::config::ModelShape;
use crate::ops::qknorm_rope::{QkNormRope, QkNormWeights, RopeTable};

/// Most threads of a block.
const MOST: usize = 512;

/// Threads of a row's block: `head_dim / 16` for each head, or an even share of
/// them where they are more than a block has.
fn threads(shape: &ModelShape) -> u32 {
    let lanes = (shape.num_heads + shape.num_kv_heads) * (shape.head_dim / 16);
    let rounds = lanes.div_ceil(MOST).max(1);
    lanes.div_ceil(rounds).next_multiple_of(32) as u32
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
            Launch::new(kernel, [rows as u32, 1, 1], threads(shape))
                .ptr("qkv", &qkv)
                .ptr("positions", &batch.lists.positions)
                .ptr("q_weight", &weights.q)
                .ptr("k_weight", &weights.k)
                .ptr("cos", &rope.cos)
                .ptr("sin", &rope.sin)
                .ptr("qk", &qk)
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
            Launch::new(kernel, [rows as u32, 1, 1], threads(shape))
                .ptr("qkv", &qkv)
                .ptr("d_qk", &d_qk)
                .ptr("positions", &batch.lists.positions)
                .ptr("q_weight", &weights.q)
                .ptr("k_weight", &weights.k)
                .ptr("cos", &rope.cos)
                .ptr("sin", &rope.sin)
                .ptr("d_qkv", &d_qkv)
                .u32("heads", shape.num_heads)
                .u32("kv_heads", shape.num_kv_heads)
                .u32("d_stride", d_qkv.stride(rows))
                .f32("eps", shape.rms_norm_eps),
        )
    }
}
