//! A run from its config to its run folder.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::advantage;
use crate::cli::Outcome;
use crate::config::{Config, LossType, UsageError};
use crate::credit::CreditAssigner;
use crate::data::DataOrder;
use crate::episode::{AdapterId, FinishReason, Group};
use crate::model::batch::Batch;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::model::plan::peak_memory;
use crate::reward::RewardSet;
use crate::rng::{Purpose, stream_key};
use crate::tokenizer::Tokenizer;
use crate::train::checkpoint::{self, RunState};
use crate::train::evaluate::{EvalRow, evaluate};
use crate::train::interrupt::Interrupt;
use crate::train::metrics::{Metrics, MetricsWriter};
use crate::train::optimizer::{Optimizer, learning_rate};
use crate::train::progress::{Progress, StepLine};
use crate::train::run_dir::{RunDir, replace_dir, write_atomic};
use crate::train::session::{
    AdapterSource, Demand, OnDevice, Session, kv_pages, model_dir, on_device,
};
use crate::train::setup::{data_path, initial_adapter, load_prompts, training_demand, updater};
use crate::train::step::{Prompts, sample_groups};
use crate::train::step_metrics::{completion_tokens, rollout_metrics, trace, update_metrics};
use crate::train::summary::{report, summary};
use crate::train::tensorboard::EventWriter;
use crate::train::update::{SequenceState, TrainGroup, TrainSequence, UpdateStats, Updater};

/// Train as `config` says, into `run` (a new folder, or with `resume` the
/// folder of an earlier run).
pub fn train(config: Config, run: Option<PathBuf>, resume: bool, quiet: bool) -> Result<Outcome> {
    on_device(
        &config.clone(),
        Training {
            config,
            run,
            resume,
            quiet,
        },
    )
}

struct Training {
    config: Config,
    run: Option<PathBuf>,
    resume: bool,
    quiet: bool,
}

/// The adapter that trains is the first resident one; a reference adapter, if
/// any, is the second.
const POLICY: AdapterId = AdapterId(0);
const REFERENCE: AdapterId = AdapterId(1);

impl OnDevice for Training {
    type Output = Outcome;

    fn run<D: HalfLayers>(self, device: D) -> Result<Outcome> {
        let mut trainer = Trainer::open(device, self)?;
        trainer.prepare()?;
        let outcome = trainer.steps()?;
        trainer.finish(outcome)
    }
}

/// Everything a run holds.
struct Trainer<D: HalfLayers> {
    config: Config,
    session: Session<D>,
    optimizer: Optimizer<D>,
    updater: Updater,
    rewards: RewardSet,
    prompts: Prompts,
    held_out: Prompts,
    order: DataOrder,
    state: RunState,
    dir: RunDir,
    metrics: MetricsWriter,
    events: Option<EventWriter>,
    progress: Progress,
    interrupt: Interrupt,
    noise_floor: f64,
    quiet: bool,
}

