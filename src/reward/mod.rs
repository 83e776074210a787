//! Rewards: what a completion earns, and why.
//!
//! A reward function is a [`Reward`]; the ones here are the rows of a table in
//! [`builtin`], and one more is any program ([`external`]). A [`RewardSet`] is
//! what a config asks for: functions with weights, scored a batch at a time.

pub mod builtin;
pub mod external;
pub mod extract;
pub mod grade;
pub mod math;

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;

use crate::config::RewardConfig;
use crate::episode::{FinishReason, Problem};
use external::External;
pub use grade::{Fallback, Gold, Grader, Verdict};

/// One function's value for one completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// What the function pays, before its weight.
    pub value: f32,
    /// Why.
    pub verdict: Verdict,
    /// The function ran out of time; its value is 0.
    pub timed_out: bool,
}

impl Scored {
    /// A value in time.
    pub fn new(value: f32, verdict: Verdict) -> Self {
        Scored {
            value,
            verdict,
            timed_out: false,
        }
    }
}

/// A reward function: pure, so that a completion's value never depends on the
/// batch or the thread it was scored in.
pub trait Reward: Send + Sync {
    /// Its name in `reward.functions` and in metrics.
    fn name(&self) -> &str;

    /// The value of one completion. `completion` is decoded text without
    /// special tokens, `completion_tokens` counts its ids, the stop id included.
    fn score(
        &self,
        problem: &Problem,
        completion: &str,
        finish: FinishReason,
        completion_tokens: usize,
    ) -> Scored;

    /// The values of a batch, in its order: those of [`Reward::score`]. A
    /// function that reads the problem may read it once for all completions.
    fn score_batch(&self, items: &[RewardItem]) -> Vec<Scored> {
        items
            .par_iter()
            .map(|item| {
                self.score(
                    item.problem,
                    item.completion,
                    item.finish,
                    item.completion_tokens,
                )
            })
            .collect()
    }
}

/// One completion to score.
#[derive(Clone, Copy, Debug)]
pub struct RewardItem<'a> {
    /// What was asked.
    pub problem: &'a Problem,
    /// Decoded, special tokens removed.
    pub completion: &'a str,
    /// Why the completion ended.
    pub finish: FinishReason,
    /// Ids of the completion, the stop id included.
    pub completion_tokens: usize,
}

/// What one completion earned.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardResult {
    /// The weighted sum.
    pub reward: f32,
    /// Each function's own value, in the config's order.
    pub rewards: Vec<f32>,
    /// Of the function `math`, else of the first one.
    pub verdict: Verdict,
    /// Whether any function ran out of time.
    pub timed_out: bool,
}

enum Function {
    Builtin(Box<dyn Reward>),
    External(External),
}

impl Function {
    fn name(&self) -> &str {
        match self {
            Function::Builtin(function) => function.name(),
            Function::External(_) => external::NAME,
        }
    }

    fn score_batch(&self, items: &[RewardItem]) -> Result<Vec<Scored>> {
        match self {
            Function::External(program) => program.score_batch(items),
            Function::Builtin(function) => Ok(function.score_batch(items)),
        }
    }
}

/// The reward functions of a run, with their weights.
pub struct RewardSet {
    functions: Vec<(Function, f32)>,
}

impl RewardSet {
    /// Checks and builds what the table `reward` asks for.
    /// `max_completion_length` is `rollout.max_completion_length`.
    pub fn from_config(config: &RewardConfig, max_completion_length: usize) -> Result<Self> {
        let mut names: Vec<&str> = config.functions.iter().map(String::as_str).collect();
        if !config.command.is_empty() && !names.contains(&external::NAME) {
            names.push(external::NAME);
        }
        ensure!(
            !names.is_empty(),
            "reward.functions is empty: name at least one of {}",
            known().join(", ")
        );
        ensure!(
            config.weights.is_empty() || config.weights.len() == names.len(),
            "reward.weights has {} values for the {} functions {}: give one each, or none for all 1",
            config.weights.len(),
            names.len(),
            names.join(", ")
        );
        if let Some(weight) = config.weights.iter().find(|weight| !weight.is_finite()) {
            bail!("reward.weights has {weight}, which is no finite number");
        }
        let grader = config.grader();
        let mut functions: Vec<(Function, f32)> = Vec::with_capacity(names.len());
        for (index, name) in names.into_iter().enumerate() {
            ensure!(
                !functions
                    .iter()
                    .any(|(function, _)| function.name() == name),
                "reward.functions names {name:?} twice; raise its weight instead"
            );
            let weight = config.weights.get(index).copied().unwrap_or(1.0);
            let function = if name == external::NAME {
                Function::External(External::new(&config.command)?)
            } else {
                match builtin::build(name, &grader, max_completion_length) {
                    Some(function) => Function::Builtin(function),
                    None => bail!("reward.functions: {}", unknown(name)),
                }
            };
            functions.push((function, weight));
        }
        Ok(RewardSet { functions })
    }

    /// The functions' names, in the config's order.
    pub fn names(&self) -> Vec<&str> {
        self.functions
            .iter()
            .map(|(function, _)| function.name())
            .collect()
    }

    /// Scores a batch; results are in the order of `items`.
    ///
    /// An error means that an external program does not work, which must stop
    /// a run rather than pay 0 to every completion.
    pub fn score_batch(&self, items: &[RewardItem]) -> Result<Vec<RewardResult>> {
        let mut results = vec![
            RewardResult {
                reward: 0.0,
                rewards: Vec::with_capacity(self.functions.len()),
                verdict: Verdict::default(),
                timed_out: false,
            };
            items.len()
        ];
        for (index, (function, weight)) in self.functions.iter().enumerate() {
            let decides = index == 0 || function.name() == builtin::MATH;
            for (result, scored) in results.iter_mut().zip(function.score_batch(items)?) {
                result.reward += weight * scored.value;
                result.rewards.push(scored.value);
                result.timed_out |= scored.timed_out;
                if decides {
                    result.verdict = scored.verdict;
                }
            }
        }
        Ok(results)
    }
}

fn known() -> Vec<&'static str> {
    builtin::NAMES.into_iter().chain([external::NAME]).collect()
}

fn unknown(name: &str) -> String {
    let known = known();
    let nearest = known
        .iter()
        .map(|known| {
            (
                strsim::damerau_levenshtein(&name.to_lowercase(), known),
                known,
            )
        })
        .min()
        .filter(|(distance, _)| *distance <= 3);
    match nearest {
        Some((_, nearest)) => format!("unknown function {name:?}, did you mean {nearest:?}?"),
        None => format!("unknown function {name:?}; known are {}", known.join(", ")),
    }
}
