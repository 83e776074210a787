//! The update phase: from groups with advantages to the gradient of the loss.
//!
//! One forward gives log-prob, entropy, reference log-prob and residual of
//! every token; credit and loss turn them into one coefficient per token on
//! the host; one backward turns the coefficients into gradients. The physical
//! split into batches changes nothing that is summed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::config::LossConfig;
use crate::credit::{CreditAssigner, Diagnostics, Peer, Scope, TokenWeights, advantage_per_token};
use crate::episode::{AdapterId, TokenSignals};
use crate::loss::{
    Advantage, LossStats, Objective, SequenceTerms, StepNormalizers, Tally, sampler_ratio,
};
use crate::model::engine::{Engine, HeadOutput};
use crate::model::half_layer::HalfLayers;
use crate::profile;
use crate::train::clock::{PhaseClock, Timed};
use crate::train::optimizer::Optimizer;
use crate::train::packing::{PackGroup, PackSpec, Packed, PackedSequence, pack};

/// One prompt's completions as the update sees them.
pub struct TrainGroup<'a> {
    pub prompt: &'a [u32],
    pub sequences: Vec<TrainSequence<'a>>,
    /// Key of its dropout masks.
    pub key: u64,
}

/// One completion with its advantage and what is already known of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct TrainSequence<'a> {
    pub completion: &'a [u32],
    pub advantage: f32,
    /// Per-token advantages that take the place of credit.
    pub token_advantages: Option<&'a [f32]>,
    /// The sampler's log-probs, for the comparison and the correction.
    pub sampler_logprobs: Option<&'a [f32]>,
    /// Given old log-probs; else the trainer's own of the first iteration.
    pub old_logprobs: Option<&'a [f32]>,
    /// Given reference log-probs; else a reference forward where needed.
    pub reference_logprobs: Option<&'a [f32]>,
    /// No gradient from this one (a truncated completion).
    pub masked: bool,
}

/// What an update is made of; fixed for a run.
pub struct Updater {
    pub objective: Objective,
    pub credit: CreditAssigner,
    pub loss: LossConfig,
    pub adapter: AdapterId,
    pub reference: Option<AdapterId>,
    pub temperature: f32,
    /// Ids of the contrast prompt; empty where credit does not ask for one.
    pub contrast: Vec<u32>,
    pub max_completion_length: usize,
    /// Most rows of a batch under the adapter; see [`crate::train::session::Demand::policy_rows`].
    pub policy_rows: usize,
    pub dropout: f32,
    /// Completions of a group without any advantage cost no forward.
    pub skip_zero_advantage: bool,
}

/// What the first iteration finds out and later ones keep.
#[derive(Clone, Debug, Default)]
pub struct SequenceState {
    /// The trainer's detached log-probs of the first iteration.
    pub old: Vec<f32>,
    pub reference: Vec<f32>,
    pub signals: TokenSignals,
    pub weights: TokenWeights,
    sampler_ratio: Option<Vec<f32>>,
}

/// Sums over one iteration.
#[derive(Clone, Debug, Default)]
pub struct UpdateStats {
    pub loss: f64,
    pub loss_stats: LossStats,
    pub diagnostics: Diagnostics,
    /// Entropy over scored tokens.
    pub entropy: Tally,
    /// |sampler's log-prob - trainer's| over tokens (first iteration).
    pub logprob_difference: Tally,
    /// Rows that went through the model, base rows included.
    pub rows: usize,
    pub scored_sequences: usize,
    pub sequences: usize,
    pub forward: Duration,
    pub score: Duration,
    pub backward: Duration,
}

