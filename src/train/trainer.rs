//! The training loop's body, for one adapter or many: the rollouts of a step
//! are decoded together, then adapters are updated one after another.
//!
//! What an adapter becomes depends on its own configuration alone; on the CPU
//! to the last bit, whoever trains beside it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};

use crate::config::{Config, UsageError};
use crate::data::Dataset;
use crate::episode::AdapterId;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::reward::RewardSet;
use crate::tokenizer::Tokenizer;
use crate::train::arm::{Arm, ArmPlan, Beginning};
use crate::train::evaluate::{Evaluated, Subject, evaluate};
use crate::train::interrupt::Interrupt;
use crate::train::optimizer::Gradients;
use crate::train::progress::StepLine;
use crate::train::run_dir::RunDir;
use crate::train::session::{AdapterSource, Demand, Session, kv_pages, model_dir};
use crate::train::setup::{
    contrast_ids, contrast_prompt, data_path, initial_adapter, load_prompts, training_demand,
    updater,
};
use crate::train::step::{Asker, Culprit, Prompts, sample_groups};

/// Everything that training holds.
pub struct Trainer<D: HalfLayers> {
    pub session: Session<D>,
    pub arms: Vec<Arm<D>>,
    pub prompts: Prompts,
    pub held_out: Prompts,
    pub rewards: RewardSet,
    /// For the user, found on the way.
    pub reports: Vec<String>,
    /// Time in joint rollouts, their judging included.
    pub rollout: Duration,
    /// Time in updates.
    pub update: Duration,
    interrupt: Interrupt,
}

/// What a step was like.
pub struct StepReport {
    pub line: StepLine,
    /// Share of completions that were cut by length.
    pub clipped: f64,
    /// What the arms' credit gives to warn of, with their names.
    pub warnings: Vec<(String, String)>,
}

impl<D: HalfLayers> Trainer<D> {
    /// Load the model once and make every arm's adapter resident. What all
    /// arms share (model, data, sampling, rewards, evaluation, device) is read
    /// from the first one's configuration. With `inspects` there is also room
    /// for looking at completions beside their reference.
    ///
    /// `folders` opens the arms' run folders: once nothing can be refused any
    /// more, so that a start that failed leaves no used folder behind.
    pub fn open(
        device: D,
        plans: Vec<ArmPlan>,
        inspects: bool,
        folders: impl FnOnce() -> Result<Vec<(RunDir, Beginning)>>,
    ) -> Result<Self> {
        let config = plans.first().context("nothing to train")?.config.clone();
        let dir = model_dir(&config)?;
        let shape = ModelShape::load(&dir)?;
        let rewards = RewardSet::from_config(&config.reward, config.rollout.max_completion_length)
            .map_err(|e| UsageError::new(format!("{e:#}")))?;
        let credits = plans
            .iter()
            .map(|plan| plan.credit(shape.num_layers))
            .collect::<Result<Vec<_>>>()?;
        let tokenizer = Tokenizer::load(&dir)?;
        let mut reports = Vec::new();
        let (prompts, held_out) = load_data(&config, &tokenizer, &mut reports)?;

        let mut adapters = plans
            .iter()
            .map(|plan| initial_adapter(&plan.config, &shape))
            .collect::<Result<Vec<_>>>()?;
        let references = add_references(&plans, &mut adapters, &shape)?;
        let longest = |p: &Prompts| p.ids.iter().map(Vec::len).max().unwrap_or(0);
        let mut longest_prompt = longest(&prompts).max(longest(&held_out));
        for (plan, credit) in plans.iter().zip(&credits) {
            let contrast = match inspects {
                true => contrast_ids(&plan.config, &tokenizer)?,
                false => contrast_prompt(&plan.config, credit)?,
            };
            longest_prompt = longest_prompt.max(contrast.len());
        }
        let demands: Vec<Demand> = plans
            .iter()
            .zip(&credits)
            .map(|(plan, credit)| {
                training_demand(
                    &plan.config,
                    credit,
                    longest_prompt,
                    held_out.problems.len(),
                )
            })
            .collect();
        let demand = Demand {
            pages: kv_pages(&config, &shape, device.memory_kind())?,
            ..Demand::together(&demands, inspects)
        };
        let mut session = Session::open(device, &config, &dir, &demand, adapters)?;

        let trained = (0..plans.len()).map(|i| &session.engine.adapter(AdapterId(i as u32)).layout);
        let gradients = Gradients::new(&session.engine.device, trained)?;
        let mut arms = Vec::with_capacity(plans.len());
        let parts = plans.into_iter().zip(references).zip(demands);
        for (i, (((plan, reference), demand), folder)) in parts.zip(folders()?).enumerate() {
            let id = AdapterId(i as u32);
            let updater = updater(&plan.config, &shape, id, reference, demand.policy_rows())?;
            let problems = prompts.problems.len();
            let (dir, beginning) = folder;
            arms.push(Arm::open(
                &mut session,
                plan,
                updater,
                problems,
                dir,
                beginning,
                &gradients,
                &mut reports,
            )?);
        }
        Ok(Trainer {
            session,
            arms,
            prompts,
            held_out,
            rewards,
            reports,
            rollout: Duration::ZERO,
            update: Duration::ZERO,
            interrupt: Interrupt::install()?,
        })
    }

