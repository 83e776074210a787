//! Launches of `cuda/residual.cu`: see [`crate::ops::residual`] for the contract.
