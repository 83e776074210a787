//! Whether two answers are the same: parsed from LaTeX, then compared exactly
//! where that can be decided, else by values at random points.
//!
//! One comparison goes through, each stage only where the last did not decide:
//!
//! 1. the same text, or two plain integers;
//! 2. [`clean`], [`lex`], [`repair`], [`statement`] and [`expression`] make a
//!    tree of each side, [`normal`] one form of it;
//! 3. [`structure`] compares by kind, [`sets`] sets of real numbers, and
//!    [`equal`] values: [`exact`] rationals, [`modular`] residues,
//!    [`numeric`] balls of machine and of [`precise`] numbers.
//!
//! All of it counts its steps against one [`budget`]. The policy for doubtful
//! cases stands in `docs/reward.md`.

mod arrangements;
mod budget;
mod choice;
mod clean;
mod commands;
mod congruences;
mod equal;
mod exact;
mod expression;
mod functions;
mod gold;
mod inequality;
mod lex;
mod machine;
mod measures;
mod modular;
mod named;
mod nesting;
mod normal;
mod numerals;
mod numeric;
mod parameters;
mod phrases;
mod precise;
mod quantities;
mod ranges;
mod relations;
mod repair;
mod sentences;
mod sets;
mod statement;
mod structure;
mod tree;
mod words;

use budget::{Budget, LONGEST, Stop};
pub use gold::Gold;
use structure::Comparison;
use tree::Answer;

/// The outcome of a comparison and the rule that decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Whether the answer earns what the gold answer does.
    pub equal: bool,
    /// The comparison was given up; then not equal.
    pub undecided: bool,
    /// What decided, for people to read.
    pub rule: String,
}

impl Match {
    fn new(equal: bool, rule: impl Into<String>) -> Match {
        Match {
            equal,
            undecided: false,
            rule: rule.into(),
        }
    }

    fn undecided(rule: &str) -> Match {
        Match {
            equal: false,
            undecided: true,
            rule: rule.into(),
        }
    }
}

/// Compares an answer with the gold answer. An empty side equals nothing.
pub fn compare(gold: &Gold, answer: &str, lenient: bool) -> Match {
    compare_within(gold, answer, lenient, &Budget::new(), true)
}

/// The same within what is left of a budget; with choices' letters or without.
fn compare_within(
    gold: &Gold,
    answer: &str,
    lenient: bool,
    budget: &Budget,
    choices: bool,
) -> Match {
    let answer = answer.trim();
    if let Some(decided) = plainly(gold.text(), answer) {
        return decided;
    }
    if gold.text().len() > LONGEST || answer.len() > LONGEST {
        return Match::undecided("undecided: too long to read");
    }
    let answer = clean::clean(answer);
    if gold.cleaned().empty {
        return Match::new(false, "the gold answer is empty");
    }
    if answer.is_empty() {
        return Match::new(false, "the answer is empty");
    }
    let cleaned = gold.cleaned().text.as_str();
    if choices && let Some(decided) = as_choices(cleaned, &answer, lenient, budget) {
        return decided;
    }
    // The gold answer first: what it costs is missing for the other.
    let (gold, found) = (gold.reading(budget), gold::read(&answer, budget));
    let ((wanted, wanted_names), (found, found_names)) = match (&*gold, &found) {
        (Ok(gold), Ok(answer)) => (gold, answer),
        (Err(Stop::Budget), _) | (_, Err(Stop::Budget)) => {
            return Match::undecided("undecided: too much to read");
        }
        _ => return as_text(cleaned, &answer),
    };
    let comparison = Comparison { budget, lenient };
    match comparison.same(wanted, found) {
        Ok((true, _)) if parameters::disagree(wanted_names, found_names) => {
            Match::new(false, "not equal: a parameter of another set")
        }
        Ok((true, rule)) => Match::new(true, rule),
        Ok((false, rule)) => match as_words(wanted, found, cleaned, &answer) {
            Some(equal) => equal,
            None if has_decimal_comma(wanted, cleaned, &answer) => {
                Match::new(true, "a comma for the decimal point")
            }
            None => {
                let renamed = comparison
                    .with_renamed(wanted, wanted_names, found, found_names)
                    .and_then(
                        |equal| Ok(equal || comparison.shifted(wanted, wanted_names, found)?),
                    );
                match renamed {
                    Ok(true) => Match::new(true, "the same with other names of parameters"),
                    Err(Stop::Budget) => {
                        Match::undecided("undecided: the budget of steps is spent")
                    }
                    _ => Match::new(false, format!("not equal: {rule}")),
                }
            }
        },
        Err(Stop::Budget) => Match::undecided("undecided: the budget of steps is spent"),
        Err(Stop::Undefined) => Match::new(false, "not equal: a value that does not exist"),
        Err(Stop::Unreadable) => as_text(cleaned, &answer),
    }
}

