//! One adapter in training: its configuration, optimizer and place in the
//! data, and the run folder it writes. A run has one, a sweep several.

use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::advantage;
use crate::config::{Config, UsageError};
use crate::credit::{CreditAssigner, TokenClasses};
use crate::data::DataOrder;
use crate::episode::{AdapterId, FinishReason, Group};
use crate::model::batch::Batch;
use crate::model::half_layer::HalfLayers;
use crate::model::plan::peak_memory;
use crate::reward::RewardSet;
use crate::rng::{Purpose, stream_key};
use crate::train::checkpoint::{self, RunState};
use crate::train::evaluate::EvalRow;
use crate::train::metrics::{Metrics, MetricsWriter};
use crate::train::optimizer::{Gradients, Optimizer, learning_rate};
use crate::train::run_dir::{RunDir, replace_dir, write_atomic};
use crate::train::session::Session;
use crate::train::step::{Asker, Sampled};
use crate::train::step_metrics::{
    CreditReport, completion_tokens, rollout_metrics, trace, update_metrics,
};
use crate::train::summary::summary;
use crate::train::tensorboard::EventWriter;
use crate::train::update::{SequenceState, TrainGroup, TrainSequence, UpdateStats, Updater};

/// An adapter to train.
#[derive(Clone, Debug)]
pub struct ArmPlan {
    /// Of its folder in a sweep.
    pub name: String,
    pub config: Config,
}

impl ArmPlan {
    /// Refuse what cannot be trained, before any model is loaded; else how it
    /// assigns credit.
    pub fn credit(&self, layers: usize) -> Result<CreditAssigner> {
        let config = &self.config;
        advantage::validate(&config.advantage, config.rollout.group_size)?;
        let usage = |e: Error| UsageError::new(format!("{e:#}"));
        let credit = CreditAssigner::new(&config.credit).map_err(usage)?;
        credit.hidden().check(layers).map_err(usage)?;
        let sequences = config.train.prompts_per_step * config.rollout.group_size;
        if !sequences.is_multiple_of(config.loss.gradient_accumulation) {
            return Err(UsageError::new(format!(
                "loss.gradient_accumulation = {} does not divide the {sequences} completions of a step",
                config.loss.gradient_accumulation
            ))
            .into());
        }
        Ok(credit)
    }
}

/// An adapter in training.
pub struct Arm<D: HalfLayers> {
    pub name: String,
    pub config: Config,
    pub adapter: AdapterId,
    pub state: RunState,
    pub dir: RunDir,
    /// Why it takes no further step.
    pub failure: Option<Error>,
    optimizer: Optimizer<D>,
    updater: Updater,
    order: DataOrder,
    metrics: MetricsWriter,
    events: Option<EventWriter>,
    credit_report: CreditReport,
    /// For the user, since the last step.
    pub warnings: Vec<String>,
}

/// How an arm begins.
pub enum Beginning {
    New,
    /// From its folder's latest checkpoint.
    Resumed,
    /// It failed for this reason in an earlier part of the run: its folder
    /// stays as it is.
    Failed(String),
}

