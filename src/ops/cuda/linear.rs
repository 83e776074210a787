//! Base products through the driver: see [`crate::ops::linear`] for the contract.
//!
//! One copy of a weight serves both directions; cuBLASLt reads it transposed
//! for the forward. A weight that LoRA may adapt lies in memory as
//! [[W, B], [A, 0]], so that [x | s] and [dy | ds] make the adapter part of the
//! product: no output is read and written once more. That is how it goes where
//! a batch's adapted rows go through one adapter and s lies behind x; the factors
//! are put there when the adapter has changed. Rows of the base model are a
//! product of their own, without those columns.
//!
//! Else (several adapters in one batch, a backward with dropout, whose mask
//! falls between) kernels of their own add LoRA's terms to the finished output
//! (`cuda/lora.cu`), which is rounded to bf16 once more, as PEFT in bf16 does.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use half::bf16;

use super::lora::ends;
use super::stride_grid;
use crate::device::cuda::batch::CudaBatch;
use crate::device::cuda::driver::{Gemm, StreamId};
use crate::device::cuda::{Address, Cuda, CudaBuf, Launch, LoadedWeight, lock};
use crate::device::memory::Role;
use crate::device::{Ctx, Device, Float, Slice, SliceMut};
use crate::episode::AdapterId;
use crate::model::plan::joined_stride;
use crate::ops::linear::{Linear, TableInfo, WeightView};
use crate::ops::lora::LoraCall;

/// A base weight on the device.
pub struct CudaMatrix {
    /// Rows of `stride`: parts one below the other, then room for A. Each row
    /// has `inputs` elements and room for B.
    pub(crate) weight: CudaBuf<bf16>,
    pub(crate) inputs: usize,
    pub(crate) stride: usize,
    pub(crate) outputs: usize,
    /// `outputs` in whole vectors of 8, which cuBLASLt wants of a vocabulary.
    pub(crate) rows_padded: usize,
    bias: Option<CudaBuf<bf16>>,
    /// Columns of y, by part.
    pub(crate) parts: Vec<Range<usize>>,
    /// Columns of s that there is room for.
    lora: usize,
    /// Whose factors lie there: the adapter's state, as [`CudaAdapters`] tells.
    ///
    /// [`CudaAdapters`]: super::lora::CudaAdapters
    placed: Mutex<Option<u64>>,
}

/// LoRA as part of a product: through which adapter, and its columns of s.
struct Joined {
    adapter: AdapterId,
    columns: usize,
}

/// An embedding table on the device.
pub struct CudaTable {
    /// `[vocab in whole vectors of 8, hidden]`.
    pub(crate) weight: CudaBuf<bf16>,
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
}

impl TableInfo for CudaTable {
    fn hidden(&self) -> usize {
        self.hidden
    }
    fn vocab(&self) -> usize {
        self.vocab
    }
}

/// Elements of a weight on the device with room for `lora` columns of s: rows
/// in whole vectors of 8.
pub(crate) fn matrix_elements(outputs: usize, inputs: usize, lora: usize) -> usize {
    (outputs + lora).next_multiple_of(8) * joined_stride(inputs, lora)
}

impl Cuda {
    /// Parts one below the other as bf16, and zeros where there is room for
    /// LoRA and up to whole vectors of rows. A part without such room that is on
    /// the device already (a tied head) is not copied again.
    fn load_rows(&self, parts: &[WeightView], lora: usize) -> Result<CudaBuf<bf16>> {
        let stride = joined_stride(parts[0].cols, lora);
        let rows: usize = parts.iter().map(|p| p.rows).sum();
        let elements = matrix_elements(rows, parts[0].cols, lora);
        let key = (parts[0].map.as_ptr() as usize, parts[0].bytes.start);
        let shared = parts.len() == 1 && lora == 0;
        if shared
            && let Some((memory, offset)) = lock(&self.weights)
                .get(&key)
                .and_then(|w| Some((w.memory.upgrade()?, w.offset)))
        {
            return Ok(CudaBuf::over(memory, offset, elements));
        }
        let buf = self.alloc_raw::<bf16>(Role::Weights, elements)?;
        const ROWS: usize = 4096;
        let mut at = buf.ptr();
        let mut staged: Vec<bf16> = Vec::with_capacity(ROWS.min(rows) * stride);
        let send = |staged: &mut Vec<bf16>, at: &mut u64| -> Result<()> {
            let bytes: &[u8] = bytemuck::cast_slice(staged);
            if !bytes.is_empty() {
                self.driver.upload(StreamId::DEFAULT, *at, bytes)?;
            }
            *at += bytes.len() as u64;
            staged.clear();
            Ok(())
        };
        for part in parts {
            for row in 0..part.rows {
                part.read_row(row, |_, x| staged.push(<bf16 as Float>::from_f32(x)));
                staged.resize(staged.len().next_multiple_of(stride), bf16::ZERO);
                if staged.len() >= ROWS * stride {
                    send(&mut staged, &mut at)?;
                }
            }
        }
        staged.resize(staged.len() + elements - rows * stride, bf16::ZERO);
        send(&mut staged, &mut at)?;
        self.driver.synchronize(StreamId::DEFAULT)?;
        if shared {
            let mut weights = lock(&self.weights);
            weights.retain(|_, w| w.memory.strong_count() > 0);
            let entry = LoadedWeight {
                memory: Arc::downgrade(&buf.memory),
                offset: buf.offset,
                _map: parts[0].map.clone(),
            };
            weights.insert(key, entry);
        }
        Ok(buf)
    }

