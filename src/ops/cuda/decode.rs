//! Launches of `cuda/decode.cu`: see [`crate::ops::decode`] for the contract.
