//! Sets of real numbers with known ends: intervals, unions, inequalities in
//! one variable, all as one sorted list of intervals.

use super::budget::{Budget, Stop};
use super::equal::same_value;
use super::inequality::relation;
use super::machine::Machine;
use super::numeric::Evaluation;
use super::tree::{Answer, Constant, Expr, Sign};

/// One end of an interval.
#[derive(Clone, Debug)]
pub(super) struct End {
    /// Plus or minus infinity as it is, else a constant.
    pub(super) value: Expr,
    /// The same, for sorting.
    pub(super) at: f64,
    pub(super) closed: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Interval {
    pub(super) low: End,
    pub(super) high: End,
}

/// A set of real numbers.
#[derive(Clone, Debug)]
pub struct RealSet {
    /// Sorted, apart from each other.
    pub(super) intervals: Vec<Interval>,
}

/// Whether an answer can only mean a set of numbers, as `(1,2)` does not.
pub fn is_certain(answer: &Answer) -> bool {
    match answer {
        Answer::Union(_)
        | Answer::Intersection(_)
        | Answer::Difference(..)
        | Answer::Reals
        | Answer::Builder(_) => true,
        Answer::Bracketed { open, items, close } => {
            items.len() == 2
                && *open != '{'
                && (*open == '[' || *close == ']' || items.iter().any(is_infinite))
        }
        Answer::Relation { signs, .. } => is_inequality(signs),
        Answer::List { items, .. } => {
            items.iter().any(is_certain)
                && items
                    .iter()
                    .all(|item| is_certain(item) || matches!(item, Answer::Relation { .. }))
        }
        Answer::Member(_, set) => is_certain(set),
        _ => false,
    }
}

/// Whether all signs order, and one way.
pub fn is_inequality(signs: &[Sign]) -> bool {
    signs
        .iter()
        .any(|sign| *sign != Sign::Equal && *sign != Sign::Congruent)
}

fn is_infinite(answer: &Answer) -> bool {
    matches!(answer, Answer::Value { value, .. } if value.infinite() != 0)
}

impl RealSet {
    /// The set that `answer` stands for, or `None` where it is no set of this
    /// kind.
    pub fn read(answer: &Answer, budget: &Budget) -> Result<Option<RealSet>, Stop> {
        budget.spend(16)?;
        Ok(match answer {
            Answer::Reals => Some(RealSet::all()),
            Answer::Empty => Some(RealSet {
                intervals: Vec::new(),
            }),
            Answer::Bracketed {
                open: '{', items, ..
            } => {
                let mut intervals = Vec::with_capacity(items.len());
                for item in items {
                    let Some(end) = end(item, true, budget)? else {
                        return Ok(None);
                    };
                    intervals.push(Interval {
                        low: end.clone(),
                        high: end,
                    });
                }
                Some(RealSet::of(intervals))
            }
            Answer::Bracketed { open, items, close } => {
                let [low, high] = items.as_slice() else {
                    return Ok(None);
                };
                let low = end(low, *open == '[', budget)?;
                let high = end(high, *close == ']', budget)?;
                match (low, high) {
                    (Some(low), Some(high)) => RealSet::between(low, high),
                    _ => None,
                }
            }
            Answer::Union(sets) => Self::fold(sets, RealSet::union, budget)?,
            Answer::Intersection(sets) => Self::fold(sets, RealSet::intersection, budget)?,
            Answer::Difference(from, what) => {
                let (Some(from), Some(what)) =
                    (Self::read(from, budget)?, Self::read(what, budget)?)
                else {
                    return Ok(None);
                };
                Some(from.intersection(what.complement()))
            }
            Answer::Builder(condition) | Answer::Member(_, condition) => {
                Self::read(condition, budget)?
            }
            Answer::Relation { sides, signs } => relation(sides, signs, budget)?,
            Answer::List { items, or } => {
                let joined = Self::fold(items, RealSet::union, budget)?;
                let met = Self::fold(items, RealSet::intersection, budget)?;
                match (or, met) {
                    // "x > 1 and x < 3", but "x < 1, x > 3".
                    (false, Some(met)) if !met.intervals.is_empty() => Some(met),
                    _ => joined,
                }
            }
            Answer::Quantity { value, .. } => Self::read(value, budget)?,
            _ => None,
        })
    }

    fn fold(
        sets: &[Answer],
        join: fn(RealSet, RealSet) -> RealSet,
        budget: &Budget,
    ) -> Result<Option<RealSet>, Stop> {
        let mut total: Option<RealSet> = None;
        for set in sets {
            let Some(set) = Self::read(set, budget)? else {
                return Ok(None);
            };
            budget.spend(64)?;
            total = Some(match total {
                Some(total) => join(total, set),
                None => set,
            });
        }
        Ok(total)
    }

