//! How concentrated the weights are: collapsed to uniform, spuriously sparse,
//! or between (arXiv 2606.00257).
//!
//! Over the n tokens of one completion, weights ascending w_(1..n):
//!
//! ```text
//! Gini                   = sum_i (2i - n - 1) w_(i) / (n sum w)    0 uniform, (n-1)/n one token
//! effective-token ratio  = (sum w)^2 / (n sum w^2)                 1 uniform, 1/n one token
//! ```

/// Diagnostics of one completion's weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Concentration {
    /// See [`gini`].
    pub gini: f64,
    /// See [`effective_token_ratio`].
    pub effective_token_ratio: f64,
    /// See [`max_weight`].
    pub max_weight: f64,
}

impl Concentration {
    /// `None` for a completion without tokens.
    pub fn of(weights: &[f64]) -> Option<Self> {
        (!weights.is_empty()).then(|| Concentration {
            gini: gini(weights),
            effective_token_ratio: effective_token_ratio(weights),
            max_weight: max_weight(weights),
        })
    }
}

/// Gini coefficient, in [0, (n-1)/n]; exactly 0 for equal weights and for one
/// or no token.
pub fn gini(weights: &[f64]) -> f64 {
    let n = weights.len();
    let sum: f64 = weights.iter().sum();
    if n < 2 || sum <= 0.0 {
        return 0.0;
    }
    let mut sorted = weights.to_vec();
    sorted.sort_by(f64::total_cmp);
    // The factors are antisymmetric: taken in pairs every addend is >= 0, so
    // rounding cannot push a uniform completion off zero.
    let spread: f64 = (0..n / 2)
        .map(|i| (n - 1 - 2 * i) as f64 * (sorted[n - 1 - i] - sorted[i]))
        .sum();
    spread / (n as f64 * sum)
}

/// Effective number of tokens over their number, in [1/n, 1]; 1 for equal
/// weights, exactly.
pub fn effective_token_ratio(weights: &[f64]) -> f64 {
    let largest = max_weight(weights);
    if largest <= 0.0 {
        return 1.0;
    }
    let relative = |w: &f64| w / largest;
    let sum: f64 = weights.iter().map(relative).sum();
    let squares: f64 = weights.iter().map(|w| relative(w).powi(2)).sum();
    (sum * sum / (weights.len() as f64 * squares)).min(1.0)
}

/// The largest weight; 0 for no tokens.
pub fn max_weight(weights: &[f64]) -> f64 {
    weights.iter().copied().fold(0.0, f64::max)
}

/// Mergeable summary over completions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Diagnostics {
    completions: u64,
    fallbacks: u64,
    gini: f64,
    effective_token_ratio: f64,
    max_weight: f64,
    residual_tokens: u64,
    residual: f64,
}

impl Diagnostics {
    /// Counts one completion. `residuals` may be empty (a method that does not
    /// measure them); a completion without tokens is not counted.
    pub fn add(&mut self, weights: &super::TokenWeights, residuals: &[f32]) {
        let Some(one) = Concentration::of(&weights.weights) else {
            return;
        };
        self.completions += 1;
        self.fallbacks += u64::from(weights.fallback);
        self.gini += one.gini;
        self.effective_token_ratio += one.effective_token_ratio;
        self.max_weight += one.max_weight;
        self.residual_tokens += residuals.len() as u64;
        self.residual += residuals.iter().map(|&r| f64::from(r)).sum::<f64>();
    }

    /// As if the other's completions had been added here.
    pub fn merge(&mut self, other: &Diagnostics) {
        self.completions += other.completions;
        self.fallbacks += other.fallbacks;
        self.gini += other.gini;
        self.effective_token_ratio += other.effective_token_ratio;
        self.max_weight += other.max_weight;
        self.residual_tokens += other.residual_tokens;
        self.residual += other.residual;
    }

    /// Completions counted.
    pub fn completions(&self) -> u64 {
        self.completions
    }

    /// Means over completions; `None` when none was counted.
    pub fn mean(&self) -> Option<Concentration> {
        let n = self.completions as f64;
        (self.completions > 0).then(|| Concentration {
            gini: self.gini / n,
            effective_token_ratio: self.effective_token_ratio / n,
            max_weight: self.max_weight / n,
        })
    }