impl Updater {
    /// Gradient of the step's loss at the current parameters, into the
    /// optimizer's (zeroed) arena. `states` has one entry per sequence of all
    /// groups; iteration 0 fills it. With `probe` every group is scored.
    pub fn gradients<D: HalfLayers>(
        &self,
        engine: &mut Engine<D>,
        optimizer: &mut Optimizer<D>,
        groups: &[TrainGroup],
        step: usize,
        iteration: usize,
        probe: bool,
        states: &mut [SequenceState],
    ) -> Result<UpdateStats> {
        let sequences: Vec<&TrainSequence> = groups.iter().flat_map(|g| &g.sequences).collect();
        ensure!(states.len() == sequences.len(), "one state per sequence");
        let lengths: Vec<usize> = sequences
            .iter()
            .map(|s| if s.masked { 0 } else { s.completion.len() })
            .collect();
        let normalizers = StepNormalizers::new(&lengths, &self.loss, self.max_completion_length)?;

        let mut stats = UpdateStats {
            sequences: sequences.len(),
            ..UpdateStats::default()
        };
        let mut clock = PhaseClock::default();
        let mut first = 0;
        let mut packed_groups = Vec::new();
        for group in groups {
            let skip = self.skip_zero_advantage
                && !probe
                && self.objective.kl.is_none()
                && group
                    .sequences
                    .iter()
                    .all(|s| s.advantage == 0.0 && s.token_advantages.is_none());
            if skip {
                for s in &group.sequences {
                    let n = s.completion.len();
                    let skipped = self.objective.skipped(n, &Advantage::Sequence(0.0));
                    stats.loss_stats.merge(&skipped);
                }
            } else {
                packed_groups.push(PackGroup {
                    prompt: group.prompt,
                    key: group.key,
                    completions: group
                        .sequences
                        .iter()
                        .enumerate()
                        .filter(|(_, s)| !s.completion.is_empty())
                        .map(|(i, s)| (first + i, s.completion))
                        .collect(),
                });
            }
            first += group.sequences.len();
        }

        let needs = self.credit.needs(step);
        let given = sequences.iter().all(|s| s.reference_logprobs.is_some());
        let reference_logprobs = needs.reference || (self.objective.kl.is_some() && !given);
        let first_iteration = iteration == 0;
        let residuals = first_iteration && needs.residuals;
        let spec = PackSpec {
            policy: Some(self.adapter),
            reference: (first_iteration && (reference_logprobs || residuals))
                .then_some(self.reference),
            reference_logprobs: first_iteration && reference_logprobs,
            residuals,
            contrast: (first_iteration && needs.extra_segments).then_some(&self.contrast[..]),
            training: true,
            dropout: 0.0,
            policy_rows: self.policy_rows,
        };
        let cohorts: Vec<Vec<usize>> = packed_groups
            .iter()
            .map(|g| g.completions.iter().map(|c| c.0).collect())
            .collect();
        let batches = pack(&packed_groups, &spec)?;

        // Dropout would put its noise into every signal: score without it
        // first, then take gradients with it. So too where the weights of one
        // batch's tokens depend on another batch.
        let score_first = self.dropout > 0.0
            || first_iteration
                && match self.credit.scope(step) {
                    Scope::Completion => false,
                    Scope::Group => is_cut(&batches, &cohorts),
                    Scope::Batch => true,
                };
        if score_first && first_iteration {
            let scoring = PackSpec {
                training: false,
                ..spec
            };
            for packed in pack(&packed_groups, &scoring)? {
                let (begun, range) = (clock.begin(engine)?, profile::phase("score"));
                let out = self.forward(engine, &packed, false, residuals, needs.hidden_states)?;
                drop(range);
                clock.end(engine, Timed::Score, begun)?;
                stats.rows += packed.batch_rows;
                for p in &packed.sequences {
                    self.record(&packed, p, sequences[p.index], &out, states, &mut stats)?;
                }
                self.assign_ready(&packed, &cohorts, &sequences, step, states, &mut stats)?;
            }
            if self.credit.scope(step) == Scope::Batch {
                let all = cohorts.concat();
                self.assign(&all, &sequences, step, states, &mut stats)?;
            }
        }
        let batches = match score_first {
            true => pack(
                &packed_groups,
                &PackSpec {
                    reference: None,
                    reference_logprobs: false,
                    residuals: false,
                    contrast: None,
                    dropout: self.dropout,
                    ..spec
                },
            )?,
            false => batches,
        };
        let record = first_iteration && !score_first;
        for packed in batches {
            let (begun, range) = (clock.begin(engine)?, profile::phase("forward"));
            let (residuals, hidden) = (record && residuals, record && needs.hidden_states);
            // The device may still be at the head's last product while the
            // host works on what it has read.
            let out = self.forward(engine, &packed, true, residuals, hidden)?;
            drop(range);
            clock.end(engine, Timed::Forward, begun)?;
            stats.rows += packed.batch_rows;
            if record {
                for p in &packed.sequences {
                    self.record(&packed, p, sequences[p.index], &out, states, &mut stats)?;
                }
                self.assign_ready(&packed, &cohorts, &sequences, step, states, &mut stats)?;
            }
            let mut coefficients = vec![0f32; packed.grad_pairs];
            for p in &packed.sequences {
                let s = sequences[p.index];
                let normalizer = normalizers
                    .of(p.index)
                    .context("a sequence without a micro-step")?;
                let state = &states[p.index];
                let logprobs = &out.head.logprobs[p.policy.clone()];
                let weighted;
                let advantage = match s.token_advantages {
                    Some(given) => Advantage::Token(given),
                    None if self.is_uniform(state) => Advantage::Sequence(s.advantage),
                    None => {
                        weighted = advantage_per_token(s.advantage, &state.weights.weights);
                        Advantage::Token(&weighted)
                    }
                };
                // In the first iteration the trainer's own log-probs are the
                // old ones: the ratio is exactly 1.
                let own = (!first_iteration).then_some(&state.old[..]);
                let terms = SequenceTerms {
                    logprobs,
                    old_logprobs: s.old_logprobs.or(own),
                    reference_logprobs: s
                        .reference_logprobs
                        .or((!state.reference.is_empty()).then_some(&state.reference[..])),
                    sampler_ratio: state.sampler_ratio.as_deref(),
                    advantage,
                    masked: s.masked,
                };
                let loss = self
                    .objective
                    .sequence(&terms, normalizer)
                    .with_context(|| format!("sequence {} of the step", p.index))?;
                coefficients[p.policy.clone()].copy_from_slice(&loss.coefficients);
                stats.loss += loss.loss;
                stats.loss_stats.merge(&loss.stats);
            }
            let (begun, range) = (clock.begin(engine)?, profile::phase("backward"));
            let gradients = &mut *optimizer.gradients.lock();
            engine.backward(self.adapter, &coefficients, gradients)?;
            drop(range);
            // Not waited for: the next batch is packed and sent meanwhile.
            clock.end(engine, Timed::Backward, begun)?;
        }
        let seconds = clock.read(engine)?;
        stats.score = seconds(Timed::Score);
        stats.forward = seconds(Timed::Forward);
        stats.backward = seconds(Timed::Backward);
        Ok(stats)
    }