    /// y = bias in every row, for a product to add to.
    fn fill_bias(
        &self,
        ctx: &Ctx<Self>,
        rows: usize,
        bias: &CudaBuf<bf16>,
        y: &SliceMut<Self, bf16>,
    ) -> Result<()> {
        self.launch(
            ctx,
            Launch::new("linear_bias", [rows as u32, 1, 1], 128)
                .ptr("bias", bias)
                .ptr("y", y)
                .u32("outputs", bias.len()),
        )
    }

    /// Whether LoRA can be part of the product of `operand` (x or dy, `width`
    /// wide) with a weight.
    fn joined(
        batch: &CudaBatch,
        rows: usize,
        weight: &CudaMatrix,
        (operand, width): (Slice<Self, bf16>, usize),
        call: &LoraCall<Self>,
    ) -> Option<Joined> {
        let adapter = batch.sole_adapter()?;
        let columns = call.adapters.columns(adapter, call.layer, call.group);
        let stride = operand.stride(rows);
        let behind = call.s.address() == operand.address() + 2 * width as u64
            && call.s.stride(rows) == stride
            && width + columns <= stride;
        (behind && columns <= weight.lora).then_some(Joined { adapter, columns })
    }

    /// Put an adapter's factors beside a weight, where they are not there as
    /// they are now.
    fn place_factors(
        &self,
        ctx: &Ctx<Self>,
        weight: &CudaMatrix,
        call: &LoraCall<Self>,
        joined: &Joined,
    ) -> Result<()> {
        let state = call.adapters.state(joined.adapter);
        let mut placed = lock(&weight.placed);
        if *placed == Some(state) {
            return Ok(());
        }
        let vectors = weight.outputs.max(weight.inputs) * joined.columns / 8;
        let widths: Vec<usize> = weight.parts.iter().map(|p| p.len()).collect();
        let [end0, end1, _] = ends(&widths);
        let [blocks, _, _] = stride_grid(self, vectors, 256);
        self.launch(
            ctx,
            Launch::new("lora_place", [blocks, widths.len() as u32, 1], 256)
                .ptr("factors", &call.adapters.factors(call.layer, call.group))
                .u32("adapters", call.adapters.len())
                .u32("adapter", joined.adapter.0 as usize)
                .ptr("weight", &weight.weight)
                .u32("stride", weight.stride)
                .u32("inputs", weight.inputs)
                .u32("outputs", weight.outputs)
                .u32("width", joined.columns)
                .u32("end0", end0)
                .u32("end1", end1),
        )?;
        *placed = Some(state);
        Ok(())
    }

    /// A product whose adapted rows reduce over LoRA's columns too.
    fn joined_gemm(
        &self,
        ctx: &Ctx<Self>,
        batch: &CudaBatch,
        gemm: &Gemm,
        joined: &Joined,
    ) -> Result<()> {
        for run in batch.runs() {
            let end = run.rows.end.min(gemm.m);
            if run.rows.start >= end {
                continue;
            }
            let start = run.rows.start;
            let part = Gemm {
                m: end - start,
                a: gemm.a + 2 * (start * gemm.lda) as u64,
                c: gemm.c + 2 * (start * gemm.ldc) as u64,
                k: match run.adapter {
                    Some(_) => gemm.k + joined.columns,
                    None => gemm.k,
                },
                ..*gemm
            };
            self.gemm(ctx, &part)?;
        }
        Ok(())
    }
}

impl Linear for Cuda {
    type Matrix = CudaMatrix;
    type Table = CudaTable;

