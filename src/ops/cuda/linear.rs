//! Base products through the driver: see [`crate::ops::linear`] for the contract.
//!
//! One copy of a weight serves both directions; cuBLASLt reads it transposed
//! for the forward. LoRA's terms are added by kernels of their own
//! (`cuda/lora.cu`) to the finished output, which is rounded to bf16 once more,
//! as PEFT in bf16 does.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, ensure};
use half::bf16;

use crate::device::cuda::driver::{Gemm, StreamId};
use crate::device::cuda::{Address, Cuda, CudaBuf, Launch, LoadedWeight, lock};
use crate::device::memory::Role;
use crate::device::{Ctx, Device, Float, Slice, SliceMut};
use crate::ops::linear::{Linear, TableInfo, WeightView};
use crate::ops::lora::LoraCall;

/// A base weight on the device.
pub struct CudaMatrix {
    /// `[rows_padded, inputs]`: parts one below the other, then zeros.
    pub(crate) weight: CudaBuf<bf16>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// `outputs` in whole vectors of 8, which cuBLASLt wants of a vocabulary.
    pub(crate) rows_padded: usize,
    bias: Option<CudaBuf<bf16>>,
    /// Columns of y, by part.
    pub(crate) parts: Vec<Range<usize>>,
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

/// Elements of a weight on the device: rows in whole vectors of 8.
pub(crate) fn matrix_elements(outputs: usize, inputs: usize) -> usize {
    outputs.next_multiple_of(8) * inputs
}

impl Cuda {
    /// Parts one below the other as bf16, with zero rows up to a multiple of 8.
    /// A part that is on the device already (a tied head) is not copied again.
    fn load_rows(&self, parts: &[WeightView]) -> Result<CudaBuf<bf16>> {
        let inputs = parts[0].cols;
        let rows: usize = parts.iter().map(|p| p.rows).sum();
        let elements = matrix_elements(rows, inputs);
        let key = (parts[0].map.as_ptr() as usize, parts[0].bytes.start);
        if parts.len() == 1
            && let Some((memory, offset)) = lock(&self.weights)
                .get(&key)
                .and_then(|w| Some((w.memory.upgrade()?, w.offset)))
        {
            return Ok(CudaBuf::over(memory, offset, elements));
        }
        let buf = self.alloc_raw::<bf16>(Role::Weights, elements)?;
        const ROWS: usize = 4096;
        let mut at = buf.ptr();
        let mut staged: Vec<bf16> = Vec::with_capacity(ROWS.min(rows) * inputs);
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
                if staged.len() >= ROWS * inputs {
                    send(&mut staged, &mut at)?;
                }
            }
        }
        staged.resize(staged.len() + elements - rows * inputs, bf16::ZERO);
        send(&mut staged, &mut at)?;
        self.driver.synchronize(StreamId::DEFAULT)?;
        if parts.len() == 1 {
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
}

impl Linear for Cuda {
    type Matrix = CudaMatrix;
    type Table = CudaTable;

    fn load_matrix(
        &self,
        parts: &[WeightView],
        bias: Option<Vec<f32>>,
        _backward: bool,
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
            weight: self.load_rows(parts)?,
            inputs,
            outputs,
            rows_padded: outputs.next_multiple_of(8),
            bias,
            parts: columns,
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
            weight: self.load_rows(&[view])?,
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
            lda: weight.inputs,
            transpose_a: false,
            b: weight.weight.ptr(),
            ldb: weight.inputs,
            transpose_b: true,
            c: y.address(),
            ldc: weight.outputs,
            c_f32: false,
            accumulate: weight.bias.is_some(),
        };
        self.gemm(ctx, &gemm)?;
        match lora {
            Some(call) => self.lora_expand(ctx, batch, rows, &call, weight, y),
            None => Ok(()),
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
            lda: weight.outputs,
            transpose_a: false,
            b: weight.weight.ptr(),
            ldb: weight.inputs,
            transpose_b: false,
            c: dx.address(),
            ldc: weight.inputs,
            c_f32: false,
            accumulate: false,
        };
        self.gemm(ctx, &gemm)?;
        match lora {
            Some(call) => self.lora_expand_backward(ctx, batch, rows, &call, weight, dx),
            None => Ok(()),
        }
    }
}
