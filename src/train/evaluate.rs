//! Held-out accuracy: sampled (avg@k) and greedy, pass@k, maj@k, with standard
//! errors over problems ([`crate::study::statistics`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::episode::{AdapterId, FinishReason, Problem};
use crate::model::half_layer::HalfLayers;
use crate::reward::math;
use crate::rng::Purpose;
use crate::rollout::{Completion, Request, Sampling};
use crate::study::statistics::{self, mean, standard_error};
use crate::train::session::Session;
use crate::train::step::blame;

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
    /// pass@k for smaller k too, without bias from all the samples drawn.
    #[serde(default)]
    pub pass_at: Vec<PassAt>,
    /// By the problems' difficulty, where the data names it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_level: Vec<Part>,
    /// By the problems' subject, where the data names it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_subject: Vec<Part>,
}

/// Chance that one of k samples is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PassAt {
    pub k: usize,
    pub value: f64,
    pub standard_error: f64,
}

/// Results on some of the problems.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// As the data has it.
    pub name: String,
    pub n: usize,
    pub sampled_accuracy: f64,
    pub standard_error: f64,
    pub greedy_accuracy: f64,
    pub greedy_standard_error: f64,
}

/// Right or wrong, by problem in the data's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcomes {
    pub greedy: Vec<bool>,
    /// Of each problem's samples.
    pub samples: Vec<Vec<bool>>,
    /// Of the commonest answer among the samples.
    pub majority: Vec<bool>,
}

impl Outcomes {
    /// Share of right samples, by problem.
    pub fn accuracy(&self) -> Vec<f64> {
        let share = |s: &Vec<bool>| mean(&as_numbers(s));
        self.samples.iter().map(share).collect()
    }

    /// pass@k by problem.
    pub fn pass_at(&self, k: usize) -> Vec<f64> {
        let right = |s: &Vec<bool>| s.iter().filter(|c| **c).count();
        let passed = |s: &Vec<bool>| statistics::pass_at_k(s.len(), right(s), k);
        self.samples.iter().map(passed).collect()
    }
}

/// 1 for right, 0 for wrong.
pub fn as_numbers(outcomes: &[bool]) -> Vec<f64> {
    outcomes.iter().map(|&c| f64::from(u8::from(c))).collect()
}

/// Whom to measure.
#[derive(Clone, Debug)]
pub struct Subject {
    /// `base`, or the adapter's name.
    pub name: String,
    pub adapter: Option<AdapterId>,
    /// Key of its samples' random numbers: subjects of one seed share them.
    pub seed: u64,
}

/// One subject's results.
#[derive(Clone, Debug)]
pub struct Evaluated {
    pub row: EvalRow,
    pub outcomes: Outcomes,
}