impl<D: HalfLayers> Trainer<D> {
    fn open(device: D, training: Training) -> Result<Self> {
        let Training {
            config,
            run,
            resume,
            quiet,
        } = training;
        advantage::validate(&config.advantage, config.rollout.group_size)?;
        let credit =
            CreditAssigner::new(&config.credit).map_err(|e| UsageError::new(format!("{e:#}")))?;
        let rewards = RewardSet::from_config(&config.reward, config.rollout.max_completion_length)
            .map_err(|e| UsageError::new(format!("{e:#}")))?;
        let sequences = config.train.prompts_per_step * config.rollout.group_size;
        if !sequences.is_multiple_of(config.loss.gradient_accumulation) {
            return Err(UsageError::new(format!(
                "loss.gradient_accumulation = {} does not divide the {sequences} completions of a step",
                config.loss.gradient_accumulation
            ))
            .into());
        }

        let dir = model_dir(&config)?;
        let shape = ModelShape::load(&dir)?;
        credit
            .hidden()
            .check(shape.num_layers)
            .map_err(|e| UsageError::new(e.to_string()))?;
        let tokenizer = Tokenizer::load(&dir)?;
        let train_path = data_path(&config, &config.data.train, "data.train", "train.jsonl")?
            .context("data.train is not set")?;
        let (prompts, dataset) = load_prompts(&config, &tokenizer, &train_path)?;
        ensure!(
            !prompts.problems.is_empty(),
            "{} holds no usable problem",
            train_path.display()
        );
        let mut reports = Vec::new();
        let mut report = |path: &Path, dataset: &crate::data::Dataset| {
            let findings = dataset.to_string();
            if !findings.is_empty() {
                reports.push(format!("{}: {}", path.display(), findings.trim_end()));
            }
        };
        report(&train_path, &dataset);
        let mut held_out = Prompts {
            problems: Vec::new(),
            ids: Vec::new(),
        };
        if let Some(path) = data_path(&config, &config.data.eval, "data.eval", "eval.jsonl")? {
            let (mut loaded, dataset) = load_prompts(&config, &tokenizer, &path)?;
            report(&path, &dataset);
            if config.eval.limit > 0 {
                loaded.problems.truncate(config.eval.limit);
                loaded.ids.truncate(config.eval.limit);
            }
            held_out = loaded;
        }

        let policy = initial_adapter(&config, &shape)?;
        let mut adapters = vec![policy];
        let mut reference = None;
        if let Some(dir) = &config.reference.adapter {
            adapters.push(AdapterSource::load(dir, &shape).context("reference.adapter")?);
            reference = Some(REFERENCE);
        }
        let layout = adapters[0].layout.clone();
        let longest = |p: &Prompts| p.ids.iter().map(Vec::len).max().unwrap_or(0);
        let longest_prompt = longest(&prompts).max(longest(&held_out));
        let demand = Demand {
            pages: kv_pages(&config, &shape, device.memory_kind())?,
            ..training_demand(&config, &credit, longest_prompt, held_out.problems.len())
        };
        let session = Session::open(device, &config, &dir, &demand, adapters)?;
        let max_rows = session.engine.capacity.rows;
        let updater = updater(&config, &shape, POLICY, reference, max_rows)?;
        let optimizer = Optimizer::new(&session.engine.device, &layout, &config.optimizer)?;

        // Only now, so that a start that failed leaves no used folder behind.
        let run_dir = match (&run, resume) {
            (Some(root), true) => RunDir::resume(root)?,
            _ => RunDir::create(run.as_deref(), &config)?,
        };
        let order = DataOrder::new(prompts.problems.len(), config.train.seed)?;
        let mut progress = Progress::new(config.train.steps, quiet);
        let mut trainer_session = session;
        let mut optimizer = optimizer;
        let mut state = RunState::default();
        let mut order = order;
        let mut resumed_from = None;
        if resume {
            // A run that died before its first checkpoint starts over: its
            // folder could otherwise be neither continued nor used again.
            let mut step = 0;
            if let Some((latest, path)) = run_dir.latest_checkpoint()? {
                state = checkpoint::load(&path, &mut trainer_session, POLICY, &mut optimizer)?;
                ensure!(
                    state.step == latest,
                    "{} is of step {}",
                    path.display(),
                    state.step
                );
                order = DataOrder::resume(prompts.problems.len(), config.train.seed, state.cursor)?;
                step = latest;
            } else {
                reports.push(format!(
                    "{} has no checkpoint yet: starting over",
                    run_dir.root().display()
                ));
            }
            run_dir.forget_completions_after(step)?;
            run_dir.save_config(&config)?;
            progress.resume(step);
            resumed_from = Some(step);
        }
        let metrics = match resumed_from {
            Some(step) => MetricsWriter::resume(&run_dir.metrics(), step)?,
            None => MetricsWriter::create(&run_dir.metrics())?,
        };
        let events = match config.log.tensorboard {
            true => Some(EventWriter::create(run_dir.root(), resumed_from)?),
            false => None,
        };
        for report in reports.iter().filter(|r| !r.trim_end().ends_with(':')) {
            progress.message(report.trim_end());
        }
        Ok(Trainer {
            session: trainer_session,
            optimizer,
            updater,
            rewards,
            prompts,
            held_out,
            order,
            state,
            dir: run_dir,
            metrics,
            events,
            progress,
            interrupt: Interrupt::install()?,
            noise_floor: 0.0,
            config,
            quiet,
        })
    }

