//! Whether two answers are the same, kind by kind: the policy of
//! `docs/reward.md` in code.

use std::borrow::Cow;

use num_rational::BigRational;
use num_traits::{Signed, ToPrimitive, Zero};

use super::budget::{Budget, Stop};
use super::equal::{Decision, same_value, terminates};
use super::exact;
use super::machine::Machine;
use super::measures;
use super::normal::is_name;
use super::numeric::Evaluation;
use super::sets::{self, RealSet};
use super::tree::{Answer, Constant, Expr};
use super::words;

/// A comparison with its policy.
pub struct Comparison<'a> {
    pub budget: &'a Budget,
    pub lenient: bool,
}

pub(super) fn decided(equal: bool, rule: &'static str) -> Decision {
    Ok((equal, rule))
}

impl Comparison<'_> {
    /// Whether `answer` earns what `gold` does.
    pub fn same(&self, gold: &Answer, answer: &Answer) -> Decision {
        self.budget.spend(16)?;
        if let Some(decision) = self.named_in_order(gold, answer) {
            return decision;
        }
        if let Some(decision) = self.as_sets(gold, answer)? {
            return Ok(decision);
        }
        match (gold, answer) {
            (Answer::Member(_, set), other) if !matches!(other, Answer::Member(..)) => {
                self.same(set, other)
            }
            (other, Answer::Member(names, set)) if !matches!(other, Answer::Member(..)) => {
                match is_name(names) {
                    true => self.same(other, set),
                    false => decided(false, "a statement and a value"),
                }
            }
            (Answer::Member(a, left), Answer::Member(b, right)) => match a == b {
                true => self.same(left, right),
                false => decided(false, "statements of different things"),
            },
            (Answer::Quantity { .. }, _) | (_, Answer::Quantity { .. }) => {
                self.quantities(gold, answer)
            }
            (Answer::Relation { .. }, _) | (_, Answer::Relation { .. }) => {
                self.relations(gold, answer)
            }
            (
                Answer::Value {
                    value: a,
                    decimals: p,
                },
                Answer::Value {
                    value: b,
                    decimals: q,
                },
            ) => self.values(a, *p, b, *q),
            (Answer::Text(a), Answer::Text(b)) => decided(a == b, "text"),
            (Answer::Text(text), Answer::Value { value, .. })
            | (Answer::Value { value, .. }, Answer::Text(text)) => self.word_and_value(text, value),
            (
                Answer::Congruence {
                    residue: a,
                    modulus: m,
                },
                Answer::Congruence {
                    residue: b,
                    modulus: n,
                },
            ) => self.congruences((a, m), (b, n)),
            // "The remainder is 3 (mod 7)."
            (Answer::Value { value, .. }, Answer::Congruence { residue, modulus }) => {
                match same_value(value, residue, self.budget)?.0 {
                    true => decided(true, "the residue of a congruence"),
                    false => self.progression(residue, modulus, value),
                }
            }
            (Answer::Congruence { residue, modulus }, Answer::Value { value, .. }) => {
                self.progression(residue, modulus, value)
            }
            (Answer::Based { digits: a, base: p }, Answer::Based { digits: b, base: q }) => {
                let plain = |digits: &str| digits.trim_start_matches('0').to_string();
                decided(p == q && plain(a) == plain(b), "digits in a base")
            }
            (Answer::Based { digits, .. }, Answer::Value { value, .. })
            | (Answer::Value { value, .. }, Answer::Based { digits, .. }) => {
                let same = value.as_number().is_some_and(|n| n.to_string() == *digits);
                decided(self.lenient && same, "one side names no base")
            }
            (Answer::Ratio(a), Answer::Ratio(b)) => self.ratios(a, b),
            (Answer::Ratio(ratio), Answer::Value { value, .. })
            | (Answer::Value { value, .. }, Answer::Ratio(ratio)) => match ratio.as_slice() {
                [a, b] => {
                    let quotient = a.clone().divide(b.clone());
                    let (equal, _) = same_value(&quotient, value, self.budget)?;
                    decided(equal, "a ratio as a quotient")
                }
                _ => decided(false, "a ratio of more than two"),
            },
            (
                Answer::Bracketed {
                    open: '{',
                    items: a,
                    ..
                },
                Answer::Bracketed {
                    open: '{',
                    items: b,
                    ..
                }
                | Answer::List { items: b, .. },
            )
            | (
                Answer::List { items: a, .. },
                Answer::Bracketed {
                    open: '{',
                    items: b,
                    ..
                },
            ) => self.in_any_order(a, b, "sets"),
            (
                Answer::Bracketed {
                    open: p,
                    items: a,
                    close: q,
                },
                Answer::Bracketed {
                    open: r,
                    items: b,
                    close: s,
                },
            ) => match p == r && q == s {
                true => self.in_order(a, b, "tuples, element by element"),
                false => decided(false, "different brackets"),
            },
            (Answer::List { items: a, .. }, Answer::List { items: b, .. }) => {
                let once = without_repeats(a, b, self.budget)?;
                self.in_any_order(a, &once, "lists in any order")
            }
            (
                Answer::Value {
                    value: Expr::Matrix(rows),
                    ..
                },
                Answer::Bracketed { items, .. },
            ) => self.vectors(rows, items, true),
            (
                Answer::Bracketed { items, .. },
                Answer::Value {
                    value: Expr::Matrix(rows),
                    ..
                },
            ) => self.vectors(rows, items, false),
            (
                Answer::List { items: a, .. },
                Answer::Bracketed {
                    open: '(',
                    items: b,
                    close: ')',
                },
            )
            | (
                Answer::Bracketed {
                    open: '(',
                    items: a,
                    close: ')',
                },
                Answer::List { items: b, .. },
            ) if self.lenient => self.in_order(a, b, "a list as a tuple"),
            // R where only a set can be meant.
            (
                Answer::Reals,
                Answer::Value {
                    value: Expr::Symbol(name),
                    ..
                },
            )
            | (
                Answer::Value {
                    value: Expr::Symbol(name),
                    ..
                },
                Answer::Reals,
            ) => decided(name == "R", "the real numbers by their letter"),
            // {5} and 5: the set of the only solution.
            (
                Answer::Bracketed {
                    open: '{', items, ..
                },
                other @ Answer::Value { .. },
            ) if items.len() == 1 => self.same(&items[0], other),
            (
                other @ Answer::Value { .. },
                Answer::Bracketed {
                    open: '{', items, ..
                },
            ) if items.len() == 1 => self.same(other, &items[0]),
            // "3/4 or 0.75" is one value, written twice.
            (one @ Answer::Value { .. }, Answer::List { items, or: true }) if items.len() == 2 => {
                let both = self.same(one, &items[0])?.0 && self.same(one, &items[1])?.0;
                decided(both, "a list for one value")
            }
            (Answer::Builder(a), Answer::Builder(b)) => self.same(a, b),
            (Answer::Union(a), Answer::Union(b)) => self.in_any_order(a, b, "unions"),
            (Answer::Intersection(a), Answer::Intersection(b)) => {
                self.in_any_order(a, b, "intersections")
            }
            (Answer::Difference(a, b), Answer::Difference(c, d)) => {
                match self.same(a, c)?.0 && self.same(b, d)?.0 {
                    true => decided(true, "differences of sets"),
                    false => decided(false, "differences of sets"),
                }
            }
            (Answer::Named(a), Answer::Named(b)) => decided(a == b, "named sets"),
            (Answer::Empty, Answer::Empty) | (Answer::Reals, Answer::Reals) => {
                decided(true, "the same set")
            }
            _ => decided(false, "answers of different kinds"),
        }
    }

    /// Intervals, unions and inequalities as sets, where one side can be
    /// nothing else. The open interval (1, 2) of a gold answer may be a point,
    /// so an inequality does not earn it.
    fn as_sets(
        &self,
        gold: &Answer,
        answer: &Answer,
    ) -> Result<Option<(bool, &'static str)>, Stop> {
        let (certain, answered) = (sets::is_certain(gold), sets::is_certain(answer));
        if !certain && !answered {
            return Ok(None);
        }
        let point = matches!(gold, Answer::Bracketed { open: '(', .. });
        let ordered = |answer: &Answer| matches!(answer, Answer::Relation { .. });
        if !certain && point && ordered(answer) && !self.lenient {
            return Ok(Some((false, "an inequality for what may be a point")));
        }
        // Two tuples are compared as they stand.
        let bracketed = |answer: &Answer| matches!(answer, Answer::Bracketed { .. });
        if bracketed(gold) && bracketed(answer) {
            return Ok(None);
        }
        let (Some(a), Some(b)) = (
            RealSet::read(gold, self.budget)?,
            RealSet::read(answer, self.budget)?,
        ) else {
            return Ok(None);
        };
        Ok(Some((a.same(&b, self.budget)?, "sets of real numbers")))
    }

    fn quantities(&self, gold: &Answer, answer: &Answer) -> Decision {
        match (gold, answer) {
            (Answer::Quantity { value: a, unit: p }, Answer::Quantity { value: b, unit: q }) => {
                if p.name != q.name && !p.is_generic_for(q) {
                    return match measures::ratio(p, q) {
                        Some(ratio) => self.converted(a, &ratio, b),
                        None => decided(false, "different units"),
                    };
                }
                self.same(a, b)
            }
            (Answer::Quantity { unit, .. }, other) | (other, Answer::Quantity { unit, .. })
                if unit.known && measures_degrees(other) =>
            {
                decided(false, "different units")
            }
            (Answer::Quantity { value, unit }, other)
            | (other, Answer::Quantity { value, unit })
                if unit.is_half_of_day()
                    && matches!(**value, Answer::Ratio(_))
                    && !matches!(other, Answer::Ratio(_)) =>
            {
                decided(false, "a time and no time")
            }
            (Answer::Quantity { value, unit }, other)
            | (other, Answer::Quantity { value, unit })
                if unit.name == "percent" =>
            {
                let percent_is_gold = matches!(gold, Answer::Quantity { .. });
                let (first, _) = match percent_is_gold {
                    true => self.same(value, other)?,
                    false => self.same(other, value)?,
                };
                if first {
                    return decided(true, "a percentage with and without its sign");
                }
                // 50% for 1/2: a hundred times the plain side is the number of
                // percents.
                let Answer::Value { value: plain, .. } = other else {
                    return decided(false, "a percentage and no number");
                };
                let scaled = Expr::product(vec![Expr::integer(100), plain.clone()]);
                let scaled = Answer::value(scaled);
                let (equal, _) = match percent_is_gold {
                    true => self.same(value, &scaled)?,
                    false => self.same(&scaled, value)?,
                };
                decided(equal, "a percentage as a fraction")
            }
            (Answer::Quantity { value, .. }, other) => {
                let (equal, _) = self.same(value, other)?;
                decided(equal, "the gold answer's unit is missing")
            }
            (other, Answer::Quantity { value, unit }) => {
                if !unit.known && !self.lenient {
                    return decided(false, "words that are no unit");
                }
                let (equal, _) = self.same(other, value)?;
                decided(equal, "a unit that the gold answer leaves out")
            }
            _ => decided(false, "answers of different kinds"),
        }
    }

    /// Amounts in two units of one kind: how many of the answer's the gold
    /// answer's is.
    fn converted(&self, gold: &Answer, ratio: &BigRational, answer: &Answer) -> Decision {
        let (Answer::Value { value: a, .. }, Answer::Value { value: b, .. }) = (gold, answer)
        else {
            return decided(false, "different units");
        };
        let scaled = Expr::product(vec![Expr::Number(ratio.clone()), a.clone()]);
        let (equal, _) = same_value(&scaled, b, self.budget)?;
        decided(equal, "one amount in two units")
    }

    fn values(
        &self,
        gold: &Expr,
        gold_decimals: Option<usize>,
        answer: &Expr,
        answer_decimals: Option<usize>,
    ) -> Decision {
        let outcome = same_value(gold, answer, self.budget)?;
        if outcome.0 {
            return Ok(outcome);
        }
        let (exact_gold, exact_answer) = (
            exact::rational(gold, self.budget)?,
            exact::rational(answer, self.budget)?,
        );
        // The gold answer is a rounded value: whatever rounds to it earns it,
        // unless it could have been written out.
        if let (Some(decimals), Some(g)) = (gold_decimals, &exact_gold)
            && decimals >= 2
            && significant_digits(g, decimals) >= 3
            && answer_decimals.is_none()
            && !exact_answer.as_ref().is_some_and(terminates)
            && answer.symbols().is_empty()
            && self.rounds_to(answer, exact_answer.as_ref(), g, decimals)?
        {
            return decided(true, "rounds to the gold answer's decimals");
        }
        // A fraction with ten digits or more is no guess.
        if let (Some(decimals), Some(a)) = (answer_decimals, &exact_answer) {
            let enough = if self.lenient { 3 } else { 10 };
            let long = decimals >= enough
                && exact_gold.is_some()
                && gold_decimals.is_none()
                && !a.is_zero();
            if long || self.lenient && decimals >= 3 && gold_decimals.is_none() {
                let close = match &exact_gold {
                    Some(g) => (g - a).abs() < unit_in_last_place(decimals),
                    None => self.rounds_to(gold, None, a, decimals)?,
                };
                if close {
                    return decided(true, "the gold answer's value to many decimals");
                }
            }
        }
        Ok(outcome)
    }

    /// Whether `value` lies within half a unit of `target`'s last place.
    fn rounds_to(
        &self,
        value: &Expr,
        exact: Option<&BigRational>,
        target: &BigRational,
        decimals: usize,
    ) -> Result<bool, Stop> {
        let half = unit_in_last_place(decimals) / BigRational::from_integer(2.into());
        if let Some(exact) = exact {
            return Ok((exact - target).abs() <= half);
        }
        let machine = Evaluation {
            real: &Machine,
            point: 0,
            signed: false,
            budget: self.budget,
        };
        let (Some(half), Some(target)) = (half.to_f64(), target.to_f64()) else {
            return Ok(false);
        };
        match machine.evaluate(value) {
            Ok(ball) if !machine.is_complex(&ball) => {
                Ok((ball.re - target).abs() + ball.err <= half)
            }
            Ok(_) | Err(Stop::Undefined | Stop::Unreadable) => Ok(false),
            Err(stop) => Err(stop),
        }
    }

    /// `four` and 4, `bh` and b times h, `e` and the constant e.
    fn word_and_value(&self, text: &str, value: &Expr) -> Decision {
        if let Some(number) = words::small_number(text) {
            let (equal, _) = same_value(&Expr::integer(i64::from(number)), value, self.budget)?;
            return decided(equal, "a number in words");
        }
        if text.contains("infinitely many") && value.infinite() == 1 {
            return decided(true, "infinity in words");
        }
        let spelt = text.len() <= 4 && text.bytes().all(|b| b.is_ascii_alphabetic());
        if !spelt || !matches!(value, Expr::Product(_)) {
            let name = match value {
                Expr::Symbol(name) => words::key(name),
                Expr::Constant(Constant::E) => "e".into(),
                Expr::Constant(Constant::I) => "i".into(),
                _ => return decided(false, "words and a value"),
            };
            return decided(name == *text, "a name");
        }
        let letters = text.chars().map(|c| match c {
            'e' => Expr::Constant(Constant::E),
            'i' => Expr::Constant(Constant::I),
            c => Expr::Symbol(c.to_string()),
        });
        let product = Expr::product(letters.collect());
        let (equal, _) = same_value(&product, value, self.budget)?;
        decided(equal, "letters as a product")
    }

    /// Proportional terms; times of day are two numbers and must be the same.
    fn ratios(&self, gold: &[Expr], answer: &[Expr]) -> Decision {
        if gold.len() != answer.len() {
            return decided(false, "ratios of different lengths");
        }
        let mut identical = true;
        for (a, b) in gold.iter().zip(answer) {
            identical &= same_value(a, b, self.budget)?.0;
        }
        if identical {
            return decided(true, "the same ratio");
        }
        for (a, b) in gold.iter().zip(answer).skip(1) {
            let left = Expr::product(vec![a.clone(), answer[0].clone()]);
            let right = Expr::product(vec![b.clone(), gold[0].clone()]);
            if !same_value(&left, &right, self.budget)?.0 {
                return decided(false, "different ratios");
            }
        }
        let zero = |e: &Expr| e.as_number().is_some_and(Zero::is_zero);
        decided(!answer.iter().any(zero), "proportional ratios")
    }

    pub(super) fn in_order(
        &self,
        gold: &[Answer],
        answer: &[Answer],
        rule: &'static str,
    ) -> Decision {
        if gold.len() != answer.len() {
            return decided(false, "different numbers of elements");
        }
        for (a, b) in gold.iter().zip(answer) {
            if !self.same(a, b)?.0 {
                return decided(false, rule);
            }
        }
        decided(true, rule)
    }

    /// Each element has its own partner on the other side.
    fn in_any_order(&self, gold: &[Answer], answer: &[Answer], rule: &'static str) -> Decision {
        if gold.len() != answer.len() {
            return decided(false, "different numbers of elements");
        }
        let mut free: Vec<&Answer> = answer.iter().collect();
        for wanted in gold {
            let mut partner = None;
            for (at, candidate) in free.iter().enumerate() {
                match self.same(wanted, candidate) {
                    Ok((true, _)) => {
                        partner = Some(at);
                        break;
                    }
                    Ok(_) | Err(Stop::Undefined | Stop::Unreadable) => {}
                    Err(stop) => return Err(stop),
                }
            }
            match partner {
                Some(at) => free.swap_remove(at),
                None => return decided(false, rule),
            };
        }
        decided(true, rule)
    }

    /// A matrix of one column or row against a tuple.
    fn vectors(&self, rows: &[Vec<Expr>], items: &[Answer], matrix_is_gold: bool) -> Decision {
        let entries: Vec<Answer> = match rows {
            [row] => row.iter().cloned().map(Answer::value).collect(),
            rows if rows.iter().all(|row| row.len() == 1) => rows
                .iter()
                .map(|row| Answer::value(row[0].clone()))
                .collect(),
            _ => return decided(false, "a matrix and a tuple"),
        };
        match matrix_is_gold {
            true => self.in_order(&entries, items, "a vector as a tuple"),
            false => self.in_order(items, &entries, "a tuple as a vector"),
        }
    }
}