    /// What all arms share.
    pub fn config(&self) -> &Config {
        &self.arms[0].config
    }

    /// Arms that have not failed.
    pub fn alive(&self) -> usize {
        self.arms.iter().filter(|a| a.failure.is_none()).count()
    }

    /// What comes before the first step: the base model's evaluation and the
    /// residual's noise floor. The base model as it was measured with the first
    /// arm's seed, unless that is known from a checkpoint.
    pub fn prepare(&mut self) -> Result<Option<Evaluated>> {
        let mut seeds: Vec<u64> = Vec::new();
        let ignorant = |a: &&Arm<D>| a.failure.is_none() && a.state.base.is_none();
        for arm in self.arms.iter().filter(ignorant) {
            if !seeds.contains(&arm.config.train.seed) {
                seeds.push(arm.config.train.seed);
            }
        }
        let mut first = None;
        if !seeds.is_empty() && !self.held_out.problems.is_empty() {
            let subjects: Vec<Subject> = seeds.iter().map(|&seed| base(seed)).collect();
            let rows = self.measure(&subjects)?;
            for (seed, evaluated) in seeds.into_iter().zip(rows) {
                let own = |a: &&mut Arm<D>| a.config.train.seed == seed;
                for arm in self.arms.iter_mut().filter(own) {
                    arm.state.base.get_or_insert_with(|| evaluated.row.clone());
                }
                if seed == self.config().train.seed {
                    first = Some(evaluated);
                }
            }
        }
        for arm in &mut self.arms {
            arm.probe(&mut self.session, &self.prompts.ids[0])?;
        }
        Ok(first)
    }

    /// Measure on the held-out problems, all together.
    pub fn measure(&mut self, subjects: &[Subject]) -> Result<Vec<Evaluated>> {
        let Prompts { problems, ids } = &self.held_out;
        let config = &self.arms[0].config;
        evaluate(&mut self.session, config, problems, ids, subjects)
    }

    /// The base model, with the first arm's seed.
    pub fn measure_base(&mut self) -> Result<Option<Evaluated>> {
        if self.held_out.problems.is_empty() {
            return Ok(None);
        }
        let rows = self.measure(&[base(self.config().train.seed)])?;
        Ok(rows.into_iter().next())
    }

