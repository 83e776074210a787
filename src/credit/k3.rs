//! k3 divergence: a_t = exp(d) - d - 1 with d = log pi_ref(y_t) - log pi(y_t),
//! the estimator of KL(pi || pi_ref) at one sampled token whose mean has low
//! variance and which is never negative (J. Schulman, "Approximating KL
//! Divergence", 2020; the KL term of GRPO, arXiv 2402.03300).
//!
//! Against `divergence` it weighs tokens that the policy made rarer more than
//! those it made likelier: e^d grows, -d does not.

use super::{Credit, Scope, Settings, Signals};
use crate::episode::TokenSignals;

/// a_t = exp(d) - d - 1, d = log pi_ref(y_t) - log pi(y_t).
pub struct K3;

/// exp(d) - d - 1, exact near 0 and finite everywhere.
pub(super) fn k3(d: f64) -> f32 {
    (d.exp_m1() - d).min(f64::from(f32::MAX)) as f32
}

impl Credit for K3 {
    fn name(&self) -> &'static str {
        "k3"
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
        for (a, (&logprob, &reference)) in out.iter_mut().zip(pairs) {
            *a = k3(f64::from(reference) - f64::from(logprob));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_negative_never_infinite() {
        assert_eq!(k3(0.0), 0.0);
        for d in [-1e-7, 1e-7, -1e-3, 1e-3] {
            let quadratic = d * d / 2.0;
            assert!((f64::from(k3(d)) - quadratic).abs() <= 1e-3 * quadratic);
        }
        assert_eq!(k3(1e4), f32::MAX);
        assert_eq!(k3(-50.0), 49.0);
    }
}
