//! Gradient-norm proxy: a_t = (1 - p_t) ||h_t||_2, p_t = pi(y_t), h_t the LM
//! head's input that predicts y_t.
//!
//! log pi(y_t) has the gradient (e_y - p) h_t^T / T in the LM head's weights;
//! the row of the sampled token is (1 - p_t) h_t / T, and this is its norm (the
//! temperature T drops out of the weights). The proxy for a token's gradient
//! is the one DelTA uses (arXiv 2605.21467, appendix F); weighing by its norm
//! is our reading, not that paper's method. It is not the gradient in the
//! adapter's parameters.

use super::{Credit, Scope, Settings, Signals};
use crate::episode::TokenSignals;

/// a_t = (1 - p_t) ||h_t||_2.
pub struct GradientNorm;

/// 1 - exp(logprob), exact where the token is all but certain.
pub(super) fn doubt(logprob: f32) -> f64 {
    -f64::from(logprob).min(0.0).exp_m1()
}

impl Credit for GradientNorm {
    fn name(&self) -> &'static str {
        "gradient_norm"
    }

    fn scope(&self) -> Scope {
        Scope::Completion
    }

    fn needs(&self) -> Signals {
        Signals {
            hidden_states: true,
            ..Signals::NONE
        }
    }

    fn score(&self, signals: &TokenSignals, _: &Settings, out: &mut [f32]) {
        let width = signals.states.len() / out.len().max(1);
        let states = signals.states.chunks_exact(width.max(1));
        for ((a, &logprob), h) in out.iter_mut().zip(&signals.logprobs).zip(states) {
            let square: f64 = h.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            *a = (doubt(logprob) * square.sqrt()) as f32;
        }
    }
}