/// Measure several subjects on the same problems, all decoded together.
/// `prompts` are the problems' ids; how is sampled is `config`'s to say.
///
/// # Errors
/// A rollout that failed, with the subject as its
/// [`crate::train::step::Culprit`] where there is one.
pub fn evaluate<D: HalfLayers>(
    session: &mut Session<D>,
    config: &Config,
    problems: &[Problem],
    prompts: &[Vec<u32>],
    subjects: &[Subject],
) -> Result<Vec<Evaluated>> {
    let sampling = session.sampling(config);
    let sampled = sampling.temperature > 0.0;
    let tokenizer = session.tokenizer()?.clone();
    let n = problems.len();
    let requests = |count: usize, sampling: Sampling| {
        let sampling = Arc::new(sampling);
        subjects.iter().flat_map(move |subject| {
            let sampling = sampling.clone();
            problems.iter().zip(prompts).map(move |(p, ids)| Request {
                adapter: subject.adapter,
                prompt_ids: ids.clone(),
                samples: 0..count as u32,
                sampling: sampling.clone(),
                seed: subject.seed,
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
    let drawn = session.generate(all, &mut |_| Ok(()));
    let mut greedy = drawn.map_err(|e| blame(e, |request| request % per_kind / n))?;
    let mut drawn = match sampled {
        true => greedy.split_off(per_kind),
        false => greedy.clone(),
    };
    if sampled {
        drawn.iter_mut().for_each(|c| c.request -= per_kind);
    }

    let grader = config.reward.grader();
    let judge = |c: &Completion| -> Result<Judged> {
        let gold = &problems[c.request % n].answer;
        let text = tokenizer.decode(&c.ids, true)?;
        let verdict = grader.completion(gold, &text);
        Ok(Judged {
            correct: verdict.correct,
            answer: verdict.extracted.as_deref().map(math::key),
            truncated: c.finish == FinishReason::Length,
            length: c.ids.len(),
        })
    };
    subjects
        .iter()
        .enumerate()
        .map(|(m, subject)| {
            let own = m * n..(m + 1) * n;
            let of = |list: &[Completion]| -> Result<Vec<Judged>> {
                list.iter()
                    .filter(|c| own.contains(&c.request))
                    .map(judge)
                    .collect()
            };
            let mut evaluated = summarise(&subject.name, samples, &of(&drawn)?, &of(&greedy)?);
            let Evaluated { row, outcomes } = &mut evaluated;
            row.by_level = parts(problems, |p| p.level.as_deref(), outcomes);
            row.by_subject = parts(problems, |p| p.subject.as_deref(), outcomes);
            Ok(evaluated)
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

fn summarise(name: &str, k: usize, drawn: &[Judged], greedy: &[Judged]) -> Evaluated {
    let share = |f: &dyn Fn(&Judged) -> bool| {
        let of: Vec<bool> = drawn.iter().map(f).collect();
        mean(&as_numbers(&of))
    };
    let per_problem: Vec<&[Judged]> = drawn.chunks(k.max(1)).collect();
    let correct = |js: &[Judged]| js.iter().map(|j| j.correct).collect::<Vec<bool>>();
    let outcomes = Outcomes {
        greedy: correct(greedy),
        samples: per_problem.iter().map(|js| correct(js)).collect(),
        majority: per_problem.iter().map(|js| majority(js)).collect(),
    };
    let accuracy = outcomes.accuracy();
    let passed = outcomes.pass_at(k);
    let majority = as_numbers(&outcomes.majority);
    let greedy = as_numbers(&outcomes.greedy);
    let boxed: Vec<bool> = drawn
        .iter()
        .filter(|j| j.answer.is_some())
        .map(|j| j.correct)
        .collect();
    let lengths: Vec<f64> = drawn.iter().map(|j| j.length as f64).collect();
    let row = EvalRow {
        model: name.to_string(),
        sampled_accuracy: mean(&accuracy),
        standard_error: standard_error(&accuracy),
        greedy_accuracy: mean(&greedy),
        greedy_standard_error: standard_error(&greedy),
        pass_at_k: mean(&passed),
        pass_at_k_standard_error: standard_error(&passed),
        maj_at_k: mean(&majority),
        maj_at_k_standard_error: standard_error(&majority),
        accuracy_given_box: mean(&as_numbers(&boxed)),
        box_rate: share(&|j| j.answer.is_some()),
        truncated_rate: share(&|j| j.truncated),
        mean_length: mean(&lengths),
        n: greedy.len(),
        samples: k,
        pass_at: statistics::ks(k)
            .into_iter()
            .map(|k| {
                let passed = outcomes.pass_at(k);
                PassAt {
                    k,
                    value: mean(&passed),
                    standard_error: standard_error(&passed),
                }
            })
            .collect(),
        by_level: Vec::new(),
        by_subject: Vec::new(),
    };
    Evaluated { row, outcomes }
}

/// Results by what `name` says of a problem, in order of the names.
fn parts(
    problems: &[Problem],
    name: impl Fn(&Problem) -> Option<&str>,
    outcomes: &Outcomes,
) -> Vec<Part> {
    let mut named: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, problem) in problems.iter().enumerate() {
        if let Some(name) = name(problem) {
            named.entry(name).or_default().push(i);
        }
    }
    let (accuracy, greedy) = (outcomes.accuracy(), as_numbers(&outcomes.greedy));
    named
        .into_iter()
        .map(|(name, own)| {
            let of = |all: &[f64]| own.iter().map(|&i| all[i]).collect::<Vec<f64>>();
            let (accuracy, greedy) = (of(&accuracy), of(&greedy));
            Part {
                name: name.to_string(),
                n: own.len(),
                sampled_accuracy: mean(&accuracy),
                standard_error: standard_error(&accuracy),
                greedy_accuracy: mean(&greedy),
                greedy_standard_error: standard_error(&greedy),
            }
        })
        .collect()
}

/// Whether the commonest answer is right; among equally common ones the first to
/// appear counts.
fn majority(js: &[Judged]) -> bool {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for answer in js.iter().filter_map(|j| j.answer.as_deref()) {
        *counts.entry(answer).or_default() += 1;
    }
    let Some(&most) = counts.values().max() else {
        return false;
    };
    let winner = js
        .iter()
        .find(|j| j.answer.as_deref().is_some_and(|a| counts[a] == most));
    winner.is_some_and(|j| j.correct)
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
        let Evaluated { row, outcomes } = summarise("x", 4, &drawn, &greedy);
        assert_eq!(row.n, 2);
        assert_eq!(outcomes.greedy, [true, false]);
        assert_eq!(outcomes.majority, [true, false]);
        let [one, two] = &outcomes.samples[..] else {
            panic!("two problems")
        };
        assert_eq!(one, &[true, false, true, false]);
        assert_eq!(two, &[false, false, true, false]);
        assert_eq!(row.sampled_accuracy, 0.375);
        assert_eq!(row.greedy_accuracy, 0.5);
        assert_eq!(row.pass_at_k, 1.0);
        assert_eq!(row.maj_at_k, 0.5);
        assert_eq!(row.box_rate, 0.75);
        assert_eq!(row.accuracy_given_box, 0.5);
        // Problem accuracies .5 and .25: sd .17678, / sqrt 2.
        assert!((row.standard_error - 0.125).abs() < 1e-12);
        // pass@2: 1 - C(2,2) / C(4,2) = 5/6 and 1 - C(3,2) / C(4,2) = 1/2.
        let ks: Vec<usize> = row.pass_at.iter().map(|p| p.k).collect();
        assert_eq!(ks, [1, 2, 4]);
        assert!((row.pass_at[1].value - (5.0 / 6.0 + 0.5) / 2.0).abs() < 1e-12);
        assert_eq!(row.pass_at[0].value, row.sampled_accuracy);
        assert_eq!(row.pass_at[2].value, row.pass_at_k);
    }

    #[test]
    fn parts_are_named_by_the_data() {
        let problem = |level: Option<&str>| Problem {
            id: "p".into(),
            problem: "p".into(),
            answer: "1".into(),
            solution: None,
            level: level.map(String::from),
            subject: None,
        };
        let problems = [Some("2"), Some("1"), None, Some("2")].map(problem);
        let outcomes = Outcomes {
            greedy: vec![true, false, true, false],
            samples: vec![
                vec![true, true],
                vec![true, false],
                vec![false, false],
                vec![false, false],
            ],
            majority: vec![true; 4],
        };
        let levels = parts(&problems, |p| p.level.as_deref(), &outcomes);
        let found: Vec<(&str, usize, f64, f64)> = levels
            .iter()
            .map(|p| (&p.name[..], p.n, p.sampled_accuracy, p.greedy_accuracy))
            .collect();
        assert_eq!(found, [("1", 1, 0.5, 0.0), ("2", 2, 0.5, 0.5)]);
        // Accuracies 1 and 0: sd .7071, / sqrt 2.
        assert!((levels[1].standard_error - 0.5).abs() < 1e-12);
        assert!(parts(&problems, |p| p.subject.as_deref(), &outcomes).is_empty());
    }
}
