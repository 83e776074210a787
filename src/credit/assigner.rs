//! The `[credit]` table at work: method, spread and warm-up.

use anyhow::{Context, Result, bail};

use super::{
    Credit, HiddenChoice, METHODS, Peer, Scope, Settings, Signals, Spread, TokenWeights, method,
};
use crate::config::CreditConfig;
use crate::episode::TokenSignals;
use crate::model::peft::decimal;

/// A checked [`CreditConfig`] that turns signals into weights.
#[derive(Clone, Copy)]
pub struct CreditAssigner {
    method: &'static dyn Credit,
    spread: Spread,
    settings: Settings,
    hidden: HiddenChoice,
    warmup_steps: usize,
}

impl CreditAssigner {
    /// Refuses an unknown method and settings out of range.
    pub fn new(config: &CreditConfig) -> Result<Self> {
        Ok(CreditAssigner {
            method: method(&config.method).context("credit.method")?,
            spread: Spread::new(config.exponent, config.epsilon, config.mix)?,
            settings: Settings {
                quantile: decimal(config.quantile),
            },
            hidden: config.hidden.parse()?,
            warmup_steps: config.warmup_steps,
        })
    }

    /// The same settings with another method, for side-by-side views.
    pub fn with_method(self, method: &'static dyn Credit) -> Self {
        CreditAssigner { method, ..self }
    }

    /// The scheme of `credit.method`.
    pub fn method(&self) -> &'static dyn Credit {
        self.method
    }

    /// The state to compare; check it against the model's layers.
    pub fn hidden(&self) -> HiddenChoice {
        self.hidden
    }

    /// Steps 0 to `warmup_steps` - 1 use uniform weights.
    pub fn warming_up(&self, step: usize) -> bool {
        step < self.warmup_steps
    }

    /// What the weights of this step need from the scoring forward.
    pub fn needs(&self, step: usize) -> Signals {
        if self.warming_up(step) {
            Signals::NONE
        } else {
            self.method.needs()
        }
    }

    /// How much of a step must be scored before its weights are known.
    pub fn scope(&self, step: usize) -> Scope {
        match self.warming_up(step) {
            true => Scope::Completion,
            false => self.method.scope(),
        }
    }

    /// Weights of one completion on its own at optimizer step `step`, counted
    /// from 0; see [`CreditAssigner::weights_together`].
    pub fn weights(&self, signals: &TokenSignals, step: usize) -> Result<TokenWeights> {
        let alone = Peer {
            signals,
            advantage: 0.0,
        };
        let mut all = self.weights_together(&[alone], step)?;
        Ok(all.remove(0))
    }

    /// Weights of all completions within the scope at optimizer step `step`.
    ///
    /// A signal that is missing, of the wrong length or not finite is an error
    /// that names it and its token. During warm-up no signal is read.
    pub fn weights_together(&self, peers: &[Peer], step: usize) -> Result<Vec<TokenWeights>> {
        let lengths = peers.iter().map(|p| p.signals.logprobs.len());
        if self.warming_up(step) {
            return Ok(lengths.map(TokenWeights::uniform).collect());
        }
        for peer in peers {
            self.check(peer.signals)?;
        }
        let mut scores: Vec<Vec<f32>> = lengths.map(|n| vec![0.0; n]).collect();
        self.method
            .score_together(peers, &self.settings, &mut scores);
        scores
            .iter()
            .map(|scores| self.spread.weights(scores))
            .collect::<Result<_>>()
            .with_context(|| format!("credit method {}", self.method.name()))
    }

    /// Before scoring: a max(0, NaN) inside a method would hide it.
    fn check(&self, signals: &TokenSignals) -> Result<()> {
        let tokens = signals.logprobs.len();
        for (what, values) in signals_of(self.method.needs(), signals) {
            // States are rows of some width; everything else is one per token.
            let whole = match what {
                STATES => {
                    tokens == 0 || (values.len().is_multiple_of(tokens) && !values.is_empty())
                }
                _ => values.len() == tokens,
            };
            if !whole {
                bail!(
                    "credit method {}: {tokens} tokens but {} of signal {what}",
                    self.method.name(),
                    values.len()
                );
            }
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                let token = i * tokens / values.len();
                bail!("the {what} of completion token {token} is {}", values[i]);
            }
        }
        Ok(())
    }

    /// Raw scores of the other methods that look at one completion alone and
    /// whose signals are there anyway; uniform, which has no order, left out.
    pub fn other_scores(&self, signals: &TokenSignals) -> Vec<(&'static str, Vec<f32>)> {
        let tokens = signals.logprobs.len();
        METHODS
            .iter()
            .filter(|m| {
                m.name() != self.method.name()
                    && m.name() != "uniform"
                    && m.scope() == Scope::Completion
                    && signals_of(m.needs(), signals)
                        .iter()
                        .all(|(_, values)| !values.is_empty())
            })
            .map(|m| {
                let mut scores = vec![0.0; tokens];
                m.score(signals, &self.settings, &mut scores);
                (m.name(), scores)
            })
            .collect()
    }
}

const STATES: &str = "hidden state";