    fn load_matrix(
        &self,
        parts: &[WeightView],
        bias: Option<Vec<f32>>,
        _backward: bool,
        lora: usize,
    ) -> Result<CudaMatrix> {
        ensure!(!parts.is_empty(), "a matrix needs at least one part");
        let inputs = parts[0].cols;
        ensure!(
            parts.iter().all(|p| p.cols == inputs),
            "parts of one matrix must share their input width"
        );
        let mut columns = Vec::new();
        let mut outputs = 0;
        for part in parts {
            columns.push(outputs..outputs + part.rows);
            outputs += part.rows;
        }
        // A vocabulary is padded; widths that activations have are not.
        ensure!(
            inputs.is_multiple_of(16)
                && (parts.len() == 1 || parts.iter().all(|p| p.rows % 16 == 0)),
            "a linear layer of {inputs} inputs and {:?} outputs: the CUDA kernels take multiples of 16",
            parts.iter().map(|p| p.rows).collect::<Vec<_>>()
        );
        let bias = match bias {
            None => None,
            Some(values) => {
                let values: Vec<bf16> = values.iter().map(|&x| Float::from_f32(x)).collect();
                let buf = self.alloc_raw(Role::Weights, values.len())?;
                self.driver
                    .upload(StreamId::DEFAULT, buf.ptr(), bytemuck::cast_slice(&values))?;
                self.driver.synchronize(StreamId::DEFAULT)?;
                Some(buf)
            }
        };
        Ok(CudaMatrix {
            weight: self.load_rows(parts, lora)?,
            inputs,
            stride: joined_stride(inputs, lora),
            outputs,
            rows_padded: outputs.next_multiple_of(8),
            bias,
            parts: columns,
            lora,
            placed: Mutex::new(None),
        })
    }

    fn load_table(&self, view: WeightView) -> Result<CudaTable> {
        ensure!(
            view.cols.is_multiple_of(16),
            "hidden_size {}: the CUDA kernels take multiples of 16",
            view.cols
        );
        Ok(CudaTable {
            vocab: view.rows,
            hidden: view.cols,
            weight: self.load_rows(&[view], 0)?,
        })
    }

    fn linear_forward(
        &self,
        ctx: &Ctx<Self>,
        batch: &<Self as Device>::Batch,
        rows: usize,
        weight: &CudaMatrix,
        x: Slice<Self, bf16>,
        lora: Option<LoraCall<Self>>,
        y: SliceMut<Self, bf16>,
    ) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        if let Some(bias) = &weight.bias {
            self.fill_bias(ctx, rows, bias, &y)?;
        }
        let gemm = Gemm {
            m: rows,
            n: weight.outputs,
            k: weight.inputs,
            a: x.address(),
            lda: x.stride(rows),
            transpose_a: false,
            b: weight.weight.ptr(),
            ldb: weight.stride,
            transpose_b: true,
            c: y.address(),
            ldc: weight.outputs,
            c_f32: false,
            accumulate: weight.bias.is_some(),
        };
        let Some(call) = lora else {
            return self.gemm(ctx, &gemm);
        };
        match Self::joined(batch, rows, weight, (x, weight.inputs), &call) {
            Some(joined) => {
                self.place_factors(ctx, weight, &call, &joined)?;
                self.joined_gemm(ctx, batch, &gemm, &joined)
            }
            None => {
                self.gemm(ctx, &gemm)?;
                self.lora_expand(ctx, batch, rows, &call, weight, y)
            }
        }
    }

    fn linear_backward(
        &self,
        ctx: &Ctx<Self>,
        batch: &<Self as Device>::Batch,
        rows: usize,
        weight: &CudaMatrix,
        dy: Slice<Self, bf16>,
        lora: Option<LoraCall<Self>>,
        dx: SliceMut<Self, bf16>,
    ) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        let gemm = Gemm {
            m: rows,
            n: weight.inputs,
            k: weight.outputs,
            a: dy.address(),
            lda: dy.stride(rows),
            transpose_a: false,
            b: weight.weight.ptr(),
            ldb: weight.stride,
            transpose_b: false,
            c: dx.address(),
            ldc: weight.inputs,
            c_f32: false,
            accumulate: false,
        };
        let Some(call) = lora else {
            return self.gemm(ctx, &gemm);
        };
        // A mask of dropout falls on ds A alone.
        let joined = match batch.host.dropout {
            None => Self::joined(batch, rows, weight, (dy, weight.outputs), &call),
            Some(_) => None,
        };
        match joined {
            Some(joined) => {
                self.place_factors(ctx, weight, &call, &joined)?;
                self.joined_gemm(ctx, batch, &gemm, &joined)
            }
            None => {
                self.gemm(ctx, &gemm)?;
                self.lora_expand_backward(ctx, batch, rows, &call, weight, dx)
            }
        }
    }
}