impl<D: HalfLayers> Arm<D> {
    /// With `problems` to train on, and gradients that all arms share. A word
    /// for the user is left in `reports`.
    #[allow(clippy::too_many_arguments)]
    pub fn open(
        session: &mut Session<D>,
        plan: ArmPlan,
        updater: Updater,
        problems: usize,
        dir: RunDir,
        beginning: Beginning,
        gradients: &Gradients<D>,
        reports: &mut Vec<String>,
    ) -> Result<Self> {
        let ArmPlan { name, config } = plan;
        let adapter = updater.adapter;
        let layout = session.engine.adapter(adapter).layout.clone();
        let device = &session.engine.device;
        let mut optimizer = Optimizer::sharing(device, &layout, &config.optimizer, gradients)?;
        let seed = config.train.seed;
        let mut state = RunState::default();
        let mut order = DataOrder::new(problems, seed)?;
        if !matches!(beginning, Beginning::New) {
            // A run that died before its first checkpoint starts over: its
            // folder could otherwise be neither continued nor used again.
            if let Some((latest, path)) = dir.latest_checkpoint()? {
                state = checkpoint::load(&path, session, adapter, &mut optimizer)?;
                ensure!(
                    state.step == latest,
                    "{} is of step {}",
                    path.display(),
                    state.step
                );
                order = DataOrder::resume(problems, seed, state.cursor)?;
            } else if matches!(beginning, Beginning::Resumed) {
                let root = dir.root().display();
                reports.push(format!("{root} has no checkpoint yet: starting over"));
            }
        }
        let (metrics, resumed_from) = match beginning {
            Beginning::New => (MetricsWriter::create(&dir.metrics())?, None),
            Beginning::Resumed => {
                dir.forget_completions_after(state.step)?;
                dir.save_config(&config)?;
                let metrics = MetricsWriter::resume(&dir.metrics(), state.step)?;
                (metrics, Some(state.step))
            }
            Beginning::Failed(_) => (MetricsWriter::resume(&dir.metrics(), usize::MAX)?, None),
        };
        let failure = match beginning {
            Beginning::Failed(why) => Some(anyhow!(why)),
            Beginning::New | Beginning::Resumed => None,
        };
        let events = match config.log.tensorboard && failure.is_none() {
            true => Some(EventWriter::create(dir.root(), resumed_from)?),
            false => None,
        };
        Ok(Arm {
            name,
            adapter,
            state,
            dir,
            failure,
            optimizer,
            updater,
            order,
            metrics,
            events,
            credit_report: CreditReport::new(TokenClasses::new(session.tokenizer()?.clone())),
            warnings: Vec::new(),
            config,
        })
    }

    /// What its adapter is compared with; none is the base model.
    pub fn reference(&self) -> Option<AdapterId> {
        self.updater.reference
    }

    /// Whether steps are left to take.
    pub fn training(&self) -> bool {
        self.failure.is_none() && self.state.step < self.config.train.steps
    }

    /// Measure the residual's noise floor on a prompt.
    pub fn probe(&mut self, session: &mut Session<D>, prompt: &[u32]) -> Result<()> {
        let mut batch = Batch::default();
        batch.push_segment(prompt, &[], self.updater.reference);
        self.credit_report.noise_floor = session.engine.noise_floor(batch)?;
        Ok(())
    }

