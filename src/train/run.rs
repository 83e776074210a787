//! `arca train`: a run of one adapter, from its config to its run folder.

use std::path::PathBuf;

use anyhow::Result;

use crate::cli::Outcome;
use crate::config::{Config, LossType};
use crate::model::half_layer::HalfLayers;
use crate::profile::steps::StepRange;
use crate::train::arm::{ArmPlan, Beginning};
use crate::train::evaluate::EvalRow;
use crate::train::profiling::Profiling;
use crate::train::progress::Progress;
use crate::train::run_dir::RunDir;
use crate::train::session::{OnDevice, on_device};
use crate::train::summary::report;
use crate::train::trainer::Trainer;

/// Train as `config` says, into `run` (a new folder, or with `resume` the
/// folder of an earlier run).
pub fn train(
    config: Config,
    run: Option<PathBuf>,
    resume: bool,
    quiet: bool,
    profile: Option<StepRange>,
) -> Result<Outcome> {
    on_device(
        &config.clone(),
        Training {
            config,
            run,
            resume,
            quiet,
            profile,
        },
    )
}

struct Training {
    config: Config,
    run: Option<PathBuf>,
    resume: bool,
    quiet: bool,
    /// Steps to profile.
    profile: Option<StepRange>,
}

impl OnDevice for Training {
    type Output = Outcome;

    fn run<D: HalfLayers>(self, device: D) -> Result<Outcome> {
        // A run that has no checkpoint yet starts over.
        let taken = |root| RunDir::open(root)?.latest_checkpoint();
        let first = match (&self.run, self.resume) {
            (Some(root), true) => 1 + taken(root).ok().flatten().map_or(0, |c| c.0),
            _ => 1,
        };
        let mut profiling = Profiling::new(&device, self.profile, first, self.config.train.steps)?;
        let plan = ArmPlan {
            name: "adapter".to_string(),
            config: self.config.clone(),
        };
        let folder = || {
            Ok(vec![match (&self.run, self.resume) {
                (Some(root), true) => (RunDir::resume(root)?, Beginning::Resumed),
                (root, _) => {
                    let dir = RunDir::create(root.as_deref(), &self.config)?;
                    (dir, Beginning::New)
                }
            }])
        };
        let mut trainer = Trainer::open(device, vec![plan], false, folder)?;
        let mut progress = Progress::new(self.config.train.steps, self.quiet);
        if self.resume {
            progress.resume(trainer.arms[0].state.step);
        }
        for report in &trainer.reports {
            progress.message(report);
        }
        introduce(&trainer, &progress);
        trainer.prepare()?;
        while trainer.goes_on() {
            if trainer.interrupted() {
                profiling.end(&trainer.session.engine)?;
                trainer.save()?;
                progress.finish();
                tell(&trainer, &profiling)?;
                let arm = &trainer.arms[0];
                eprintln!(
                    "saved after step {}; continue with: arca train --run {} --resume",
                    arm.state.step,
                    arm.dir.root().display()
                );
                return Ok(Outcome::Interrupted);
            }
            let next = trainer.arms[0].state.step + 1;
            profiling.before(next, &trainer.session.engine)?;
            let step = trainer.step()?;
            profiling.after(next, &trainer.session.engine)?;
            if let Some(error) = trainer.arms[0].failure.take() {
                return Err(error);
            }
            if step.clipped > 0.3 && step.line.step == 1 {
                progress.warning(
                    "more than 30 % of the completions were cut by length: raise rollout.max_completion_length, \
                     or check the model's stop ids",
                );
            }
            for (_, warning) in &step.warnings {
                progress.warning(&format!("step {}: {warning}", step.line.step));
            }
            progress.step(&step.line);
        }
        progress.finish();
        tell(&trainer, &profiling)?;

        let rows = trainer.measure_arms(&[0])?;
        let arm = &mut trainer.arms[0];
        if let Some(error) = arm.failure.take() {
            return Err(error);
        }
        let last = rows.into_iter().flatten().next().map(|e| e.row);
        let summary = arm.conclude(&trainer.session, last.as_ref())?;
        if !self.quiet {
            let rows: Vec<EvalRow> = arm.state.base.iter().chain(&last).cloned().collect();
            crate::cli::print(&report(&rows, &summary, &arm.dir))?;
        }
        Ok(Outcome::Done)
    }
}

/// The profile, where one was asked for.
fn tell<D: HalfLayers>(trainer: &Trainer<D>, profiling: &Profiling) -> Result<()> {
    let device = trainer.session.engine.device.name();
    match profiling.report(trainer.arms[0].dir.root(), &device)? {
        Some(table) => crate::cli::print(&table),
        None => Ok(()),
    }
}

/// A word on the run before it begins.
fn introduce<D: HalfLayers>(trainer: &Trainer<D>, progress: &Progress) {
    let arm = &trainer.arms[0];
    let (session, c) = (&trainer.session, &arm.config);
    let layout = &session.engine.adapter(arm.adapter).layout;
    progress.message(&format!(
        "{} on {}; LoRA r {} with {} parameters; {} problems, {} held out; credit {}, loss {:?}",
        session.base_name,
        session.engine.device.name(),
        layout.settings().r,
        layout.len(),
        trainer.prompts.problems.len(),
        trainer.held_out.problems.len(),
        c.credit.method,
        c.loss.loss_type,
    ));
    progress.message(&format!("run folder: {}", arm.dir.root().display()));
    if c.loss.loss_type == LossType::Cispo && c.loss.epsilon_high.is_none() {
        progress.warning(
            "loss.type is cispo without loss.epsilon_high: the ratio is capped at loss.epsilon, \
             which scales every on-policy gradient (5 is usual)",
        );
    }
}
