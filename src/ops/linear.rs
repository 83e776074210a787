//! Base products: y = [x | s] [W | B]^T and dx = [dy | ds] [W; A].
//!
//! Several weights that share an input (q|k|v, gate|up) are the *parts* of one
//! matrix, side by side in its output. The LoRA terms are part of the same
//! reduction (see [`crate::ops::lora`]): no second pass over the output.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, ensure};
use half::{bf16, f16};
use memmap2::Mmap;

use crate::device::cpu::gemm::{self, Block, LANES, Left, Right, Sums};
use crate::device::cpu::{Cpu, memory, pool};
use crate::device::{Ctx, Device, Float, Slice, SliceMut};
use crate::ops::lora::{Lora, LoraCall};

/// Element types a checkpoint may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightDtype {
    F32,
    Bf16,
    F16,
}

impl WeightDtype {
    pub fn size(self) -> usize {
        match self {
            WeightDtype::F32 => 4,
            WeightDtype::Bf16 | WeightDtype::F16 => 2,
        }
    }
}

/// A matrix `[out, in]` as it lies in a mapped checkpoint.
#[derive(Clone)]
pub struct WeightView {
    pub map: Arc<Mmap>,
    pub bytes: Range<usize>,
    pub dtype: WeightDtype,
    pub rows: usize,
    pub cols: usize,
}

impl WeightView {
    /// Element `i` in row-major order.
    #[inline(always)]
    pub fn get(&self, i: usize) -> f32 {
        let bytes = &self.map[self.bytes.clone()];
        match self.dtype {
            WeightDtype::F32 => f32::from_le_bytes([
                bytes[4 * i],
                bytes[4 * i + 1],
                bytes[4 * i + 2],
                bytes[4 * i + 3],
            ]),
            WeightDtype::Bf16 => bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
            WeightDtype::F16 => f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
        }
    }

    /// All elements as f32 (for vectors: norms and biases).
    pub fn to_vec(&self) -> Vec<f32> {
        (0..self.rows * self.cols).map(|i| self.get(i)).collect()
    }

    /// Let the system have the pages back that only this matrix lies in: it was
    /// copied, and what is read of it again comes from the file again.
    fn release(&self) {
        #[cfg(unix)]
        {
            const PAGE: usize = 4096;
            let first = self.bytes.start.next_multiple_of(PAGE);
            let end = self.bytes.end / PAGE * PAGE;
            if first < end {
                // SAFETY: the map is of a file and is never written, so that
                // dropped pages read the same as before. It is a hint only.
                let _ = unsafe {
                    self.map.unchecked_advise_range(
                        memmap2::UncheckedAdvice::DontNeed,
                        first,
                        end - first,
                    )
                };
            }
        }
    }

    /// One row as it is stored.
    #[inline(always)]
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        let size = self.dtype.size();
        let start = self.bytes.start + row * self.cols * size;
        &self.map[start..start + self.cols * size]
    }

    /// Call `f(column, value)` over one row.
    #[inline(always)]
    pub fn read_row(&self, row: usize, mut f: impl FnMut(usize, f32)) {
        let bytes = self.row_bytes(row);
        match self.dtype {
            WeightDtype::F32 => {
                for (j, b) in bytes.as_chunks::<4>().0.iter().enumerate() {
                    f(j, f32::from_le_bytes(*b));
                }
            }
            WeightDtype::Bf16 => {
                for (j, b) in bytes.as_chunks::<2>().0.iter().enumerate() {
                    f(j, Float::to_f32(bf16::from_le_bytes(*b)));
                }
            }
            WeightDtype::F16 => {
                for (j, b) in bytes.as_chunks::<2>().0.iter().enumerate() {
                    f(j, f16::from_le_bytes(*b).to_f32());
                }
            }
        }
    }
}

pub trait Linear: Device + Lora {
    /// A base weight in the form the device multiplies by.
    type Matrix: Send + Sync;
    /// An embedding table.
    type Table: Send + Sync + TableInfo;