    /// What it wants sampled for its next step. Nothing changes before
    /// [`Arm::learn`].
    pub fn asker(&self) -> Asker<'_> {
        Asker {
            adapter: self.adapter,
            config: &self.config,
            order: self.order.clone(),
            step: self.state.step,
        }
    }

    /// Take a step on what was sampled, `order` being where that left the
    /// data. Without metrics it has failed: see [`Arm::failure`].
    ///
    /// # Errors
    /// What is not the arm's fault, such as a full disk.
    pub fn learn(
        &mut self,
        session: &mut Session<D>,
        sampled: &Sampled,
        order: DataOrder,
        rewards: &RewardSet,
    ) -> Result<Option<Metrics>> {
        let start = Instant::now();
        let mut metrics = Metrics::new();
        rollout_metrics(&mut metrics, sampled, &rewards.names(), &self.config);
        let states = match self.update(session, &sampled.groups, &mut metrics) {
            Ok(states) => states,
            Err(error) => {
                self.failure = Some(error);
                return Ok(None);
            }
        };
        let (credit, step) = (&self.updater.credit, self.state.step);
        let report = &mut self.credit_report;
        self.warnings = report.step(&mut metrics, credit, step, &sampled.groups, &states);
        let seconds = (sampled.rollout + sampled.reward + start.elapsed()).as_secs_f64();
        let state = &mut self.state;
        self.order = order;
        state.step += 1;
        state.cursor = self.order.cursor();
        state.num_tokens += completion_tokens(&sampled.groups) as u64;
        state.completions += completions(&sampled.groups) as u64;
        state.seconds += seconds;
        state
            .rewards
            .push(metrics.get("train/reward").unwrap_or(0.0));
        metrics.set("train/num_tokens", state.num_tokens as f64);
        metrics.set("train/step_time", seconds);
        metrics.set("perf/tokens_per_second", sampled.tokens as f64 / seconds);
        if let Some(peak) = peak_memory() {
            metrics.set("perf/peak_bytes", peak as f64);
        }
        self.write_completions(&sampled.groups, &states, rewards)?;
        Ok(Some(metrics))
    }

    /// All inner iterations on one batch of groups.
    fn update(
        &mut self,
        session: &mut Session<D>,
        groups: &[Group],
        metrics: &mut Metrics,
    ) -> Result<Vec<SequenceState>> {
        let (c, step) = (&self.config, self.state.step);
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
        let mut states = vec![SequenceState::default(); completions(groups)];
        let probe = c.credit.probe_every > 0 && step.is_multiple_of(c.credit.probe_every);
        let iterations = c.loss.inner_iterations as u64;
        let total = c.train.steps as u64 * iterations;
        let mut timing = UpdateStats::default();
        let mut optimizing = Duration::ZERO;
        for iteration in 0..c.loss.inner_iterations {
            self.optimizer.zero_grads(&session.engine)?;
            let stats = self.updater.gradients(
                &mut session.engine,
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
                .apply(&mut session.engine, self.adapter, lr)
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

    /// Log an evaluation on held-out problems, and keep the best adapter.
    pub fn evaluated(
        &mut self,
        session: &Session<D>,
        row: &EvalRow,
        metrics: &mut Metrics,
    ) -> Result<()> {
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
        self.keep_best(session, row)
    }

    fn keep_best(&mut self, session: &Session<D>, row: &EvalRow) -> Result<()> {
        if self.state.best.is_none_or(|b| row.sampled_accuracy > b.1) {
            self.state.best = Some((self.state.step, row.sampled_accuracy));
            replace_dir(&self.dir.adapter_best(), |tmp| {
                session.save_adapter(self.adapter, tmp)
            })?;
        }
        Ok(())
    }

    /// Save all that it takes to go on.
    pub fn save_checkpoint(&self, session: &Session<D>) -> Result<()> {
        replace_dir(&self.dir.adapter(), |tmp| {
            session.save_adapter(self.adapter, tmp)
        })?;
        checkpoint::save(
            &self.dir.checkpoint(self.state.step),
            session,
            self.adapter,
            &self.optimizer,
            &self.state,
        )
    }

    /// Write the step's metrics.
    pub fn log(&mut self, metrics: &Metrics) -> Result<()> {
        self.metrics.write(self.state.step, metrics)?;
        match &mut self.events {
            Some(events) => events.write(self.state.step, metrics),
            None => Ok(()),
        }
    }

    /// The last evaluation is made: best adapter, checkpoint and summary.
    pub fn conclude(&mut self, session: &Session<D>, last: Option<&EvalRow>) -> Result<Value> {
        if let Some(row) = last {
            self.keep_best(session, row)?;
        }
        self.save_checkpoint(session)?;
        let mut summary = summary(&self.state, last, &self.config.credit.method);
        summary["device"] = json!(session.engine.device.name());
        write_atomic(
            &self.dir.summary(),
            serde_json::to_string_pretty(&summary)?.as_bytes(),
        )?;
        Ok(summary)
    }

    fn write_completions(
        &self,
        groups: &[Group],
        states: &[SequenceState],
        rewards: &RewardSet,
    ) -> Result<()> {
        let step = self.state.step;
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
                for (name, value) in rewards.names().iter().zip(&e.rewards) {
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
}

/// Completions of a step.
fn completions(groups: &[Group]) -> usize {
    groups.iter().map(|g| g.episodes.len()).sum()
}
