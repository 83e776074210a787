//! Discriminative credit after DelTA (arXiv 2605.21467): weight on tokens whose
//! gradient tells the rewarded completions of a group from the others.
//!
//! ```text
//! v_t   = (1 - p_t) h_t                         proxy of a token's gradient (the paper's appendix F)
//! mu+   = mean of v_t over completions with A > 0, weighted by |A|;  mu- over A < 0
//! m_t   = |v_t - mu(other side)|^2 - |v_t - mu(own side)|^2
//! alpha = sigmoid(m_t / gamma)                  gamma: standard deviation of m over the side
//! mu+-  = the same means, weighted by |A| alpha_t; alpha anew, with the gamma from before
//! a_t   = 0.8 + 0.4 alpha_t
//! ```
//!
//! Of the paper: the proxy, the margin between squared distances, the sigmoid
//! with a temperature per side, one refinement of the centroids, the range
//! [0.8, 1.2]; that gamma is the standard deviation of the margins is read from
//! the authors' published code. Ours: the sides are those of one group, where
//! the code pools the rollout batch; and weights are normalised within each
//! completion, where the paper divides by the coefficients' sum over the batch.
//! A completion with advantage 0 has the constant 0.8, as in the code, and so
//! uniform weights; so has every completion of a group without two sides.
//! Whoever wants more contrast than 1.2 to 0.8 raises `credit.exponent`.

use super::gradient_norm::doubt;
use super::{Credit, Peer, Scope, Settings, Signals};
use crate::episode::TokenSignals;

const LEAST: f64 = 0.8;
const MOST: f64 = 1.2;
/// Least variance of margins, as in the authors' code.
const VARIANCE: f64 = 1e-8;

/// a_t = 0.8 + 0.4 sigmoid(margin / gamma).
pub struct Delta;

impl Credit for Delta {
    fn name(&self) -> &'static str {
        "delta"
    }

    fn scope(&self) -> Scope {
        Scope::Group
    }

    fn needs(&self) -> Signals {
        Signals {
            hidden_states: true,
            ..Signals::NONE
        }
    }

    /// A completion on its own has nothing to be told from.
    fn score(&self, _: &TokenSignals, _: &Settings, out: &mut [f32]) {
        out.fill(LEAST as f32);
    }

    fn score_together(&self, peers: &[Peer], _: &Settings, out: &mut [Vec<f32>]) {
        out.iter_mut().for_each(|row| row.fill(LEAST as f32));
        let sides = [1.0f32, -1.0].map(|sign| Side {
            peers: peers
                .iter()
                .enumerate()
                .filter(|(_, p)| p.advantage * sign > 0.0 && !p.signals.logprobs.is_empty())
                .collect(),
        });
        let [positive, negative] = &sides;
        let (Some(plus), Some(minus)) = (positive.centroid(None), negative.centroid(None)) else {
            return;
        };
        let first = [
            positive.margins(&plus, &minus),
            negative.margins(&minus, &plus),
        ];
        let gamma = first.each_ref().map(|margins| deviation(margins));
        let alpha = |side: usize, margins: &[Vec<f64>]| -> Vec<Vec<f64>> {
            let of = |m: &f64| 1.0 / (1.0 + (-m / gamma[side]).exp());
            margins
                .iter()
                .map(|row| row.iter().map(of).collect())
                .collect()
        };
        let refined = [0, 1].map(|i| sides[i].centroid(Some(&alpha(i, &first[i]))));
        let [Some(plus), Some(minus)] = &refined else {
            return;
        };
        for (i, (own, other)) in [(plus, minus), (minus, plus)].into_iter().enumerate() {
            let scores = alpha(i, &sides[i].margins(own, other));
            for ((index, _), row) in sides[i].peers.iter().zip(scores) {
                for (a, alpha) in out[*index].iter_mut().zip(row) {
                    *a = (LEAST + (MOST - LEAST) * alpha) as f32;
                }
            }
        }
    }
}

/// The completions of a group whose advantage has one sign.
struct Side<'a> {
    peers: Vec<(usize, &'a Peer<'a>)>,
}

/// The tokens of a completion: (1 - p, h).
fn tokens<'a>(peer: &'a Peer) -> impl Iterator<Item = (f64, &'a [f32])> {
    let s = peer.signals;
    let width = (s.states.len() / s.logprobs.len().max(1)).max(1);
    s.logprobs
        .iter()
        .map(|&lp| doubt(lp))
        .zip(s.states.chunks_exact(width))
}

