//! What the model needs computed: one small trait and one file per verb.
//!
//! Each file holds the contract (shapes, who accumulates, who overwrites) and
//! the CPU implementation, which is the definition that other devices are
//! tested against. Matrices are row-major; `rows` counts packed rows.

pub mod adamw;
pub mod attention;
pub mod cost;
pub(crate) mod cuda;
pub mod decode;
pub mod embedding;
pub mod linear;
pub mod logprob;
pub mod lora;
pub mod qknorm_rope;
pub mod residual;
pub mod rmsnorm;
pub mod sample;
pub mod swiglu;

use crate::device::Device;

/// Everything a device must be able to do to run the model.
pub trait Ops:
    Device
    + embedding::Embedding
    + rmsnorm::RmsNorm
    + linear::Linear
    + lora::Lora
    + qknorm_rope::QkNormRope
    + attention::Attention
    + decode::DecodeAttention
    + swiglu::SwiGlu
    + logprob::LogProb
    + residual::Residual
    + sample::Sample
    + adamw::AdamW
{
}

impl<D> Ops for D where
    D: Device
        + embedding::Embedding
        + rmsnorm::RmsNorm
        + linear::Linear
        + lora::Lora
        + qknorm_rope::QkNormRope
        + attention::Attention
        + decode::DecodeAttention
        + swiglu::SwiGlu
        + logprob::LogProb
        + residual::Residual
        + sample::Sample
        + adamw::AdamW
{
}
