//! Entropy mask: a_t = 1 for the tokens of highest policy entropy, 0 for the
//! others ("Beyond the 80/20 Rule", arXiv 2506.01939: only the top 20 % of
//! tokens get a gradient).
//!
//! The paper takes the quantile over the batch. That makes a completion's
//! weights depend on its neighbours, and leaves completions without any token
//! above the threshold. So there are two methods:
//!
//! - `entropy_quantile`: the top ceil(q n) tokens of each completion (our
//!   reading for weights that sum to 1 per completion);
//! - `entropy_quantile_batch`: the paper's threshold, over the tokens of all
//!   completions of the step that have an advantage. A completion without a
//!   token above it falls back to uniform (counted in
//!   `credit/uniform_fallback_frac`), where the paper would leave it out.
//!
//! Tokens that tie with the threshold are in, so that places do not matter.

use super::{Credit, Peer, Scope, Settings, Signals};
use crate::episode::TokenSignals;

/// a_t = 1 if H_t is at least the (1 - q)-quantile over the scope, which is a
/// completion or the batch.
pub struct EntropyQuantile(pub Scope);

/// The ceil(q n)-th largest entropy, at least the largest.
fn threshold(entropies: impl Iterator<Item = f32>, quantile: f64) -> f32 {
    let mut all: Vec<f32> = entropies.collect();
    all.sort_by(|a, b| b.total_cmp(a));
    // A fifth of five tokens is one, whatever 0.2 * 5 rounds to.
    let keep = (quantile * all.len() as f64 - 1e-9).ceil() as usize;
    let last = keep.clamp(1, all.len().max(1)) - 1;
    all.get(last).copied().unwrap_or(f32::INFINITY)
}

fn mask(entropies: &[f32], threshold: f32, out: &mut [f32]) {
    for (a, &h) in out.iter_mut().zip(entropies) {
        *a = f32::from(u8::from(h >= threshold));
    }
}

impl Credit for EntropyQuantile {
    fn name(&self) -> &'static str {
        match self.0 {
            Scope::Batch => "entropy_quantile_batch",
            _ => "entropy_quantile",
        }
    }

    fn scope(&self) -> Scope {
        self.0
    }

    fn needs(&self) -> Signals {
        Signals {
            entropies: true,
            ..Signals::NONE
        }
    }

    fn score(&self, signals: &TokenSignals, settings: &Settings, out: &mut [f32]) {
        let least = threshold(signals.entropies.iter().copied(), settings.quantile);
        mask(&signals.entropies, least, out);
    }

    fn score_together(&self, peers: &[Peer], settings: &Settings, out: &mut [Vec<f32>]) {
        if self.0 != Scope::Batch {
            for (peer, row) in peers.iter().zip(out) {
                self.score(peer.signals, settings, row);
            }
            return;
        }
        // Whether groups without an advantage are scored depends on the
        // diagnostics' needs: the threshold must not.
        let any = peers.iter().any(|p| p.advantage != 0.0);
        let pool = peers
            .iter()
            .filter(|p| !any || p.advantage != 0.0)
            .flat_map(|p| p.signals.entropies.iter().copied());
        let least = threshold(pool, settings.quantile);
        for (peer, row) in peers.iter().zip(out) {
            mask(&peer.signals.entropies, least, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(entropies: &[f32]) -> TokenSignals {
        TokenSignals {
            entropies: entropies.to_vec(),
            ..TokenSignals::default()
        }
    }

    #[test]
    fn keeps_the_share_and_ties() {
        let kept = |entropies: &[f32], quantile: f64| {
            let mut out = vec![f32::NAN; entropies.len()];
            let method = EntropyQuantile(Scope::Completion);
            method.score(&of(entropies), &Settings { quantile }, &mut out);
            out.iter().sum::<f32>() as usize
        };
        let distinct: Vec<f32> = (0..10).map(|i| (i * 7 % 10) as f32).collect();
        assert_eq!(kept(&distinct, 0.2), 2);
        assert_eq!(kept(&distinct, 0.21), 3);
        let hundred: Vec<f32> = (0..100).map(|i| i as f32).collect();
        assert_eq!(kept(&hundred, 0.07), 7);
        assert_eq!(kept(&distinct, 0.01), 1);
        assert_eq!(kept(&distinct, 1.0), 10);
        assert_eq!(kept(&[2.0, 5.0, 5.0, 5.0, 1.0], 0.2), 3);
        assert_eq!(kept(&[0.0; 5], 0.2), 5);
    }

    #[test]
    fn one_threshold_over_the_batch() {
        let (a, b, c) = (of(&[9.0, 8.0, 1.0]), of(&[2.0, 3.0]), of(&[99.0]));
        let peer = |signals, advantage| Peer { signals, advantage };
        let peers = [peer(&a, 1.0), peer(&b, -1.0), peer(&c, 0.0)];
        let mut out = vec![vec![0.0; 3], vec![0.0; 2], vec![0.0]];
        let settings = Settings { quantile: 0.4 };
        EntropyQuantile(Scope::Batch).score_together(&peers, &settings, &mut out);
        // Two of the five tokens that have an advantage; 99 sets no threshold.
        assert_eq!(out, [vec![1.0, 1.0, 0.0], vec![0.0, 0.0], vec![1.0]]);
    }
}