impl Side<'_> {
    /// Mean of v weighted by |A| (times alpha); `None` without any weight.
    fn centroid(&self, alpha: Option<&[Vec<f64>]>) -> Option<Vec<f64>> {
        let mut sum: Vec<f64> = Vec::new();
        let mut mass = 0.0;
        for (i, (_, peer)) in self.peers.iter().enumerate() {
            for (t, (doubt, h)) in tokens(peer).enumerate() {
                let alpha = alpha.map_or(1.0, |rows| rows[i][t]);
                let weight = f64::from(peer.advantage.abs()) * alpha;
                sum.resize(h.len(), 0.0);
                mass += weight;
                for (s, &x) in sum.iter_mut().zip(h) {
                    *s += weight * doubt * f64::from(x);
                }
            }
        }
        sum.iter_mut().for_each(|s| *s /= mass);
        (mass > 0.0).then_some(sum)
    }

    /// |v - other|^2 - |v - own|^2 = 2 v (own - other) + |other|^2 - |own|^2.
    fn margins(&self, own: &[f64], other: &[f64]) -> Vec<Vec<f64>> {
        let direction: Vec<f64> = own.iter().zip(other).map(|(a, b)| a - b).collect();
        let square = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>();
        let offset = square(other) - square(own);
        let margin = |(doubt, h): (f64, &[f32])| {
            let dot: f64 = h
                .iter()
                .zip(&direction)
                .map(|(&x, d)| f64::from(x) * d)
                .sum();
            2.0 * doubt * dot + offset
        };
        self.peers
            .iter()
            .map(|(_, peer)| tokens(peer).map(margin).collect())
            .collect()
    }
}

/// Standard deviation (of the population) over all tokens of a side.
fn deviation(margins: &[Vec<f64>]) -> f64 {
    let all = || margins.iter().flatten();
    let n = all().count().max(1) as f64;
    let mean = all().sum::<f64>() / n;
    let variance = all().map(|m| (m - mean).powi(2)).sum::<f64>() / n;
    variance.max(VARIANCE).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { quantile: 0.2 };

    /// p = 0 throughout, so that v is h.
    fn completion(states: &[[f32; 2]]) -> TokenSignals {
        TokenSignals {
            logprobs: vec![-1e4; states.len()],
            states: states.concat(),
            ..TokenSignals::default()
        }
    }

    /// One coordinate is shared by both sides, the other tells them apart.
    #[test]
    fn tokens_that_tell_the_sides_apart_weigh_more() {
        let good = completion(&[[1.0, 0.0], [1.0, 2.0], [1.0, 0.0]]);
        let bad = completion(&[[1.0, 0.0], [1.0, -2.0], [1.0, 0.0]]);
        let peers =
            [(&good, 1.0), (&bad, -1.0)].map(|(signals, advantage)| Peer { signals, advantage });
        let mut out = vec![vec![0.0; 3], vec![0.0; 3]];
        Delta.score_together(&peers, &SETTINGS, &mut out);
        assert_eq!(out[0], out[1]);
        assert_eq!(out[0][0], out[0][2]);
        assert!(out[0][1] > 1.0 && out[0][1] < 1.2, "{out:?}");
        // By hand: centroids (1, +-2/3); margins 4 y (2/3) = 0, 16/3, 0 with
        // deviation 16/3 sqrt(2)/3; alpha 1/2, s, 1/2 with s = sigmoid(3/sqrt 2);
        // centroids again (1, +-2 s / (1 + s)), margins 4 y of it.
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let s = sigmoid(3.0 / 2f64.sqrt());
        let gamma = 16.0 / 3.0 * 2f64.sqrt() / 3.0;
        let margin = 4.0 * 2.0 * (2.0 * s / (1.0 + s));
        let expected = 0.8 + 0.4 * sigmoid(margin / gamma);
        assert!((f64::from(out[0][1]) - expected).abs() < 1e-6);
        assert!((out[0][0] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn without_two_sides_nothing_is_told() {
        let one = completion(&[[1.0, 3.0], [0.0, 2.0]]);
        for advantages in [[1.0, 1.0], [0.0, 0.0], [0.0, -1.0]] {
            let peers = advantages.map(|advantage| Peer {
                signals: &one,
                advantage,
            });
            let mut out = vec![vec![0.0; 2]; 2];
            Delta.score_together(&peers, &SETTINGS, &mut out);
            assert_eq!(out, vec![vec![0.8; 2]; 2]);
        }
    }

    /// Completions that do not differ have no direction: alpha is 1/2.
    #[test]
    fn equal_sides_are_uniform() {
        let one = completion(&[[1.0, 3.0], [0.0, 2.0]]);
        let peers = [0.5, -2.0].map(|advantage| Peer {
            signals: &one,
            advantage,
        });
        let mut out = vec![vec![0.0; 2]; 2];
        Delta.score_together(&peers, &SETTINGS, &mut out);
        for a in out.concat() {
            assert!((a - 1.0).abs() < 1e-6, "{a}");
        }
    }
}
