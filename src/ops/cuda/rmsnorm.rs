//! Launches of `cuda/rmsnorm.cu`: see [`crate::ops::rmsnorm`] for the contract.
