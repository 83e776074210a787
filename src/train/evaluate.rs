//! Held-out accuracy: sampled and greedy, pass@k, maj@k, with standard errors.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::episode::{AdapterId, FinishReason, Problem};
use crate::model::half_layer::HalfLayers;
use crate::reward::math;
use crate::rng::Purpose;
use crate::rollout::{Completion, Request, Sampling};
use crate::train::session::Session;

/// One model's results.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// `base`, or the adapter's name.
    pub model: String,
    /// Share of sampled completions that are right.
    pub sampled_accuracy: f64,
    /// Share of greedy completions that are right.
    pub greedy_accuracy: f64,
    /// Share of problems with a right one among k samples (k = `samples`).
    pub pass_at_k: f64,
    /// Share of problems whose commonest answer among k is right.
    pub maj_at_k: f64,
    /// Share of right ones among sampled completions that close a box.
    pub accuracy_given_box: f64,
    /// Share of sampled completions that close a box.
    pub box_rate: f64,
    /// Share of sampled completions cut by length.
    pub truncated_rate: f64,
    pub mean_length: f64,
    /// Of `sampled_accuracy`, over problems.
    pub standard_error: f64,
    pub greedy_standard_error: f64,
    pub pass_at_k_standard_error: f64,
    pub maj_at_k_standard_error: f64,
    /// Problems.
    pub n: usize,
    /// k.
    pub samples: usize,
}

/// Measure several models on the same problems with the same random numbers,
/// decoded together. `prompts` are the problems' ids.
pub fn evaluate<D: HalfLayers>(
    session: &mut Session<D>,
    config: &Config,
    problems: &[Problem],
    prompts: &[Vec<u32>],
    models: &[(String, Option<AdapterId>)],
) -> Result<Vec<EvalRow>> {
    let sampling = session.sampling(config);
    let sampled = sampling.temperature > 0.0;
    let tokenizer = session.tokenizer()?.clone();
    let requests = |count: usize, sampling: Sampling| {
        let sampling = Arc::new(sampling);
        models.iter().flat_map(move |(_, adapter)| {
            let sampling = sampling.clone();
            problems.iter().zip(prompts).map(move |(p, ids)| Request {
                adapter: *adapter,
                prompt_ids: ids.clone(),
                samples: 0..count as u32,
                sampling: sampling.clone(),
                seed: config.train.seed,
                purpose: Purpose::Evaluation,
                step: 0,
                problem: p.key(),
            })
        })
    };
    let greedy = Sampling {
        temperature: 0.0,
        ..sampling.clone()
    };
    // At temperature 0 every sample is the greedy completion.
    let samples = if sampled { config.eval.samples } else { 1 };
    let mut all: Vec<Request> = requests(1, greedy).collect();
    let per_kind = all.len();
    if sampled {
        all.extend(requests(samples, sampling));
    }
    let mut greedy = session.generate(all, &mut |_| Ok(()))?;
    let mut drawn = match sampled {
        true => greedy.split_off(per_kind),
        false => greedy.clone(),
    };
    if sampled {
        drawn.iter_mut().for_each(|c| c.request -= per_kind);
    }

    let grader = config.reward.grader();
    let judge = |c: &Completion| -> Result<Judged> {
        let gold = &problems[c.request % problems.len()].answer;
        let text = tokenizer.decode(&c.ids, true)?;
        let verdict = grader.completion(gold, &text);
        Ok(Judged {
            correct: verdict.correct,
            answer: verdict.extracted.as_deref().map(math::key),
            truncated: c.finish == FinishReason::Length,
            length: c.ids.len(),
        })
    };
    let n = problems.len();
    models
        .iter()
        .enumerate()
        .map(|(m, (name, _))| {
            let own = m * n..(m + 1) * n;
            let of = |list: &[Completion]| -> Result<Vec<Judged>> {
                list.iter()
                    .filter(|c| own.contains(&c.request))
                    .map(judge)
                    .collect()
            };
            Ok(summarise(name, n, samples, &of(&drawn)?, &of(&greedy)?))
        })
        .collect()
}

/// One completion, judged.
struct Judged {
    correct: bool,
    answer: Option<String>,
    truncated: bool,
    length: usize,
}

