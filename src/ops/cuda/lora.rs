//! Launches of `cuda/lora.cu`: see [`crate::ops::lora`] for the contract.

mod adapters;

use anyhow::Result;
use half::bf16;

pub use adapters::CudaAdapters;
pub(crate) use adapters::{compute_elements, source_words, table_words};

use super::linear::CudaMatrix;
use super::stride_grid;
use crate::device::cuda::batch::CudaBatch;
use crate::device::cuda::{Address, Cuda, Launch};
use crate::device::{Ctx, Slice, SliceMut};
use crate::episode::AdapterId;
use crate::model::adapter::AdapterLayout;
use crate::model::config::{Group, ModelShape};
use crate::ops::lora::{Lora, LoraBackward, LoraCall, two_passes};

/// Columns or rows of one block of a product.
pub(super) const TILE: usize = 64;
/// Rows of one partial sum of a gradient, and most partial sums.
const CHUNK_ROWS: usize = 512;
const MOST_CHUNKS: usize = 16;

/// Padded ranks' columns: the width of the kernels' column blocks.
fn columns(r_padded: usize) -> usize {
    if r_padded <= 16 { 16 } else { 64 }
}

/// Shared memory of a product with double-buffered tiles of 64 by 64 and 64 by
/// `n` (stored either way).
fn tiles_bytes(n: usize) -> u32 {
    (2 * 2 * (TILE * (TILE + 8) + (TILE * (n + 8)).max(n * (TILE + 8)))) as u32
}

/// Chunks' sums of a group's gradients, of so many elements.
pub(super) fn chunks_bytes(rows: usize, elements: usize) -> usize {
    match chunks(rows).1 {
        1 => 0,
        n => 4 * n * elements,
    }
}

/// Rows of a chunk, and how many there are: set by the rows alone, so that a
/// sum's order is too.
pub(super) fn chunks(rows: usize) -> (usize, usize) {
    let each = CHUNK_ROWS.max(rows.div_ceil(MOST_CHUNKS).next_multiple_of(TILE));
    (each, rows.div_ceil(each).max(1))
}

/// Names a layer's group for dropout; parts are added.
fn place(layer: usize, group: Group) -> u64 {
    (layer as u64) << 8 | (group as u64) << 4
}

/// Last columns of up to three parts.
pub(super) fn ends(parts: &[usize]) -> [usize; 3] {
    let mut ends = [0; 3];
    let mut sum = 0;
    for (i, end) in ends.iter_mut().enumerate() {
        sum += parts.get(i).unwrap_or(&0);
        *end = sum;
    }
    ends
}

fn dropout_p(batch: &CudaBatch) -> f32 {
    batch.host.dropout.as_ref().map_or(0.0, |d| d.p)
}

impl Cuda {
    /// y += s B^T for adapted rows.
    pub(crate) fn lora_expand(
        &self,
        ctx: &Ctx<Self>,
        batch: &CudaBatch,
        rows: usize,
        call: &LoraCall<Self>,
        weight: &CudaMatrix,
        y: SliceMut<Self, bf16>,
    ) -> Result<()> {
        let tiles = batch.adapter_tiles(rows);
        let widths: Vec<usize> = weight.parts.iter().map(|p| p.len()).collect();
        let blocks: usize = widths.iter().map(|w| w.div_ceil(TILE)).sum();
        let [end0, end1, end2] = ends(&widths);
        self.launch(
            ctx,
            Launch::new("lora_expand", [tiles as u32, blocks as u32, 1], 128)
                .shared((2 * 2 * TILE * (TILE + 8)) as u32)
                .ptr("s", &call.s)
                .ptr("factors", &call.adapters.factors(call.layer, call.group))
                .u32("adapters", call.adapters.len())
                .ptr("tiles", &batch.lists.adapter_tiles)
                .ptr("y", &y)
                .u32("total", weight.outputs)
                .u32("s_stride", call.s.stride(rows))
                .u32("end0", end0)
                .u32("end1", end1)
                .u32("end2", end2),
        )
    }

    /// dx += ds A for adapted rows, through the dropout mask.
    pub(crate) fn lora_expand_backward(
        &self,
        ctx: &Ctx<Self>,
        batch: &CudaBatch,
        rows: usize,
        call: &LoraCall<Self>,
        weight: &CudaMatrix,
        dx: SliceMut<Self, bf16>,
    ) -> Result<()> {
        let tiles = batch.adapter_tiles(rows) as u32;
        let blocks = weight.inputs.div_ceil(TILE) as u32;
        self.launch(
            ctx,
            Launch::new("lora_expand_backward", [tiles, blocks, 1], 128)
                .shared((2 * 2 * TILE * (TILE + 8)) as u32)
                .ptr("ds", &call.s)
                .ptr("factors", &call.adapters.factors(call.layer, call.group))
                .u32("adapters", call.adapters.len())
                .u32("parts", call.group.modules().len())
                .ptr("tiles", &batch.lists.adapter_tiles)
                .ptr("dx", &dx)
                .u32("inputs", weight.inputs)
                .u32("s_stride", call.s.stride(rows))
                .ptr("keys", &batch.lists.dropout_keys)
                .u64("place", place(call.layer, call.group))
                .f32("p", dropout_p(batch)),
        )
    }
}

