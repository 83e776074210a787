//! Launches of `cuda/lora_backward.cu`: ds, dA and dB of rows that all go
//! through one adapter, with one read of dy.

use anyhow::Result;
use half::bf16;

use super::lora::{GradientOperands, Products, TILE, chunks, chunks_bytes, ends};
use super::stride_grid;
use crate::device::cuda::batch::CudaBatch;
use crate::device::cuda::{Address, Cuda, Launch};
use crate::device::{Ctx, SliceMut};
use crate::episode::AdapterId;
use crate::model::adapter::AdapterLayout;
use crate::ops::lora::LoraBackward;

/// Largest padded rank that the kernels take.
const MOST_RANK: usize = 32;
/// Most columns of dy that a block takes.
const MOST_COLUMNS: usize = 512;
/// Blocks of a launch that columns are cut for: about one a multiprocessor.
const BLOCKS: usize = 128;
/// Tiles of dy that a block has in shared memory.
const STAGES: usize = 4;

/// A backward that one pass over dy does, and how that is cut.
#[derive(Clone, Debug)]
pub struct OnePass {
    adapter: AdapterId,
    rows: usize,
    /// By part of the group.
    ranks: [usize; 3],
    widths: Vec<usize>,
    /// Columns of dy that a block takes.
    chunk_columns: usize,
}

impl LoraBackward<'_, Cuda> {
    /// How one pass does it; none where rows use several adapters or none, or
    /// ranks are too large.
    pub fn one_pass(&self, batch: &CudaBatch, rows: usize) -> Option<OnePass> {
        let run = batch.runs().first()?;
        if rows == 0 || run.rows.start > 0 || run.rows.end < rows {
            return None;
        }
        let adapter = run.adapter?;
        let ranks = self.adapters.padded_ranks(adapter, self.layer, self.group);
        let widths = self.group.outputs(self.layout.shape());
        taken(ranks).then(|| OnePass {
            adapter,
            rows,
            ranks,
            chunk_columns: chunk_columns(rows, &widths),
            widths,
        })
    }
}

impl OnePass {
    /// The same with blocks of so many columns, a multiple of 64 up to 512.
    pub fn in_chunks_of(self, chunk_columns: usize) -> OnePass {
        assert!(
            chunk_columns.is_multiple_of(TILE) && (TILE..=MOST_COLUMNS).contains(&chunk_columns)
        );
        OnePass {
            chunk_columns,
            ..self
        }
    }

    /// The kernels' columns of s.
    fn n(&self) -> usize {
        match self.ranks.iter().max() {
            Some(..=16) => 16,
            _ => 32,
        }
    }

    /// Blocks side by side: chunks of the adapted parts' columns.
    fn chunks(&self) -> usize {
        let parts = self.widths.iter().zip(self.ranks);
        let adapted = parts.filter(|(_, r)| *r > 0);
        adapted.map(|(w, _)| w.div_ceil(self.chunk_columns)).sum()
    }
}

/// Whether the kernels take a group's padded ranks.
fn taken(ranks: [usize; 3]) -> bool {
    (1..=MOST_RANK).contains(&ranks.into_iter().max().unwrap_or(0))
}

/// Columns of dy that a block takes: few where there are few rows, so that there
/// are blocks enough. Set by rows and widths alone, so that a sum's order is too.
fn chunk_columns(rows: usize, widths: &[usize]) -> usize {
    let (_, row_chunks) = chunks(rows);
    let columns = widths.iter().sum::<usize>() * row_chunks / BLOCKS;
    1 << columns.clamp(TILE, MOST_COLUMNS).ilog2()
}

/// The column chunks' sums of ds.
fn sums_bytes(rows: usize, widths: &[usize], ranks: [usize; 3], chunk_columns: usize) -> usize {
    let parts = widths.iter().zip(ranks);
    4 * rows
        * parts
            .map(|(w, r)| w.div_ceil(chunk_columns) * r)
            .sum::<usize>()
}

/// Shared memory of a block: its rows of B, and tiles of dy and s.
fn shared_bytes(n: usize) -> u32 {
    (2 * (MOST_COLUMNS * (n + 8) + STAGES * TILE * (TILE + 8 + n + 8))) as u32
}

/// The most scratch that an adapter's backward of up to `rows` rows asks for.
pub(crate) fn most_workspace_bytes(layout: &AdapterLayout, rows: usize) -> usize {
    let mut most = 0;
    for (layer, module, _) in layout.factors() {
        let group = module.group();
        let elements = layout.group(layer, group).len();
        let widths = group.outputs(layout.shape());
        let mut ranks = [0; 3];
        for (rank, &module) in ranks.iter_mut().zip(group.modules()) {
            let factor = layout.factor(layer, module);
            *rank = factor.map_or(0, |f| f.r.next_multiple_of(16));
        }
        // More rows may be cut into fewer chunks, at multiples of a tile.
        for rows in (0..rows).step_by(TILE).map(|r| rows.min(r + TILE)) {
            let sums = match taken(ranks) {
                true => sums_bytes(rows, &widths, ranks, chunk_columns(rows, &widths)),
                false => 0,
            };
            most = most.max(sums + chunks_bytes(rows, elements));
        }
    }
    most
}