    /// Measure these arms together; an arm under which sampling fails is
    /// marked as failed and has no result.
    pub fn measure_arms(&mut self, which: &[usize]) -> Result<Vec<Option<Evaluated>>> {
        if self.held_out.problems.is_empty() {
            return Ok(which.iter().map(|_| None).collect());
        }
        loop {
            let alive: Vec<usize> = which
                .iter()
                .copied()
                .filter(|&i| self.arms[i].failure.is_none())
                .collect();
            let subjects: Vec<Subject> = alive
                .iter()
                .map(|&i| Subject {
                    name: "adapter".to_string(),
                    adapter: Some(self.arms[i].adapter),
                    seed: self.arms[i].config.train.seed,
                })
                .collect();
            if subjects.is_empty() {
                return Ok(which.iter().map(|_| None).collect());
            }
            match self.measure(&subjects) {
                Ok(rows) => {
                    let mut rows: Vec<_> = alive.into_iter().zip(rows).collect();
                    let mut of = |i: usize| {
                        let at = rows.iter().position(|(arm, _)| *arm == i)?;
                        Some(rows.swap_remove(at).1)
                    };
                    return Ok(which.iter().map(|&i| of(i)).collect());
                }
                Err(error) => self.fail(&alive, error)?,
            }
        }
    }

    /// The error of a joint rollout becomes that of the arm it is due to, so
    /// that the others can have theirs; any other error is everybody's.
    fn fail(&mut self, asked: &[usize], error: Error) -> Result<()> {
        let Some(&Culprit(index)) = error.downcast_ref() else {
            return Err(error);
        };
        self.arms[asked[index]].failure = Some(error);
        self.session.engine.discard_kv()
    }

    /// Steps are left to take, and nobody asked for an end.
    pub fn goes_on(&self) -> bool {
        self.arms.iter().any(Arm::training)
    }

    pub fn interrupted(&self) -> bool {
        self.interrupt.requested()
    }

    /// One step of the arms that have done the fewest: sample, update, log;
    /// evaluation and checkpoint where due. Arms that failed in it say so
    /// themselves ([`Arm::failure`]).
    pub fn step(&mut self) -> Result<StepReport> {
        let training = || self.arms.iter().enumerate().filter(|(_, a)| a.training());
        let step = training().map(|(_, a)| a.state.step).min().unwrap_or(0);
        let mut due: Vec<usize> = training()
            .filter(|(_, a)| a.state.step == step)
            .map(|(i, _)| i)
            .collect();

        let start = Instant::now();
        let sampled = loop {
            if due.is_empty() {
                break Vec::new();
            }
            let arms = &self.arms;
            let mut askers: Vec<Asker> = due.iter().map(|&i| arms[i].asker()).collect();
            let sampled =
                sample_groups(&mut self.session, &self.prompts, &self.rewards, &mut askers);
            let orders: Vec<_> = askers.into_iter().map(|a| a.order).collect();
            match sampled {
                Ok(sampled) => break sampled.into_iter().zip(orders).collect(),
                Err(error) => {
                    self.fail(&due, error)?;
                    due.retain(|&i| self.arms[i].failure.is_none());
                }
            }
        };
        self.rollout += start.elapsed();

        let start = Instant::now();
        let mut metrics = Vec::with_capacity(due.len());
        let mut tokens = 0;
        for (&i, (sampled, order)) in due.iter().zip(sampled) {
            tokens += sampled.tokens;
            let arm = &mut self.arms[i];
            metrics.push(arm.learn(&mut self.session, &sampled, order, &self.rewards)?);
        }
        self.update += start.elapsed();
        // Those who failed have no metrics.
        let mut done: Vec<_> = due
            .into_iter()
            .zip(metrics)
            .filter_map(|(i, m)| Some((i, m?)))
            .collect();

        let mean = |name: &str| {
            let values = done.iter().filter_map(|(_, m)| m.get(name));
            values.sum::<f64>() / done.len().max(1) as f64
        };
        // Adapters share the time of a step.
        let seconds: f64 = done
            .iter()
            .filter_map(|(_, m)| m.get("train/step_time"))
            .sum();
        let mut warnings = Vec::new();
        for (i, _) in &done {
            let arm = &mut self.arms[*i];
            let own = std::mem::take(&mut arm.warnings);
            warnings.extend(own.into_iter().map(|w| (arm.name.clone(), w)));
        }
        let report = StepReport {
            line: StepLine {
                step: step + 1,
                arms: (self.arms.len() > 1).then(|| (self.alive(), self.arms.len())),
                reward: mean("train/reward"),
                length: mean("train/completions/mean_length"),
                tokens_per_second: tokens as f64 / seconds.max(1e-9),
            },
            clipped: mean("train/completions/clipped_ratio"),
            warnings,
        };

        let every = self.config().train.eval_every;
        if every > 0 && (step + 1).is_multiple_of(every) && !self.held_out.problems.is_empty() {
            let start = Instant::now();
            let arms: Vec<usize> = done.iter().map(|(i, _)| *i).collect();
            let rows = self.measure_arms(&arms)?;
            let seconds = start.elapsed().as_secs_f64() / arms.len().max(1) as f64;
            for ((i, metrics), evaluated) in done.iter_mut().zip(rows) {
                let Some(evaluated) = evaluated else { continue };
                self.arms[*i].evaluated(&self.session, &evaluated.row, metrics)?;
                metrics.set("time/eval", seconds);
            }
        }
        let every = self.config().train.save_every;
        let save = every > 0 && (step + 1).is_multiple_of(every);
        for (i, metrics) in &mut done {
            let arm = &mut self.arms[*i];
            if save && arm.failure.is_none() {
                let start = Instant::now();
                arm.save_checkpoint(&self.session)?;
                metrics.set("time/save", start.elapsed().as_secs_f64());
            }
            arm.log(metrics)?;
        }
        Ok(report)
    }