    /// Share of completions whose scores were all zero.
    pub fn fallback_fraction(&self) -> Option<f64> {
        (self.completions > 0).then(|| self.fallbacks as f64 / self.completions as f64)
    }

    /// Mean residual norm over tokens; `None` when none was measured.
    pub fn residual_norm_mean(&self) -> Option<f64> {
        (self.residual_tokens > 0).then(|| self.residual / self.residual_tokens as f64)
    }

    /// (name, value) for the metrics; what was not measured is absent.
    pub fn metrics(&self) -> Vec<(&'static str, f64)> {
        let mean = self.mean();
        [
            ("credit/gini", mean.map(|m| m.gini)),
            (
                "credit/effective_token_ratio",
                mean.map(|m| m.effective_token_ratio),
            ),
            ("credit/max_weight", mean.map(|m| m.max_weight)),
            ("credit/uniform_fallback_frac", self.fallback_fraction()),
            ("credit/residual_norm_mean", self.residual_norm_mean()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::TokenWeights;
    use super::*;

    #[test]
    fn uniform_is_exactly_zero_and_one() {
        for n in 1..400 {
            let w = TokenWeights::uniform(n).weights;
            assert_eq!(gini(&w), 0.0, "n {n}");
            assert_eq!(effective_token_ratio(&w), 1.0, "n {n}");
            assert_eq!(max_weight(&w), 1.0 / n as f64);
        }
    }

    #[test]
    fn one_hot_is_the_other_end() {
        for n in 1..100 {
            let mut w = vec![0.0; n];
            w[n / 2] = 1.0;
            assert!((gini(&w) - (n - 1) as f64 / n as f64).abs() < 1e-15);
            assert!((effective_token_ratio(&w) - 1.0 / n as f64).abs() < 1e-15);
            assert_eq!(max_weight(&w), 1.0);
        }
    }

    #[test]
    fn by_hand() {
        // Ascending .1 .2 .7: (-2 * .1 + 0 + 2 * .7) / 3 = .4; 1 / (3 * .54).
        let w = [0.7, 0.1, 0.2];
        assert!((gini(&w) - 0.4).abs() < 1e-15);
        assert!((effective_token_ratio(&w) - 1.0 / 1.62).abs() < 1e-15);
    }

    #[test]
    fn summary_merges() {
        let one_hot = TokenWeights {
            weights: vec![1.0, 0.0],
            fallback: false,
        };
        let fallback = TokenWeights {
            fallback: true,
            ..TokenWeights::uniform(4)
        };
        let (mut a, mut b) = (Diagnostics::default(), Diagnostics::default());
        a.add(&one_hot, &[1.0, 2.0]);
        b.add(&fallback, &[]);
        b.add(&TokenWeights::default(), &[]);
        a.merge(&b);
        assert_eq!(a.completions(), 2);
        assert_eq!(
            a.metrics(),
            [
                ("credit/gini", 0.25),
                ("credit/effective_token_ratio", 0.75),
                ("credit/max_weight", 0.625),
                ("credit/uniform_fallback_frac", 0.5),
                ("credit/residual_norm_mean", 1.5),
            ]
        );
        assert!(Diagnostics::default().metrics().is_empty());
    }

    proptest! {
        #[test]
        fn bounds_and_order_do_not_matter(
            mut w in prop::collection::vec(0.0f64..1.0, 1..80),
            seed: u64,
        ) {
            let n = w.len() as f64;
            let (g, e) = (gini(&w), effective_token_ratio(&w));
            prop_assert!((0.0..=(n - 1.0) / n + 1e-12).contains(&g));
            prop_assert!((1.0 / n - 1e-12..=1.0).contains(&e));
            // The textbook sum, without the pairing.
            let mut sorted = w.clone();
            sorted.sort_by(f64::total_cmp);
            let sum: f64 = w.iter().sum();
            if sum > 0.0 {
                let plain: f64 = sorted.iter().enumerate()
                    .map(|(i, w)| (2.0 * (i + 1) as f64 - n - 1.0) * w)
                    .sum::<f64>() / (n * sum);
                prop_assert!((g - plain).abs() < 1e-12);
            }
            let shift = (seed % w.len() as u64) as usize;
            w.rotate_left(shift);
            w.reverse();
            prop_assert!((gini(&w) - g).abs() < 1e-12);
            prop_assert!((effective_token_ratio(&w) - e).abs() < 1e-12);
        }
    }
}
