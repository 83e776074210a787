//! `arca bench rollout`: the sampler on a whole workload, and where its time
//! went.
//!
//! Two workloads of random tokens, seeded. `grpo`: prompts with a group of
//! completions each, whose lengths are log-normal (the longest some four times
//! the mean, as in training), the rest of a sample cancelled at its length.
//! `offline`: 256 sequences, prompts and completions of 100 to 1,024 tokens,
//! uniformly, as nano-vllm's and mini-sglang's offline benchmarks have it. Both
//! are smaller on a model with a short context. Stop ids are off.

mod report;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Outcome;
use super::args::{BenchArgs, BenchKind, RolloutWorkload};
use super::bench::measure;
use crate::config::Config;
use crate::device::Ctx;
use crate::device::memory::Role;
use crate::episode::AdapterId;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::model::plan::resident_memory;
use crate::ops::decode::page_elements;
use crate::profile::roof::Roof;
use crate::rng::{Purpose, Stream};
use crate::rollout::stats::RolloutStats;
use crate::rollout::{Event, Request, Sampling};
use crate::train::session::{Demand, OnDevice, Session, kv_pages, model_dir};
use crate::train::setup::initial_adapter;
use report::Report;

const POLICY: AdapterId = AdapterId(0);

/// Runs the verb.
pub fn run(args: BenchArgs) -> Result<Outcome> {
    let config = args.load()?;
    let bench = Bench {
        config: &config,
        args: &args,
    };
    measure::tell(&config, bench, args.json)
}

/// What is sampled.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    name: &'static str,
    prompts: Vec<Vec<u32>>,
    pub(super) group_size: usize,
    /// Of each completion, by prompt and sample.
    pub(super) lengths: Vec<usize>,
    temperature: Option<f32>,
    pub(super) what: String,
}

impl Workload {
    pub(super) fn new(args: &BenchArgs, config: &Config, shape: &ModelShape) -> Result<Workload> {
        let mut random = Stream::new(config.train.seed ^ 0x726f_6c6c);
        let vocab = shape.vocab_size as u32;
        let prompts = args.batch.or(args.prompts);
        let sizes = [
            prompts,
            args.group_size,
            args.prompt_length,
            args.new_tokens,
        ];
        ensure!(
            !sizes.contains(&Some(0)) && args.repeats != Some(0),
            "a bench of nothing: every size must be at least 1"
        );
        // Sizes that are not asked for give way to a short context.
        let context = shape.max_position_embeddings;
        let ids = |n: usize, random: &mut Stream| -> Vec<u32> {
            (0..n).map(|_| random.below(vocab)).collect()
        };
        Ok(match args.workload {
            RolloutWorkload::Grpo => {
                let few = if args.kind == BenchKind::Sweep { 4 } else { 8 };
                let (count, k) = (prompts.unwrap_or(few), args.group_size.unwrap_or(8));
                let prompt = args.prompt_length.unwrap_or(64.min(context / 2).max(1));
                let room = context.saturating_sub(prompt).max(1);
                let longest = args.new_tokens.unwrap_or(256.min(room));
                let lengths: Vec<usize> = (0..count * k)
                    .map(|_| log_normal(longest, &mut random))
                    .collect();
                Workload {
                    name: "grpo",
                    prompts: (0..count).map(|_| ids(prompt, &mut random)).collect(),
                    group_size: k,
                    what: format!(
                        "{count} prompts of {prompt} tokens x {k} completions of {} tokens (log-normal)",
                        spread(&lengths)
                    ),
                    lengths,
                    temperature: None,
                }
            }
            RolloutWorkload::Offline => {
                let (count, k) = (prompts.unwrap_or(256), args.group_size.unwrap_or(1));
                let mut uniform = |longest: Option<usize>| {
                    let most = longest.unwrap_or(1024.min(context / 2).max(1));
                    let least = (most * 100).div_ceil(1024);
                    least + random.below((most - least + 1) as u32) as usize
                };
                let of_prompts: Vec<usize> =
                    (0..count).map(|_| uniform(args.prompt_length)).collect();
                let lengths: Vec<usize> =
                    (0..count * k).map(|_| uniform(args.new_tokens)).collect();
                Workload {
                    name: "offline",
                    what: format!(
                        "{count} prompts of {} tokens, {} of {} new tokens each",
                        spread(&of_prompts),
                        if k == 1 {
                            "one completion".into()
                        } else {
                            format!("{k} completions")
                        },
                        spread(&lengths)
                    ),
                    prompts: of_prompts.iter().map(|&n| ids(n, &mut random)).collect(),
                    group_size: k,
                    lengths,
                    temperature: Some(0.6),
                }
            }
        })
    }

    pub(super) fn longest_prompt(&self) -> usize {
        self.prompts.iter().map(Vec::len).max().unwrap_or(0)
    }

    pub(super) fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }
}

/// A length up to `longest`, with a quarter of it as the median.
fn log_normal(longest: usize, random: &mut Stream) -> usize {
    // Box-Muller.
    let radius = (-2.0 * random.unit().ln()).sqrt();
    let normal = radius * (std::f32::consts::TAU * random.unit()).cos();
    let length = longest as f32 / 4.0 * (0.5 * normal).exp();
    (length.round() as usize).clamp(1, longest)
}

fn spread(lengths: &[usize]) -> String {
    let of = |f: fn(usize, usize) -> usize| lengths.iter().copied().reduce(f).unwrap_or(0);
    match (of(usize::min), of(usize::max)) {
        (least, most) if least == most => least.to_string(),
        (least, most) => format!("{least} to {most}"),
    }
}