    /// Save every arm that has not failed.
    pub fn save(&self) -> Result<()> {
        let mut alive = self.arms.iter().filter(|a| a.failure.is_none());
        alive.try_for_each(|arm| arm.save_checkpoint(&self.session))
    }
}

fn base(seed: u64) -> Subject {
    Subject {
        name: "base".to_string(),
        adapter: None,
        seed,
    }
}

/// The problems to train on, and those held out.
fn load_data(
    config: &Config,
    tokenizer: &Tokenizer,
    reports: &mut Vec<String>,
) -> Result<(Prompts, Prompts)> {
    let mut report = |path: &Path, dataset: &Dataset| {
        let findings = dataset.to_string();
        if !findings.trim().is_empty() {
            reports.push(format!("{}: {}", path.display(), findings.trim_end()));
        }
    };
    let path = data_path(config, &config.data.train, "data.train", "train.jsonl")?
        .context("data.train is not set")?;
    let (prompts, dataset) = load_prompts(config, tokenizer, &path)?;
    ensure!(
        !prompts.problems.is_empty(),
        "{} holds no usable problem",
        path.display()
    );
    report(&path, &dataset);
    let mut held_out = Prompts {
        problems: Vec::new(),
        ids: Vec::new(),
    };
    if let Some(path) = data_path(config, &config.data.eval, "data.eval", "eval.jsonl")? {
        let (loaded, dataset) = load_prompts(config, tokenizer, &path)?;
        report(&path, &dataset);
        held_out = loaded;
        if config.eval.limit > 0 {
            held_out.problems.truncate(config.eval.limit);
            held_out.ids.truncate(config.eval.limit);
        }
    }
    Ok((prompts, held_out))
}

/// Make reference adapters resident behind the trained ones, each once; whose
/// is whose.
fn add_references(
    plans: &[ArmPlan],
    adapters: &mut Vec<AdapterSource>,
    shape: &ModelShape,
) -> Result<Vec<Option<AdapterId>>> {
    let mut known: Vec<(&Path, AdapterId)> = Vec::new();
    let mut references = Vec::new();
    for plan in plans {
        let Some(dir) = plan.config.reference.adapter.as_deref() else {
            references.push(None);
            continue;
        };
        let id = match known.iter().find(|(path, _)| *path == dir) {
            Some(&(_, id)) => id,
            None => {
                let id = AdapterId(adapters.len() as u32);
                adapters.push(AdapterSource::load(dir, shape).context("reference.adapter")?);
                known.push((dir, id));
                id
            }
        };
        references.push(Some(id));
    }
    Ok(references)
}
