//! From a text to a verdict: what is judged (an answer or a completion), how
//! strictly, and what is said about it.

use serde::{Deserialize, Serialize};

use super::extract::{self, Found};
use super::math::{self, Match};

/// A gold answer for many completions, which read it once among them.
#[derive(Debug)]
pub struct Gold<'a>(math::Gold<'a>);

impl<'a> Gold<'a> {
    /// The gold answer of a data set: an answer, or a whole solution with the
    /// answer in its last box.
    pub fn new(text: &'a str) -> Self {
        let boxed = match text.contains("\\boxed") {
            true => extract::last_box(text).filter(|found| !found.content.is_empty()),
            false => None,
        };
        let boxed = boxed.map(|found| extract::joined(text, &found.range).unwrap_or(found));
        Gold(match boxed {
            Some(found) => math::Gold::new(found.content),
            None => math::Gold::new(text),
        })
    }
}

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
        self.judge(&Gold::new(gold), answer.trim().to_string())
    }

    /// Judges a model's completion: its last closed box after thinking
    /// against the gold answer, or what the fallback finds.
    pub fn completion(&self, gold: &str, completion: &str) -> Verdict {
        self.completion_of(&Gold::new(gold), completion)
    }

    /// [`Grader::completion`] for one of many completions of a problem: the
    /// same verdict, without reading the gold answer again.
    pub fn completion_of(&self, gold: &Gold, completion: &str) -> Verdict {
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

    fn judge(&self, gold: &Gold, answer: String) -> Verdict {
        let Match {
            equal,
            undecided,
            rule,
        } = math::compare(&gold.0, &answer, self.lenient);
        Verdict {
            correct: equal,
            extracted: Some(answer),
            rule,
            undecided,
            ..Verdict::default()
        }
    }

    fn judge_found(&self, gold: &Gold, completion: &str, found: Found) -> Verdict {
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
