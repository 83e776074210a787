//! A gold answer, read once for all the answers that are compared with it.

use std::borrow::Cow;
use std::sync::OnceLock;

use super::budget::{Budget, Stop};
use super::parameters::Parameter;
use super::tree::Answer;
use super::{clean, normal, statement, words};

/// What a text says, with the parameters that it declares.
pub(super) type Reading = Result<(Answer, Vec<Parameter>), Stop>;

/// A gold answer. What comparisons need of it is found when the first one
/// does, and kept; reading counts in each verdict's budget all the same, so
/// that no verdict depends on those before it.
#[derive(Debug)]
pub struct Gold<'a> {
    text: Cow<'a, str>,
    cleaned: OnceLock<Cleaned>,
    read: OnceLock<Read>,
}

/// The text in one alphabet.
#[derive(Debug)]
pub(super) struct Cleaned {
    pub(super) text: String,
    /// Nothing is left that could be an answer.
    pub(super) empty: bool,
}

/// A reading, and what it left of a whole budget.
#[derive(Debug)]
struct Read {
    reading: Reading,
    left: u32,
}

impl<'a> Gold<'a> {
    /// A gold answer of that text.
    pub fn new(text: impl Into<Cow<'a, str>>) -> Self {
        Gold {
            text: text.into(),
            cleaned: OnceLock::new(),
            read: OnceLock::new(),
        }
    }

    /// Its text, white space around it removed.
    pub(super) fn text(&self) -> &str {
        self.text.trim()
    }

    pub(super) fn cleaned(&self) -> &Cleaned {
        self.cleaned.get_or_init(|| {
            let text = clean::clean(self.text());
            let says = |text: &str| {
                text.contains(['∅', '\\'])
                    || text.bytes().any(|b| b.is_ascii_alphanumeric())
                    || !words::key(text).is_empty()
            };
            let empty = !says(&text);
            Cleaned { text, empty }
        })
    }

    /// Reads the cleaned text, within `budget`. What was read before costs
    /// what it cost then; a budget that is spent in part may not reach as far
    /// as a whole one, so there the text is read anew.
    pub(super) fn reading(&self, budget: &Budget) -> Cow<'_, Reading> {
        if !budget.is_whole() {
            return Cow::Owned(read(&self.cleaned().text, budget));
        }
        let read = self.read.get_or_init(|| {
            let budget = Budget::new();
            let reading = read(&self.cleaned().text, &budget);
            let left = budget.left();
            Read { reading, left }
        });
        budget.resume(read.left);
        Cow::Borrowed(&read.reading)
    }
}

/// A cleaned text as an answer in normal form.
pub(super) fn read(text: &str, budget: &Budget) -> Reading {
    let (parsed, parameters) = statement::read(text, budget)?;
    Ok((normal::normal(parsed, budget)?, parameters))
}