/// What a method reads, with the names that messages use.
fn signals_of(needs: Signals, s: &TokenSignals) -> Vec<(&'static str, &[f32])> {
    [
        (true, "log-prob", &s.logprobs),
        (needs.entropies, "entropy", &s.entropies),
        (needs.reference, "reference log-prob", &s.reference_logprobs),
        (needs.residuals, "residual norm", &s.residuals),
        (
            needs.extra_segments,
            "contrast log-prob",
            &s.contrast_logprobs,
        ),
        (needs.hidden_states, STATES, &s.states),
    ]
    .into_iter()
    .filter(|(used, ..)| *used)
    .map(|(_, what, values)| (what, &values[..]))
    .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assigner(method: &str, edit: impl FnOnce(&mut CreditConfig)) -> CreditAssigner {
        let mut config = CreditConfig {
            method: method.into(),
            ..CreditConfig::default()
        };
        edit(&mut config);
        CreditAssigner::new(&config).unwrap()
    }

    fn signals(rows: &[[f32; 4]]) -> TokenSignals {
        let column = |c: usize| rows.iter().map(|r| r[c]).collect();
        TokenSignals {
            logprobs: column(0),
            entropies: column(1),
            reference_logprobs: column(2),
            residuals: column(3),
            contrast_logprobs: column(2),
            states: rows.iter().flat_map(|r| [r[1], r[3]]).collect(),
        }
    }

    #[test]
    fn warm_up_is_uniform_and_reads_nothing() {
        let a = assigner("arca", |c| c.warmup_steps = 2);
        let s = TokenSignals {
            logprobs: vec![-1.0; 3],
            ..TokenSignals::default()
        };
        for step in 0..2 {
            assert_eq!(a.needs(step), Signals::NONE);
            assert_eq!(a.weights(&s, step).unwrap(), TokenWeights::uniform(3));
        }
        assert!(a.needs(2).residuals);
        let e = a.weights(&s, 2).unwrap_err().to_string();
        assert!(e.contains("residual norm"), "{e}");
    }

    #[test]
    fn a_bad_signal_is_named_by_token() {
        for (method, column, what) in [
            ("surprisal", 0, "log-prob"),
            ("entropy_reduction", 1, "entropy"),
            ("divergence", 2, "reference log-prob"),
            ("arca", 3, "residual norm"),
            ("k3", 2, "reference log-prob"),
            ("contrast", 2, "contrast log-prob"),
            ("gradient_norm", 3, "hidden state"),
            ("delta", 1, "hidden state"),
            ("entropy_quantile", 1, "entropy"),
        ] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut rows = [[-1.0, 1.0, -1.0, 1.0]; 4];
                rows[3][column] = bad;
                let e = assigner(method, |_| ()).weights(&signals(&rows), 0);
                let e = e.unwrap_err().to_string();
                assert!(e.contains(what) && e.contains("token 3"), "{e}");
            }
        }
    }

    #[test]
    fn bad_settings_are_refused() {
        let refused = |edit: fn(&mut CreditConfig)| {
            let mut config = CreditConfig::default();
            edit(&mut config);
            CreditAssigner::new(&config).is_err()
        };
        assert!(!refused(|_| ()));
        assert!(refused(|c| c.method = "arcade".into()));
        assert!(refused(|c| c.hidden = "layer".into()));
        assert!(refused(|c| c.mix = -0.1));
    }

    #[test]
    fn one_token_gets_everything() {
        for m in METHODS {
            let s = signals(&[[-0.7, 1.0, -0.5, 2.0]]);
            let w = assigner(m.name(), |_| ()).weights(&s, 0).unwrap();
            assert_eq!(w.weights, [1.0], "{}", m.name());
        }
    }

    proptest! {
        /// Methods whose score of a token looks at that token alone.
        #[test]
        fn weights_follow_their_tokens(
            rows in prop::collection::vec(
                (-9.0f32..0.0, 0.0f32..5.0, -9.0f32..0.0, 0.0f32..5.0), 2..40),
            shift in 0usize..40,
            exponent in 0.0f32..3.0,
        ) {
            let rows: Vec<[f32; 4]> = rows.into_iter().map(|r| [r.0, r.1, r.2, r.3]).collect();
            let shift = shift % rows.len();
            let mut rotated = rows.clone();
            rotated.rotate_left(shift);
            for name in [
                "uniform", "surprisal", "divergence", "arca", "k3", "gradient_norm", "contrast",
                "entropy_quantile",
            ] {
                let a = assigner(name, |c| c.exponent = exponent);
                prop_assert_eq!(a.method().scope(), Scope::Completion);
                let mut w = a.weights(&signals(&rows), 0).unwrap().weights;
                w.rotate_left(shift);
                let moved = a.weights(&signals(&rotated), 0).unwrap().weights;
                for (w, moved) in w.iter().zip(&moved) {
                    prop_assert!((w - moved).abs() < 1e-13);
                }
            }
        }

        #[test]
        fn every_method_sums_to_one(
            rows in prop::collection::vec(
                (-9.0f32..0.0, 0.0f32..5.0, -9.0f32..0.0, 0.0f32..5.0), 1..60),
            mix in 0.0f32..=1.0,
        ) {
            let rows: Vec<[f32; 4]> = rows.into_iter().map(|r| [r.0, r.1, r.2, r.3]).collect();
            for m in METHODS {
                let w = assigner(m.name(), |c| c.mix = mix).weights(&signals(&rows), 0).unwrap();
                prop_assert!((w.weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
        }
    }
}
