//! Token-level credit: which tokens of a completion its advantage belongs to.
//!
//! A [`Credit`] method gives each token a raw score; [`spread`] turns scores
//! into weights that sum to 1 over the completion, the same way for every
//! method, so that methods differ in where the weight lies and never in how
//! much there is. The loss then sees A_it = A_i n_i w_it
//! ([`advantage_per_token`]): uniform weights give plain GRPO back.
//!
//! The setting and the first five methods are those of "ARCA: Adapter-Residual
//! Credit Assignment When Token Signals Degenerate" (arXiv 2606.00257); each
//! file names the source of its formula, and `docs/credit.md` tells them side
//! by side. A new method is one file and one row of [`METHODS`].

mod alarm;
mod arca;
mod assigner;
mod contrast;
mod delta;
mod diagnostics;
mod divergence;
mod entropy_quantile;
mod entropy_reduction;
mod gradient_norm;
mod hidden;
mod k3;
mod placement;
mod rank;
mod spread;
mod surprisal;
mod token_class;
mod uniform;

use anyhow::{Result, bail};

pub use alarm::{Alarm, COLLAPSED, PATIENCE, SPARSE, Watch, alarm};
pub use arca::Arca;
pub use assigner::CreditAssigner;
pub use contrast::Contrast;
pub use delta::Delta;
pub use diagnostics::{Concentration, Diagnostics, effective_token_ratio, gini, max_weight};
pub use divergence::Divergence;
pub use entropy_quantile::EntropyQuantile;
pub use entropy_reduction::EntropyReduction;
pub use gradient_norm::GradientNorm;
pub use hidden::HiddenChoice;
pub use k3::K3;
pub use placement::Placement;
pub use rank::{ranks, spearman};
pub use spread::{Spread, TokenWeights, advantage_per_token};
pub use surprisal::Surprisal;
pub use token_class::{TokenClass, TokenClasses};
pub use uniform::Uniform;

use crate::episode::TokenSignals;

/// How much of a step a method must see before it can score one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Its own completion.
    Completion,
    /// All completions of its prompt.
    Group,
    /// All completions of the step: forces a scoring pass before the update.
    Batch,
}

/// What a method asks of the scoring forward beyond the log-probs, which are
/// always there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// Full-vocabulary entropies.
    pub entropies: bool,
    /// Log-probs under the reference.
    pub reference: bool,
    /// Norms of the adapter's change to the hidden state.
    pub residuals: bool,
    /// The states themselves that predict the tokens (post-norm).
    pub hidden_states: bool,
    /// Log-probs of the completion under a contrast prompt: further segments
    /// of the same forward.
    pub extra_segments: bool,
}

impl Signals {
    /// Nothing beyond the log-probs.
    pub const NONE: Signals = Signals {
        entropies: false,
        reference: false,
        residuals: false,
        hidden_states: false,
        extra_segments: false,
    };

    /// What either asks for.
    pub fn union(self, other: Signals) -> Signals {
        Signals {
            entropies: self.entropies || other.entropies,
            reference: self.reference || other.reference,
            residuals: self.residuals || other.residuals,
            hidden_states: self.hidden_states || other.hidden_states,
            extra_segments: self.extra_segments || other.extra_segments,
        }
    }

    /// Whether the adapter-off rows are needed.
    pub fn base_rows(self) -> bool {
        self.reference || self.residuals
    }
}

/// Keys of `[credit]` that single methods read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// `credit.quantile`: the share of tokens that an entropy mask keeps.
    pub quantile: f64,
}

/// One completion as methods of a wider scope see it.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    pub signals: &'a TokenSignals,
    /// Of the whole completion; 0 where it has no gradient.
    pub advantage: f32,
}

/// A scheme that scores tokens.
pub trait Credit: Sync {
    /// The name in `credit.method`.
    fn name(&self) -> &'static str;

    /// How far around a token the score looks.
    fn scope(&self) -> Scope;

    /// The signals that [`score`](Credit::score) reads.
    fn needs(&self) -> Signals;

    /// Raw scores of one completion's tokens; `out` and every signal that
    /// [`needs`](Credit::needs) names have its length. Scores below 0 count as
    /// 0 later. A method of wider scope scores a completion on its own here.
    fn score(&self, signals: &TokenSignals, settings: &Settings, out: &mut [f32]);

    /// Raw scores of all completions within the [`scope`](Credit::scope),
    /// together: `out` has one row per peer, as long as its completion.
    fn score_together(&self, peers: &[Peer], settings: &Settings, out: &mut [Vec<f32>]) {
        for (peer, row) in peers.iter().zip(out) {
            self.score(peer.signals, settings, row);
        }
    }
}

/// Every method: the paper's table in its order, then the others.
pub const METHODS: &[&dyn Credit] = &[
    &Uniform,
    &Surprisal,
    &EntropyReduction,
    &Divergence,
    &Arca,
    &K3,
    &GradientNorm,
    &EntropyQuantile(Scope::Completion),
    &EntropyQuantile(Scope::Batch),
    &Contrast,
    &Delta,
];

