//! From log-probs and advantages to one coefficient per token.
//!
//! Every loss here reaches the model only through log pi(y_t), so the whole
//! loss is told by its value and c_t = d loss / d log pi(y_t), which the
//! backward pass multiplies into d log pi / d hidden. With r the importance
//! ratio, A the advantage, m the loss mask and n the sequence's tokens
//! (arithmetic of TRL 1.16.0's `GRPOTrainer._compute_loss`):
//!
//! ```text
//! token level      r_t = exp(lp_t - old_t)
//! sequence level   r   = exp(sum m (lp - old) / n)                    GSPO, arXiv 2507.18071
//! grpo bnpo dr_grpo dapo
//!                  L_t = -min(min(r, delta) A, clamp(r, 1 - eps, 1 + eps_high) A)
//! cispo            L_t = -detach(min(r, eps_high)) A lp_t             arXiv 2506.13585
//! sapo             L_t = -sigmoid(tau (r - 1)) 4 / tau A              arXiv 2511.20347
//! sampler          L_t = L_t * rho_t                                  see sampler.rs
//! KL (k3)          L_t = L_t + beta (exp(ref - lp) - (ref - lp) - 1) [* r under bias correction]
//! ```
//!
//! in this order; the KL's r is taken before the clamp at delta and carries
//! gradient. How the L_t become one number: [`Aggregation`].
//!
//! A sequence's coefficients depend on the other sequences through the
//! [`Normalizer`] alone, so any physical split of a step gives the same ones.

mod normalizer;
mod sampler;
mod stats;
mod surrogate;

use anyhow::{Result, bail, ensure};

pub use normalizer::{Aggregation, Normalizer, StepNormalizers};
pub use sampler::sampler_ratio;
pub use stats::{LossStats, Tally};
pub use surrogate::Surrogate;

use crate::config::{LossConfig, LossType, RatioLevel};

/// The KL penalty against the reference (k3 estimator,
/// <http://joschu.net/blog/kl-approx.html>).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlPenalty {
    /// Its weight in the loss; `loss.beta`.
    pub beta: f64,
    /// Multiply by the importance ratio, gradient included.
    pub bias_correction: bool,
}

/// A loss, resolved from [`LossConfig`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The policy term.
    pub surrogate: Surrogate,
    /// Whether the importance ratio is per token or per sequence.
    pub level: RatioLevel,
    /// How the tokens' losses become one number.
    pub aggregation: Aggregation,
    /// `None` when beta is 0: no reference is needed.
    pub kl: Option<KlPenalty>,
}

/// Advantages of one sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Advantage<'a> {
    /// One for all its tokens: plain GRPO.
    Sequence(f32),
    /// One per token: credit weights folded in, A_i n_i w_it.
    Token(&'a [f32]),
}

impl Advantage<'_> {
    fn at(&self, token: usize) -> f64 {
        f64::from(match self {
            Advantage::Sequence(a) => *a,
            Advantage::Token(a) => a[token],
        })
    }
}

/// What the loss needs to know of one completion. All slices have its length.
#[derive(Clone, Copy, Debug)]
pub struct SequenceTerms<'a> {
    /// log pi(y_t) now: what the coefficients differentiate by.
    pub logprobs: &'a [f32],
    /// The trainer's detached log-probs of the first inner iteration. `None`:
    /// this is that iteration, so the ratio is exactly 1.
    pub old_logprobs: Option<&'a [f32]>,
    /// log pi_ref(y_t); required when the objective has a KL penalty.
    pub reference_logprobs: Option<&'a [f32]>,
    /// Factors of the sampler correction, from [`sampler_ratio`].
    pub sampler_ratio: Option<&'a [f32]>,
    /// How good the completion, or each of its tokens, was.
    pub advantage: Advantage<'a>,
    /// No loss on any of its tokens, KL included (a truncated completion under
    /// `rollout.mask_truncated`). It counts in B, not in token sums: list it
    /// with 0 tokens in [`StepNormalizers::new`].
    pub masked: bool,
}

/// One sequence's part of the step's loss.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceLoss {
    /// d(loss of the whole step) / d log pi(y_t), one per token.
    pub coefficients: Vec<f32>,
    /// Addend of the step's loss.
    pub loss: f64,
    /// Clipping, KL and ratios.
    pub stats: LossStats,
}