fn summarise(name: &str, n: usize, k: usize, drawn: &[Judged], greedy: &[Judged]) -> EvalRow {
    let share = |f: &dyn Fn(&Judged) -> bool| mean(drawn.iter().map(|j| f64::from(u8::from(f(j)))));
    let per_problem: Vec<&[Judged]> = drawn.chunks(k.max(1)).collect();
    let accuracy: Vec<f64> = per_problem
        .iter()
        .map(|js| mean(js.iter().map(|j| f64::from(u8::from(j.correct)))))
        .collect();
    let passed: Vec<f64> = per_problem
        .iter()
        .map(|js| f64::from(u8::from(js.iter().any(|j| j.correct))))
        .collect();
    let majority: Vec<f64> = per_problem.iter().map(|js| majority(js)).collect();
    let greedy: Vec<f64> = greedy
        .iter()
        .map(|j| f64::from(u8::from(j.correct)))
        .collect();
    let boxed = drawn.iter().filter(|j| j.answer.is_some());
    EvalRow {
        model: name.to_string(),
        sampled_accuracy: mean(accuracy.iter().copied()),
        standard_error: standard_error(&accuracy),
        greedy_accuracy: mean(greedy.iter().copied()),
        greedy_standard_error: standard_error(&greedy),
        pass_at_k: mean(passed.iter().copied()),
        pass_at_k_standard_error: standard_error(&passed),
        maj_at_k: mean(majority.iter().copied()),
        maj_at_k_standard_error: standard_error(&majority),
        accuracy_given_box: mean(boxed.map(|j| f64::from(u8::from(j.correct)))),
        box_rate: share(&|j| j.answer.is_some()),
        truncated_rate: share(&|j| j.truncated),
        mean_length: mean(drawn.iter().map(|j| j.length as f64)),
        n,
        samples: k,
    }
}

/// 1 if the commonest answer is right; among equally common ones the first to
/// appear counts.
fn majority(js: &[Judged]) -> f64 {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for answer in js.iter().filter_map(|j| j.answer.as_deref()) {
        *counts.entry(answer).or_default() += 1;
    }
    let Some(&most) = counts.values().max() else {
        return 0.0;
    };
    let winner = js
        .iter()
        .find(|j| j.answer.as_deref().is_some_and(|a| counts[a] == most));
    f64::from(u8::from(winner.is_some_and(|j| j.correct)))
}

/// 0 for nothing.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0usize), |(s, n), x| (s + x, n + 1));
    sum / n.max(1) as f64
}

/// Standard error of the mean over problems (unbiased variance).
fn standard_error(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if n < 2.0 {
        return 0.0;
    }
    let m = mean(values.iter().copied());
    let variance = values.iter().map(|x| (x - m).powi(2)).sum::<f64>() / (n - 1.0);
    (variance / n).sqrt()
}

/// Rows as a table for people.
pub fn table(rows: &[EvalRow]) -> String {
    let width = rows.iter().map(|r| r.model.len()).max().unwrap_or(0).max(5);
    let k = rows.first().map_or(0, |r| r.samples);
    let mut out = format!(
        "{:<width$}  {:>13} {:>13} {:>13} {:>13} {:>8} {:>8} {:>8} {:>7}\n",
        "model",
        "sampled",
        "greedy",
        format!("pass@{k}"),
        format!("maj@{k}"),
        "boxed",
        "acc|box",
        "cut off",
        "length",
    );
    let with_error = |x: f64, e: f64| format!("{:.1} ± {:.1}", 100.0 * x, 100.0 * e);
    for r in rows {
        out += &format!(
            "{:<width$}  {:>13} {:>13} {:>13} {:>13} {:>8.1} {:>8.1} {:>8.1} {:>7.1}\n",
            r.model,
            with_error(r.sampled_accuracy, r.standard_error),
            with_error(r.greedy_accuracy, r.greedy_standard_error),
            with_error(r.pass_at_k, r.pass_at_k_standard_error),
            with_error(r.maj_at_k, r.maj_at_k_standard_error),
            100.0 * r.box_rate,
            100.0 * r.accuracy_given_box,
            100.0 * r.truncated_rate,
            r.mean_length,
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(answer: Option<&str>, correct: bool) -> Judged {
        Judged {
            correct,
            answer: answer.map(String::from),
            truncated: false,
            length: 4,
        }
    }

    #[test]
    fn shares_and_votes() {
        let drawn = [
            judged(Some("5"), true),
            judged(Some("6"), false),
            judged(Some("5"), true),
            judged(None, false),
            // A second problem: the wrong answer is the commonest.
            judged(Some("1"), false),
            judged(Some("1"), false),
            judged(Some("2"), true),
            judged(None, false),
        ];
        let greedy = [judged(Some("5"), true), judged(None, false)];
        let row = summarise("x", 2, 4, &drawn, &greedy);
        assert_eq!(row.sampled_accuracy, 0.375);
        assert_eq!(row.greedy_accuracy, 0.5);
        assert_eq!(row.pass_at_k, 1.0);
        assert_eq!(row.maj_at_k, 0.5);
        assert_eq!(row.box_rate, 0.75);
        assert_eq!(row.accuracy_given_box, 0.5);
        // Problem accuracies .5 and .25: sd .17678, / sqrt 2.
        assert!((row.standard_error - 0.125).abs() < 1e-12);
    }
}
