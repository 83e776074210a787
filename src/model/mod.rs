//! Qwen3 with LoRA: configuration, weights, adapters, and one forward and one
//! backward for every device.

pub mod adapter;
pub mod backward;
pub mod batch;
pub mod buffers;
pub mod config;
pub mod engine;
pub mod forward;
pub mod half_layer;
pub mod peft;
pub mod plan;
pub mod qwen3;
pub mod weights;
