//! `arca bench`: the speed of a part of a run, on random tokens.
//!
//! Every kind runs the very code of a training run (sampler, update,
//! optimizer) without tokenizer and data. Stop ids are off, so that lengths
//! are what was asked for and numbers compare across tools.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::Outcome;
use super::args::{BenchArgs, BenchKind};
use crate::advantage::advantages;
use crate::config::Config;
use crate::credit::CreditAssigner;
use crate::episode::AdapterId;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::model::plan::peak_memory;
use crate::rng::{Purpose, Stream};
use crate::rollout::{Completion, Event, Request, Sampling};
use crate::train::optimizer::Optimizer;
use crate::train::session::{Demand, OnDevice, Session, kv_pages, model_dir, on_device};
use crate::train::setup::{contrast_prompt, initial_adapter, updater, wants_reference};
use crate::train::update::{SequenceState, TrainGroup, TrainSequence, Updater};

const POLICY: AdapterId = AdapterId(0);

/// Runs the verb.
pub fn run(args: BenchArgs) -> Result<Outcome> {
    match args.kind {
        BenchKind::Kernels => return super::bench_kernels::run(args),
        BenchKind::Rollout => return super::bench_rollout::run(args),
        BenchKind::Sweep => return super::bench_sweep::run(args),
        BenchKind::Update | BenchKind::Step | BenchKind::Decode => {}
    }
    let mut config = args.load()?;
    let workload = Workload::new(&args)?;
    config.rollout.group_size = workload.group_size;
    config.rollout.max_completion_length = workload.new_tokens;
    config.train.prompts_per_step = workload.prompts;
    let bench = Bench {
        kind: args.kind,
        config: config.clone(),
        workload,
    };
    let report = on_device(&config, bench)?;
    super::print(&report.table())?;
    if args.json {
        super::print(&format!("{}\n", report.json()))?;
    }
    Ok(Outcome::Done)
}

/// What is run: so many prompts, so many completions of each.
#[derive(Clone, Debug)]
struct Workload {
    prompts: usize,
    group_size: usize,
    prompt_length: usize,
    new_tokens: usize,
    /// Update only: completions have seeded lengths from 8 to `new_tokens`.
    ragged: bool,
    /// Whether the sampled rows go through an adapter.
    adapted: bool,
    repeats: usize,
}

