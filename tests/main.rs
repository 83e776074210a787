//! One integration binary; each module states what it guards.

mod cli;
mod common;
mod docs;
mod losses;
mod options;
mod parity;
mod resume;
mod run;
mod text;