impl Lora for Cuda {
    type Adapters = CudaAdapters;

    fn new_adapters(&self, shape: &ModelShape) -> Result<CudaAdapters> {
        Ok(CudaAdapters::new(shape))
    }

    fn sync_adapter(
        &self,
        ctx: &Ctx<Self>,
        adapters: &mut CudaAdapters,
        id: AdapterId,
        layout: &AdapterLayout,
        params: Slice<Self, f32>,
    ) -> Result<()> {
        self.sync(ctx, adapters, id, layout, params)
    }

    fn lora_shrink(
        &self,
        ctx: &Ctx<Self>,
        batch: &CudaBatch,
        rows: usize,
        adapters: &CudaAdapters,
        layer: usize,
        group: Group,
        x: Slice<Self, bf16>,
        s: SliceMut<Self, bf16>,
    ) -> Result<()> {
        let widest = adapters.widest[group as usize];
        let n = columns(widest);
        let dropout = batch.lists.dropout_keys != 0;
        let kernel = match (n, dropout) {
            (16, false) => "lora_shrink_16",
            (16, true) => "lora_shrink_dropout_16",
            (_, false) => "lora_shrink_64",
            (_, true) => "lora_shrink_dropout_64",
        };
        let grid = [
            widest.div_ceil(n) as u32,
            group.modules().len() as u32,
            batch.adapter_tiles(rows) as u32,
        ];
        let mut launch = Launch::new(kernel, grid, 128)
            .shared(tiles_bytes(n))
            .ptr("x", &x)
            .ptr("factors", &adapters.factors(layer, group))
            .u32("adapters", adapters.len())
            .ptr("tiles", &batch.lists.adapter_tiles)
            .ptr("s", &s)
            .u32("inputs", group.inputs(&adapters.shape))
            .u32("x_stride", x.stride(rows))
            .u32("s_stride", s.stride(rows));
        if dropout {
            launch = launch
                .ptr("keys", &batch.lists.dropout_keys)
                .u64("place", place(layer, group))
                .f32("p", dropout_p(batch));
        }
        self.launch(ctx, launch)
    }

    fn lora_shrink_backward(
        &self,
        ctx: &Ctx<Self>,
        batch: &CudaBatch,
        rows: usize,
        adapters: &CudaAdapters,
        layer: usize,
        group: Group,
        dy: Slice<Self, bf16>,
        ds: SliceMut<Self, bf16>,
    ) -> Result<()> {
        let widest = adapters.widest[group as usize];
        let n = columns(widest);
        let widths = group.outputs(&adapters.shape);
        let [end0, end1, end2] = ends(&widths);
        let kernel = match n {
            16 => "lora_shrink_backward_16",
            _ => "lora_shrink_backward_64",
        };
        let grid = [
            widest.div_ceil(n) as u32,
            widths.len() as u32,
            batch.adapter_tiles(rows) as u32,
        ];
        self.launch(
            ctx,
            Launch::new(kernel, grid, 128)
                .shared(tiles_bytes(n))
                .ptr("dy", &dy)
                .ptr("factors", &adapters.factors(layer, group))
                .u32("adapters", adapters.len())
                .ptr("tiles", &batch.lists.adapter_tiles)
                .ptr("ds", &ds)
                .u32("dy_stride", dy.stride(rows))
                .u32("s_stride", ds.stride(rows))
                .u32("end0", end0)
                .u32("end1", end1)
                .u32("end2", end2),
        )
    }

    fn lora_backward(
        &self,
        ctx: &Ctx<Self>,
        batch: &CudaBatch,
        rows: usize,
        call: &LoraBackward<Self>,
        ds: SliceMut<Self, bf16>,
        grads: SliceMut<Self, f32>,
    ) -> Result<()> {
        match call.one_pass(batch, rows) {
            Some(pass) => self.lora_backward_in_one(ctx, batch, &pass, call, ds, grads),
            None => two_passes(self, ctx, batch, rows, call, ds, grads),
        }
    }

