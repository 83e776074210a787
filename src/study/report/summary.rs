//! `summary.json`, read leniently: a file of another version lacks a field,
//! and that field is then not known.

use serde_json::Value;

use super::estimate::Estimate;

/// One model on the held-out problems.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heldout {
    /// Share of sampled completions that are right.
    pub sampled: Option<Estimate>,
    /// Share of greedy completions that are right.
    pub greedy: Option<Estimate>,
    /// Share of problems with a right one among the samples.
    pub pass_at_k: Option<Estimate>,
    /// Share of problems whose commonest answer is right.
    pub maj_at_k: Option<Estimate>,
    /// Tokens of a sampled completion.
    pub length: Option<f64>,
    /// Share of sampled completions cut by length.
    pub truncated: Option<f64>,
    /// k.
    pub samples: Option<u64>,
    /// Problems.
    pub problems: Option<u64>,
}

impl Heldout {
    /// Reads an evaluation row; errors are over problems.
    pub fn of(row: &Value) -> Option<Heldout> {
        row.as_object()?;
        let problems = row["n"].as_u64();
        let estimate = |value: &str, error: &str| {
            Some(Estimate {
                mean: row[value].as_f64()?,
                error: row[error].as_f64(),
                n: problems.unwrap_or(1) as usize,
            })
        };
        Some(Heldout {
            sampled: estimate("sampled_accuracy", "standard_error"),
            greedy: estimate("greedy_accuracy", "greedy_standard_error"),
            pass_at_k: estimate("pass_at_k", "pass_at_k_standard_error"),
            maj_at_k: estimate("maj_at_k", "maj_at_k_standard_error"),
            length: row["mean_length"].as_f64(),
            truncated: row["truncated_rate"].as_f64(),
            samples: row["samples"].as_u64(),
            problems,
        })
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The base model before training.
    pub base: Option<Heldout>,
    /// The trained adapter.
    pub trained: Option<Heldout>,
    /// Seconds of training alone.
    pub seconds: Option<f64>,
    /// Completion tokens.
    pub tokens: Option<f64>,
    /// Peak memory in bytes.
    pub peak_bytes: Option<f64>,
    /// The credit method.
    pub credit: Option<String>,
    /// The program's commit.
    pub commit: Option<String>,
    /// The program's version.
    pub version: Option<String>,
    /// The device and its dtype, in words.
    pub device: Option<String>,
    /// When the run ended.
    pub finished: Option<String>,
    /// The command line.
    pub command: Option<String>,
}

impl Outcome {
    /// Reads a summary; what is absent is `None`.
    pub fn of(summary: &Value) -> Outcome {
        let number = |key: &str| summary[key].as_f64();
        let text = |key: &str| summary[key].as_str().map(String::from);
        Outcome {
            base: Heldout::of(&summary["base"]),
            trained: Heldout::of(&summary["final"]),
            seconds: number("seconds"),
            tokens: number("num_tokens"),
            peak_bytes: number("peak_bytes"),
            credit: text("credit"),
            commit: text("commit"),
            version: text("version"),
            device: text("device"),
            finished: text("finished"),
            command: text("command"),
        }
    }
}