/// The method of that name; the error of an unknown one suggests the nearest.
pub fn method(name: &str) -> Result<&'static dyn Credit> {
    if let Some(found) = METHODS.iter().find(|m| m.name() == name) {
        return Ok(*found);
    }
    let typed = name.to_lowercase().replace(['-', ' '], "_");
    let nearest = METHODS
        .iter()
        .map(|m| (strsim::normalized_damerau_levenshtein(&typed, m.name()), m))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness >= 0.5);
    let all: Vec<&str> = METHODS.iter().map(|m| m.name()).collect();
    let all = all.join(", ");
    match nearest {
        Some((_, m)) => bail!(
            "unknown credit method \"{name}\": did you mean \"{}\"? (there are {all})",
            m.name()
        ),
        None => bail!("unknown credit method \"{name}\" (there are {all})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { quantile: 0.2 };

    fn signals() -> TokenSignals {
        TokenSignals {
            logprobs: vec![-0.5, -2.0, -0.125],
            entropies: vec![1.0, 0.25, 0.75],
            reference_logprobs: vec![-1.0, -1.5, -0.125],
            residuals: vec![3.0, 0.5, 1.0],
            contrast_logprobs: vec![-0.5, -9.0, -1.0],
            states: vec![3.0, 4.0, 0.0, 2.0, 1.0, 0.0],
        }
    }

    fn scores(name: &str) -> Vec<f32> {
        let mut out = vec![f32::NAN; 3];
        method(name).unwrap().score(&signals(), &SETTINGS, &mut out);
        out
    }

    fn close(got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (g, e) in got.iter().zip(expected) {
            assert!(
                (f64::from(*g) - e).abs() < 1e-6 * e.abs().max(1.0),
                "{got:?} {expected:?}"
            );
        }
    }

    #[test]
    fn scores_by_hand() {
        assert_eq!(scores("uniform"), [1.0; 3]);
        assert_eq!(scores("surprisal"), [0.5, 2.0, 0.125]);
        // 1 - 1/4; a rise counts as 0; nothing follows the last token.
        assert_eq!(scores("entropy_reduction"), [0.75, 0.0, 0.0]);
        assert_eq!(scores("divergence"), [0.5, 0.5, 0.0]);
        assert_eq!(scores("arca"), [3.0, 0.5, 1.0]);
        // d = ref - lp is -1/2, 1/2, 0.
        let k3 = |d: f64| d.exp() - d - 1.0;
        close(&scores("k3"), &[k3(-0.5), k3(0.5), 0.0]);
        // (1 - p) times norms 5, 2 and 1.
        let p = |t: usize| f64::from(signals().logprobs[t]).exp();
        close(
            &scores("gradient_norm"),
            &[5.0 * (1.0 - p(0)), 2.0 * (1.0 - p(1)), 1.0 - p(2)],
        );
        // A fifth of three tokens is one.
        assert_eq!(scores("entropy_quantile"), [1.0, 0.0, 0.0]);
        assert_eq!(scores("entropy_quantile_batch"), [1.0, 0.0, 0.0]);
        // Divergences 0, large, some: ranks 1, 3, 2.
        let power = 0.2f64.ln() / 0.6f64.ln() - 1.0;
        close(
            &scores("contrast"),
            &[(1.0 / 3.0f64).powf(power), 1.0, (2.0 / 3.0f64).powf(power)],
        );
        // No other completion to tell it from.
        assert_eq!(scores("delta"), [0.8; 3]);
    }

    #[test]
    fn a_method_reads_no_more_than_it_declares() {
        for m in METHODS {
            let needs = m.needs();
            let mut sparse = signals();
            if !needs.entropies {
                sparse.entropies.clear();
            }
            if !needs.reference {
                sparse.reference_logprobs.clear();
            }
            if !needs.residuals {
                sparse.residuals.clear();
            }
            if !needs.hidden_states {
                sparse.states.clear();
            }
            if !needs.extra_segments {
                sparse.contrast_logprobs.clear();
            }
            let mut out = vec![f32::NAN; 3];
            m.score(&sparse, &SETTINGS, &mut out);
            assert_eq!(out, scores(m.name()), "{}", m.name());
        }
    }

    #[test]
    fn an_unknown_method_names_its_neighbour() {
        let message = |name| method(name).err().unwrap().to_string();
        assert!(message("acra").contains("did you mean \"arca\""));
        assert!(message("Entropy-Reduction").contains("did you mean \"entropy_reduction\""));
        let far = message("zzz");
        assert!(
            !far.contains("did you mean") && far.contains("surprisal"),
            "{far}"
        );
    }

    #[test]
    fn names_are_unique() {
        for (i, m) in METHODS.iter().enumerate() {
            assert!(METHODS[..i].iter().all(|other| other.name() != m.name()));
        }
    }
}
