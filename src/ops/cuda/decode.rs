//! Launches of `cuda/decode.cu`, and of `cuda/attention.cu` over pages: see
//! [`crate::ops::decode`] for the contract.

use anyhow::{Result, ensure};
use half::bf16;

use super::attention::forward_bytes;
use super::by_head_dim;
use crate::device::cuda::{Address, Cuda, Launch};
use crate::device::{Ctx, Device, Slice, SliceMut};
use crate::model::config::ModelShape;
use crate::ops::decode::{DecodeAttention, PAGE, page_elements};

/// Shared memory of a decode block: queries, and per warp two pages of keys and
/// of values and the statistics of its rows.
fn block_bytes(shape: &ModelShape) -> u32 {
    let row = 2 * (shape.head_dim + 8);
    (16 * row + 4 * 2 * 2 * PAGE * row + 2 * 4 * 16 * 4) as u32
}

impl DecodeAttention for Cuda {
    fn decode_attention(
        &self,
        ctx: &Ctx<Self>,
        batch: &<Self as Device>::Batch,
        shape: &ModelShape,
        qk: Slice<Self, bf16>,
        qkv: Slice<Self, bf16>,
        pages: SliceMut<Self, bf16>,
        out: SliceMut<Self, bf16>,
    ) -> Result<()> {
        let host = &batch.host;
        ensure!(
            host.pages.len() == host.segments.len(),
            "paged attention needs a page table for every segment"
        );
        let group = shape.num_heads / shape.num_kv_heads;
        ensure!(
            group <= 16,
            "{group} query heads per KV head: the CUDA kernels take up to 16"
        );
        let rows = qk.len / (shape.q_width() + shape.kv_width());
        let kernel = by_head_dim(shape, "decode_attention_64", "decode_attention_128")?;
        let paged = by_head_dim(shape, "attention_paged_64", "attention_paged_128")?;
        self.launch(
            ctx,
            Launch::new("decode_write_kv", [batch.query_tiles as u32, 1, 1], 128)
                .ptr("qk", &qk)
                .ptr("qkv", &qkv)
                .ptr("tiles", &batch.lists.query_tiles)
                .ptr("segments", &batch.lists.segments)
                .ptr("table", &batch.lists.pages)
                .ptr("pages", &pages)
                .u32("heads", shape.num_heads)
                .u32("kv_heads", shape.num_kv_heads)
                .u32("d", shape.head_dim),
        )?;
        if host.segments.iter().any(|s| s.rows.len() == 1) {
            let grid = [host.segments.len() as u32, shape.num_kv_heads as u32, 1];
            self.launch(
                ctx,
                Launch::new(kernel, grid, 128)
                    .shared(block_bytes(shape))
                    .ptr("qk", &qk)
                    .ptr("pages", &pages)
                    .ptr("positions", &batch.lists.positions)
                    .ptr("segments", &batch.lists.segments)
                    .ptr("table", &batch.lists.pages)
                    .ptr("out", &out)
                    .u32("out_stride", out.stride(rows))
                    .u32("heads", shape.num_heads)
                    .u32("kv_heads", shape.num_kv_heads),
            )?;
        }
        if host.segments.iter().any(|s| s.rows.len() > 1) {
            let grid = [batch.query_tiles as u32, shape.num_heads as u32, 1];
            self.launch(
                ctx,
                Launch::new(paged, grid, 128)
                    .shared(forward_bytes(shape))
                    .ptr("qk", &qk)
                    .ptr("pages", &pages)
                    .ptr("tiles", &batch.lists.query_tiles)
                    .ptr("segments", &batch.lists.segments)
                    .ptr("table", &batch.lists.pages)
                    .ptr("out", &out)
                    .u32("out_stride", out.stride(rows))
                    .u32("heads", shape.num_heads)
                    .u32("kv_heads", shape.num_kv_heads),
            )?;
        }
        Ok(())
    }

    fn copy_page(
        &self,
        ctx: &Ctx<Self>,
        shape: &ModelShape,
        pages: SliceMut<Self, bf16>,
        from: u32,
        to: u32,
    ) -> Result<()> {
        let bytes = 2 * page_elements(shape);
        let at = |page: u32| pages.address() + page as u64 * bytes as u64;
        self.driver.copy(ctx.stream.id, at(to), at(from), bytes)
    }
}