    /// Parts `[out_p, in]` with one `in`; `bias` is over all parts' outputs.
    /// `backward` makes room for products with the transpose, `lora` for so
    /// many columns of s, where the device keeps factors beside the weight.
    fn load_matrix(
        &self,
        parts: &[WeightView],
        bias: Option<Vec<f32>>,
        backward: bool,
        lora: usize,
    ) -> Result<Self::Matrix>;

    fn load_table(&self, view: WeightView) -> Result<Self::Table>;

    /// y `[rows, sum out_p]`, overwritten, from x `[rows, in]` and, for
    /// adapted rows, s as `lora_shrink` left it. The rows of x may have room
    /// behind them, which may be where s is.
    fn linear_forward(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        rows: usize,
        weight: &Self::Matrix,
        x: Slice<Self, Self::Act>,
        lora: Option<LoraCall<Self>>,
        y: SliceMut<Self, Self::Act>,
    ) -> Result<()>;

    /// dx `[rows, in]`, overwritten, from dy `[rows, sum out_p]` and ds as
    /// `lora_shrink_backward` left it. The rows of dy may have room behind them.
    fn linear_backward(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        rows: usize,
        weight: &Self::Matrix,
        dy: Slice<Self, Self::Act>,
        lora: Option<LoraCall<Self>>,
        dx: SliceMut<Self, Self::Act>,
    ) -> Result<()>;
}

/// What the host may ask of an embedding table.
pub trait TableInfo {
    fn hidden(&self) -> usize;
    fn vocab(&self) -> usize;
}

/// Weights in panels, in the checkpoint's precision: bf16 stays bf16 and is
/// widened in registers, exactly, so an f32 product reads half the bytes.
pub enum Panels {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Panels {
    fn bytes(&self) -> usize {
        match self {
            Panels::F32(v) => size_of_val(&v[..]),
            Panels::Bf16(v) => size_of_val(&v[..]),
        }
    }

    /// Elements of a weight packed for the forward: each part's outputs in
    /// whole panels.
    pub(crate) fn forward_elements(inputs: usize, parts: &[usize]) -> usize {
        let panels: usize = parts.iter().map(|n| n.div_ceil(LANES)).sum();
        panels * LANES * inputs
    }

    /// The same for the backward, with the inputs in whole panels.
    pub(crate) fn backward_elements(inputs: usize, parts: &[usize]) -> usize {
        inputs.div_ceil(LANES) * LANES * parts.iter().sum::<usize>()
    }

    fn zeroed(len: usize, dtype: WeightDtype) -> Panels {
        match dtype {
            WeightDtype::Bf16 => Panels::Bf16(memory::zeroed(len)),
            _ => Panels::F32(memory::zeroed(len)),
        }
    }

    /// See [`gemm::product`]; panels are packed with reductions of `k`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn product<A: Float>(
        &self,
        rows: Range<usize>,
        panels: Range<usize>,
        k: usize,
        left: Left<A>,
        sums: Sums,
    ) {
        match self {
            Panels::F32(v) => gemm::product(rows, panels, k, left, Right::weight(v, k), sums),
            Panels::Bf16(v) => gemm::product(rows, panels, k, left, Right::weight(v, k), sums),
        }
    }
}

/// A base weight on the CPU.
pub struct CpuMatrix {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) parts: Vec<Part>,
    bias: Option<Vec<f32>>,
    /// Panels over the outputs, each part padded to whole panels: `[in, LANES]` each.
    pub(crate) forward: Panels,
    /// Panels over the inputs: `[sum out_p, LANES]` each.
    pub(crate) backward: Option<Panels>,
}

/// Where one part of a matrix lies.
#[derive(Clone, Debug)]
pub struct Part {
    /// Columns of y.
    pub(crate) columns: Range<usize>,
    /// Panels of the forward packing.
    pub(crate) panels: Range<usize>,
}

impl CpuMatrix {
    pub(crate) fn panels(&self) -> usize {
        self.parts.last().map_or(0, |p| p.panels.end)
    }

    /// Columns of y and offset in the accumulator of each part that a block's
    /// panels touch.
    fn spans(&self, panels: &Range<usize>, mut f: impl FnMut(Range<usize>, usize)) {
        for part in &self.parts {
            let start = panels.start.max(part.panels.start);
            let end = panels.end.min(part.panels.end);
            if start < end {
                let first = part.columns.start + (start - part.panels.start) * LANES;
                let last =
                    (part.columns.start + (end - part.panels.start) * LANES).min(part.columns.end);
                f(first..last, (start - panels.start) * LANES);
            }
        }
    }
}

