//! Contrast of prompts, rank-normalised: how much does y_t depend on the
//! problem? ("Guidance Contrastive Token Credit Assignment", GCPO,
//! arXiv 2605.29198.)
//!
//! ```text
//! d_t = log pi(y_t | y_<t, contrast prompt) - log pi(y_t | y_<t, prompt)
//! k_t = exp(d_t) - d_t - 1                      how far the two predictions are apart
//! a_t = (rank(k_t) / n)^c                       rank 1 (least) to n within the completion
//! c   = ln(1 - 0.8) / ln(1 - 0.4) - 1 = 2.15    the top 40 % of the ranks hold 80 % of the mass
//! ```
//!
//! These are the steps and constants of the authors' published code (their
//! "kl" divergence with "hist" normalisation). The log-ratio is bounded to 20
//! as there; ties share their mean rank, and the divergence is not cut off at
//! 10, where the code would rank by place. The contrast prompt is
//! `credit.contrast_prompt` in place of the problem; by default the problem is
//! left empty, where the authors ask for a wrong answer.

use super::k3::k3;
use super::{Credit, Scope, Settings, Signals, ranks};
use crate::episode::TokenSignals;

/// Share of the ranks that holds [`MASS`] of the weight.
const TOP: f64 = 0.4;
const MASS: f64 = 0.8;
/// Largest log-ratio that still tells divergences apart.
const BOUND: f64 = 20.0;

/// a_t = (rank of the divergence / n)^c.
pub struct Contrast;

impl Credit for Contrast {
    fn name(&self) -> &'static str {
        "contrast"
    }

    fn scope(&self) -> Scope {
        Scope::Completion
    }

    fn needs(&self) -> Signals {
        Signals {
            extra_segments: true,
            ..Signals::NONE
        }
    }

    fn score(&self, signals: &TokenSignals, _: &Settings, out: &mut [f32]) {
        let divergences: Vec<f32> = signals
            .contrast_logprobs
            .iter()
            .zip(&signals.logprobs)
            .map(
                |(&contrast, &own)| k3((f64::from(contrast) - f64::from(own)).clamp(-BOUND, BOUND)),
            )
            .collect();
        let power = (1.0 - MASS).ln() / (1.0 - TOP).ln() - 1.0;
        let n = out.len() as f64;
        for (a, rank) in out.iter_mut().zip(ranks(&divergences)) {
            *a = (rank / n).powf(power) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The top 40 % of a long completion hold 80 % of the weight, whatever the
    /// size of the differences.
    #[test]
    fn the_top_ranks_hold_their_mass() {
        let n = 1000;
        let signals = TokenSignals {
            logprobs: vec![-1.0; n],
            contrast_logprobs: (0..n).map(|i| -1.0 - 1e-4 * (i * 7 % n) as f32).collect(),
            ..TokenSignals::default()
        };
        let mut a = vec![0.0; n];
        Contrast.score(&signals, &Settings { quantile: 0.2 }, &mut a);
        let total: f32 = a.iter().sum();
        a.sort_by(f32::total_cmp);
        let top: f32 = a[600..].iter().sum();
        assert!((top / total - 0.8).abs() < 1e-3, "{}", top / total);
    }

    #[test]
    fn a_prompt_that_says_nothing_is_uniform() {
        let signals = TokenSignals {
            logprobs: vec![-1.0, -2.0],
            contrast_logprobs: vec![-1.0, -2.0],
            ..TokenSignals::default()
        };
        let mut a = vec![0.0; 2];
        Contrast.score(&signals, &Settings { quantile: 0.2 }, &mut a);
        assert_eq!(a[0], a[1]);
    }
}
