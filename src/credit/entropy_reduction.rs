//! Entropy reduction: a_t = max(0, H_t - H_{t+1}), H_t the full-vocabulary
//! entropy before y_t is drawn. Weight on the tokens after which the policy
//! knew better how to go on (arXiv 2606.00257).
//!
//! The last real token has no H_{t+1}: its score is 0, whatever padding holds.

use super::{Credit, Scope, Settings, Signals};
use crate::episode::TokenSignals;

/// a_t = max(0, H_t - H_{t+1}), 0 at the last token.
pub struct EntropyReduction;

impl Credit for EntropyReduction {
    fn name(&self) -> &'static str {
        "entropy_reduction"
    }

    fn scope(&self) -> Scope {
        Scope::Completion
    }

    fn needs(&self) -> Signals {
        Signals {
            entropies: true,
            ..Signals::NONE
        }
    }

    fn score(&self, signals: &TokenSignals, _: &Settings, out: &mut [f32]) {
        for (a, pair) in out.iter_mut().zip(signals.entropies.windows(2)) {
            *a = (pair[0] - pair[1]).max(0.0);
        }
        if let Some(last) = out.last_mut() {
            *last = 0.0;
        }
    }
}
