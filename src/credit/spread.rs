//! Raw scores to weights, once for all methods.
//!
//! ```text
//! a_t <- max(a_t, 0)
//! w_t = (a_t + eps)^p / sum_k (a_k + eps)^p      over the completion's tokens
//! w_t <- lambda / n + (1 - lambda) w_t
//! ```
//!
//! p = 1, lambda = 0 is equation 8 of arXiv 2606.00257; its runs used p = 2.
//! Scores that are all zero (ARCA at step 1, where LoRA's B is 0) carry no
//! information: the weights are then exactly 1/n.

use anyhow::{Result, ensure};

/// `credit.exponent`, `credit.epsilon` and `credit.mix`, checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    exponent: f64,
    epsilon: f64,
    mix: f64,
}

/// Weights of one completion's tokens, summing to 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenWeights {
    /// f64, so that A n (1/n) rounds to exactly A in f32.
    pub weights: Vec<f64>,
    /// Every score was 0 (or below): uniform for lack of a signal.
    pub fallback: bool,
}

impl TokenWeights {
    /// 1/n each.
    pub fn uniform(tokens: usize) -> Self {
        TokenWeights {
            weights: vec![1.0 / tokens as f64; tokens],
            fallback: false,
        }
    }
}

impl Spread {
    /// p >= 0, eps >= 0, 0 <= lambda <= 1.
    pub fn new(exponent: f32, epsilon: f32, mix: f32) -> Result<Self> {
        ensure!(
            exponent.is_finite() && exponent >= 0.0,
            "credit.exponent is {exponent}: it must be 0 or more"
        );
        ensure!(
            epsilon.is_finite() && epsilon >= 0.0,
            "credit.epsilon is {epsilon}: it must be 0 or more"
        );
        ensure!(
            (0.0..=1.0).contains(&mix),
            "credit.mix is {mix}: it must lie between 0 and 1"
        );
        Ok(Spread {
            exponent: f64::from(exponent),
            epsilon: f64::from(epsilon),
            mix: f64::from(mix),
        })
    }

    /// Weights of one completion. A score that is not finite is an error that
    /// names its token: it would otherwise poison the whole completion.
    pub fn weights(&self, scores: &[f32]) -> Result<TokenWeights> {
        let mut largest = 0.0f64;
        for (t, &score) in scores.iter().enumerate() {
            ensure!(
                score.is_finite(),
                "the credit score of token {t} is {score}"
            );
            largest = largest.max(f64::from(score));
        }
        let tokens = scores.len();
        if largest == 0.0 {
            return Ok(TokenWeights {
                fallback: tokens > 0,
                ..TokenWeights::uniform(tokens)
            });
        }
        // Relative to the largest: no power overflows, and the sum is at least 1.
        let scale = largest + self.epsilon;
        let mut weights: Vec<f64> = scores
            .iter()
            .map(|&a| ((f64::from(a).max(0.0) + self.epsilon) / scale).powf(self.exponent))
            .collect();
        let sum: f64 = weights.iter().sum();
        for w in &mut weights {
            *w = self.mix / tokens as f64 + (1.0 - self.mix) * (*w / sum);
        }
        Ok(TokenWeights {
            weights,
            fallback: false,
        })
    }
}