struct Bench<'a> {
    config: &'a Config,
    args: &'a BenchArgs,
}

/// One run of the workload, timed.
pub(super) type Timed = measure::Timed<Sampled>;

/// What a run found out.
pub(super) struct Sampled {
    stats: RolloutStats,
    /// Memory of the process after it.
    resident: Option<u64>,
}

impl OnDevice for Bench<'_> {
    type Output = Report;

    fn run<D: HalfLayers>(self, device: D) -> Result<Report> {
        let (config, args) = (self.config, self.args);
        let dir = model_dir(config)?;
        let shape = ModelShape::load(&dir)?;
        let workload = Workload::new(args, config, &shape)?;
        let adapter = initial_adapter(config, &shape)?;
        let adapter_parameters = adapter.layout.len();
        let demand = Demand {
            longest_prompt: workload.longest_prompt(),
            longest_completion: workload.longest(),
            group: workload.group_size,
            sampled: workload.lengths.len(),
            tokens_per_batch: config.train.tokens_per_batch,
            pages: kv_pages(config, &shape, device.memory_kind())?,
            ..Demand::default()
        };
        let mut session = Session::open(device, config, &dir, &demand, vec![adapter])?;
        let roof = {
            let engine = &session.engine;
            let ctx = Ctx {
                stream: engine.ctx().stream,
            };
            Roof::measure(&engine.device, &ctx)?
        };
        let (repeats, warm) = match (args.repeats, args.workload) {
            (Some(n), _) => (n, true),
            (None, RolloutWorkload::Grpo) => (5, true),
            (None, RolloutWorkload::Offline) => (1, false),
        };
        let end = args.seconds.map(Duration::from_secs);
        let start = Instant::now();
        let mut runs: Vec<Timed> = Vec::new();
        // The first run touches memory for the first time: not counted where
        // there are others.
        for run in 0.. {
            let going = match end {
                Some(end) => start.elapsed() < end || run < 2,
                None => run < repeats + usize::from(warm),
            };
            if !going {
                break;
            }
            let mut timed = sample(&mut session, config, &workload, run, &[POLICY])?;
            if runs.len() > 1 {
                // Long soaks keep times, not every forward of every run.
                let last = runs.len() - 1;
                runs[last].detail.stats.steps = Vec::new();
            }
            timed.detail.resident = resident_memory();
            runs.push(timed);
        }
        let element = size_of::<D::Act>();
        let page_bytes = page_elements(&shape) * shape.num_layers * element;
        let weights = session.engine.plan().role_bytes(Role::Weights) as f64;
        Ok(Report {
            device: session.engine.device.name(),
            workload,
            lora_r: config.lora.r,
            pages: session.kv.pages.pool.total(),
            page_bytes,
            weights,
            adapter_parameters,
            element,
            roof,
            shape,
            soak: end.is_some(),
            runs,
        })
    }
}

/// Sample everything once under each adapter, all together.
pub(super) fn sample<D: HalfLayers>(
    session: &mut Session<D>,
    config: &Config,
    workload: &Workload,
    run: usize,
    adapters: &[AdapterId],
) -> Result<Timed> {
    let mut sampling = Sampling {
        stop_ids: Vec::new(),
        ..session.sampling(config)
    };
    // A training step's prompts are new to its adapter.
    session.kv.pages.prefixes.clear();
    sampling.temperature = workload.temperature.unwrap_or(sampling.temperature);
    measure::Timed::run(|| draw(session, config, workload, &sampling, run, adapters))
}

fn draw<D: HalfLayers>(
    session: &mut Session<D>,
    config: &Config,
    workload: &Workload,
    sampling: &Sampling,
    run: usize,
    adapters: &[AdapterId],
) -> Result<Sampled> {
    let k = workload.group_size;
    let mut rollout = session.rollout();
    let count = workload.prompts.len();
    let asked = adapters.iter().flat_map(|adapter| {
        workload
            .prompts
            .iter()
            .enumerate()
            .map(move |p| (adapter, p))
    });
    for (&adapter, (i, prompt)) in asked {
        let lengths = &workload.lengths[i * k..(i + 1) * k];
        rollout.submit(Request {
            adapter: Some(adapter),
            prompt_ids: prompt.clone(),
            samples: 0..k as u32,
            sampling: Arc::new(Sampling {
                max_tokens: lengths.iter().copied().max().unwrap_or(1),
                ..sampling.clone()
            }),
            seed: config.train.seed,
            purpose: Purpose::Rollout,
            step: run as u64,
            problem: i as u64,
        })?;
    }
    let mut drawn: HashMap<(usize, u32), usize> = HashMap::new();
    let mut due = Vec::new();
    loop {
        let more = rollout.step(&mut |event| {
            if let Event::Token {
                request, sample, ..
            } = event
            {
                let n = drawn.entry((request, sample)).or_default();
                *n += 1;
                if *n == workload.lengths[request % count * k + sample as usize] {
                    due.push((request, sample));
                }
            }
            Ok(())
        })?;
        if !more {
            break;
        }
        for (request, sample) in due.drain(..) {
            rollout.cancel(request, Some(sample), &mut |_| Ok(()))?;
        }
    }
    let tokens: usize = drawn.values().sum();
    let wanted = adapters.len() * workload.lengths.iter().sum::<usize>();
    ensure!(
        tokens == wanted,
        "{tokens} tokens were drawn where {wanted} were asked for"
    );
    Ok(Sampled {
        stats: rollout.stats().clone(),
        resident: None,
    })
}
