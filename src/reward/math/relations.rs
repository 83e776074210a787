//! Relations: labels with their values, chains, equations up to a factor,
//! equations solved.

use super::budget::Stop;
use super::equal::{Decision, Up, same, same_value};
use super::normal::is_name;
use super::structure::{Comparison, decided};
use super::tree::{Answer, Expr, Sign};

impl Comparison<'_> {
    /// `p = 2, q = 3` against `(2, 3)`, and against a bare list where these
    /// are the gold answer's names; `x = y = z = 1` against `(1, 1, 1)`.
    pub(super) fn named_in_order(&self, gold: &Answer, answer: &Answer) -> Option<Decision> {
        const RULE: &str = "values of names in order";
        let ordered = |list: &Answer| match list {
            Answer::List { items, or: false } => values_of_names(items),
            Answer::Relation { sides, signs } => value_of_all(sides, signs),
            _ => None,
        };
        fn tuple(answer: &Answer) -> Option<&[Answer]> {
            match answer {
                Answer::Bracketed {
                    open: '(',
                    items,
                    close: ')',
                } => Some(items.as_slice()),
                Answer::Relation { sides, signs } => match (sides.as_slice(), signs.as_slice()) {
                    (
                        [
                            Answer::Bracketed { .. },
                            Answer::Bracketed {
                                open: '(',
                                items,
                                close: ')',
                            },
                        ],
                        [Sign::Equal],
                    ) => Some(items.as_slice()),
                    _ => None,
                },
                _ => None,
            }
        }
        if let Some(items) = tuple(answer)
            && let Some(values) = ordered(gold)
        {
            return Some(self.in_order(&values, items, RULE));
        }
        if let Some(items) = tuple(gold)
            && let Some(values) = ordered(answer)
        {
            return Some(self.in_order(items, &values, RULE));
        }
        match (gold, answer) {
            (Answer::List { items: a, .. }, Answer::List { items: b, .. }) => {
                let bare = |item: &Answer| !matches!(item, Answer::Relation { .. });
                let values = values_of_names(a).filter(|_| b.iter().all(bare))?;
                Some(self.in_order(&values, b, RULE))
            }
            (Answer::Relation { .. }, Answer::List { .. })
            | (Answer::List { .. }, Answer::Relation { .. }) => {
                let (a, b) = (ordered(gold)?, ordered(answer)?);
                Some(self.in_order(&a, &b, RULE))
            }
            _ => None,
        }
    }

    pub(super) fn relations(&self, gold: &Answer, answer: &Answer) -> Decision {
        match (gold, answer) {
            (Answer::Relation { sides: a, signs: p }, Answer::Relation { sides: b, signs: q }) => {
                self.two_relations(a, p, b, q)
            }
            (Answer::Relation { sides, signs }, other) => {
                if let Some(value) = assigned(sides, signs) {
                    return self.labelled(&sides[0], value, other, true);
                }
                self.solved(sides, signs, other)
            }
            (other, Answer::Relation { sides, signs }) => match assigned(sides, signs) {
                Some(value) if self.holds(&sides[1..])? => {
                    self.labelled(&sides[0], value, other, false)
                }
                Some(_) => decided(false, "a chain that does not hold"),
                // 3 + 5 = 8
                None if self.is_computation(sides, signs)? => match sides.last() {
                    Some(last) => self.same(other, last),
                    None => decided(false, "an equation for a value"),
                },
                None => decided(false, "an equation for a value"),
            },
            _ => decided(false, "answers of different kinds"),
        }
    }

    /// The value of a label against an answer without one. Coordinates that a
    /// label names in order may be a bare list on the other side.
    fn labelled(&self, label: &Answer, value: &Answer, other: &Answer, gold: bool) -> Decision {
        let named = matches!(label, Answer::Bracketed { .. });
        if let (Answer::Bracketed { items: a, .. }, Answer::List { items: b, .. }, true) =
            (value, other, named)
        {
            return match gold {
                true => self.in_order(a, b, "coordinates"),
                false => self.in_order(b, a, "coordinates"),
            };
        }
        let (equal, rule) = match gold {
            true => self.same(value, other)?,
            false => self.same(other, value)?,
        };
        decided(equal, if equal { "the value of a label" } else { rule })
    }

    /// Whether a chain of equalities is between numbers alone, and holds.
    fn is_computation(&self, sides: &[Answer], signs: &[Sign]) -> Result<bool, Stop> {
        let number = |side: &Answer| {
            matches!(side, Answer::Value { value, .. } if value.symbols().is_empty()
                && !value.any(&|part| matches!(part, Expr::Text(_) | Expr::Apply(..))))
        };
        let equal = signs.iter().all(|sign| *sign == Sign::Equal);
        Ok(equal && sides.iter().all(number) && self.holds(sides)?)
    }

    /// Whether the sides of a chain of equalities are equal, as far as they
    /// are numbers: `1 = 2 = 3` says nothing.
    fn holds(&self, sides: &[Answer]) -> Result<bool, Stop> {
        for pair in sides.windows(2) {
            if let [
                Answer::Value { value: a, .. },
                Answer::Value { value: b, .. },
            ] = pair
                && !is_name(&pair[0])
                && !same_value(a, b, self.budget)?.0
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn two_relations(
        &self,
        gold: &[Answer],
        gold_signs: &[Sign],
        answer: &[Answer],
        answer_signs: &[Sign],
    ) -> Decision {
        if let (Some(a), Some(b)) = (assigned(gold, gold_signs), assigned(answer, answer_signs)) {
            if same_name(&gold[0], &answer[0]) {
                let (equal, _) = self.same(a, b)?;
                return match equal && self.holds(&answer[1..])? {
                    true => decided(true, "the same name with the same value"),
                    false => self.chains(gold, gold_signs, answer, answer_signs),
                };
            }
            if let Some((a, b)) = renamed(&gold[0], a, &answer[0], b) {
                let (equal, _) = self.same(&a, &b)?;
                return decided(equal, "one function in another variable");
            }
        }
        self.chains(gold, gold_signs, answer, answer_signs)
    }

    /// Side by side, from either end, then as equations.
    fn chains(
        &self,
        gold: &[Answer],
        gold_signs: &[Sign],
        answer: &[Answer],
        answer_signs: &[Sign],
    ) -> Decision {
        if gold.len() == answer.len() {
            let same_signs = gold_signs == answer_signs;
            if same_signs && self.side_by_side(gold, answer)? {
                return decided(true, "relations, side by side");
            }
            let reversed: Vec<Answer> = answer.iter().rev().cloned().collect();
            let flipped = answer_signs.iter().rev().map(|sign| sign.flipped());
            if flipped.eq(gold_signs.iter().copied()) && self.side_by_side(gold, &reversed)? {
                return decided(true, "relations, read from the other side");
            }
        }
        // y = 6/x for xy = 6: a solution for the variable that it names.
        if let (
            Some(value),
            Answer::Value {
                value: Expr::Symbol(name),
                ..
            },
        ) = (assigned(answer, answer_signs), &answer[0])
            && assigned(gold, gold_signs).is_none()
            && mentions(gold, name)
            && self.solved(gold, gold_signs, value)?.0
        {
            return decided(true, "an equation, solved");
        }
        let (Some(a), Some(b)) = (difference(gold), difference(answer)) else {
            return decided(false, "different relations");
        };
        let (p, q) = (gold_signs[0], answer_signs[0]);
        let up = match (p, q) {
            (Sign::Equal, Sign::Equal) | (Sign::NotEqual, Sign::NotEqual) => Up::Factor,
            (p, q) if p == q => Up::SignedFactor { negative: false },
            (p, q) if p == q.flipped() => Up::SignedFactor { negative: true },
            _ => return decided(false, "different relations"),
        };
        // A factor can hide a variable, and one without variables hides all.
        if a.symbols().is_empty() || a.symbols() != b.symbols() {
            return decided(false, "relations of different variables");
        }
        let (equal, _) = same(&a, &b, up, self.budget)?;
        decided(equal, "equations up to a factor")
    }

    fn side_by_side(&self, gold: &[Answer], answer: &[Answer]) -> Result<bool, Stop> {
        for (a, b) in gold.iter().zip(answer) {
            match self.same(a, b) {
                Ok((true, _)) => {}
                Ok(_) | Err(Stop::Undefined | Stop::Unreadable) => return Ok(false),
                Err(stop) => return Err(stop),
            }
        }
        Ok(true)
    }

    /// A gold equation in several variables against one side of it solved:
    /// `xy = 6` and `6/x`. It must be linear in the variable solved for, or
    /// the answer is one solution of many.
    fn solved(&self, sides: &[Answer], signs: &[Sign], answer: &Answer) -> Decision {
        const NO: &str = "a value for an equation";
        let Answer::Value { value, .. } = answer else {
            return decided(false, NO);
        };
        let (Some(gold), [Sign::Equal]) = (difference(sides), signs) else {
            return decided(false, NO);
        };
        let (names, used) = (gold.symbols(), value.symbols());
        let missing: Vec<&String> = names.iter().filter(|name| !used.contains(name)).collect();
        let [variable] = missing.as_slice() else {
            return decided(false, NO);
        };
        if used.is_empty() || used.iter().any(|name| !names.contains(name)) {
            return decided(false, NO);
        }
        self.budget.spend(gold.size() * 4)?;
        let at = |value: &Expr| gold.substitute(variable, value);
        let (zero, one, two) = (
            at(&Expr::integer(0)),
            at(&Expr::integer(1)),
            at(&Expr::integer(2)),
        );
        let ends = Expr::sum(vec![zero.clone(), two]);
        let middle = Expr::product(vec![Expr::integer(2), one]);
        if !same_value(&ends, &middle, self.budget)?.0 {
            return decided(false, NO);
        }
        let (equal, _) = same_value(&at(value), &Expr::integer(0), self.budget)?;
        decided(equal, "an equation, solved")
    }
}

/// The values of a list that gives each of several variables one.
fn values_of_names(items: &[Answer]) -> Option<Vec<Answer>> {
    if items.len() < 2 || items.len() > 12 {
        return None;
    }
    let mut names: Vec<&str> = Vec::with_capacity(items.len());
    let mut values = Vec::with_capacity(items.len());
    for item in items {
        let Answer::Relation { sides, signs } = item else {
            return None;
        };
        let ([label, value], [Sign::Equal]) = (sides.as_slice(), signs.as_slice()) else {
            return None;
        };
        let name = match label {
            Answer::Value {
                value: Expr::Symbol(name),
                ..
            } => name,
            // A segment's ends; "max" and "min" come in any order.
            Answer::Text(name) if name.len() == 2 => name,
            _ => return None,
        };
        // x_1 and x_2 are two values of one x, in no order.
        let base = name.split_once('_').map_or(name.as_str(), |(base, _)| base);
        if names.contains(&base) {
            return None;
        }
        names.push(base);
        values.push(value.clone());
    }
    Some(values)
}

/// The value of `x = y = z = 1`, once for each name.
fn value_of_all(sides: &[Answer], signs: &[Sign]) -> Option<Vec<Answer>> {
    let (value, names) = sides.split_last()?;
    let variable = |side: &Answer| {
        matches!(
            side,
            Answer::Value {
                value: Expr::Symbol(_),
                ..
            }
        )
    };
    let fits = names.len() >= 2
        && names.len() <= 12
        && signs.iter().all(|sign| *sign == Sign::Equal)
        && names.iter().all(variable)
        && !variable(value);
    fits.then(|| vec![value.clone(); names.len()])
}

/// What a chain of equalities says its first side, a name, is.
fn assigned<'a>(sides: &'a [Answer], signs: &[Sign]) -> Option<&'a Answer> {
    let equal = signs.iter().all(|sign| *sign == Sign::Equal);
    (equal && is_name(&sides[0])).then(|| sides.last())?
}

