//! Studies: many adapters trained side by side, and what may be concluded.

pub mod statistics;
