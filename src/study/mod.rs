//! Studies: many adapters trained side by side, what their credit looked at,
//! and what may be concluded.
//!
//! ```text
//! arms (from [sweep]) -> sweep (train, evaluate) -> comparison -> table
//!                           record: the files of a sweep
//! inspect (completions under every method) -> bands (terminal), heatmap (HTML)
//! run and sweep folders -> report
//! ```

pub mod arms;
pub mod bands;
pub mod comparison;
pub mod heatmap;
pub mod inspect;
pub mod markup;
pub mod record;
pub mod report;
pub mod specimens;
pub mod statistics;
pub mod sweep;
pub mod table;
