//! The ops on the CUDA device, one file per stem beside `cuda/<stem>.cu`:
//! argument order, grid and workspace of each launch.

mod adamw;
mod attention;
mod attention_kernels;
mod decode;
mod embedding;
mod linear;
mod logprob;
mod lora;
mod lora_backward;
mod qknorm_rope;
mod residual;
mod rmsnorm;
mod sample;
mod swiglu;

use anyhow::{Result, bail};

pub(crate) use attention_kernels::AttentionChoice;
pub use attention_kernels::AttentionKernels;
pub(crate) use linear::matrix_elements;
pub(crate) use lora::{compute_elements, source_words, table_words};

use crate::device::Float;
use crate::device::cuda::Cuda;
use crate::model::adapter::AdapterLayout;
use crate::model::config::ModelShape;
use crate::model::plan::Capacity;

/// The most scratch that any op will ask for.
pub(crate) fn workspace_bytes(
    shape: &ModelShape,
    capacity: &Capacity,
    adapters: &[AdapterLayout],
    training: bool,
) -> usize {
    let (hidden, vocab) = (shape.hidden_size, shape.vocab_size);
    let samples = match capacity.pages {
        0 => 0,
        _ => capacity.sequences(),
    };
    let mut most = logprob::workspace_bytes(capacity.pairs, hidden, vocab, false)
        .max(sample::workspace_bytes(samples, hidden, vocab));
    if training {
        let rows = capacity.saved_rows;
        most = most
            .max(logprob::workspace_bytes(
                capacity.pairs,
                hidden,
                vocab,
                true,
            ))
            .max(attention::workspace_bytes(rows, shape));
        for layout in adapters {
            most = most.max(adamw::workspace_bytes(layout.len()));
            most = most.max(lora_backward::most_workspace_bytes(layout, rows));
        }
    }
    most
}

/// The kernel for a residual stream of type `R`.
fn by_type<R: Float>(bf16: &'static str, f32: &'static str) -> Result<&'static str> {
    match R::NAME {
        "bf16" => Ok(bf16),
        "f32" => Ok(f32),
        other => bail!("the CUDA device has no kernels for a residual stream in {other}"),
    }
}

/// The kernel for a head dimension.
fn by_head_dim(shape: &ModelShape, d64: &'static str, d128: &'static str) -> Result<&'static str> {
    match shape.head_dim {
        64 => Ok(d64),
        128 => Ok(d128),
        other => bail!("head_dim {other}: the CUDA kernels take 64 and 128"),
    }
}

/// Blocks for a grid-stride loop over `n` items: as many as keep the device
/// busy, not more than there is work for.
fn stride_grid(device: &Cuda, n: usize, block: usize) -> [u32; 3] {
    let most = 16 * device.driver.info().multiprocessors.max(1) as usize;
    [n.div_ceil(block).min(most) as u32, 1, 1]
}