impl TableInfo for WeightView {
    fn hidden(&self) -> usize {
        self.cols
    }
    fn vocab(&self) -> usize {
        self.rows
    }
}

fn pack<T: Float>(out: &mut [T], parts: &[WeightView], layout: &[Part]) {
    let inputs = parts[0].cols;
    let shared = pool::Shared::new(out);
    let panels: Vec<(usize, usize, usize)> = layout
        .iter()
        .enumerate()
        .flat_map(|(p, part)| {
            part.panels
                .clone()
                .enumerate()
                .map(move |(i, panel)| (p, i * LANES, panel))
        })
        .collect();
    pool::parallel(panels.len(), panels.len() * inputs * LANES, |i| {
        let (p, row0, panel) = panels[i];
        // SAFETY: one panel each.
        let dst = unsafe { shared.slice_mut(panel * inputs * LANES, inputs * LANES) };
        for j in 0..LANES.min(parts[p].rows - row0) {
            parts[p].read_row(row0 + j, |k, x| dst[k * LANES + j] = T::from_f32(x));
        }
    });
}

fn pack_transposed<T: Float>(out: &mut [T], parts: &[WeightView], outputs: usize) {
    let inputs = parts[0].cols;
    let shared = pool::Shared::new(out);
    let mut first = 0;
    for part in parts {
        pool::parallel_rows(part.rows, inputs, |rows| {
            for r in rows {
                for panel in 0..inputs.div_ceil(LANES) {
                    let at = (panel * outputs + first + r) * LANES;
                    let width = LANES.min(inputs - panel * LANES);
                    // SAFETY: one (row, panel) each.
                    let dst = unsafe { shared.slice_mut(at, width) };
                    let base = r * inputs + panel * LANES;
                    for (j, d) in dst.iter_mut().enumerate() {
                        *d = T::from_f32(part.get(base + j));
                    }
                }
            }
        });
        first += part.rows;
    }
}

impl<A: Float> Linear for Cpu<A> {
    type Matrix = CpuMatrix;
    type Table = WeightView;

    fn load_matrix(
        &self,
        parts: &[WeightView],
        bias: Option<Vec<f32>>,
        backward: bool,
        _lora: usize,
    ) -> Result<CpuMatrix> {
        ensure!(!parts.is_empty(), "a matrix needs at least one part");
        let inputs = parts[0].cols;
        ensure!(
            parts.iter().all(|p| p.cols == inputs),
            "parts of one matrix must share their input width"
        );
        let mut layout = Vec::new();
        let (mut column, mut panel) = (0, 0);
        for part in parts {
            let panels = part.rows.div_ceil(LANES);
            layout.push(Part {
                columns: column..column + part.rows,
                panels: panel..panel + panels,
            });
            column += part.rows;
            panel += panels;
        }
        // bf16 panels are exact only if every part is bf16.
        let dtype = if parts.iter().all(|p| p.dtype == WeightDtype::Bf16) {
            WeightDtype::Bf16
        } else {
            WeightDtype::F32
        };
        let outputs: Vec<usize> = parts.iter().map(|p| p.rows).collect();
        let mut forward = Panels::zeroed(Panels::forward_elements(inputs, &outputs), dtype);
        match &mut forward {
            Panels::F32(v) => pack(v, parts, &layout),
            Panels::Bf16(v) => pack(v, parts, &layout),
        }
        let backward = backward.then(|| {
            let mut packed = Panels::zeroed(Panels::backward_elements(inputs, &outputs), dtype);
            match &mut packed {
                Panels::F32(v) => pack_transposed(v, parts, column),
                Panels::Bf16(v) => pack_transposed(v, parts, column),
            }
            packed
        });
        self.count(forward.bytes() + backward.as_ref().map_or(0, Panels::bytes));
        parts.iter().for_each(WeightView::release);
        Ok(CpuMatrix {
            inputs,
            outputs: column,
            parts: layout,
            bias,
            forward,
            backward,
        })
    }

