//! Studies: many adapters trained side by side, and what may be concluded.
//!
//! ```text
//! arms (from [sweep]) -> sweep (train, evaluate) -> comparison -> table
//!                           record: the files of a sweep
//! ```

pub mod arms;
pub mod comparison;
pub mod inspect;
pub mod record;
pub mod statistics;
pub mod sweep;
pub mod table;