    fn lora_gradients(
        &self,
        ctx: &Ctx<Self>,
        batch: &CudaBatch,
        rows: usize,
        layout: &AdapterLayout,
        layer: usize,
        group: Group,
        x: Slice<Self, bf16>,
        s: Slice<Self, bf16>,
        dy: Slice<Self, bf16>,
        ds: Slice<Self, bf16>,
        grads: SliceMut<Self, f32>,
    ) -> Result<()> {
        let place_in_arena = layout.group(layer, group);
        let elements = place_in_arena.len();
        if rows == 0 || elements == 0 {
            return Ok(());
        }
        let grads = grads.address() + 4 * place_in_arena.start as u64;
        let out = match chunks_bytes(rows, elements) {
            0 => grads,
            bytes => self.workspace(ctx, bytes)?,
        };
        let operands = GradientOperands {
            layout,
            layer,
            group,
            x,
            s,
            dy,
            ds,
        };
        self.gradient_products(ctx, batch, rows, &operands, Products::All, out)?;
        self.add_chunks(ctx, rows, elements, out, grads)
    }
}

/// Which of a group's gradients are made.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Products {
    All,
    OfA,
}

/// What a group's gradients in a layer are made of.
pub(super) struct GradientOperands<'a> {
    pub layout: &'a AdapterLayout,
    pub layer: usize,
    pub group: Group,
    pub x: Slice<'a, Cuda, bf16>,
    pub s: Slice<'a, Cuda, bf16>,
    pub dy: Slice<'a, Cuda, bf16>,
    pub ds: Slice<'a, Cuda, bf16>,
}

impl Cuda {
    /// Products over rows, added to the group's gradients at `out`; where there
    /// are several chunks of rows, their sums are put there one behind the other.
    pub(super) fn gradient_products(
        &self,
        ctx: &Ctx<Self>,
        batch: &CudaBatch,
        rows: usize,
        operands: &GradientOperands,
        which: Products,
        out: u64,
    ) -> Result<()> {
        let GradientOperands {
            layout,
            layer,
            group,
            x,
            s,
            dy,
            ds,
        } = *operands;
        let inputs = group.inputs(layout.shape());
        let widths = group.outputs(layout.shape());
        let mut ranks = [0; 3];
        for (rank, &module) in ranks.iter_mut().zip(group.modules()) {
            *rank = layout.factor(layer, module).map_or(0, |f| f.r);
        }
        let padded = ranks.map(|r| r.next_multiple_of(16));
        let dropout = batch.lists.dropout_keys != 0;
        // Widths and columns of the products: the parts share x, but for their masks.
        let of_a = match dropout {
            false => vec![(inputs, padded.iter().sum())],
            true => padded.iter().map(|&c| (inputs, c)).collect(),
        };
        let mut products = of_a;
        if which == Products::All {
            products.extend(widths.iter().copied().zip(padded));
        }
        let n = columns(products.iter().map(|p| p.1).max().unwrap_or(0));
        let blocks: usize = products
            .iter()
            .map(|(width, columns)| width.div_ceil(TILE) * columns.div_ceil(n))
            .sum();
        let kernel = match (n, dropout) {
            (16, false) => "lora_gradients_16",
            (16, true) => "lora_gradients_dropout_16",
            (_, false) => "lora_gradients_64",
            (_, true) => "lora_gradients_dropout_64",
        };
        let (chunk_rows, chunks) = chunks(rows);
        let [end0, end1, end2] = ends(&widths);
        let mut launch = Launch::new(kernel, [blocks as u32, chunks as u32, 1], 128)
            .shared(tiles_bytes(n))
            .ptr("x", &x)
            .u32("x_stride", x.stride(rows))
            .ptr("ds", &ds)
            .u32("ds_stride", ds.stride(rows))
            .ptr("dy", &dy)
            .u32("dy_stride", dy.stride(rows))
            .ptr("s", &s)
            .u32("s_stride", s.stride(rows))
            .ptr("out", &out)
            .u64("elements", layout.group(layer, group).len() as u64)
            .u32("inputs", inputs)
            .u32("r0", ranks[0])
            .u32("r1", ranks[1])
            .u32("r2", ranks[2])
            .u32("end0", end0)
            .u32("end1", end1)
            .u32("end2", end2)
            .u32("rows", rows)
            .u32("chunk_rows", chunk_rows);
        if dropout {
            launch = launch
                .ptr("keys", &batch.lists.dropout_keys)
                .u64("place", place(layer, group))
                .f32("p", dropout_p(batch));
        }
        self.launch(ctx, launch)
    }

    /// Adds the chunks' sums that [`Cuda::gradient_products`] left at `out` to a
    /// group's gradients, where there are several.
    pub(super) fn add_chunks(
        &self,
        ctx: &Ctx<Self>,
        rows: usize,
        elements: usize,
        out: u64,
        grads: u64,
    ) -> Result<()> {
        let (_, chunks) = chunks(rows);
        if chunks == 1 {
            return Ok(());
        }
        self.launch(
            ctx,
            Launch::new("lora_gradients_sum", stride_grid(self, elements, 256), 256)
                .ptr("partial", &out)
                .ptr("grad", &grads)
                .u64("n", elements as u64)
                .u32("chunks", chunks),
        )
    }
}