    /// What comes before the first step: a word on the run, the base row, the
    /// residual's noise floor.
    fn prepare(&mut self) -> Result<()> {
        let c = &self.config;
        let layout = &self.session.engine.adapter(POLICY).layout;
        self.progress.message(&format!(
            "{} on {}; LoRA r {} with {} parameters; {} problems, {} held out; credit {}, loss {:?}",
            self.session.base_name,
            self.session.engine.device.name(),
            layout.settings().r,
            layout.len(),
            self.prompts.problems.len(),
            self.held_out.problems.len(),
            c.credit.method,
            c.loss.loss_type,
        ));
        self.progress
            .message(&format!("run folder: {}", self.dir.root().display()));
        if c.loss.loss_type == LossType::Cispo && c.loss.epsilon_high.is_none() {
            self.progress.warning(
                "loss.type is cispo without loss.epsilon_high: the ratio is capped at loss.epsilon, \
                 which scales every on-policy gradient (5 is usual)",
            );
        }
        if self.state.base.is_none() && !self.held_out.problems.is_empty() {
            let rows = self.measure(&[("base".to_string(), None)])?;
            self.state.base = rows.into_iter().next();
        }
        let probe = &self.prompts.ids[0];
        let mut batch = Batch::default();
        batch.push_segment(probe, &[], self.updater.reference);
        self.noise_floor = self.session.engine.noise_floor(batch)?;
        Ok(())
    }

    fn measure(&mut self, models: &[(String, Option<AdapterId>)]) -> Result<Vec<EvalRow>> {
        let Prompts { problems, ids } = &self.held_out;
        evaluate(&mut self.session, &self.config, problems, ids, models)
    }

    fn steps(&mut self) -> Result<Outcome> {
        while self.state.step < self.config.train.steps {
            if self.interrupt.requested() {
                self.save_checkpoint()?;
                return Ok(Outcome::Interrupted);
            }
            self.step()?;
        }
        Ok(Outcome::Done)
    }

    /// One step: sample, update, log; evaluation and checkpoint where due.
    fn step(&mut self) -> Result<()> {
        let step = self.state.step;
        let start = Instant::now();
        let sampled = sample_groups(
            &mut self.session,
            &self.config,
            &self.prompts,
            &self.rewards,
            &mut self.order,
            POLICY,
            step,
        )?;
        let mut metrics = Metrics::new();
        rollout_metrics(&mut metrics, &sampled, &self.rewards.names(), &self.config);
        let states = self.update(&sampled.groups, step, &mut metrics)?;

        let seconds = start.elapsed().as_secs_f64();
        let tokens: usize = completion_tokens(&sampled.groups);
        self.state.step += 1;
        self.state.cursor = self.order.cursor();
        self.state.num_tokens += tokens as u64;
        self.state.seconds += seconds;
        let reward = metrics.get("train/reward").unwrap_or(0.0);
        self.state.rewards.push(reward);
        metrics.set("train/num_tokens", self.state.num_tokens as f64);
        metrics.set("train/step_time", seconds);
        metrics.set("perf/tokens_per_second", sampled.tokens as f64 / seconds);
        if let Some(peak) = peak_memory() {
            metrics.set("perf/peak_bytes", peak as f64);
        }
        metrics.set("credit/residual_noise_floor", self.noise_floor);
        self.write_completions(&sampled.groups, &states, self.state.step)?;

        let every = self.config.train.eval_every;
        if every > 0 && self.state.step.is_multiple_of(every) && !self.held_out.problems.is_empty()
        {
            let start = Instant::now();
            self.evaluate_and_keep_best(&mut metrics)?;
            metrics.set("time/eval", start.elapsed().as_secs_f64());
        }
        let every = self.config.train.save_every;
        if every > 0 && self.state.step.is_multiple_of(every) {
            let start = Instant::now();
            self.save_checkpoint()?;
            metrics.set("time/save", start.elapsed().as_secs_f64());
        }
        self.metrics.write(self.state.step, &metrics)?;
        if let Some(events) = &mut self.events {
            events.write(self.state.step, &metrics)?;
        }
        if metrics.get("train/completions/clipped_ratio") > Some(0.3) && step == 0 {
            self.progress.warning(
                "more than 30 % of the completions were cut by length: raise rollout.max_completion_length, \
                 or check the model's stop ids",
            );
        }
        self.progress.step(&StepLine {
            step: self.state.step,
            reward,
            length: metrics
                .get("train/completions/mean_length")
                .unwrap_or_default(),
            tokens_per_second: sampled.tokens as f64 / seconds,
        });
        Ok(())
    }