    fn forward<D: HalfLayers>(
        &self,
        engine: &mut Engine<D>,
        packed: &Packed,
        training: bool,
        residuals: bool,
        states: bool,
    ) -> Result<Forward> {
        let hidden = residuals.then(|| self.credit.hidden());
        let head = engine.run_packed(packed.batch.clone(), self.temperature, training, hidden)?;
        let width = engine.shape().hidden_size;
        let states = match states {
            // Policy rows stand first, and the first ranges of pairs are theirs.
            true => {
                let pairs = packed.sequences.iter().map(|p| p.policy.end).max();
                let pairs = &packed.batch.pairs[..pairs.unwrap_or(0)];
                let rows = pairs.iter().map(|p| p.row as usize + 1).max();
                engine.final_states(rows.unwrap_or(0))?
            }
            false => Vec::new(),
        };
        Ok(Forward {
            head,
            states,
            width,
        })
    }

    /// Weights that are all equal need no per-token advantages: TRL counts
    /// clips by sequence then.
    fn is_uniform(&self, state: &SequenceState) -> bool {
        self.credit.method().name() == "uniform" || state.weights.weights.is_empty()
    }

    /// Keep what the first iteration found of one sequence.
    fn record(
        &self,
        packed: &Packed,
        p: &PackedSequence,
        s: &TrainSequence,
        out: &Forward,
        states: &mut [SequenceState],
        stats: &mut UpdateStats,
    ) -> Result<()> {
        let state = &mut states[p.index];
        state.signals = out.signals(packed, p);
        state.old = state.signals.logprobs.clone();
        if let Some(given) = s.reference_logprobs {
            state.signals.reference_logprobs = given.to_vec();
        }
        state.reference = state.signals.reference_logprobs.clone();
        for &h in &state.signals.entropies {
            stats.entropy.add(h as f64, 1);
        }
        if let Some(sampler) = s.sampler_logprobs {
            for (a, b) in state.old.iter().zip(sampler) {
                let difference = (*a as f64 - *b as f64).abs();
                stats.logprob_difference.add(difference, 1);
            }
            state.sampler_ratio = sampler_ratio(&state.old, sampler, &self.loss)?;
        }
        stats.scored_sequences += 1;
        Ok(())
    }

