//! `arca bench`: the speed of a part of a run, on random tokens.
//!
//! Stop ids are off, so that lengths are what was asked for and numbers compare
//! across tools.

mod bed;
pub(super) mod measure;
mod shapes;
mod update;

use std::time::Instant;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::args::{BenchArgs, BenchKind};
use super::{Outcome, UsageError};
use crate::config::Config;
use crate::model::half_layer::HalfLayers;
use crate::train::session::{OnDevice, model_dir};
use bed::{Bed, Phases, Workload};
use measure::{Findings, Table, Timed, json_of, median, with};

/// Runs the verb.
pub fn run(args: BenchArgs) -> Result<Outcome> {
    let shapes = matches!(args.kind, BenchKind::Kernels | BenchKind::Update);
    if !shapes && !args.shape.is_empty() {
        return Err(UsageError::new(
            "--shape is for bench kernels and update: others need --model, or run the demo",
        )
        .into());
    }
    if args.kind != BenchKind::Update && args.profile_steps.is_some() {
        return Err(UsageError::new("--profile-steps is for bench update and train").into());
    }
    match args.kind {
        BenchKind::Kernels => super::bench_kernels::run(args),
        BenchKind::Rollout => super::bench_rollout::run(args),
        BenchKind::Sweep => super::bench_sweep::run(args),
        BenchKind::Update => update::run(args),
        BenchKind::Step | BenchKind::Decode => sampling(args),
    }
}

/// `bench step` and `bench decode`.
fn sampling(args: BenchArgs) -> Result<Outcome> {
    let workload = Workload::new(
        &args,
        match args.kind {
            BenchKind::Decode => [1, 1, 32, 64],
            _ => [8, 8, 64, 64],
        },
    )?;
    let config = workload.configure(&args.load()?);
    let bench = Bench {
        kind: args.kind,
        config: config.clone(),
        workload,
    };
    measure::tell(&config, bench, args.json)
}

/// Runs of one kind of work.
struct Bench {
    kind: BenchKind,
    config: Config,
    workload: Workload,
}

/// What one kind of work took.
struct Report {
    kind: &'static str,
    device: String,
    workload: Workload,
    runs: Vec<Timed<Phases>>,
}

impl OnDevice for Bench {
    type Output = Report;

    fn run<D: HalfLayers>(self, device: D) -> Result<Report> {
        let dir = model_dir(&self.config)?;
        let mut bed = Bed::open(device, &self.config, &self.workload, self.kind, &dir)?;
        let mut runs = Vec::new();
        // The first run touches memory for the first time: not counted.
        for run in 0..=self.workload.repeats {
            let timed = Timed::run(|| {
                let mut phases = Phases::new();
                match self.kind {
                    BenchKind::Step => {
                        let start = Instant::now();
                        let completions = bed.rollout(run, &mut Phases::new())?;
                        phases.push(("rollout", start.elapsed().as_secs_f64()));
                        bed.update(&completions, run, &mut phases)?;
                    }
                    _ => drop(bed.rollout(run, &mut phases)?),
                }
                Ok(phases)
            })?;
            if run > 0 {
                runs.push(timed);
            }
        }
        Ok(Report {
            kind: match self.kind {
                BenchKind::Step => "step",
                _ => "decode",
            },
            device: bed.session.engine.device.name(),
            workload: self.workload,
            runs,
        })
    }
}

impl Report {
    /// Tokens that one run samples.
    fn tokens(&self) -> usize {
        self.workload.sequences() * self.workload.new_tokens
    }
}

impl Findings for Report {
    fn table(&self) -> String {
        let (w, median) = (&self.workload, median(&self.runs));
        let mut table = Table::default();
        table.row("kind", self.kind);
        table.row("device", &self.device);
        let adapted = if w.adapted { ", adapted" } else { "" };
        table.row("workload", w.describe() + adapted);
        table.seconds(&self.runs);
        for (name, seconds) in &median.detail {
            table.row(&format!("  {name}"), format!("{seconds:.4}"));
        }
        let rate = self.tokens() as f64 / median.seconds;
        table.row("tokens/s", format!("{rate:.1}"));
        table.resources(&self.runs);
        table.text()
    }

    fn json(&self) -> Value {
        let w = &self.workload;
        let mut map = json_of(&self.runs, self.tokens());
        map.insert("kind".into(), json!(self.kind));
        map.insert("device".into(), json!(self.device));
        map.insert("phases".into(), phases_json(&median(&self.runs).detail));
        map.insert("lengths".into(), json!(vec![w.new_tokens; w.sequences()]));
        with(map, w.json())
    }
}

/// Seconds by name.
fn phases_json(phases: &Phases) -> Value {
    let map: Map<String, Value> = phases
        .iter()
        .map(|(name, seconds)| (name.to_string(), json!(seconds)))
        .collect();
    Value::Object(map)
}
