//! One integration binary; each module states what it guards.

mod cli;
mod losses;
mod text;
