//! Launches of `cuda/swiglu.cu`: see [`crate::ops::swiglu`] for the contract.
