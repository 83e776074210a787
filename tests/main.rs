//! One integration binary; each module states what it guards.

mod checkpoints;
mod cli;
mod common;
mod gradients;
mod invariance;
mod losses;
mod parity;
mod text;
