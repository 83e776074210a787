//! A loaded model and random work for it: the very code of a training run
//! (sampler, update, optimizer) without tokenizer and data.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use crate::advantage::advantages;
use crate::cli::args::{BenchArgs, BenchKind};
use crate::config::Config;
use crate::credit::CreditAssigner;
use crate::episode::AdapterId;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::rng::{Purpose, Stream};
use crate::rollout::{Completion, Event, Request, Sampling};
use crate::train::optimizer::Optimizer;
use crate::train::session::{Demand, Session, kv_pages};
use crate::train::setup::{contrast_prompt, initial_adapter, updater, wants_reference};
use crate::train::update::{SequenceState, TrainGroup, TrainSequence, Updater};

pub const POLICY: AdapterId = AdapterId(0);

/// Named shares of a run's time, in seconds.
pub type Phases = Vec<(&'static str, f64)>;

/// What is run: so many prompts, so many completions of each.
#[derive(Clone, Debug)]
pub struct Workload {
    pub prompts: usize,
    pub group_size: usize,
    pub prompt_length: usize,
    pub new_tokens: usize,
    /// Update only: completions have seeded lengths from 8 to `new_tokens`.
    pub ragged: bool,
    /// Whether the sampled rows go through an adapter.
    pub adapted: bool,
    pub repeats: usize,
}

impl Workload {
    /// What the arguments say, else `default`: prompts, completions of each,
    /// tokens of a prompt and of a completion.
    pub fn new(args: &BenchArgs, default: [usize; 4]) -> Result<Workload> {
        let [prompts, group_size, prompt_length, new_tokens] = default;
        let workload = Workload {
            prompts: args.batch.or(args.prompts).unwrap_or(prompts),
            group_size: args.group_size.unwrap_or(group_size),
            prompt_length: args.prompt_length.unwrap_or(prompt_length),
            new_tokens: args.new_tokens.unwrap_or(new_tokens),
            ragged: args.ragged,
            adapted: args.kind != BenchKind::Decode || args.lora_r.is_some(),
            repeats: args.repeats.unwrap_or(5),
        };
        let sizes = [
            workload.prompts,
            workload.group_size,
            workload.prompt_length,
            workload.new_tokens,
            workload.repeats,
        ];
        ensure!(
            !sizes.contains(&0),
            "a bench of nothing: every size must be at least 1"
        );
        Ok(workload)
    }

    pub fn sequences(&self) -> usize {
        self.prompts * self.group_size
    }

    /// Length of every completion that the update is given.
    fn draw_lengths(&self, random: &mut Stream) -> Vec<usize> {
        let least = self.new_tokens.min(8);
        let spread = (self.new_tokens - least + 1) as u32;
        (0..self.sequences())
            .map(|_| match self.ragged {
                true => least + random.below(spread) as usize,
                false => self.new_tokens,
            })
            .collect()
    }

    /// Length of every completion that the update of a run with this seed is
    /// given.
    pub fn lengths(&self, seed: u64) -> Vec<usize> {
        self.draw_lengths(&mut Stream::new(seed ^ 1))
    }

    /// In words.
    pub fn describe(&self) -> String {
        format!(
            "{} prompts of {} tokens x {} completions of {}{} tokens",
            self.prompts,
            self.prompt_length,
            self.group_size,
            if self.ragged { "8.." } else { "" },
            self.new_tokens,
        )
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "prompts": self.prompts,
            "group_size": self.group_size,
            "prompt_length": self.prompt_length,
            "new_tokens": self.new_tokens,
        })
    }

    /// The configuration with these sizes.
    pub fn configure(&self, config: &Config) -> Config {
        let mut config = config.clone();
        config.rollout.group_size = self.group_size;
        config.rollout.max_completion_length = self.new_tokens;
        config.train.prompts_per_step = self.prompts;
        config
    }
}

/// A loaded model and what it is to work on.
pub struct Bed<D: HalfLayers> {
    config: Config,
    workload: Workload,
    pub session: Session<D>,
    training: Option<(Updater, Optimizer<D>)>,
    prompts: Vec<Vec<u32>>,
}

impl<D: HalfLayers> Bed<D> {
    /// Load the model in `dir` with room for the workload.
    pub fn open(
        device: D,
        config: &Config,
        w: &Workload,
        kind: BenchKind,
        dir: &Path,
    ) -> Result<Self> {
        let training = matches!(kind, BenchKind::Update | BenchKind::Step);
        let shape = ModelShape::load(dir)?;
        let mut adapters = Vec::new();
        if w.adapted {
            adapters.push(initial_adapter(config, &shape)?);
        }
        let layout = adapters.first().map(|a| a.layout.clone());
        let credit = CreditAssigner::new(&config.credit)?;
        let contrast = contrast_prompt(config, &credit)?;
        let demand = Demand {
            longest_prompt: w.prompt_length.max(contrast.len()),
            longest_completion: w.new_tokens,
            step_groups: if training { w.prompts } else { 0 },
            step_sequences: if training { w.sequences() } else { 0 },
            group: w.group_size,
            sampled: match kind {
                BenchKind::Update => 0,
                _ => w.sequences(),
            },
            reference_rows: wants_reference(&credit, config),
            contrast_rows: !contrast.is_empty(),
            trained: usize::from(training),
            tokens_per_batch: config.train.tokens_per_batch,
            pages: kv_pages(config, &shape, device.memory_kind())?,
        };
        let session = Session::open(device, config, dir, &demand, adapters)?;
        let training = match (training, layout) {
            (true, Some(layout)) => Some((
                Updater {
                    // All the work that is counted is to be done.
                    skip_zero_advantage: false,
                    ..updater(config, &shape, POLICY, None, demand.policy_rows())?
                },
                Optimizer::new(&session.engine.device, &layout, &config.optimizer)?,
            )),
            _ => None,
        };
        let mut random = Stream::new(config.train.seed);
        let vocab = shape.vocab_size as u32;
        let mut ids = |n: usize| (0..n).map(|_| random.below(vocab)).collect();
        Ok(Bed {
            prompts: (0..w.prompts).map(|_| ids(w.prompt_length)).collect(),
            config: config.clone(),
            workload: w.clone(),
            session,
            training,
        })
    }