    pub(super) fn all() -> RealSet {
        RealSet {
            intervals: vec![Interval {
                low: infinity(false),
                high: infinity(true),
            }],
        }
    }

    pub(super) fn between(low: End, high: End) -> Option<RealSet> {
        (low.at < high.at || near(low.at, high.at) && low.closed && high.closed).then(|| RealSet {
            intervals: vec![Interval { low, high }],
        })
    }

    /// Sorted, with what touches joined.
    pub(super) fn of(mut intervals: Vec<Interval>) -> RealSet {
        intervals.sort_by(|a, b| {
            a.low
                .at
                .total_cmp(&b.low.at)
                .then(b.low.closed.cmp(&a.low.closed))
        });
        let mut joined: Vec<Interval> = Vec::with_capacity(intervals.len());
        for next in intervals {
            match joined.last_mut() {
                Some(last)
                    if next.low.at < last.high.at && !near(next.low.at, last.high.at)
                        || near(next.low.at, last.high.at)
                            && (next.low.closed || last.high.closed) =>
                {
                    let further = next.high.at > last.high.at && !near(next.high.at, last.high.at);
                    let closes = near(next.high.at, last.high.at) && next.high.closed;
                    if further || closes {
                        last.high = next.high;
                    }
                }
                _ => joined.push(next),
            }
        }
        RealSet { intervals: joined }
    }

    pub(super) fn union(self, other: RealSet) -> RealSet {
        let mut intervals = self.intervals;
        intervals.extend(other.intervals);
        RealSet::of(intervals)
    }

    pub(super) fn complement(self) -> RealSet {
        let mut intervals = Vec::with_capacity(self.intervals.len() + 1);
        let mut low = infinity(false);
        for interval in self.intervals {
            let mut high = interval.low;
            high.closed = !high.closed && high.at.is_finite();
            intervals.extend(
                RealSet::between(low, high)
                    .map(|set| set.intervals)
                    .unwrap_or_default(),
            );
            low = interval.high;
            low.closed = !low.closed && low.at.is_finite();
        }
        intervals.extend(
            RealSet::between(low, infinity(true))
                .map(|set| set.intervals)
                .unwrap_or_default(),
        );
        RealSet { intervals }
    }

    pub(super) fn intersection(self, other: RealSet) -> RealSet {
        self.complement().union(other.complement()).complement()
    }

    /// Whether both have the same ends, and these are open and closed alike.
    pub fn same(&self, other: &RealSet, budget: &Budget) -> Result<bool, Stop> {
        if self.intervals.len() != other.intervals.len() {
            return Ok(false);
        }
        for (a, b) in self.intervals.iter().zip(&other.intervals) {
            for (a, b) in [(&a.low, &b.low), (&a.high, &b.high)] {
                if a.closed != b.closed || !same_value(&a.value, &b.value, budget)?.0 {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

fn near(a: f64, b: f64) -> bool {
    let finite = a.is_finite() && b.is_finite();
    a == b || finite && (a - b).abs() <= 1e-11 * a.abs().max(b.abs()).max(1e-3)
}

pub(super) fn infinity(positive: bool) -> End {
    let infinity = Expr::Constant(Constant::Infinity);
    End {
        at: match positive {
            true => f64::INFINITY,
            false => f64::NEG_INFINITY,
        },
        value: match positive {
            true => infinity,
            false => infinity.negate(),
        },
        closed: false,
    }
}

/// A constant as an end, `None` for anything else.
pub(super) fn end(answer: &Answer, closed: bool, budget: &Budget) -> Result<Option<End>, Stop> {
    let value = match answer {
        Answer::Value { value, .. } => value,
        Answer::Quantity { value, .. } => match &**value {
            Answer::Value { value, .. } => value,
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    match value.infinite() {
        0 => {}
        sign => return Ok(Some(infinity(sign > 0))),
    }
    Ok(number(value, budget)?.map(|at| End {
        value: value.clone(),
        at,
        closed,
    }))
}

/// The real number that a constant is.
pub(super) fn number(value: &Expr, budget: &Budget) -> Result<Option<f64>, Stop> {
    if !value.symbols().is_empty() {
        return Ok(None);
    }
    let machine = Evaluation {
        real: &Machine,
        point: 0,
        signed: false,
        budget,
    };
    match machine.evaluate(value) {
        Ok(ball) if !machine.is_complex(&ball) && ball.re.is_finite() => Ok(Some(ball.re)),
        Ok(_) | Err(Stop::Undefined | Stop::Unreadable) => Ok(None),
        Err(stop) => Err(stop),
    }
}
