//! `arca bench sweep`: the rollouts of a sweep's arms, decoded together and
//! one after another.
//!
//! Every arm has an adapter of its own and `bench rollout`'s workload. Runs of
//! the two kinds alternate, so that a machine's moods meet both.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Outcome;
use super::args::BenchArgs;
use super::bench::measure::{Findings, tell};
use super::bench_rollout::{Workload, sample};
use crate::config::Config;
use crate::episode::AdapterId;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::train::session::{Demand, OnDevice, Session, kv_pages, model_dir};
use crate::train::setup::initial_adapter;

/// Runs the verb.
pub fn run(args: BenchArgs) -> Result<Outcome> {
    let config = args.load()?;
    let bench = Bench {
        config: &config,
        args: &args,
    };
    tell(&config, bench, args.json)
}

struct Bench<'a> {
    config: &'a Config,
    args: &'a BenchArgs,
}

/// Seconds of each run, in pairs.
struct Report {
    device: String,
    workload: String,
    arms: usize,
    lora_r: usize,
    tokens: usize,
    together: Vec<f64>,
    apart: Vec<f64>,
}

impl OnDevice for Bench<'_> {
    type Output = Report;

    fn run<D: HalfLayers>(self, device: D) -> Result<Report> {
        let (config, args) = (self.config, self.args);
        ensure!(
            args.arms > 0,
            "a bench of nothing: --arms must be at least 1"
        );
        let dir = model_dir(config)?;
        let shape = ModelShape::load(&dir)?;
        let workload = Workload::new(args, config, &shape)?;
        let mut adapters = Vec::with_capacity(args.arms);
        for seed in 0..args.arms as u64 {
            let mut adapter = initial_adapter(config, &shape)?;
            adapter.params = adapter.layout.initial(seed);
            adapters.push(adapter);
        }
        let demand = Demand {
            longest_prompt: workload.longest_prompt(),
            longest_completion: workload.longest(),
            group: workload.group_size,
            sampled: args.arms * workload.lengths.len(),
            tokens_per_batch: config.train.tokens_per_batch,
            pages: kv_pages(config, &shape, device.memory_kind())?,
            ..Demand::default()
        };
        let mut session = Session::open(device, config, &dir, &demand, adapters)?;
        let all: Vec<AdapterId> = (0..args.arms as u32).map(AdapterId).collect();
        let mut report = Report {
            device: session.engine.device.name(),
            tokens: args.arms * workload.lengths.iter().sum::<usize>(),
            workload: workload.what.clone(),
            arms: args.arms,
            lora_r: config.lora.r,
            together: Vec::new(),
            apart: Vec::new(),
        };
        // The first pair touches memory for the first time: not counted.
        for run in 0..=args.repeats.unwrap_or(5) {
            let together = sample(&mut session, config, &workload, run, &all)?.seconds;
            let mut apart = 0.0;
            for &arm in &all {
                apart += sample(&mut session, config, &workload, run, &[arm])?.seconds;
            }
            if run > 0 {
                report.together.push(together);
                report.apart.push(apart);
            }
        }
        Ok(report)
    }
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

impl Report {
    /// Time one after another over time together.
    fn ratio(&self) -> f64 {
        median(&self.apart) / median(&self.together)
    }
}

impl Findings for Report {
    fn table(&self) -> String {
        let row = |what: &str, value: String| format!("{what:<14} {value}\n");
        let line = |seconds: &[f64]| {
            let median = median(seconds);
            let rate = self.tokens as f64 / median;
            format!(
                "{median:.4} s, {rate:.1} tokens/s (median of {})",
                seconds.len()
            )
        };
        let workload = format!(
            "{} arms, each {}, LoRA r {}",
            self.arms, self.workload, self.lora_r
        );
        row("kind", "sweep".into())
            + &row("device", self.device.clone())
            + &row("workload", workload)
            + &row("together", line(&self.together))
            + &row("in turn", line(&self.apart))
            + &row(
                "ratio",
                format!("{:.2} times as fast together", self.ratio()),
            )
    }

    fn json(&self) -> Value {
        json!({
            "kind": "sweep",
            "device": self.device,
            "arms": self.arms,
            "lora_r": self.lora_r,
            "tokens": self.tokens,
            "seconds_together": median(&self.together),
            "seconds_in_turn": median(&self.apart),
            "runs_together": self.together,
            "runs_in_turn": self.apart,
            "ratio": self.ratio(),
        })
    }
}