impl Workload {
    fn new(args: &BenchArgs) -> Result<Workload> {
        let (prompts, group_size, prompt_length, new_tokens) = match args.kind {
            BenchKind::Decode => (1, 1, 32, 64),
            BenchKind::Update if !args.ragged => (16, 1, 1, 128),
            _ => (8, 8, 64, 64),
        };
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

    fn sequences(&self) -> usize {
        self.prompts * self.group_size
    }

    /// Length of every completion that the update is given.
    fn lengths(&self, random: &mut Stream) -> Vec<usize> {
        let least = self.new_tokens.min(8);
        let spread = (self.new_tokens - least + 1) as u32;
        (0..self.sequences())
            .map(|_| match self.ragged {
                true => least + random.below(spread) as usize,
                false => self.new_tokens,
            })
            .collect()
    }
}

/// Runs of one kind of work.
struct Bench {
    kind: BenchKind,
    config: Config,
    workload: Workload,
}

/// One timed run.
#[derive(Clone, Copy, Debug, Default)]
struct Timing {
    seconds: f64,
    /// Time on all cores together, where the system tells.
    cpu_seconds: Option<f64>,
    /// Named shares of `seconds`.
    phases: [(&'static str, f64); 4],
}

/// What one kind of work took.
struct Report {
    kind: &'static str,
    device: String,
    workload: Workload,
    /// What one run handles: sampled tokens, or for the update all tokens of
    /// its sequences (a shared prompt counts once).
    tokens: usize,
    /// Length of each completion.
    lengths: Vec<usize>,
    timings: Vec<Timing>,
}

impl OnDevice for Bench {
    type Output = Report;

    fn run<D: HalfLayers>(self, device: D) -> Result<Report> {
        let w = self.workload.clone();
        let mut bed = Bed::open(device, &self)?;
        let mut timings = Vec::new();
        // The first run touches memory for the first time: not counted.
        for run in 0..=w.repeats {
            let timing = match self.kind {
                BenchKind::Update => {
                    let completions = bed.random_completions();
                    bed.timed(|bed, phases| bed.update(&completions, run, phases))?
                }
                BenchKind::Step => bed.timed(|bed, phases| {
                    let start = Instant::now();
                    let completions = bed.rollout(run, &mut Vec::new())?;
                    phases.push(("rollout", start.elapsed().as_secs_f64()));
                    bed.update(&completions, run, phases)
                })?,
                _ => bed.timed(|bed, phases| bed.rollout(run, phases).map(|_| ()))?,
            };
            if run > 0 {
                timings.push(timing);
            }
        }
        let lengths = match self.kind {
            BenchKind::Update => w.lengths(&mut Stream::new(self.config.train.seed ^ 1)),
            _ => vec![w.new_tokens; w.sequences()],
        };
        let prompts = match (self.kind, w.prompt_length) {
            // One token to begin with is no prompt.
            (BenchKind::Update, 2..) => w.prompt_length * w.prompts,
            _ => 0,
        };
        Ok(Report {
            kind: match self.kind {
                BenchKind::Update => "update",
                BenchKind::Step => "step",
                _ => "decode",
            },
            device: bed.session.engine.device.name(),
            workload: w,
            tokens: prompts + lengths.iter().sum::<usize>(),
            lengths,
            timings,
        })
    }
}

/// A loaded model and what it is to work on.
struct Bed<D: HalfLayers> {
    config: Config,
    workload: Workload,
    session: Session<D>,
    training: Option<(Updater, Optimizer<D>)>,
    prompts: Vec<Vec<u32>>,
}

impl<D: HalfLayers> Bed<D> {
    fn open(device: D, bench: &Bench) -> Result<Self> {
        let (config, w) = (&bench.config, &bench.workload);
        let training = matches!(bench.kind, BenchKind::Update | BenchKind::Step);
        let dir = model_dir(config)?;
        let shape = ModelShape::load(&dir)?;
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
            sampled: match bench.kind {
                BenchKind::Update => 0,
                _ => w.sequences(),
            },
            reference_rows: wants_reference(&credit, config),
            contrast_rows: !contrast.is_empty(),
            trained: usize::from(training),
            tokens_per_batch: config.train.tokens_per_batch,
            pages: kv_pages(config, &shape, device.memory_kind())?,
        };
        let session = Session::open(device, config, &dir, &demand, adapters)?;
        let training = match (training, layout) {
            (true, Some(layout)) => Some((
                updater(config, &shape, POLICY, None, demand.policy_rows())?,
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

    fn timed(
        &mut self,
        work: impl FnOnce(&mut Self, &mut Vec<(&'static str, f64)>) -> Result<()>,
    ) -> Result<Timing> {
        let mut named = Vec::new();
        let (start, cpu) = (Instant::now(), cpu_seconds());
        work(self, &mut named)?;
        let seconds = start.elapsed().as_secs_f64();
        let mut phases = [("", 0.0); 4];
        for (slot, phase) in phases.iter_mut().zip(named) {
            *slot = phase;
        }
        Ok(Timing {
            seconds,
            cpu_seconds: cpu_seconds().zip(cpu).map(|(after, before)| after - before),
            phases,
        })
    }

    /// Sample every prompt's completions, all of the asked length.
    fn rollout(
        &mut self,
        run: usize,
        phases: &mut Vec<(&'static str, f64)>,
    ) -> Result<Vec<Completion>> {
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
    fn random_completions(&self) -> Vec<Completion> {
        let w = &self.workload;
        let mut random = Stream::new(self.config.train.seed ^ 1);
        let vocab = self.session.engine.shape().vocab_size as u32;
        let lengths = w.lengths(&mut random);
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
    fn update(
        &mut self,
        completions: &[Completion],
        run: usize,
        phases: &mut Vec<(&'static str, f64)>,
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
        phases.push(("forward", stats.forward.as_secs_f64()));
        phases.push(("backward", stats.backward.as_secs_f64()));
        phases.push(("optimizer", start.elapsed().as_secs_f64()));
        Ok(())
    }
}

impl Report {
    /// The run of median time.
    fn median(&self) -> Timing {
        let mut sorted = self.timings.clone();
        sorted.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        sorted[sorted.len() / 2]
    }

    fn table(&self) -> String {
        let (w, median) = (&self.workload, self.median());
        let fastest = self.timings.iter().map(|t| t.seconds).reduce(f64::min);
        let row = |what: &str, value: String| format!("{what:<18} {value}\n");
        let mut out = row("kind", self.kind.to_string());
        out += &row("device", self.device.clone());
        out += &row(
            "workload",
            format!(
                "{} prompts of {} tokens x {} completions of {}{} tokens{}",
                w.prompts,
                w.prompt_length,
                w.group_size,
                if w.ragged { "8.." } else { "" },
                w.new_tokens,
                if w.adapted { ", adapted" } else { "" },
            ),
        );
        out += &row(
            "seconds",
            format!(
                "{:.4} (median of {}, fastest {:.4})",
                median.seconds,
                self.timings.len(),
                fastest.unwrap_or_default()
            ),
        );
        for (name, seconds) in median.phases.iter().filter(|p| !p.0.is_empty()) {
            out += &row(&format!("  {name}"), format!("{seconds:.4}"));
        }
        let rate = self.tokens as f64 / median.seconds;
        out += &row("tokens/s", format!("{rate:.1}"));
        if let Some(cpu) = median.cpu_seconds {
            out += &row("cores in use", format!("{:.2}", cpu / median.seconds));
        }
        if let Some(peak) = peak_memory() {
            out += &row("peak MiB", format!("{:.1}", peak as f64 / (1 << 20) as f64));
        }
        out
    }

    fn json(&self) -> Value {
        let (w, median) = (&self.workload, self.median());
        let phases: serde_json::Map<String, Value> = median
            .phases
            .iter()
            .filter(|p| !p.0.is_empty())
            .map(|(name, seconds)| (name.to_string(), json!(seconds)))
            .collect();
        json!({
            "kind": self.kind,
            "tokens_per_second": self.tokens as f64 / median.seconds,
            "seconds": median.seconds,
            "peak_bytes": peak_memory(),
            "cpu_seconds": median.cpu_seconds,
            "phases": phases,
            "tokens": self.tokens,
            "runs": self.timings.iter().map(|t| t.seconds).collect::<Vec<_>>(),
            "device": self.device,
            "prompts": w.prompts,
            "group_size": w.group_size,
            "prompt_length": w.prompt_length,
            "new_tokens": w.new_tokens,
            "lengths": self.lengths,
        })
    }
}

/// Seconds that this process's threads have been on a core, where the system
/// tells (Linux).
pub(super) fn cpu_seconds() -> Option<f64> {
    let mut nanoseconds = 0u64;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(nanoseconds as f64 * 1e-9)
}
