//! `arca sweep`: many adapters over one copy of the base weights, trained side
//! by side and compared on the same problems.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail, ensure};

use crate::cli::Outcome;
use crate::episode::AdapterId;
use crate::model::half_layer::HalfLayers;
use crate::study::arms::Arms;
use crate::study::comparison::{Subject, comparisons, families};
use crate::study::record::{self, ArmRecord, Evaluation, OutcomeRow, Record, Status, SweepDir};
use crate::study::specimens::write_inspect;
use crate::study::table::table;
use crate::train::evaluate::{Evaluated, Outcomes};
use crate::train::progress::Progress;
use crate::train::session::{OnDevice, on_device};
use crate::train::trainer::Trainer;

/// Train and compare `arms`, into `run` (a new folder, or with `resume` that of
/// an earlier sweep).
///
/// # Errors
/// Besides what stops the whole sweep: at its end, that some arms failed.
pub fn sweep(arms: Arms, run: Option<PathBuf>, resume: bool, quiet: bool) -> Result<Outcome> {
    let base = arms.base.clone();
    on_device(
        &base,
        Sweep {
            arms,
            run,
            resume,
            quiet,
        },
    )
}

struct Sweep {
    arms: Arms,
    run: Option<PathBuf>,
    resume: bool,
    quiet: bool,
}

/// A sweep under way.
struct Study<D: HalfLayers> {
    trainer: Trainer<D>,
    dir: SweepDir,
    progress: Progress,
    record: Record,
    evaluation: Evaluation,
    /// Failed arms that the user knows of.
    told: Vec<AdapterId>,
    started: Instant,
    /// Seconds of earlier parts: all, rollouts, updates.
    before: [f64; 3],
    quiet: bool,
}

impl OnDevice for Sweep {
    type Output = Outcome;

    fn run<D: HalfLayers>(self, device: D) -> Result<Outcome> {
        let mut study = Study::open(device, self)?;
        study.prepare()?;
        match study.steps()? {
            Outcome::Interrupted => Ok(Outcome::Interrupted),
            Outcome::Done => study.finish(),
        }
    }
}

impl<D: HalfLayers> Study<D> {
    fn open(device: D, sweep: Sweep) -> Result<Self> {
        let Sweep {
            arms,
            run,
            resume,
            quiet,
        } = sweep;
        let started = Instant::now();
        let mut opened: Option<(SweepDir, Record)> = None;
        let folders = || {
            let (dir, record) = match (&run, resume) {
                (Some(root), true) => {
                    let dir = SweepDir::open(root)?;
                    dir.save_config(&arms)?;
                    let record = record::read(&dir.record())?.unwrap_or_default();
                    (dir, record)
                }
                (root, _) => {
                    let dir = SweepDir::create(root.as_deref(), &arms)?;
                    (dir, Record::default())
                }
            };
            let folders = arms
                .plans
                .iter()
                .map(|plan| dir.arm(plan, failure(&record, &plan.name)))
                .collect();
            opened = Some((dir, record));
            folders
        };
        let trainer = Trainer::open(device, arms.plans.clone(), true, folders)?;
        let Some((dir, record)) = opened else {
            bail!("the sweep has no folder");
        };
        let mut progress = Progress::new(trainer.config().train.steps, quiet);
        if resume {
            let steps = trainer.arms.iter().filter(|a| a.failure.is_none());
            progress.resume(steps.map(|a| a.state.step).min().unwrap_or(0));
        }
        let told = trainer.arms.iter().filter(|a| a.failure.is_some());
        Ok(Study {
            told: told.map(|a| a.adapter).collect(),
            before: [
                record.seconds,
                record.rollout_seconds,
                record.update_seconds,
            ],
            evaluation: Evaluation::of(&trainer.held_out.problems),
            record: Record {
                commit: crate::COMMIT.to_string(),
                ..record
            },
            trainer,
            dir,
            progress,
            started,
            quiet,
        })
    }