    /// Sample every prompt's completions, all of the asked length.
    pub fn rollout(&mut self, run: usize, phases: &mut Phases) -> Result<Vec<Completion>> {
        let w = &self.workload;
        let sampling = Arc::new(Sampling {
            stop_ids: Vec::new(),
            ..self.session.sampling(&self.config)
        });
        let requests: Vec<Request> = self
            .prompts
            .iter()
            .enumerate()
            .map(|(i, ids)| Request {
                adapter: w.adapted.then_some(POLICY),
                prompt_ids: ids.clone(),
                samples: 0..w.group_size as u32,
                sampling: sampling.clone(),
                seed: self.config.train.seed,
                purpose: Purpose::Rollout,
                step: run as u64,
                problem: i as u64,
            })
            .collect();
        // What an earlier run computed is not to be found again.
        self.session.kv.pages.prefixes.clear();
        let start = Instant::now();
        let (first_wave, mut seen, mut prefill) = (w.sequences(), 0, 0.0);
        let completions = self.session.generate(requests, &mut |event| {
            if let Event::Token { .. } = event {
                seen += 1;
                if seen == first_wave {
                    prefill = start.elapsed().as_secs_f64();
                }
            }
            Ok(())
        })?;
        phases.push(("prefill", prefill));
        phases.push(("decode", start.elapsed().as_secs_f64() - prefill));
        Ok(completions)
    }

    /// Completions of random tokens, the same in every run.
    pub fn random_completions(&self) -> Vec<Completion> {
        let w = &self.workload;
        let mut random = Stream::new(self.config.train.seed ^ 1);
        let vocab = self.session.engine.shape().vocab_size as u32;
        let lengths = w.draw_lengths(&mut random);
        lengths
            .into_iter()
            .enumerate()
            .map(|(i, n)| Completion {
                request: i / w.group_size,
                sample: (i % w.group_size) as u32,
                ids: (0..n).map(|_| random.below(vocab)).collect(),
                logprobs: Vec::new(),
                finish: crate::episode::FinishReason::Length,
            })
            .collect()
    }

    /// Rewards, advantages, gradients and one optimizer step.
    pub fn update(
        &mut self,
        completions: &[Completion],
        run: usize,
        phases: &mut Phases,
    ) -> Result<()> {
        let Some((updater, optimizer)) = &mut self.training else {
            bail!("this kind does not train");
        };
        // Some reward that tells siblings apart: the share of even ids.
        let mut rewards = vec![Vec::new(); self.prompts.len()];
        for c in completions {
            let even = c.ids.iter().filter(|&&id| id % 2 == 0).count();
            rewards[c.request].push(even as f32 / c.ids.len() as f32);
        }
        let mut scores = advantages(&rewards, &self.config.advantage)?;
        if self.workload.group_size == 1 {
            scores.iter_mut().flatten().for_each(|a| *a = 1.0);
        }
        let groups: Vec<TrainGroup> = self
            .prompts
            .iter()
            .enumerate()
            .map(|(g, prompt)| TrainGroup {
                prompt,
                key: g as u64,
                sequences: completions
                    .iter()
                    .filter(|c| c.request == g)
                    .zip(&scores[g])
                    .map(|(c, &advantage)| TrainSequence {
                        completion: &c.ids,
                        advantage,
                        sampler_logprobs: (!c.logprobs.is_empty()).then_some(&c.logprobs),
                        ..TrainSequence::default()
                    })
                    .collect(),
            })
            .collect();
        let mut states = vec![SequenceState::default(); completions.len()];
        let engine = &mut self.session.engine;
        optimizer.zero_grads(engine)?;
        let stats = updater.gradients(engine, optimizer, &groups, run, 0, false, &mut states)?;
        let start = Instant::now();
        optimizer.apply(engine, POLICY, 1e-5)?;
        if !stats.score.is_zero() {
            phases.push(("score", stats.score.as_secs_f64()));
        }
        phases.push(("forward", stats.forward.as_secs_f64()));
        phases.push(("backward", stats.backward.as_secs_f64()));
        phases.push(("optimizer", start.elapsed().as_secs_f64()));
        Ok(())
    }
}
