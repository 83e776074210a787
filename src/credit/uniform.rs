//! Uniform: a_t constant, so w_t = 1/n. Plain GRPO, and the control that every
//! other method is compared with (arXiv 2606.00257).

use super::{Credit, Scope, Settings, Signals};
use crate::episode::TokenSignals;

/// a_t = 1.
pub struct Uniform;

impl Credit for Uniform {
    fn name(&self) -> &'static str {
        "uniform"
    }

    fn scope(&self) -> Scope {
        Scope::Completion
    }

    fn needs(&self) -> Signals {
        Signals::NONE
    }

    fn score(&self, _: &TokenSignals, _: &Settings, out: &mut [f32]) {
        out.fill(1.0);
    }
}
