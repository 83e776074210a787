//! Training: one step after another, with everything a run leaves behind.

pub mod arm;
pub mod checkpoint;
pub mod clock;
pub mod durable;
pub mod evaluate;
pub mod interrupt;
pub mod metrics;
pub mod optimizer;
pub mod packing;
pub mod profiling;
pub mod progress;
pub mod run;
pub mod run_dir;
pub mod session;
pub mod setup;
pub mod step;
pub mod step_metrics;
pub mod summary;
pub mod tensorboard;
pub mod trainer;
pub mod update;
