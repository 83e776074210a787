//! Launches of `cuda/embedding.cu`: see [`crate::ops::embedding`] for the contract.
