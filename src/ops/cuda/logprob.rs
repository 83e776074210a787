//! Launches of `cuda/logprob.cu`: see [`crate::ops::logprob`] for the contract.
