//! Launches of `cuda/attention.cu`: see [`crate::ops::attention`] for the contract.
