//! The ops on the CUDA device, one file per stem beside `cuda/<stem>.cu`:
//! argument order, grid and workspace of each launch.

mod adamw;
mod attention;
mod decode;
mod embedding;
mod linear;
mod logprob;
mod lora;
mod qknorm_rope;
mod residual;
mod rmsnorm;
mod sample;
mod swiglu;

use anyhow::{Result, bail};

use crate::device::Float;
use crate::device::cuda::Cuda;
use crate::model::config::{Group, ModelShape};
use crate::model::plan::Capacity;

pub(crate) use lora::{FACTOR_WORDS, SOURCE_WORDS};

/// The most scratch that any op asks for.
pub(crate) fn workspace_bytes(
    shape: &ModelShape,
    capacity: &Capacity,
    training: bool,
    parameters: usize,
) -> usize {
    let (hidden, vocab) = (shape.hidden_size, shape.vocab_size);
    let mut most = logprob::workspace_bytes(capacity.pairs, hidden, vocab, training);
    // Every sampled row is a row of the batch, and a page's owner.
    let sampled = capacity.rows.min(capacity.pages);
    most = most.max(sample::workspace_bytes(sampled, hidden, vocab));
    if training {
        most = most.max(attention::workspace_bytes(capacity.saved_rows, shape));
        most = most.max(adamw::workspace_bytes(parameters));
        for group in Group::ALL {
            let widest = group
                .outputs(shape)
                .into_iter()
                .chain([group.inputs(shape)])
                .max();
            // A part's rank is at most the group's columns of s.
            let r = capacity.s_width[group as usize];
            let bytes = lora::workspace_bytes(capacity.saved_rows, widest.unwrap_or(0), r);
            most = most.max(bytes);
        }
    }
    most.next_multiple_of(4)
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
