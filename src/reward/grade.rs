//! From a text to a verdict: what is judged (an answer or a completion), how
//! strictly, and what is said about it.

use serde::{Deserialize, Serialize};

use super::extract::{self, Found};
use super::math::{self, Match};

/// A judgement that explains itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether it counts as solved.
    pub correct: bool,
    /// The answer found in the completion, if any.
    pub extracted: Option<String>,
    /// Why equal or not, for people to read.
    pub rule: String,
    /// How the answer was found in a completion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_by: Option<String>,
    /// Bytes of the completion that the answer, its box included, stands in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<(usize, usize)>,
    /// The comparison was given up: its budget was spent, or a text was too
    /// long. Counted as wrong.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undecided: bool,
}

/// How answers are judged. The default is strict: boxes only, and the rules
/// of `docs/reward.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grader {
    /// Pays the doubtful cases too (`reward.lenient`).
    pub lenient: bool,
    /// Where to look in a completion without a box (`reward.fallback`).
    pub fallback: Fallback,
}

/// Where a completion's answer may stand when nothing is boxed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// No box, no pay.
    #[default]
    None,
    /// What follows the last "the answer is", "final answer:" or `####`.
    Phrase,
    /// That, else the last number of the text.
    Number,
}

impl Grader {
    /// Judges a bare answer.
    pub fn answer(&self, gold: &str, answer: &str) -> Verdict {
        self.judge(gold, answer.trim().to_string())
    }

    /// Judges a model's completion: its last closed box after thinking
    /// against the gold answer, or what the fallback finds.
    pub fn completion(&self, gold: &str, completion: &str) -> Verdict {
        match extract::answer(completion, self.fallback) {
            Ok(found) => self.judge_found(gold, completion, found),
            Err(reason) => Verdict {
                rule: reason.to_string(),
                ..Verdict::default()
            },
        }
    }

    /// Judges a text that may be either: a completion where it has a box
    /// (closed or not) or thinking in it, else a bare answer.
    pub fn text(&self, gold: &str, text: &str) -> Verdict {
        match extract::mentions_box(text) || text.contains("</think>") || text.contains("<think>") {
            true => self.completion(gold, text),
            false => self.answer(gold, text),
        }
    }

    fn judge(&self, gold: &str, answer: String) -> Verdict {
        // A gold answer may be a whole solution.
        let boxed = match gold.contains("\\boxed") {
            true => extract::last_box(gold).filter(|found| !found.content.is_empty()),
            false => None,
        };
        let boxed = boxed.map(|found| extract::joined(gold, &found.range).unwrap_or(found));
        let gold = boxed.as_ref().map_or(gold, |found| &found.content);
        let Match {
            equal,
            undecided,
            rule,
        } = math::compare(gold, &answer, self.lenient);
        Verdict {
            correct: equal,
            extracted: Some(answer),
            rule,
            undecided,
            ..Verdict::default()
        }
    }

    fn judge_found(&self, gold: &str, completion: &str, found: Found) -> Verdict {
        let mut verdict = self.judge(gold, found.content);
        let (mut range, mut rule) = (found.range, found.rule);
        // "n = \boxed{1} or \boxed{-2}": boxes of the last sentence are one list,
        // but only where the last one alone does not do.
        if !verdict.correct
            && let Some(joined) = extract::joined(completion, &range)
        {
            let list = self.judge(gold, joined.content);
            if list.correct {
                (verdict, range, rule) = (list, joined.range, joined.rule);
            }
        }
        verdict.found_by = Some(rule.to_string());
        verdict.position = Some((range.start, range.end));
        verdict
    }
}
