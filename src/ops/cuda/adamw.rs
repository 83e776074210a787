//! Launches of `cuda/adamw.cu`: see [`crate::ops::adamw`] for the contract.
