//! Launches of `cuda/sample.cu`: see [`crate::ops::sample`] for the contract.
