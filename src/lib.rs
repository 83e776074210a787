//! arca: reinforcement learning with LoRA on one node, with token-level credit
//! assignment as a first-class part.
//!
//! The crate in reading order; each stage hands plain values to the next
//! (see [`episode`]):
//!
//! ```text
//! config -> data -> rollout -> reward -> advantage -> credit -> update -> checkpoint
//!                      \_______ model: forward, backward _______/
//!                               generic over ops / device
//! ```

// An op's operands are its arguments; a struct per op would only rename them.
#![allow(clippy::too_many_arguments)]

pub mod config;
pub mod episode;

pub mod data;
pub mod tokenizer;

pub mod device;
pub mod model;
pub mod ops;
pub mod profile;
pub mod rng;

pub mod reward;
pub mod rollout;

pub mod advantage;
pub mod credit;
pub mod loss;

pub mod train;

pub mod study;

pub mod cli;

/// The commit that the program was built from, with `+changes` where its files
/// differed from it; `unknown` outside a git checkout.
pub const COMMIT: &str = env!("ARCA_COMMIT");