    /// A word on the sweep, and the base row.
    fn prepare(&mut self) -> Result<()> {
        let t = &self.trainer;
        let c = t.config();
        for report in &t.reports {
            self.progress.message(report);
        }
        let parameters: usize = t
            .arms
            .iter()
            .map(|a| t.session.engine.adapter(a.adapter).layout.len())
            .sum();
        self.progress.message(&format!(
            "{} on {}; {} arms with {parameters} parameters; {} problems, {} held out; \
             {} completions a step for each arm, decoded together",
            t.session.base_name,
            t.session.engine.device.name(),
            t.arms.len(),
            t.prompts.problems.len(),
            t.held_out.problems.len(),
            c.train.prompts_per_step * c.rollout.group_size,
        ));
        self.progress
            .message(&format!("sweep folder: {}", self.dir.root().display()));
        let measured = self.trainer.prepare()?;
        let base = match (measured, self.known_base()?) {
            (Some(base), _) => Some(base),
            (None, Some(row)) => {
                self.evaluation.rows.push(row);
                None
            }
            (None, None) => self.trainer.measure_base()?,
        };
        if let Some(Evaluated { row, outcomes }) = base {
            self.evaluation.rows.push(OutcomeRow::of("base", &outcomes));
            self.record.base = Some(row);
        }
        if !self.evaluation.rows.is_empty() {
            record::write(&self.dir.evaluation(), &self.evaluation)?;
        }
        self.write_record(Status::Running, &[])
    }

    /// The base model's answers from an earlier part of the sweep, if they are
    /// to the same problems.
    fn known_base(&self) -> Result<Option<OutcomeRow>> {
        let Some(earlier) = record::read::<Evaluation>(&self.dir.evaluation())? else {
            return Ok(None);
        };
        let samples = self.trainer.config().eval.samples;
        let same = earlier.problems == self.evaluation.problems && self.record.base.is_some();
        let base = earlier.rows.into_iter().find(|r| r.name == "base");
        Ok(base.filter(|r| same && r.samples.iter().all(|s| s.len() == samples)))
    }

    fn steps(&mut self) -> Result<Outcome> {
        while self.trainer.goes_on() {
            if self.trainer.interrupted() {
                self.trainer.save()?;
                self.write_record(Status::Running, &[])?;
                self.progress.finish();
                eprintln!(
                    "saved; continue with: arca sweep --run {} --resume",
                    self.dir.root().display()
                );
                return Ok(Outcome::Interrupted);
            }
            let step = self.trainer.step()?;
            self.tell_failures();
            self.check_budgets()?;
            self.write_record(Status::Running, &[])?;
            if step.clipped > 0.3 && step.line.step == 1 {
                self.progress.warning(
                    "more than 30 % of the completions were cut by length: raise rollout.max_completion_length, \
                     or check the model's stop ids",
                );
            }
            for (arm, warning) in &step.warnings {
                let at = step.line.step;
                self.progress
                    .warning(&format!("{arm}, step {at}: {warning}"));
            }
            self.progress.step(&step.line);
        }
        Ok(Outcome::Done)
    }

    fn tell_failures(&mut self) {
        for arm in &self.trainer.arms {
            let Some(error) = &arm.failure else { continue };
            if !self.told.contains(&arm.adapter) {
                self.told.push(arm.adapter);
                self.progress.warning(&format!(
                    "{} failed after step {}, the others go on: {error:#}",
                    arm.name, arm.state.step
                ));
            }
        }
    }

    /// Arms are compared at equal rollout budgets: so many completions a step.
    fn check_budgets(&self) -> Result<()> {
        let c = self.trainer.config();
        let each = (c.train.prompts_per_step * c.rollout.group_size) as u64;
        for arm in self.trainer.arms.iter().filter(|a| a.failure.is_none()) {
            let budget = each * arm.state.step as u64;
            ensure!(
                arm.state.completions == budget,
                "{} was trained on {} completions in {} steps, where every arm has {budget}: the arms cannot be \
                 compared",
                arm.name,
                arm.state.completions,
                arm.state.step
            );
        }
        Ok(())
    }

