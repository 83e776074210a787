//! What a sweep leaves in its folder beside the arms' own run folders.
//!
//! ```text
//! sweep.toml        the resolved sweep: what the arms share, and what each sets
//! sweep.json        each arm's state, evaluation and comparisons: [`Record`]
//! evaluation.json   right or wrong, problem by problem: [`Evaluation`]
//! arms/<name>/      a run folder each, with inspect.jsonl
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::UsageError;
use crate::episode::Problem;
use crate::model::half_layer::HalfLayers;
use crate::study::arms::Arms;
use crate::study::comparison::Comparison;
use crate::study::statistics::{mean, standard_error};
use crate::train::arm::{Arm, ArmPlan, Beginning};
use crate::train::evaluate::{EvalRow, Outcomes};
use crate::train::run_dir::{RunDir, create_named, refuse_used, timestamp, write_atomic};

/// Where an arm stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Running,
    Done,
    Failed,
}

/// A mean over steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverSteps {
    pub mean: f64,
    /// Over steps, as if they were independent.
    pub standard_error: f64,
}

/// One arm in `sweep.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmRecord {
    pub name: String,
    /// Relative to the sweep's folder.
    pub dir: PathBuf,
    pub method: String,
    pub r: usize,
    pub exponent: f32,
    pub hidden: String,
    pub seed: u64,
    pub status: Status,
    /// Why it failed.
    pub error: Option<String>,
    pub steps: usize,
    /// Completions and their tokens that it was trained on.
    pub completions: u64,
    pub tokens: u64,
    /// Mean reward of the training steps, and its credit's diagnostics; of a
    /// finished arm, as is the rest.
    pub reward: Option<OverSteps>,
    pub gini: Option<OverSteps>,
    pub effective_token_ratio: Option<OverSteps>,
    /// After the last step.
    pub evaluation: Option<EvalRow>,
}

impl ArmRecord {
    /// Of an arm as it stands.
    pub fn of<D: HalfLayers>(arm: &Arm<D>, status: Status) -> ArmRecord {
        let (c, metrics) = (&arm.config, arm.dir.metrics());
        let done = status == Status::Done;
        let over_steps = |key: &str| done.then(|| over_steps(&metrics, key)).flatten();
        ArmRecord {
            name: arm.name.clone(),
            dir: arm_dir(&arm.name),
            method: c.credit.method.clone(),
            r: c.lora.r,
            exponent: c.credit.exponent,
            hidden: c.credit.hidden.clone(),
            seed: c.train.seed,
            status: match arm.failure {
                Some(_) => Status::Failed,
                None => status,
            },
            error: arm.failure.as_ref().map(|e| format!("{e:#}")),
            steps: arm.state.step,
            completions: arm.state.completions,
            tokens: arm.state.num_tokens,
            reward: over_steps("train/reward"),
            gini: over_steps("credit/gini"),
            effective_token_ratio: over_steps("credit/effective_token_ratio"),
            evaluation: None,
        }
    }
}

/// Mean of a metric over the steps that have it.
fn over_steps(metrics: &Path, key: &str) -> Option<OverSteps> {
    let text = std::fs::read_to_string(metrics).ok()?;
    let values: Vec<f64> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|row| row[key].as_f64())
        .collect();
    (!values.is_empty()).then(|| OverSteps {
        mean: mean(&values),
        standard_error: standard_error(&values),
    })
}

/// `sweep.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub arms: Vec<ArmRecord>,
    /// The base model's evaluation, with the first arm's seed.
    pub base: Option<EvalRow>,
    /// Of arms with uniform credit, and of their means over seeds.
    pub comparisons: Vec<Comparison>,
    /// Time so far, interruptions not counted.
    pub seconds: f64,
    pub rollout_seconds: f64,
    pub update_seconds: f64,
    /// That the program was built from: [`crate::COMMIT`].
    pub commit: String,
}

/// `evaluation.json`: 1 for right, 0 for wrong, by problem.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub problems: Vec<ProblemName>,
    /// `base` first, then every arm that did not fail.
    pub rows: Vec<OutcomeRow>,
}

/// A held-out problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProblemName {
    pub id: String,
    pub level: Option<String>,
    pub subject: Option<String>,
}

