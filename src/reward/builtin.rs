//! The built-in reward functions: a table of names and what each pays.

use std::collections::HashMap;

use rayon::prelude::*;

use super::{Gold, Grader, Reward, RewardItem, Scored, Verdict, extract};
use crate::episode::{FinishReason, Problem};

/// The function whose verdict stands for a completion.
pub const MATH: &str = "math";

/// What `reward.functions` may name, beside an external program.
pub const NAMES: [&str; 3] = [MATH, "format", "length"];

/// The function of that name; `None` for an unknown one.
pub fn build(name: &str, grader: &Grader, max_completion_length: usize) -> Option<Box<dyn Reward>> {
    match name {
        MATH => Some(Box::new(Math(*grader))),
        "format" => Some(Box::new(Format)),
        "length" => Some(Box::new(Length::new(max_completion_length))),
        _ => None,
    }
}

/// 1 if the last closed box equals the gold answer, else 0. A completion cut
/// by length can still earn it with a box closed before.
pub struct Math(pub Grader);

impl Math {
    fn scored(&self, gold: &Gold, completion: &str) -> Scored {
        let verdict = self.0.completion_of(gold, completion);
        Scored {
            value: f32::from(u8::from(verdict.correct)),
            // A comparison that was given up is reported with the late ones.
            timed_out: verdict.undecided,
            verdict,
        }
    }
}

impl Reward for Math {
    fn name(&self) -> &str {
        MATH
    }

    fn score(&self, problem: &Problem, completion: &str, _: FinishReason, _: usize) -> Scored {
        self.scored(&Gold::new(&problem.answer), completion)
    }

    /// The completions of a group share their gold answer, which is read once.
    fn score_batch(&self, items: &[RewardItem]) -> Vec<Scored> {
        let mut golds: HashMap<&str, Gold> = HashMap::new();
        for item in items {
            let answer = item.problem.answer.as_str();
            golds.entry(answer).or_insert_with(|| Gold::new(answer));
        }
        items
            .par_iter()
            .map(|item| self.scored(&golds[item.problem.answer.as_str()], item.completion))
            .collect()
    }
}

/// 1 if exactly one box with something in it was closed after thinking, else
/// 0. It says nothing of the answer: alone it trains a model to box anything.
pub struct Format;

impl Reward for Format {
    fn name(&self) -> &str {
        "format"
    }

    fn score(&self, _: &Problem, completion: &str, _: FinishReason, _: usize) -> Scored {
        let boxes = extract::boxes(&completion[extract::after_thinking(completion)]);
        let good = matches!(boxes.as_slice(), [only] if !only.content.is_empty());
        Scored::new(
            f32::from(u8::from(good)),
            Verdict {
                correct: good,
                extracted: boxes.last().map(|found| found.content.clone()),
                rule: format!("{} closed boxes", boxes.len()),
                ..Verdict::default()
            },
        )
    }
}

/// DAPO's soft overlong punishment (Yu et al., arXiv 2503.14476, eq. 13), in
/// tokens: 0 up to `longest - cache`, then linearly down to -1 at `longest`.
pub struct Length {
    longest: usize,
    cache: usize,
}

impl Length {
    /// The cache is a fifth of `longest`, as in the paper (4,096 of 20,480).
    pub fn new(longest: usize) -> Self {
        Length {
            longest,
            cache: (longest / 5).max(1),
        }
    }
}

impl Reward for Length {
    fn name(&self) -> &str {
        "length"
    }

    fn score(&self, _: &Problem, _: &str, _: FinishReason, completion_tokens: usize) -> Scored {
        let free = self.longest.saturating_sub(self.cache);
        let over = completion_tokens.saturating_sub(free).min(self.cache);
        Scored::new(
            // Not -0.0, which would print as a penalty.
            0.0 - over as f32 / self.cache as f32,
            Verdict {
                correct: over == 0,
                extracted: None,
                rule: format!("{completion_tokens} tokens, free up to {free}"),
                ..Verdict::default()
            },
        )
    }
}
