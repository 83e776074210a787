//! `arca replay`: gradients and one optimizer step for given episodes.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::Outcome;
use super::args::ReplayArgs;
use super::rows::{Row, read_rows};
use crate::advantage::advantages;
use crate::config::{Config, SamplerCorrection, UsageError};
use crate::credit::CreditAssigner;
use crate::episode::AdapterId;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::model::peft::{decimal, save_tensors};
use crate::model::plan::peak_memory;
use crate::rng::{Purpose, stream_key};
use crate::train::optimizer::{Optimizer, load_moments, save_moments};
use crate::train::session::{AdapterSource, Demand, OnDevice, Session, model_dir, on_device};
use crate::train::setup::{contrast_prompt, initial_adapter, updater, wants_reference};
use crate::train::update::{SequenceState, TrainGroup, TrainSequence};

/// Runs the verb.
pub fn run(args: ReplayArgs) -> Result<Outcome> {
    let config = args.load()?;
    on_device(
        &config,
        Replay {
            config: &config,
            args: &args,
        },
    )?;
    Ok(Outcome::Done)
}

struct Replay<'a> {
    config: &'a Config,
    args: &'a ReplayArgs,
}

/// One row of the episodes file.
struct Given {
    group: String,
    prompt: Vec<u32>,
    completion: Vec<u32>,
    /// Old log-probs (see [`Given::read`]).
    old: Option<Vec<f32>>,
    sampling: Option<Vec<f32>>,
    reference: Option<Vec<f32>>,
    reward: Option<f32>,
    advantage: f32,
    token_advantages: Option<Vec<f32>>,
}

impl Given {
    /// `logprobs` are the old log-probs that ratios are taken against. With a
    /// sampler correction they are the sampler's, unless the row has
    /// `sampling_logprobs` of its own.
    fn read(row: &Row, index: usize, correction: SamplerCorrection) -> Result<Given> {
        let prompt = row.ids("prompt", None)?;
        let completion = row.ids("completion", None)?;
        ensure!(!prompt.is_empty(), "{}: prompt_ids is empty", row.place);
        let n = completion.len();
        let logprobs = row.numbers("logprobs", n)?;
        let sampling = row.numbers("sampling_logprobs", n)?;
        let (old, sampling) = match (correction, sampling) {
            (SamplerCorrection::None, sampling) => (logprobs, sampling),
            (_, Some(sampling)) => (logprobs, Some(sampling)),
            (_, None) => (None, logprobs),
        };
        let given = Given {
            group: match &row.value["group"] {
                serde_json::Value::Null => format!("row {index}"),
                group => group.to_string(),
            },
            old,
            sampling,
            reference: row.numbers("reference_logprobs", n)?,
            reward: row.number("reward")?,
            advantage: row.number("advantage")?.unwrap_or(0.0),
            token_advantages: row.numbers("advantages", n)?,
            prompt,
            completion,
        };
        let has = |key: &str| !row.value[key].is_null();
        ensure!(
            has("reward") || has("advantage") || has("advantages"),
            "{} has none of reward, advantage and advantages",
            row.place
        );
        Ok(given)
    }
}