impl Objective {
    /// Resolves and checks the `[loss]` table.
    pub fn new(config: &LossConfig) -> Result<Self> {
        let at_least_zero = |key: &str, value: f32| -> Result<f64> {
            ensure!(
                value.is_finite() && value >= 0.0,
                "loss.{key} is {value}: it must be 0 or more"
            );
            Ok(f64::from(value))
        };
        let epsilon = at_least_zero("epsilon", config.epsilon)?;
        let epsilon_high = match config.epsilon_high {
            Some(value) => at_least_zero("epsilon_high", value)?,
            None => epsilon,
        };
        let delta = match config.delta {
            Some(value) if value > 0.0 && value.is_finite() => Some(f64::from(value)),
            Some(value) => bail!("loss.delta is {value}: it must be above 0"),
            None => None,
        };
        let beta = at_least_zero("beta", config.beta)?;
        let clip = Surrogate::Clip {
            low: 1.0 - epsilon,
            high: 1.0 + epsilon_high,
            delta,
        };
        let (surrogate, aggregation) = match config.loss_type {
            LossType::Grpo => (clip, Aggregation::SequenceMean),
            LossType::Bnpo => (clip, Aggregation::TokenMean),
            LossType::DrGrpo => (clip, Aggregation::FixedLength),
            LossType::Dapo => (clip, Aggregation::GenerationTokens),
            LossType::Cispo => (
                Surrogate::Cap { cap: epsilon_high },
                Aggregation::GenerationTokens,
            ),
        };
        Ok(Objective {
            surrogate,
            aggregation,
            level: config.importance_sampling_level,
            kl: (beta > 0.0).then_some(KlPenalty {
                beta,
                bias_correction: config.bias_correction_kl,
            }),
        })
    }

    /// Loss and coefficients of one sequence. Pure: equal inputs give
    /// bit-equal outputs. An input that is missing, of the wrong length or not
    /// finite is an error that names it and its token.
    pub fn sequence(&self, terms: &SequenceTerms, normalizer: &Normalizer) -> Result<SequenceLoss> {
        let n = terms.logprobs.len();
        if terms.masked {
            return Ok(self.without_loss(terms));
        }
        self.check(terms)?;

        let weight = normalizer.token_weight(self.aggregation, n);
        let ratios = self.ratios(terms);
        let mut stats = LossStats::default();
        let mut loss = 0.0;
        // dL_t/dlp_t with the ratio held fixed, and r dL_t/dr.
        let mut direct = Vec::with_capacity(n);
        let mut through_ratio = Vec::with_capacity(n);
        let mut clips = Clips::default();
        for (t, &logprob) in terms.logprobs.iter().enumerate() {
            let ratio = ratios.at(t);
            let advantage = terms.advantage.at(t);
            let sampler = terms.sampler_ratio.map_or(1.0, |s| f64::from(s[t]));
            let point = self.surrogate.at(ratio, advantage, f64::from(logprob));
            let mut value = point.loss * sampler;
            let mut by_logprob = point.by_logprob * sampler;
            let mut by_ratio = point.by_ratio * sampler;
            if let (Some(kl), Some(reference)) = (self.kl, terms.reference_logprobs) {
                let d = f64::from(reference[t]) - f64::from(logprob);
                let k3 = d.exp_m1() - d;
                let factor = if kl.bias_correction { ratio } else { 1.0 };
                stats.kl.add(k3 * factor, 1);
                value += kl.beta * k3 * factor;
                by_logprob -= kl.beta * d.exp_m1() * factor;
                if kl.bias_correction {
                    by_ratio += kl.beta * k3;
                }
            }
            loss += value;
            direct.push(by_logprob);
            through_ratio.push(by_ratio * ratio);
            clips.add(point.clipped_low, point.clipped_high);
            if terms.sampler_ratio.is_some() {
                stats.sampler_ratio.add(sampler, 1);
            }
        }

        // d ln r_t / d lp_k is [t = k] at token level, 1/n at sequence level.
        let shared = through_ratio.iter().sum::<f64>() / n.max(1) as f64;
        let mut coefficients = Vec::with_capacity(n);
        for (t, (direct, own)) in direct.iter().zip(&through_ratio).enumerate() {
            let by_ratio = match self.level {
                RatioLevel::Token => *own,
                RatioLevel::Sequence => shared,
            };
            let coefficient = (weight * (direct + by_ratio)) as f32;
            ensure!(
                coefficient.is_finite(),
                "token {t}: the loss coefficient is {coefficient} (ratio {}, advantage {})",
                ratios.at(t),
                terms.advantage.at(t)
            );
            coefficients.push(coefficient);
        }
        match &ratios {
            Ratios::Token(r) => r.iter().for_each(|&r| stats.ratio.add(r, 1)),
            Ratios::Sequence(r) => stats.ratio.add(*r, 1),
        }
        self.record_clips(&mut stats, &clips, &terms.advantage);
        Ok(SequenceLoss {
            coefficients,
            loss: loss * weight,
            stats,
        })
    }

    /// Coefficients 0. TRL's sequence-level clip shares count a masked
    /// sequence, as one of ratio 1; its token-level ones do not.
    fn without_loss(&self, terms: &SequenceTerms) -> SequenceLoss {
        let mut stats = LossStats::default();
        if self.per_sequence(&terms.advantage) {
            let mut clips = Clips::default();
            clips.add(false, false);
            self.record_clips(&mut stats, &clips, &terms.advantage);
        }
        SequenceLoss {
            coefficients: vec![0.0; terms.logprobs.len()],
            loss: 0.0,
            stats,
        }
    }