    /// All inner iterations on one batch of groups.
    fn update(
        &mut self,
        groups: &[Group],
        step: usize,
        metrics: &mut Metrics,
    ) -> Result<Vec<SequenceState>> {
        let c = &self.config;
        let train_groups: Vec<TrainGroup> = groups
            .iter()
            .map(|g| TrainGroup {
                prompt: &g.episodes[0].prompt_ids,
                key: stream_key(
                    c.train.seed,
                    Purpose::Dropout,
                    step as u64,
                    g.problem.key(),
                    g.episodes[0].sample as u64,
                ),
                sequences: g
                    .episodes
                    .iter()
                    .zip(&g.advantages)
                    .map(|(e, &advantage)| TrainSequence {
                        completion: &e.completion_ids,
                        advantage,
                        sampler_logprobs: Some(&e.logprobs),
                        masked: c.rollout.mask_truncated && e.finish == FinishReason::Length,
                        ..TrainSequence::default()
                    })
                    .collect(),
            })
            .collect();
        let count: usize = groups.iter().map(|g| g.episodes.len()).sum();
        let mut states = vec![SequenceState::default(); count];
        let probe = c.credit.probe_every > 0 && step.is_multiple_of(c.credit.probe_every);
        let iterations = c.loss.inner_iterations as u64;
        let total = c.train.steps as u64 * iterations;
        let mut timing = UpdateStats::default();
        let mut optimizing = Duration::ZERO;
        for iteration in 0..c.loss.inner_iterations {
            self.optimizer.zero_grads(&self.session.engine)?;
            let stats = self.updater.gradients(
                &mut self.session.engine,
                &mut self.optimizer,
                &train_groups,
                step,
                iteration,
                probe,
                &mut states,
            )?;
            if iteration == 0 {
                let difference = stats.logprob_difference.mean().unwrap_or(0.0);
                ensure!(
                    difference <= f64::from(c.train.logprob_difference_limit),
                    "the sampler's and the trainer's log-probs differ by {difference:.2e} on average, over \
                     train.logprob_difference_limit = {}: the rollouts are not the policy's (step {})",
                    c.train.logprob_difference_limit,
                    step + 1
                );
                update_metrics(metrics, &stats);
            }
            let lr = learning_rate(
                &c.optimizer,
                step as u64 * iterations + iteration as u64,
                total,
            );
            let start = Instant::now();
            let norm = self
                .optimizer
                .apply(&mut self.session.engine, POLICY, lr)
                .with_context(|| format!("step {}", step + 1))?;
            optimizing += start.elapsed();
            metrics.set("train/grad_norm", norm);
            metrics.set("train/learning_rate", lr);
            metrics.set("train/loss", stats.loss);
            for (name, value) in stats.loss_stats.metrics() {
                metrics.set(format!("train/{name}"), value);
            }
            timing.forward += stats.forward;
            timing.score += stats.score;
            timing.backward += stats.backward;
            timing.rows += stats.rows;
        }
        let seconds = (timing.forward + timing.score + timing.backward + optimizing).as_secs_f64();
        metrics.set("time/score", timing.score.as_secs_f64());
        metrics.set("time/forward", timing.forward.as_secs_f64());
        metrics.set("time/backward", timing.backward.as_secs_f64());
        metrics.set("time/optimizer", optimizing.as_secs_f64());
        metrics.set(
            "perf/train_tokens_per_second",
            completion_tokens(groups) as f64 * iterations as f64 / seconds.max(1e-9),
        );
        Ok(states)
    }

