//! Where the weight lies: by place in the completion, by class of token, on
//! which entropies, and how alike the other methods see it.

use std::collections::BTreeMap;

use super::{CreditAssigner, TokenClass, TokenWeights, ranks, spearman};
use crate::episode::TokenSignals;

const DECILES: usize = 10;
/// The top tokens are this share of a completion, at least one.
const TOP: f64 = 0.1;

/// Mergeable means over completions.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    completions: u64,
    deciles: [f64; DECILES],
    first: f64,
    last: f64,
    classes: [f64; TokenClass::ALL.len()],
    top_entropy: f64,
    /// Sum and count by method; a completion with constant scores has none.
    correlations: BTreeMap<&'static str, (f64, u64)>,
}

impl Placement {
    /// Counts one completion. `classes` has one entry per token, or none where
    /// there is no tokenizer. A completion without tokens is not counted.
    pub fn add(
        &mut self,
        credit: &CreditAssigner,
        weights: &TokenWeights,
        signals: &TokenSignals,
        classes: &[TokenClass],
    ) {
        let w = &weights.weights;
        let n = w.len();
        if n == 0 {
            return;
        }
        self.completions += 1;
        self.first += w[0];
        self.last += w[n - 1];
        for (t, &w) in w.iter().enumerate() {
            // Token t covers [t, t + 1) / n of the completion: in a short one
            // its weight is shared by several deciles.
            let (from, to) = (t * DECILES, (t + 1) * DECILES);
            for d in from / n..to.div_ceil(n) {
                let overlap = to.min((d + 1) * n) - from.max(d * n);
                self.deciles[d] += w * overlap as f64 / DECILES as f64;
            }
        }
        for (w, &class) in w.iter().zip(classes) {
            self.classes[class as usize] += w;
        }
        self.top_entropy += top_entropy(w, &signals.entropies);
        if weights.fallback {
            return;
        }
        let own = ranks(w);
        for (name, scores) in credit.other_scores(signals) {
            if let Some(rho) = spearman(&own, &ranks(&scores)) {
                let sum = self.correlations.entry(name).or_default();
                sum.0 += rho;
                sum.1 += 1;
            }
        }
    }

    /// (name, value) for the metrics; nothing when no completion was counted.
    pub fn metrics(&self) -> Vec<(String, f64)> {
        if self.completions == 0 {
            return Vec::new();
        }
        let n = self.completions as f64;
        let mut out: Vec<(String, f64)> = Vec::new();
        for (d, share) in self.deciles.iter().enumerate() {
            out.push((format!("credit/position/decile_{d}"), share / n));
        }
        out.push(("credit/position/first".into(), self.first / n));
        out.push(("credit/position/last".into(), self.last / n));
        for class in TokenClass::ALL {
            let share = self.classes[class as usize] / n;
            out.push((format!("credit/class/{}", class.name()), share));
        }
        out.push(("credit/top_token_entropy".into(), self.top_entropy / n));
        for (name, (sum, count)) in &self.correlations {
            out.push((format!("credit/correlation/{name}"), sum / *count as f64));
        }
        out
    }
}

/// Mean entropy of the tokens of largest weight; of those that tie, the first.
fn top_entropy(weights: &[f64], entropies: &[f32]) -> f64 {
    let n = weights.len();
    let top = ((TOP * n as f64).ceil() as usize).clamp(1, n);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let sum: f64 = order[..top]
        .iter()
        .filter_map(|&t| entropies.get(t))
        .map(|&h| f64::from(h))
        .sum();
    sum / top as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CreditConfig;

    fn placement(method: &str, weights: Vec<f64>, signals: &TokenSignals) -> BTreeMap<String, f64> {
        let credit = CreditAssigner::new(&CreditConfig {
            method: method.into(),
            ..CreditConfig::default()
        })
        .unwrap();
        let mut classes = vec![TokenClass::Words; weights.len()];
        classes[0] = TokenClass::Digits;
        let weights = TokenWeights {
            weights,
            fallback: false,
        };
        let mut placement = Placement::default();
        placement.add(&credit, &weights, signals, &classes);
        placement.metrics().into_iter().collect()
    }

    fn entropies(values: &[f32]) -> TokenSignals {
        TokenSignals {
            logprobs: vec![-1.0; values.len()],
            entropies: values.to_vec(),
            ..TokenSignals::default()
        }
    }

    #[test]
    fn equal_weights_fill_the_deciles_evenly() {
        for n in [1usize, 3, 10, 17, 64] {
            let m = placement(
                "uniform",
                vec![1.0 / n as f64; n],
                &entropies(&vec![1.0; n]),
            );
            for d in 0..10 {
                let share = m[&format!("credit/position/decile_{d}")];
                assert!((share - 0.1).abs() < 1e-12, "n {n}, decile {d}: {share}");
            }
            assert_eq!(m["credit/top_token_entropy"], 1.0);
        }
    }

    #[test]
    fn shares_by_hand() {
        // Twenty tokens: two to a decile.
        let mut w = vec![0.0; 20];
        (w[0], w[3], w[19]) = (0.5, 0.2, 0.3);
        let mut h = vec![0.0; 20];
        (h[0], h[3], h[19]) = (3.0, 9.0, 1.0);
        let m = placement("surprisal", w, &entropies(&h));
        let of = |key: &str| m[&format!("credit/{key}")];
        assert_eq!((of("position/first"), of("position/last")), (0.5, 0.3));
        assert_eq!(of("position/decile_0"), 0.5);
        assert_eq!(of("position/decile_1"), 0.2);
        assert_eq!(of("position/decile_9"), 0.3);
        assert_eq!((of("class/digits"), of("class/words")), (0.5, 0.5));
        assert_eq!(of("class/box"), 0.0);
        // The two largest weights stand on entropies 3 and 1.
        assert_eq!(of("top_token_entropy"), 2.0);
    }

    #[test]
    fn correlates_with_methods_whose_signals_are_there() {
        let mut signals = entropies(&[3.0, 2.0, 1.0]);
        signals.logprobs = vec![-3.0, -2.0, -1.0];
        signals.reference_logprobs = vec![-3.0, -1.0, 1.0];
        let m = placement("entropy_quantile", vec![0.1, 0.3, 0.6], &signals);
        assert_eq!(m["credit/correlation/surprisal"], -1.0);
        assert_eq!(m["credit/correlation/divergence"], 1.0);
        // Not itself, not uniform, and nothing that was not measured.
        for absent in [
            "entropy_quantile",
            "uniform",
            "arca",
            "contrast",
            "gradient_norm",
        ] {
            let key = format!("credit/correlation/{absent}");
            assert!(!m.contains_key(&key), "{key}");
        }
        let flat = placement("uniform", vec![1.0 / 3.0; 3], &signals);
        assert!(!flat.keys().any(|k| k.contains("correlation")));
    }
}