    /// Statistics of a sequence that needed no forward because its advantage
    /// is 0 and there is no KL: its tokens count as not clipped.
    pub fn skipped(&self, tokens: usize, advantage: &Advantage) -> LossStats {
        let mut stats = LossStats::default();
        let clips = Clips {
            tokens: tokens as u64,
            ..Clips::default()
        };
        self.record_clips(&mut stats, &clips, advantage);
        stats
    }

    /// Ratio and advantage both one per sequence: then so is clipping.
    fn per_sequence(&self, advantage: &Advantage) -> bool {
        self.level == RatioLevel::Sequence && matches!(advantage, Advantage::Sequence(_))
    }

    fn record_clips(&self, stats: &mut LossStats, clips: &Clips, advantage: &Advantage) {
        if clips.tokens == 0 {
            return;
        }
        // All tokens of the sequence agree in that case.
        let times = |tokens: u64| {
            if self.per_sequence(advantage) {
                u64::from(tokens > 0)
            } else {
                tokens
            }
        };
        let tally = |target: &mut Tally, hits: u64| {
            target.add(1.0, times(hits));
            target.add(0.0, times(clips.tokens) - times(hits));
        };
        let share = |hits: u64| hits as f64 / clips.tokens as f64;
        match self.surrogate {
            Surrogate::Clip { .. } => {
                tally(&mut stats.low, clips.low);
                tally(&mut stats.high, clips.high);
                tally(&mut stats.region, clips.low + clips.high);
                stats.low_by_sequence.add(share(clips.low), 1);
                stats.high_by_sequence.add(share(clips.high), 1);
            }
            Surrogate::Cap { .. } => tally(&mut stats.capped, clips.high),
            Surrogate::Sigmoid { .. } => {}
        }
    }

    fn ratios(&self, terms: &SequenceTerms) -> Ratios {
        let n = terms.logprobs.len();
        let log_ratios = |old: &[f32]| -> Vec<f64> {
            let difference = |(&lp, &old): (&f32, &f32)| f64::from(lp) - f64::from(old);
            terms.logprobs.iter().zip(old).map(difference).collect()
        };
        match (self.level, terms.old_logprobs) {
            (RatioLevel::Token, None) => Ratios::Token(vec![1.0; n]),
            (RatioLevel::Token, Some(old)) => {
                Ratios::Token(log_ratios(old).into_iter().map(f64::exp).collect())
            }
            (RatioLevel::Sequence, None) => Ratios::Sequence(1.0),
            (RatioLevel::Sequence, Some(old)) => {
                let mean = log_ratios(old).iter().sum::<f64>() / n.max(1) as f64;
                Ratios::Sequence(mean.exp())
            }
        }
    }

    fn check(&self, terms: &SequenceTerms) -> Result<()> {
        let n = terms.logprobs.len();
        let finite = |what: &str, values: &[f32]| -> Result<()> {
            ensure!(
                values.len() == n,
                "{n} log-probs but {} of {what}",
                values.len()
            );
            if let Some(t) = values.iter().position(|v| !v.is_finite()) {
                bail!("token {t}: {what} is {}", values[t]);
            }
            Ok(())
        };
        finite("log-prob", terms.logprobs)?;
        if let Some(old) = terms.old_logprobs {
            finite("old log-prob", old)?;
        }
        match (self.kl, terms.reference_logprobs) {
            (Some(_), Some(reference)) => finite("reference log-prob", reference)?,
            (Some(_), None) => bail!("loss.beta is not 0 but there are no reference log-probs"),
            (None, _) => {}
        }
        if let Some(ratio) = terms.sampler_ratio {
            finite("sampler ratio", ratio)?;
        }
        match terms.advantage {
            Advantage::Sequence(a) => ensure!(a.is_finite(), "the advantage is {a}"),
            Advantage::Token(a) => finite("advantage", a)?,
        }
        Ok(())
    }
}

/// Importance ratios at the objective's level.
enum Ratios {
    Token(Vec<f64>),
    Sequence(f64),
}

impl Ratios {
    fn at(&self, token: usize) -> f64 {
        match self {
            Ratios::Token(r) => r[token],
            Ratios::Sequence(r) => *r,
        }
    }
}

/// Clipped tokens of one sequence.
#[derive(Default)]
struct Clips {
    tokens: u64,
    low: u64,
    high: u64,
}

impl Clips {
    fn add(&mut self, low: bool, high: bool) {
        self.tokens += 1;
        self.low += u64::from(low);
        self.high += u64::from(high);
    }
}

#[cfg(test)]
mod tests;