    fn evaluate_and_keep_best(&mut self, metrics: &mut Metrics) -> Result<()> {
        let rows = self.measure(&[("adapter".to_string(), Some(POLICY))])?;
        let Some(row) = rows.into_iter().next() else {
            return Ok(());
        };
        for (name, value) in [
            ("sampled_accuracy", row.sampled_accuracy),
            ("greedy_accuracy", row.greedy_accuracy),
            ("pass_at_k", row.pass_at_k),
            ("maj_at_k", row.maj_at_k),
            ("box_rate", row.box_rate),
            ("accuracy_given_box", row.accuracy_given_box),
            ("truncated_rate", row.truncated_rate),
            ("completions/mean_length", row.mean_length),
        ] {
            metrics.set(format!("eval/{name}"), value);
        }
        self.keep_best(&row)
    }

    fn keep_best(&mut self, row: &EvalRow) -> Result<()> {
        if self.state.best.is_none_or(|b| row.sampled_accuracy > b.1) {
            self.state.best = Some((self.state.step, row.sampled_accuracy));
            let session = &self.session;
            replace_dir(&self.dir.adapter_best(), |tmp| {
                session.save_adapter(POLICY, tmp)
            })?;
        }
        Ok(())
    }

    fn save_checkpoint(&mut self) -> Result<()> {
        let session = &self.session;
        replace_dir(&self.dir.adapter(), |tmp| session.save_adapter(POLICY, tmp))?;
        checkpoint::save(
            &self.dir.checkpoint(self.state.step),
            session,
            POLICY,
            &self.optimizer,
            &self.state,
        )
    }

    fn write_completions(
        &self,
        groups: &[Group],
        states: &[SequenceState],
        step: usize,
    ) -> Result<()> {
        let mut out = String::new();
        let mut index = 0;
        for (g, group) in groups.iter().enumerate() {
            for (i, e) in group.episodes.iter().enumerate() {
                let mut row = json!({
                    "step": step,
                    "group": g,
                    "problem": group.problem.id,
                    "sample": e.sample,
                    "text": e.text,
                    "reward": e.reward,
                    "verdict": e.verdict,
                    "advantage": group.advantages[i],
                    "finish_reason": e.finish,
                    "tokens": e.completion_ids.len(),
                });
                for (name, value) in self.rewards.names().iter().zip(&e.rewards) {
                    row["rewards"][name] = json!(value);
                }
                if self.config.log.token_traces {
                    trace(&mut row, e, &states[index]);
                }
                out += &row.to_string();
                out.push('\n');
                index += 1;
            }
        }
        write_atomic(&self.dir.completions(step), out.as_bytes())
    }

    /// The last evaluation, the summary, and a word to the user.
    fn finish(&mut self, outcome: Outcome) -> Result<Outcome> {
        self.progress.finish();
        if outcome == Outcome::Interrupted {
            eprintln!(
                "saved after step {}; continue with: arca train --run {} --resume",
                self.state.step,
                self.dir.root().display()
            );
            return Ok(outcome);
        }
        let mut last = None;
        if !self.held_out.problems.is_empty() {
            let rows = self.measure(&[("adapter".to_string(), Some(POLICY))])?;
            last = rows.into_iter().next();
            if let Some(row) = &last {
                self.keep_best(row)?;
            }
        }
        self.save_checkpoint()?;
        let mut summary = summary(&self.state, last.as_ref(), &self.config.credit.method);
        summary["device"] = json!(self.session.engine.device.name());
        write_atomic(
            &self.dir.summary(),
            serde_json::to_string_pretty(&summary)?.as_bytes(),
        )?;
        if !self.quiet {
            let rows: Vec<EvalRow> = self.state.base.iter().chain(&last).cloned().collect();
            crate::cli::print(&report(&rows, &summary, &self.dir))?;
        }
        Ok(outcome)
    }
}
