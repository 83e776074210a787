//! Base products through the driver: see [`crate::ops::linear`] for the contract.