    fn load_table(&self, view: WeightView) -> Result<WeightView> {
        Ok(view)
    }

    fn linear_forward(
        &self,
        _: &Ctx<Self>,
        batch: &Self::Batch,
        rows: usize,
        weight: &CpuMatrix,
        x: Slice<Self, A>,
        lora: Option<LoraCall<Self>>,
        mut y: SliceMut<Self, A>,
    ) -> Result<()> {
        let k = weight.inputs;
        let left = Left {
            data: x.host(),
            row_stride: k,
            col_stride: 1,
        };
        let (y, all) = (y.shared(), rows);
        let fill = |block: &Block, mut sums: Sums| {
            let (rows, panels) = (block.rows.clone(), block.panels.clone());
            weight
                .forward
                .product(rows, panels, k, left, sums.from(0, 0));
            if let Some(lora) = &lora {
                lora.adapters
                    .expand(lora, &batch.runs, &weight.parts, (all, block), sums);
            }
        };
        let whole = weight.outputs == weight.panels() * LANES && weight.bias.is_none();
        if let (true, Some(y)) = (whole, y.as_f32()) {
            let stride = weight.outputs;
            gemm::blocks_within(rows, weight.panels(), k, &y, 0, stride, fill);
            return Ok(());
        }
        gemm::blocks(rows, weight.panels(), k, fill, |block, acc| {
            let stride = block.stride();
            for (i, row) in block.rows.clone().enumerate() {
                weight.spans(&block.panels, |columns, offset| {
                    // SAFETY: blocks do not overlap.
                    let out =
                        unsafe { y.slice_mut(row * weight.outputs + columns.start, columns.len()) };
                    let acc = &acc[i * stride + offset..][..columns.len()];
                    match &weight.bias {
                        None => {
                            for (o, a) in out.iter_mut().zip(acc) {
                                *o = A::from_f32(*a);
                            }
                        }
                        Some(bias) => {
                            for ((o, a), b) in out.iter_mut().zip(acc).zip(&bias[columns]) {
                                *o = A::from_f32(*a + *b);
                            }
                        }
                    }
                });
            }
        });
        Ok(())
    }

    fn linear_backward(
        &self,
        _: &Ctx<Self>,
        batch: &Self::Batch,
        rows: usize,
        weight: &CpuMatrix,
        dy: Slice<Self, A>,
        lora: Option<LoraCall<Self>>,
        mut dx: SliceMut<Self, A>,
    ) -> Result<()> {
        let (k, n) = (weight.outputs, weight.inputs);
        let Some(backward) = &weight.backward else {
            anyhow::bail!("the model was loaded without room for a backward");
        };
        let left = Left {
            data: dy.host(),
            row_stride: k,
            col_stride: 1,
        };
        let (dx, all) = (dx.shared(), rows);
        let panels = n.div_ceil(LANES);
        let fill = |block: &Block, mut sums: Sums| {
            let (rows, panels) = (block.rows.clone(), block.panels.clone());
            backward.product(rows, panels, k, left, sums.from(0, 0));
            if let Some(lora) = &lora {
                lora.adapters
                    .expand_backward(lora, batch, n, (all, block), sums);
            }
        };
        if let (true, Some(dx)) = (n.is_multiple_of(LANES), dx.as_f32()) {
            gemm::blocks_within(rows, panels, k, &dx, 0, n, fill);
            return Ok(());
        }
        gemm::blocks(rows, panels, k, fill, |block, acc| {
            write_rows(&dx, n, block, acc)
        });
        Ok(())
    }
}

/// Store a block's accumulator into row-major `[rows, n]`.
fn write_rows<A: Float>(out: &pool::Shared<A>, n: usize, block: &gemm::Block, acc: &[f32]) {
    let first = block.panels.start * LANES;
    let width = block.stride().min(n - first);
    for (i, row) in block.rows.clone().enumerate() {
        // SAFETY: blocks do not overlap.
        let out = unsafe { out.slice_mut(row * n + first, width) };
        for (o, a) in out.iter_mut().zip(&acc[i * block.stride()..]) {
            *o = A::from_f32(*a);
        }
    }
}
