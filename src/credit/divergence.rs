//! Policy divergence: a_t = |log pi(y_t) - log pi_ref(y_t)| at the sampled
//! token. Weight where training has moved the policy's own choice
//! (arXiv 2606.00257).

use super::{Credit, Scope, Settings, Signals};
use crate::episode::TokenSignals;

/// a_t = |log pi(y_t) - log pi_ref(y_t)|.
pub struct Divergence;

impl Credit for Divergence {
    fn name(&self) -> &'static str {
        "divergence"
    }

    fn scope(&self) -> Scope {
        Scope::Completion
    }

    fn needs(&self) -> Signals {
        Signals {
            reference: true,
            ..Signals::NONE
        }
    }

    fn score(&self, signals: &TokenSignals, _: &Settings, out: &mut [f32]) {
        let pairs = signals.logprobs.iter().zip(&signals.reference_logprobs);
        for (a, (logprob, reference)) in out.iter_mut().zip(pairs) {
            *a = (logprob - reference).abs();
        }
    }
}
