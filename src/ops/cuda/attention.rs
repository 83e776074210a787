//! Launches of `cuda/attention.cu` and `cuda/attention_wgmma.cu`: see [`crate::ops::attention`] for the contract.

use anyhow::Result;
use half::bf16;

use super::attention_kernels::AttentionKernels;
use super::by_head_dim;
use crate::device::cuda::batch::{KEY_TILE, QUERY_TILE};
use crate::device::cuda::{Cuda, Launch};
use crate::device::{Ctx, Device, Slice, SliceMut};
use crate::model::config::ModelShape;
use crate::ops::attention::Attention;

/// One set of attention kernels: names, and extents beside tiles.
struct Kernels {
    forward: &'static str,
    backward_q: &'static str,
    backward_kv: &'static str,
    threads: u32,
    /// Blocks over the heads, of the forward and of dq.
    head_blocks: usize,
    /// Dynamic shared memory in bytes.
    forward_bytes: u32,
    backward_q_bytes: u32,
    backward_kv_bytes: u32,
}

/// Shared memory of a forward block of `cuda/attention.cu`: queries, two tiles
/// of keys and of values, with padding against bank conflicts.
pub(super) fn forward_bytes(shape: &ModelShape) -> u32 {
    (2 * 5 * QUERY_TILE * (shape.head_dim + 8)) as u32
}

/// `cuda/attention.cu`: a block is four warps, and one head's.
fn mma(shape: &ModelShape) -> Result<Kernels> {
    // Queries, their gradient, keys, values, statistics.
    let backward = (2 * 4 * KEY_TILE * (shape.head_dim + 8) + 2 * 4 * KEY_TILE) as u32;
    Ok(Kernels {
        forward: by_head_dim(shape, "attention_forward_64", "attention_forward_128")?,
        backward_q: by_head_dim(shape, "attention_backward_q_64", "attention_backward_q_128")?,
        backward_kv: by_head_dim(
            shape,
            "attention_backward_kv_64",
            "attention_backward_kv_128",
        )?,
        threads: 128,
        head_blocks: shape.num_heads,
        forward_bytes: forward_bytes(shape),
        backward_q_bytes: backward,
        backward_kv_bytes: backward,
    })
}

/// `cuda/attention_wgmma.cu`: a block is three warpgroups, and two heads' of one
/// KV head.
fn wgmma(shape: &ModelShape) -> Result<Kernels> {
    // What is lost to the boundary of 1,024 bytes that tiles begin at, and room
    // for barriers.
    let beside = 1024 + 128;
    let rows = |n: usize| 2 * n * shape.head_dim;
    let pairs = (shape.num_heads / shape.num_kv_heads).div_ceil(2);
    // Two stages of keys and values, of 128 rows or of 64.
    let (forward, backward) = (2 * 2 * rows(128), 2 * 2 * rows(KEY_TILE));
    Ok(Kernels {
        forward: by_head_dim(
            shape,
            "attention_wgmma_forward_64",
            "attention_wgmma_forward_128",
        )?,
        backward_q: by_head_dim(
            shape,
            "attention_wgmma_backward_q_64",
            "attention_wgmma_backward_q_128",
        )?,
        backward_kv: by_head_dim(
            shape,
            "attention_wgmma_backward_kv_64",
            "attention_wgmma_backward_kv_128",
        )?,
        threads: 384,
        head_blocks: shape.num_kv_heads * pairs,
        forward_bytes: (beside + 2 * rows(QUERY_TILE) + forward) as u32,
        backward_q_bytes: (beside + 2 * 2 * rows(QUERY_TILE) + backward) as u32,
        // Keys and values once; two heads' queries, gradients and statistics in
        // two stages.
        backward_kv_bytes: (beside
            + 2 * rows(KEY_TILE)
            + 2 * 2 * (2 * rows(QUERY_TILE) + 2 * 4 * QUERY_TILE))
            as u32,
    })
}

impl Cuda {
    fn attention(&self, shape: &ModelShape) -> Result<Kernels> {
        match self.attention_kernels(shape)? {
            AttentionKernels::Mma => mma(shape),
            AttentionKernels::Wgmma => wgmma(shape),
        }
    }
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
        let kernels = self.attention(shape)?;
        let rows = qk.len / (shape.q_width() + shape.kv_width());
        let tiles = match rows == batch.host.saved_rows {
            true => batch.saved_query_tiles,
            false => batch.query_tiles,
        };
        let grid = [tiles as u32, kernels.head_blocks as u32, 1];
        self.launch(
            ctx,
            Launch::new(kernels.forward, grid, kernels.threads)
                .shared(kernels.forward_bytes)
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
        let kernels = self.attention(shape)?;
        let tiles = batch.saved_query_tiles as u32;
        let grid = [tiles, kernels.head_blocks as u32, 1];
        self.launch(
            ctx,
            Launch::new(kernels.backward_q, grid, kernels.threads)
                .shared(kernels.backward_q_bytes)
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
        let grid = [batch.key_tiles as u32, shape.num_kv_heads as u32, 1];
        self.launch(
            ctx,
            Launch::new(kernels.backward_kv, grid, kernels.threads)
                .shared(kernels.backward_kv_bytes)
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