/// Whether two labels name one thing; x_1 and x do, x_1 and x_2 do not.
fn same_name(a: &Answer, b: &Answer) -> bool {
    if a == b {
        return true;
    }
    let name = |answer: &Answer| match answer {
        Answer::Value {
            value: Expr::Symbol(name),
            ..
        } => Some(name.clone()),
        _ => None,
    };
    let (Some(a), Some(b)) = (name(a), name(b)) else {
        return false;
    };
    a.split_once('_').is_some_and(|(base, _)| base == b)
        || b.split_once('_').is_some_and(|(base, _)| base == a)
}

/// Two functions with their variables made the same: f(n) = n and f(m) = m.
fn renamed(left: &Answer, a: &Answer, right: &Answer, b: &Answer) -> Option<(Answer, Answer)> {
    let parts = |name: &Answer, value: &Answer| match (name, value) {
        (
            Answer::Value {
                value: Expr::Apply(name, args),
                ..
            },
            Answer::Value { value, .. },
        ) => match args.as_slice() {
            [Expr::Symbol(argument)] => Some((name.clone(), argument.clone(), value.clone())),
            _ => None,
        },
        _ => None,
    };
    let (f, x, a) = parts(left, a)?;
    let (g, y, b) = parts(right, b)?;
    let fresh = Expr::Symbol("the argument".into());
    (f == g).then(|| {
        (
            Answer::value(a.substitute(&x, &fresh)),
            Answer::value(b.substitute(&y, &fresh)),
        )
    })
}

/// Whether a side has the variable of that name.
fn mentions(sides: &[Answer], name: &String) -> bool {
    sides.iter().any(|side| match side {
        Answer::Value { value, .. } => value.symbols().contains(name),
        _ => false,
    })
}

/// Left less right of a relation of two sides.
fn difference(sides: &[Answer]) -> Option<Expr> {
    match sides {
        [
            Answer::Value { value: a, .. },
            Answer::Value { value: b, .. },
        ] => Some(Expr::sum(vec![a.clone(), b.clone().negate()])),
        _ => None,
    }
}
