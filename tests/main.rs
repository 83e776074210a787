//! One integration binary; each module states what it guards.

mod checkpoints;
mod cli;
mod common;
mod credit;
mod docs;
mod emulator;
mod fake_gpu;
mod gradients;
mod grading;
mod invariance;
mod kernels;
mod learning;
mod losses;
mod memory;
mod mutants;
mod options;
mod parity;
mod profiles;
mod report;
mod resume;
mod rollout;
mod run;
mod sweep;
mod text;