    /// Weights of what this batch completed: its completions, or the groups
    /// whose last completion it holds. Those of batch scope have to wait.
    fn assign_ready(
        &self,
        packed: &Packed,
        cohorts: &[Vec<usize>],
        sequences: &[&TrainSequence],
        step: usize,
        states: &mut [SequenceState],
        stats: &mut UpdateStats,
    ) -> Result<()> {
        match self.credit.scope(step) {
            Scope::Completion => {
                for p in &packed.sequences {
                    self.assign(&[p.index], sequences, step, states, stats)?;
                }
            }
            Scope::Group => {
                for group in cohorts {
                    let ended = |last: &usize| packed.sequences.iter().any(|p| p.index == *last);
                    if group.last().is_some_and(ended) {
                        self.assign(group, sequences, step, states, stats)?;
                    }
                }
            }
            Scope::Batch => {}
        }
        Ok(())
    }

    /// Weights of completions that are seen together.
    fn assign(
        &self,
        cohort: &[usize],
        sequences: &[&TrainSequence],
        step: usize,
        states: &mut [SequenceState],
        stats: &mut UpdateStats,
    ) -> Result<()> {
        let peers: Vec<Peer> = cohort
            .iter()
            .map(|&i| Peer {
                signals: &states[i].signals,
                advantage: match sequences[i].masked {
                    true => 0.0,
                    false => sequences[i].advantage,
                },
            })
            .collect();
        let weights = self
            .credit
            .weights_together(&peers, step)
            .with_context(|| match cohort {
                [one] => format!("sequence {one} of the step"),
                [first, .., last] => format!("sequences {first} to {last} of the step"),
                [] => "an empty step".to_string(),
            })?;
        for (&i, weights) in cohort.iter().zip(weights) {
            let state = &mut states[i];
            state.weights = weights;
            // As large as the model's activations: not for longer than needed.
            state.signals.states = Vec::new();
            stats
                .diagnostics
                .add(&state.weights, &state.signals.residuals);
        }
        Ok(())
    }
}

/// Whether some group's completions are in more than one batch.
fn is_cut(batches: &[Packed], groups: &[Vec<usize>]) -> bool {
    groups.iter().any(|group| {
        let holds = |b: &&Packed| b.sequences.iter().any(|p| group.contains(&p.index));
        batches.iter().filter(holds).count() > 1
    })
}

/// What a forward tells.
pub struct Forward {
    pub head: HeadOutput,
    /// Post-norm states of the policy's rows, `[rows, width]`; empty if not
    /// asked for.
    pub states: Vec<f32>,
    pub width: usize,
}

impl Forward {
    /// The signals of one packed sequence; those not asked for are empty.
    pub fn signals(&self, packed: &Packed, p: &PackedSequence) -> TokenSignals {
        let head = &self.head;
        let mut signals = TokenSignals {
            logprobs: head.logprobs[p.policy.clone()].to_vec(),
            entropies: head.entropies[p.policy.clone()].to_vec(),
            reference_logprobs: head.logprobs[p.reference.clone()].to_vec(),
            residuals: match head.residuals.is_empty() {
                true => Vec::new(),
                false => head.residuals[p.residuals.clone()].to_vec(),
            },
            contrast_logprobs: head.logprobs[p.contrast.clone()].to_vec(),
            states: Vec::new(),
        };
        if !self.states.is_empty() {
            for pair in &packed.batch.pairs[p.policy.clone()] {
                let at = pair.row as usize * self.width;
                signals.states.extend(&self.states[at..at + self.width]);
            }
        }
        signals
    }
}
