//! Training: one step after another, with everything a run leaves behind.

pub mod checkpoint;
pub mod durable;
pub mod evaluate;
pub mod interrupt;
pub mod metrics;
pub mod optimizer;
pub mod packing;
pub mod progress;
pub mod run;
pub mod run_dir;
pub mod session;
pub mod step;
pub mod tensorboard;
pub mod update;
