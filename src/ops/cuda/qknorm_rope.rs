//! Launches of `cuda/qknorm_rope.cu`: see [`crate::ops::qknorm_rope`] for the contract.