/// The answer's tuples, each once, where the gold answer has none twice: a
/// solution named again is still one.
fn without_repeats<'a>(
    gold: &[Answer],
    answer: &'a [Answer],
    budget: &Budget,
) -> Result<Cow<'a, [Answer]>, Stop> {
    let tuple = |item: &Answer| matches!(item, Answer::Bracketed { .. });
    if answer.len() <= gold.len() || answer.len() > 64 || !answer.iter().all(tuple) {
        return Ok(Cow::Borrowed(answer));
    }
    budget.spend(answer.len() * answer.len() * 16)?;
    let mut once: Vec<Answer> = Vec::with_capacity(answer.len());
    for item in answer {
        if !once.contains(item) {
            once.push(item.clone());
        }
    }
    Ok(Cow::Owned(once))
}

/// Digits of a decimal from the first that is not zero.
fn significant_digits(value: &BigRational, decimals: usize) -> usize {
    let scaled = value / unit_in_last_place(decimals);
    scaled
        .numer()
        .abs()
        .to_string()
        .trim_start_matches('0')
        .len()
}

/// Whether a value carries a degree sign.
fn measures_degrees(answer: &Answer) -> bool {
    match answer {
        Answer::Value { value, .. } => match value {
            Expr::Product(factors) => factors.contains(&Expr::Constant(Constant::Degree)),
            other => *other == Expr::Constant(Constant::Degree),
        },
        _ => false,
    }
}

fn unit_in_last_place(decimals: usize) -> BigRational {
    let power = num_bigint::BigInt::from(10).pow(decimals.min(1_000) as u32);
    BigRational::new(1.into(), power)
}