/// One model's answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutcomeRow {
    pub name: String,
    pub greedy: Vec<u8>,
    pub samples: Vec<Vec<u8>>,
    /// The commonest answer among the samples.
    pub maj: Vec<u8>,
}

impl Evaluation {
    /// Without rows yet.
    pub fn of(problems: &[Problem]) -> Evaluation {
        let name = |p: &Problem| ProblemName {
            id: p.id.clone(),
            level: p.level.clone(),
            subject: p.subject.clone(),
        };
        Evaluation {
            problems: problems.iter().map(name).collect(),
            rows: Vec::new(),
        }
    }
}

impl OutcomeRow {
    pub fn of(name: &str, outcomes: &Outcomes) -> OutcomeRow {
        let bits = |b: &Vec<bool>| b.iter().map(|&b| u8::from(b)).collect::<Vec<u8>>();
        OutcomeRow {
            name: name.to_string(),
            greedy: bits(&outcomes.greedy),
            samples: outcomes.samples.iter().map(bits).collect(),
            maj: bits(&outcomes.majority),
        }
    }

    pub fn outcomes(&self) -> Outcomes {
        let right = |b: &Vec<u8>| b.iter().map(|&b| b != 0).collect::<Vec<bool>>();
        Outcomes {
            greedy: right(&self.greedy),
            samples: self.samples.iter().map(right).collect(),
            majority: right(&self.maj),
        }
    }
}

/// The folder of a sweep.
#[derive(Clone, Debug)]
pub struct SweepDir {
    root: PathBuf,
}

impl SweepDir {
    /// Makes the folder of a new sweep: `requested`, or `runs/<UTC
    /// time>-sweep`. A folder with anything in it is refused.
    pub fn create(requested: Option<&Path>, arms: &Arms) -> Result<SweepDir> {
        let root = match requested {
            Some(root) => {
                std::fs::create_dir_all(root).with_context(|| {
                    format!("cannot create the folder of the sweep {}", root.display())
                })?;
                refuse_used(root)?;
                root.to_path_buf()
            }
            None => create_named(Path::new("runs"), &format!("{}-sweep", timestamp()))?,
        };
        let dir = SweepDir { root };
        dir.save_config(arms)?;
        Ok(dir)
    }

    /// Opens the folder of an earlier sweep.
    pub fn open(root: &Path) -> Result<SweepDir> {
        let dir = SweepDir {
            root: root.to_path_buf(),
        };
        if !dir.root.join("sweep.toml").is_file() {
            return Err(UsageError::new(format!(
                "{} is not the folder of a sweep: it has no sweep.toml",
                root.display()
            ))
            .into());
        }
        Ok(dir)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes `sweep.toml`.
    pub fn save_config(&self, arms: &Arms) -> Result<()> {
        write_atomic(&self.root.join("sweep.toml"), arms.to_toml()?.as_bytes())
    }

    pub fn record(&self) -> PathBuf {
        self.root.join("sweep.json")
    }

    pub fn evaluation(&self) -> PathBuf {
        self.root.join("evaluation.json")
    }

    /// Opens an arm's run folder: as it was left, or anew where the sweep was
    /// not there yet when it ended.
    pub fn arm(&self, plan: &ArmPlan, failed: Option<String>) -> Result<(RunDir, Beginning)> {
        let root = self.root.join(arm_dir(&plan.name));
        if !root.join("config.toml").is_file() {
            let dir = RunDir::create(Some(&root), &plan.config)?;
            return Ok((dir, Beginning::New));
        }
        let beginning = match failed {
            Some(why) => Beginning::Failed(why),
            None => Beginning::Resumed,
        };
        Ok((RunDir::resume(&root)?, beginning))
    }
}

fn arm_dir(name: &str) -> PathBuf {
    Path::new("arms").join(name)
}

/// Writes a file of a sweep, whole or not at all.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_atomic(path, serde_json::to_string_pretty(value)?.as_bytes())
}

/// Reads one that is there.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let value = serde_json::from_str(&text)
        .with_context(|| format!("{} is not what a sweep writes", path.display()))?;
    Ok(Some(value))
}
