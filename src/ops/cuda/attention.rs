//! Launches of `cuda/attention.cu`: see [`crate::ops::attention`] for the contract.

use anyhow::Result;
use half::bf16;

use super::by_head_dim;
use crate::device::cuda::batch::{KEY_TILE, QUERY_TILE};
use crate::device::cuda::{Cuda, Launch};
use crate::device::{Ctx, Device, Slice, SliceMut};
use crate::model::config::ModelShape;
use crate::ops::attention::Attention;

/// Elements of a tile of rows of one head, with padding against bank conflicts.
fn tile(rows: usize, shape: &ModelShape) -> usize {
    rows * (shape.head_dim + 8)
}

/// Shared memory of a forward block: queries, two tiles of keys and of values.
pub(super) fn forward_bytes(shape: &ModelShape) -> u32 {
    (2 * 5 * tile(QUERY_TILE, shape)) as u32
}

/// Of a backward block: queries, their gradient, keys, values, statistics.
fn backward_bytes(shape: &ModelShape) -> u32 {
    (2 * 4 * tile(KEY_TILE, shape) + 2 * 4 * KEY_TILE) as u32
}

/// Scratch of the backward: one number per row and head.
pub(crate) fn workspace_bytes(saved_rows: usize, shape: &ModelShape) -> usize {
    4 * saved_rows * shape.num_heads
}

impl Attention for Cuda {
    fn attention_forward(
        &self,
        ctx: &Ctx<Self>,
        batch: &<Self as Device>::Batch,
        shape: &ModelShape,
        qk: Slice<Self, bf16>,
        qkv: Slice<Self, bf16>,
        out: SliceMut<Self, bf16>,
        lse: SliceMut<Self, f32>,
    ) -> Result<()> {
        let kernel = by_head_dim(shape, "attention_forward_64", "attention_forward_128")?;
        let rows = qk.len / (shape.q_width() + shape.kv_width());
        let tiles = match rows == batch.host.saved_rows {
            true => batch.saved_query_tiles,
            false => batch.query_tiles,
        };
        let grid = [tiles as u32, shape.num_heads as u32, 1];
        self.launch(
            ctx,
            Launch::new(kernel, grid, 128)
                .shared(forward_bytes(shape))
                .ptr("qk", &qk)
                .ptr("qkv", &qkv)
                .ptr("tiles", &batch.lists.query_tiles)
                .ptr("segments", &batch.lists.segments)
                .ptr("ranges", &batch.lists.ranges)
                .ptr("out", &out)
                .ptr("lse", &lse)
                .u32("out_stride", out.stride(rows))
                .u32("heads", shape.num_heads)
                .u32("kv_heads", shape.num_kv_heads),
        )
    }

    fn attention_backward(
        &self,
        ctx: &Ctx<Self>,
        batch: &<Self as Device>::Batch,
        shape: &ModelShape,
        qk: Slice<Self, bf16>,
        qkv: Slice<Self, bf16>,
        out: Slice<Self, bf16>,
        lse: Slice<Self, f32>,
        d_out: Slice<Self, bf16>,
        d_qk: SliceMut<Self, bf16>,
        d_qkv: SliceMut<Self, bf16>,
    ) -> Result<()> {
        let rows = batch.host.saved_rows;
        let count = rows * shape.num_heads;
        let deltas = self.workspace(ctx, workspace_bytes(batch.host.saved_rows, shape))?;
        let kernel = by_head_dim(shape, "attention_delta_64", "attention_delta_128")?;
        self.launch(
            ctx,
            Launch::new(kernel, [count.div_ceil(4) as u32, 1, 1], 128)
                .ptr("out", &out)
                .ptr("d_out", &d_out)
                .ptr("deltas", &deltas)
                .u32("count", count)
                .u32("out_stride", out.stride(rows))
                .u32("heads", shape.num_heads),
        )?;
        let kernel = by_head_dim(shape, "attention_backward_q_64", "attention_backward_q_128")?;
        let grid = [batch.saved_query_tiles as u32, shape.num_heads as u32, 1];
        self.launch(
            ctx,
            Launch::new(kernel, grid, 128)
                .shared(backward_bytes(shape))
                .ptr("qk", &qk)
                .ptr("qkv", &qkv)
                .ptr("d_out", &d_out)
                .ptr("lse", &lse)
                .ptr("deltas", &deltas)
                .ptr("tiles", &batch.lists.query_tiles)
                .ptr("segments", &batch.lists.segments)
                .ptr("ranges", &batch.lists.ranges)
                .ptr("d_qk", &d_qk)
                .u32("heads", shape.num_heads)
                .u32("kv_heads", shape.num_kv_heads),
        )?;
        let kernel = by_head_dim(
            shape,
            "attention_backward_kv_64",
            "attention_backward_kv_128",
        )?;
        let grid = [batch.key_tiles as u32, shape.num_kv_heads as u32, 1];
        self.launch(
            ctx,
            Launch::new(kernel, grid, 128)
                .shared(backward_bytes(shape))
                .ptr("qk", &qk)
                .ptr("qkv", &qkv)
                .ptr("d_out", &d_out)
                .ptr("lse", &lse)
                .ptr("deltas", &deltas)
                .ptr("tiles", &batch.lists.key_tiles)
                .ptr("segments", &batch.lists.segments)
                .ptr("users", &batch.lists.users)
                .ptr("d_qk", &d_qk)
                .ptr("d_qkv", &d_qkv)
                .u32("d_qkv_stride", d_qkv.stride(rows))
                .u32("heads", shape.num_heads)
                .u32("kv_heads", shape.num_kv_heads),
        )
    }
}
