//! Launches of `cuda/lora.cu`: see [`crate::ops::lora`] for the contract.