/// A_it = A_i n_i w_it: the mean over the completion stays A_i, and uniform
/// weights give exactly A_i.
pub fn advantage_per_token(advantage: f32, weights: &[f64]) -> Vec<f32> {
    let total = f64::from(advantage) * weights.len() as f64;
    weights.iter().map(|w| (total * w) as f32).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spread(exponent: f32) -> Spread {
        Spread::new(exponent, 1e-8, 0.0).unwrap()
    }

    #[test]
    fn exponent_after_epsilon() {
        let s = Spread::new(2.0, 1.0, 0.0).unwrap();
        // (1 + 1)^2, (0 + 1)^2, (2 + 1)^2.
        let w = s.weights(&[1.0, -7.0, 2.0]).unwrap().weights;
        for (w, expected) in w.iter().zip([4.0 / 14.0, 1.0 / 14.0, 9.0 / 14.0]) {
            assert!((w - expected).abs() < 1e-15);
        }
    }

    #[test]
    fn no_signal_is_exactly_uniform() {
        for scores in [[0.0; 7], [-1.0; 7], [-0.0; 7]] {
            let w = spread(2.0).weights(&scores).unwrap();
            assert!(w.fallback);
            assert_eq!(w.weights, [1.0 / 7.0; 7]);
        }
        let constant = spread(1.0).weights(&[1.0; 7]).unwrap();
        assert!(!constant.fallback);
        assert_eq!(constant.weights, [1.0 / 7.0; 7]);
    }

    #[test]
    fn uniform_weights_give_the_advantage_back() {
        for n in 1..3000 {
            for a in [1.2, -0.3333, 1e-7] {
                let per_token = advantage_per_token(a, &TokenWeights::uniform(n).weights);
                assert!(per_token.iter().all(|&v| v == a), "n {n}");
            }
        }
    }

    #[test]
    fn mix_pulls_towards_uniform() {
        let w = |mix| {
            let s = Spread::new(1.0, 0.0, mix).unwrap();
            s.weights(&[1.0, 0.0]).unwrap().weights
        };
        assert_eq!(w(0.0), [1.0, 0.0]);
        assert_eq!(w(0.5), [0.75, 0.25]);
        assert_eq!(w(1.0), [0.5, 0.5]);
    }

    #[test]
    fn extremes_neither_overflow_nor_vanish() {
        for scale in [f32::MIN_POSITIVE, 1e-20, 1.0, f32::MAX] {
            let s = Spread::new(8.0, 0.0, 0.0).unwrap();
            let w = s.weights(&[scale, scale / 2.0]).unwrap().weights;
            assert!((w[0] - 256.0 / 257.0).abs() < 1e-12, "{scale}: {w:?}");
        }
    }

    #[test]
    fn a_bad_score_is_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let e = spread(1.0).weights(&[0.5, 1.0, bad]).unwrap_err();
            assert!(e.to_string().contains("token 2"), "{e}");
        }
    }

    #[test]
    fn settings_are_checked() {
        for (p, eps, mix) in [
            (-1.0, 0.0, 0.0),
            (f32::NAN, 0.0, 0.0),
            (1.0, -1e-9, 0.0),
            (1.0, f32::INFINITY, 0.0),
            (1.0, 0.0, 1.5),
            (1.0, 0.0, f32::NAN),
        ] {
            assert!(Spread::new(p, eps, mix).is_err(), "{p} {eps} {mix}");
        }
    }

    #[test]
    fn an_empty_completion_has_no_weights() {
        let w = spread(1.0).weights(&[]).unwrap();
        assert!(w.weights.is_empty() && !w.fallback);
        assert!(advantage_per_token(1.0, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn weights_are_a_distribution(
            scores in prop::collection::vec(-1.0f32..50.0, 1..200),
            exponent in 0.0f32..4.0,
            mix in 0.0f32..=1.0,
        ) {
            let s = Spread::new(exponent, 1e-8, mix).unwrap();
            let w = s.weights(&scores).unwrap().weights;
            prop_assert!(w.iter().all(|&w| (0.0..=1.0).contains(&w)));
            prop_assert!((w.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }

        #[test]
        fn a_larger_score_never_weighs_less(
            scores in prop::collection::vec(0.0f32..50.0, 2..50),
            exponent in 0.0f32..4.0,
        ) {
            let w = spread(exponent).weights(&scores).unwrap().weights;
            for i in 1..scores.len() {
                if scores[i] >= scores[0] {
                    prop_assert!(w[i] >= w[0]);
                }
            }
        }
    }
}