impl OnDevice for Replay<'_> {
    type Output = ();

    fn run<D: HalfLayers>(self, device: D) -> Result<()> {
        let (config, args) = (self.config, self.args);
        let credit =
            CreditAssigner::new(&config.credit).map_err(|e| UsageError::new(format!("{e:#}")))?;
        let rows = read_rows(&args.episodes)?;
        let mut given: Vec<Given> = rows
            .iter()
            .enumerate()
            .map(|(i, row)| Given::read(row, i, config.loss.sampler_correction))
            .collect::<Result<_>>()?;
        if given.iter().all(|g| g.completion.is_empty()) {
            bail!("{}: every completion is empty", args.episodes.display());
        }
        advantages_of_rewards(&mut given, &rows, config)?;

        let dir = model_dir(config)?;
        let shape = ModelShape::load(&dir)?;
        let policy = match &args.adapter {
            Some(dir) => AdapterSource::load(dir, &shape)
                .with_context(|| format!("adapter {}", dir.display()))?,
            None => initial_adapter(config, &shape)?,
        };
        let layout = policy.layout.clone();
        let mut adapters = vec![policy];
        let mut reference = None;
        if let Some(dir) = &config.reference.adapter {
            adapters.push(AdapterSource::load(dir, &shape).context("reference.adapter")?);
            reference = Some(AdapterId(1));
        }
        let groups = groups(&given, config);
        let contrast = contrast_prompt(config, &credit)?;
        let longest = |f: &dyn Fn(&Given) -> usize| given.iter().map(f).max().unwrap_or(0);
        let demand = Demand {
            longest_prompt: longest(&|g| g.prompt.len()).max(contrast.len()),
            longest_completion: longest(&|g| g.completion.len()),
            step_groups: groups.len(),
            step_sequences: given.len(),
            reference_rows: wants_reference(&credit, config),
            contrast_rows: !contrast.is_empty(),
            trained: 1,
            tokens_per_batch: config.train.tokens_per_batch,
            ..Demand::default()
        };
        let mut session = Session::open(device, config, &dir, &demand, adapters)?;
        let adapter = AdapterId(0);
        let mut updater = updater(config, &shape, adapter, reference, demand.policy_rows())?;
        // Every row was given on purpose: all are scored.
        updater.skip_zero_advantage = false;
        let mut optimizer = Optimizer::new(&session.engine.device, &layout, &config.optimizer)?;
        if let Some(path) = &args.optimizer_state {
            let moments = load_moments(path, &layout)?;
            optimizer.set_moments(&session.engine, &moments)?;
        }

        let start = Instant::now();
        let mut states = vec![SequenceState::default(); given.len()];
        // Past any warm-up of credit: what the method itself says.
        let step = config.credit.warmup_steps;
        let stats = updater.gradients(
            &mut session.engine,
            &mut optimizer,
            &groups,
            step,
            0,
            true,
            &mut states,
        )?;
        let gradients = optimizer.download_grads(&session.engine)?;
        let optimizing = Instant::now();
        let norm = optimizer.apply(
            &mut session.engine,
            adapter,
            decimal(config.optimizer.learning_rate),
        )?;
        let optimizing = optimizing.elapsed().as_secs_f64();
        let seconds = start.elapsed().as_secs_f64();

        std::fs::create_dir_all(&args.out)
            .with_context(|| format!("cannot create {}", args.out.display()))?;
        save_tensors(&args.out.join("gradients.safetensors"), &layout, &gradients)?;
        session.save_adapter(adapter, &args.out.join("adapter"))?;
        let moments = optimizer.moments(&session.engine)?;
        save_moments(&args.out.join("optimizer.safetensors"), &layout, &moments)?;
        let tokens: usize = given.iter().map(|g| g.completion.len()).sum();
        let mut report = json!({
            "loss": stats.loss,
            "grad_norm": norm,
            "learning_rate": decimal(config.optimizer.learning_rate),
            "sequences": given.len(),
            "tokens": tokens,
            "rows": stats.rows,
            "seconds": seconds,
            "seconds_score": stats.score.as_secs_f64(),
            "seconds_forward": stats.forward.as_secs_f64(),
            "seconds_backward": stats.backward.as_secs_f64(),
            "seconds_optimizer": optimizing,
            "tokens_per_second": tokens as f64 / seconds,
            "peak_bytes": peak_memory(),
        });
        if let Some(entropy) = stats.entropy.mean() {
            report["entropy"] = json!(entropy);
        }
        for (name, value) in stats.loss_stats.metrics() {
            report[name] = json!(value);
        }
        for (name, value) in stats.diagnostics.metrics() {
            report[name] = json!(value);
        }
        let text = serde_json::to_string_pretty(&report)?;
        let path = args.out.join("stats.json");
        std::fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        if !args.config.common.quiet {
            super::print(&format!("{text}\n"))?;
        }
        Ok(())
    }
}

/// Rows with a reward get their group's advantage.
fn advantages_of_rewards(given: &mut [Given], rows: &[Row], config: &Config) -> Result<()> {
    if given.iter().all(|g| g.reward.is_none()) {
        return Ok(());
    }
    let mut names: Vec<String> = Vec::new();
    let mut members: Vec<Vec<usize>> = Vec::new();
    for (i, g) in given.iter().enumerate() {
        // A given advantage goes before one computed from the reward.
        if !rows[i].value["advantage"].is_null() || g.token_advantages.is_some() {
            continue;
        }
        match names.iter().position(|n| *n == g.group) {
            Some(at) => members[at].push(i),
            None => {
                names.push(g.group.clone());
                members.push(vec![i]);
            }
        }
    }
    let scores: Vec<Vec<f32>> = members
        .iter()
        .map(|m| m.iter().map(|&i| given[i].reward.unwrap_or(0.0)).collect())
        .collect();
    let computed = advantages(&scores, &config.advantage)?;
    for (members, values) in members.iter().zip(computed) {
        for (&i, a) in members.iter().zip(values) {
            given[i].advantage = a;
        }
    }
    Ok(())
}

/// Neighbouring rows of one group and prompt share the prompt's rows.
fn groups<'a>(given: &'a [Given], config: &Config) -> Vec<TrainGroup<'a>> {
    let mut groups: Vec<TrainGroup> = Vec::new();
    let mut last: Option<&Given> = None;
    for (i, g) in given.iter().enumerate() {
        let sequence = TrainSequence {
            completion: &g.completion,
            advantage: g.advantage,
            token_advantages: g.token_advantages.as_deref(),
            sampler_logprobs: g.sampling.as_deref(),
            old_logprobs: g.old.as_deref(),
            reference_logprobs: g.reference.as_deref(),
            masked: false,
        };
        match (groups.last_mut(), last) {
            (Some(group), Some(l)) if l.group == g.group && l.prompt == g.prompt => {
                group.sequences.push(sequence);
            }
            _ => groups.push(TrainGroup {
                prompt: &g.prompt,
                sequences: vec![sequence],
                key: stream_key(config.train.seed, Purpose::Dropout, 0, i as u64, 0),
            }),
        }
        last = Some(g);
    }
    groups
}