    /// Write `sweep.json`. `evaluated` are the arms' last results.
    fn write_record(&mut self, status: Status, evaluated: &[Option<Evaluated>]) -> Result<()> {
        let t = &self.trainer;
        let earlier = std::mem::take(&mut self.record.arms);
        self.record.arms = t
            .arms
            .iter()
            .enumerate()
            .map(|(i, arm)| {
                let mut record = ArmRecord::of(arm, status);
                let row = evaluated.get(i).and_then(Option::as_ref);
                record.evaluation = row.map(|e| e.row.clone());
                // Checkpoints may be older than the failure.
                if let Some(old) = earlier.iter().find(|a| a.name == arm.name)
                    && old.status == Status::Failed
                {
                    return old.clone();
                }
                record
            })
            .collect();
        let since = [
            self.started.elapsed().as_secs_f64(),
            t.rollout.as_secs_f64(),
            t.update.as_secs_f64(),
        ];
        let [all, rollout, update] = [0, 1, 2].map(|i| self.before[i] + since[i]);
        self.record.seconds = all;
        self.record.rollout_seconds = rollout;
        self.record.update_seconds = update;
        record::write(&self.dir.record(), &self.record)
    }

    /// The last evaluation, what may be concluded, and a word to the user.
    fn finish(&mut self) -> Result<Outcome> {
        self.progress.finish();
        let all: Vec<usize> = (0..self.trainer.arms.len()).collect();
        let evaluated = self.trainer.measure_arms(&all)?;
        self.tell_failures();
        for (i, evaluated) in evaluated.iter().enumerate() {
            let trainer = &mut self.trainer;
            if trainer.arms[i].failure.is_some() {
                continue;
            }
            let row = evaluated.as_ref().map(|e| &e.row);
            trainer.arms[i].conclude(&trainer.session, row)?;
            if let Err(error) = write_inspect(trainer, i) {
                let name = &trainer.arms[i].name;
                self.progress
                    .warning(&format!("{name}: inspect.jsonl is not written: {error:#}"));
            }
        }
        let outcomes: Vec<(usize, &Outcomes)> = evaluated
            .iter()
            .enumerate()
            .filter_map(|(i, e)| Some((i, &e.as_ref()?.outcomes)))
            .collect();
        for &(i, outcomes) in &outcomes {
            let name = &self.trainer.arms[i].name;
            self.evaluation.rows.push(OutcomeRow::of(name, outcomes));
        }
        if !self.evaluation.rows.is_empty() {
            record::write(&self.dir.evaluation(), &self.evaluation)?;
        }
        let seed = self.trainer.config().train.seed;
        self.record.comparisons = comparisons(&subjects(&self.trainer, &outcomes), seed)?;
        self.write_record(Status::Done, &evaluated)?;
        if !self.quiet {
            let subjects = subjects(&self.trainer, &outcomes);
            let text = table(&self.record, &families(&subjects), self.dir.root());
            crate::cli::print(&text)?;
        }
        let failed: Vec<&str> = self
            .trainer
            .arms
            .iter()
            .filter(|a| a.failure.is_some())
            .map(|a| &a.name[..])
            .collect();
        ensure!(
            failed.is_empty(),
            "{} of {} arms failed: {}",
            failed.len(),
            self.trainer.arms.len(),
            failed.join(", ")
        );
        Ok(Outcome::Done)
    }
}

/// The arms that were evaluated, by index.
fn subjects<'a, D: HalfLayers>(
    trainer: &'a Trainer<D>,
    outcomes: &[(usize, &Outcomes)],
) -> Vec<Subject<'a>> {
    outcomes
        .iter()
        .map(|&(i, outcomes)| Subject {
            name: &trainer.arms[i].name,
            config: &trainer.arms[i].config,
            outcomes: outcomes.clone(),
        })
        .collect()
}

/// Why an arm failed in an earlier part of the sweep.
fn failure(record: &Record, name: &str) -> Option<String> {
    let arm = record.arms.iter().find(|a| a.name == name)?;
    (arm.status == Status::Failed)
        .then(|| arm.error.clone().unwrap_or_else(|| "unknown".to_string()))
}
