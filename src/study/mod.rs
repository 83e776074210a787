//! Studies: many adapters trained side by side, what their credit looked at,
//! and what may be concluded.

pub mod arms;
pub mod bands;
pub mod comparison;
pub mod heatmap;
pub mod inspect;
pub mod record;
pub mod specimens;
pub mod statistics;
pub mod sweep;
pub mod table;