impl Cuda {
    /// [`Lora::lora_backward`] in one pass over dy.
    ///
    /// [`Lora::lora_backward`]: crate::ops::lora::Lora::lora_backward
    pub fn lora_backward_in_one(
        &self,
        ctx: &Ctx<Self>,
        batch: &CudaBatch,
        pass: &OnePass,
        call: &LoraBackward<Self>,
        ds: SliceMut<Self, bf16>,
        grads: SliceMut<Self, f32>,
    ) -> Result<()> {
        let &LoraBackward {
            layout,
            layer,
            group,
            x,
            s,
            dy,
            ..
        } = call;
        let rows = pass.rows;
        let place = layout.group(layer, group);
        let elements = place.len();
        let sums_bytes = sums_bytes(rows, &pass.widths, pass.ranks, pass.chunk_columns);
        let chunks_bytes = chunks_bytes(rows, elements);
        let sums = self.workspace(ctx, sums_bytes + chunks_bytes)?;
        let grads = grads.address() + 4 * place.start as u64;
        let out = match chunks_bytes {
            0 => grads,
            _ => sums + sums_bytes as u64,
        };
        let kernel = match pass.n() {
            16 => "lora_backward_16",
            _ => "lora_backward_32",
        };
        let (chunk_rows, row_chunks) = chunks(rows);
        let [end0, end1, end2] = ends(&pass.widths);
        let factors = call.adapters.factors(layer, group);
        self.launch(
            ctx,
            Launch::new(kernel, [pass.chunks() as u32, row_chunks as u32, 1], 128)
                .shared(shared_bytes(pass.n()))
                .ptr("dy", &dy)
                .u32("dy_stride", dy.stride(rows))
                .ptr("s", &s)
                .u32("s_stride", s.stride(rows))
                .ptr("factors", &factors)
                .u32("adapters", call.adapters.len())
                .u32("adapter", pass.adapter.0 as usize)
                .ptr("sums", &sums)
                .ptr("gradients", &out)
                .u64("elements", elements as u64)
                .u32("inputs", group.inputs(layout.shape()))
                .u32("end0", end0)
                .u32("end1", end1)
                .u32("end2", end2)
                .u32("rows", rows)
                .u32("chunk_rows", chunk_rows)
                .u32("chunk_columns", pass.chunk_columns),
        )?;
        let widest = pass.ranks.into_iter().max().unwrap_or(0);
        let [blocks, _, _] = stride_grid(self, rows * widest / 4, 256);
        self.launch(
            ctx,
            Launch::new(
                "lora_backward_sum",
                [blocks, pass.widths.len() as u32, 1],
                256,
            )
            .ptr("sums", &sums)
            .ptr("factors", &factors)
            .u32("adapters", call.adapters.len())
            .u32("adapter", pass.adapter.0 as usize)
            .ptr("ds", &ds)
            .u32("ds_stride", ds.stride(rows))
            .u32("end0", end0)
            .u32("end1", end1)
            .u32("end2", end2)
            .u32("rows", rows)
            .u32("chunk_columns", pass.chunk_columns),
        )?;
        let operands = GradientOperands {
            layout,
            layer,
            group,
            x,
            s,
            dy,
            ds: ds.as_const(),
        };
        self.gradient_products(ctx, batch, rows, &operands, Products::OfA, out)?;
        self.add_chunks(ctx, rows, elements, out, grads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::adapter::LoraSettings;
    use crate::model::config::{Group, ModelShape, Module};

    fn layout(r: usize) -> AdapterLayout {
        let config = include_str!("../../../tools/compare/5m.json");
        let shape = ModelShape::from_json(&serde_json::from_str(config).unwrap()).unwrap();
        let targets = [Module::K, Module::Gate, Module::Up];
        let settings = LoraSettings::uniform(&shape, &targets, r, 8.0, 0.0, false);
        AdapterLayout::new(&shape, settings).unwrap()
    }

    /// What plans reserve is the most of what any number of rows asks for.
    #[test]
    fn no_batch_asks_for_more_than_is_planned() {
        for (r, sums) in [(4, true), (30, true), (40, false)] {
            let layout = layout(r);
            let groups = Group::ALL.map(|g| (layout.group(0, g).len(), g.outputs(layout.shape())));
            let padded = r.next_multiple_of(16);
            let ranks = [[0, padded, 0], [0; 3], [padded, padded, 0], [0; 3]];
            let (mut most, mut at) = (0, 0);
            for rows in 1..=20_000 {
                for ((elements, widths), ranks) in groups.iter().zip(ranks) {
                    let columns = chunk_columns(rows, widths);
                    let sums = match sums {
                        true => sums_bytes(rows, widths, ranks, columns),
                        false => 0,
                    };
                    most = most.max(sums + chunks_bytes(rows, *elements));
                }
                if [1, 63, 64, 500, 513, 1700, 8200, 9216, 9217, 20_000].contains(&rows) {
                    assert_eq!(
                        most_workspace_bytes(&layout, rows),
                        most,
                        "{rows} rows, r {r}"
                    );
                    at += 1;
                }
            }
            assert_eq!(at, 10);
        }
    }

    /// At the sizes of a real step there is work for every multiprocessor, and
    /// ds's sums are a fraction of dy; few rows are cut finer.
    #[test]
    fn columns_are_cut_by_the_work() {
        for (widths, columns) in [
            (&[2048][..], 256),
            (&[2048, 1024, 1024], 512),
            (&[6144, 6144], 512),
        ] {
            assert_eq!(chunk_columns(16_384, widths), columns);
            let blocks = widths
                .iter()
                .map(|w: &usize| w.div_ceil(columns))
                .sum::<usize>()
                * chunks(16_384).1;
            assert!(blocks >= BLOCKS, "{widths:?}: {blocks} blocks");
        }
        assert_eq!(chunk_columns(300, &[6144, 6144]), 64);
        assert_eq!(chunk_columns(1, &[16]), 64);
    }
}
