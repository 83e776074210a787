//! Several runs looked at together.

pub mod report;
