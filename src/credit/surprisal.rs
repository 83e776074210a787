//! Surprisal: a_t = -log pi(y_t | y_<t, x), in nats. Weight on the tokens the
//! policy found unlikely (arXiv 2606.00257).

use super::{Credit, Scope, Settings, Signals};
use crate::episode::TokenSignals;

/// a_t = -log pi(y_t).
pub struct Surprisal;

impl Credit for Surprisal {
    fn name(&self) -> &'static str {
        "surprisal"
    }

    fn scope(&self) -> Scope {
        Scope::Completion
    }

    fn needs(&self) -> Signals {
        Signals::NONE
    }

    fn score(&self, signals: &TokenSignals, _: &Settings, out: &mut [f32]) {
        for (a, logprob) in out.iter_mut().zip(&signals.logprobs) {
            *a = -logprob;
        }
    }
}
