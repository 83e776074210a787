//! Looking at what runs did: credit side by side on one completion.

pub mod bands;
pub mod heatmap;
pub mod inspect;