/// One key for answers that are written differently and mean the same, as far
/// as reading them tells: what a majority is counted by. Answers that only
/// algebra finds equal have different keys.
pub fn key(answer: &str) -> String {
    let budget = Budget::new();
    let cleaned = clean::clean(answer);
    let parsed = match cleaned.len() <= LONGEST {
        true => statement::parse(&cleaned, &budget).and_then(|read| normal::normal(read, &budget)),
        false => Err(Stop::Budget),
    };
    match parsed {
        Ok(Answer::Value { value, .. }) => format!("{value:?}"),
        Ok(read) => format!("{read:?}"),
        Err(_) => words::key(&cleaned),
    }
}

/// A choice's letter with what it stands for: either earns the other, and
/// where both have both, both must be the same.
fn as_choices(gold: &str, answer: &str, lenient: bool, budget: &Budget) -> Option<Match> {
    let compare =
        |gold: &str, answer: &str| compare_within(&Gold::new(gold), answer, lenient, budget, false);
    let named = |equal: bool| {
        let rule = if equal {
            "the letter of a choice"
        } else {
            "not equal: another choice"
        };
        Some(Match::new(equal, rule))
    };
    let same = |letter: &str, other: char| letter.starts_with(other);
    match (choice::choice(gold), choice::choice(answer)) {
        (Some((a, x)), Some((b, y))) => {
            let equal = a == b && (words::key(x) == words::key(y) || compare(x, y).equal);
            named(equal)
        }
        (Some((a, x)), None) => match choice::letter(answer) {
            Some(letter) => named(same(a, letter)),
            None => Some(compare(x, answer)),
        },
        (None, Some((b, y))) => match choice::letter(gold) {
            Some(letter) => named(same(b, letter)),
            None => {
                let value = compare(gold, y);
                value.equal.then_some(value)
            }
        },
        (None, None) => None,
    }
}

/// What needs no parsing: nothing at all, the same text, two integers.
fn plainly(gold: &str, answer: &str) -> Option<Match> {
    if gold.is_empty() {
        return Some(Match::new(false, "the gold answer is empty"));
    }
    if answer.is_empty() {
        return Some(Match::new(false, "the answer is empty"));
    }
    let digits = |text: &str| -> bool {
        let unsigned = text.strip_prefix('-').unwrap_or(text);
        !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit())
    };
    if digits(gold) && digits(answer) {
        let parts = |text: &str| -> (bool, String) {
            let unsigned = text.trim_start_matches('-').trim_start_matches('0');
            let negative = text.starts_with('-') && !unsigned.is_empty();
            (negative, unsigned.to_string())
        };
        let equal = gold == answer || parts(gold) == parts(answer);
        let rule = if equal {
            "the same integer"
        } else {
            "not equal: integers"
        };
        return Some(Match::new(equal, rule));
    }
    let means_something = |text: &str| text.bytes().any(|b| b.is_ascii_alphanumeric());
    let undefined = gold.contains("frac") || gold.contains('/');
    if gold == answer && means_something(gold) && !undefined && !is_hollow(gold) {
        return Some(Match::new(true, "the same text"));
    }
    None
}

/// `\text{}` and its like: commands around nothing.
fn is_hollow(text: &str) -> bool {
    text.starts_with('\\') && words::key(text).is_empty()
}

/// For what is no formula: the same words.
fn as_text(gold: &str, answer: &str) -> Match {
    let formula = |text: &str| text.contains(['^', '_']) || text.contains("\\frac");
    let equal = match formula(gold) || formula(answer) {
        true => words::shape(gold) == words::shape(answer),
        false => {
            let key = words::key(gold);
            !key.is_empty() && key == words::key(answer)
        }
    };
    let rule = if equal {
        "the same words"
    } else {
        "not equal: no formula that can be read"
    };
    Match::new(equal, rule)
}

/// `1000,99` for 1000.99. Fewer than two decimals are a list, three are
/// thousands.
fn has_decimal_comma(wanted: &Answer, gold: &str, answer: &str) -> bool {
    let two = matches!(wanted, Answer::Value { decimals: Some(n), .. } if *n == 2 || *n > 3);
    two && answer.matches(',').count() == 1 && answer.replace(',', ".") == gold
}

/// Where one side is words, the other may have been read as a formula that
/// it is not: `\text{A5}` and `A5`.
fn as_words(wanted: &Answer, found: &Answer, gold: &str, answer: &str) -> Option<Match> {
    fn has_words(answer: &Answer) -> bool {
        match answer {
            Answer::Text(_) => true,
            Answer::Quantity { unit, .. } => !unit.known,
            Answer::List { items, .. } => items.iter().all(has_words),
            _ => false,
        }
    }
    if !has_words(wanted) && !has_words(found) {
        return None;
    }
    sentences::same(&words::key(gold), &words::key(answer))
        .then(|| Match::new(true, "the same words"))
}
