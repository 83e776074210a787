//! (being written)

pub mod durable;
pub mod interrupt;
pub mod metrics;
pub mod progress;
pub mod run_dir;
pub mod tensorboard;
