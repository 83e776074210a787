//! Guards the reward checker: what it pays, what it refuses, and that no text
//! stalls it.

mod cases;
mod fuzz;
mod hostile;
mod properties;
mod shared;
