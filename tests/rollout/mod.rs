//! Guards the rollout engine: the scheduler alone against a model of memory,
//! and whole rollouts against each request run alone.

mod engine;
mod prefixes;
mod scheduler;
mod verbs;
