//! Inequalities in one variable, solved: chains, lines, moduli and squares.

use super::budget::{Budget, Stop};
use super::equal::same_value;
use super::sets::{End, Interval, RealSet, end, infinity, number};
use super::tree::{Answer, Expr, Function, Sign};

/// The numbers that satisfy `a < x <= b`, `x > a`, `-2x >= 4`.
pub(super) fn relation(
    sides: &[Answer],
    signs: &[Sign],
    budget: &Budget,
) -> Result<Option<RealSet>, Stop> {
    let mut values = Vec::with_capacity(sides.len());
    for side in sides {
        match side {
            Answer::Value { value, .. } => values.push(value),
            _ => return Ok(None),
        }
    }
    // The variable is a side of its own in a chain, or its modulus or square is.
    let named: Vec<usize> = (0..values.len())
        .filter(|at| {
            matches!(values[*at], Expr::Symbol(_) | Expr::Apply(..))
                || folded(values[*at]).is_some()
        })
        .collect();
    let [variable] = named.as_slice() else {
        return linear(&values, signs, budget);
    };
    let mut set = RealSet::all();
    for (at, value) in values.iter().enumerate() {
        if at == *variable {
            continue;
        }
        if at.abs_diff(*variable) > 1 {
            return Ok(None);
        }
        let side = Answer::value((*value).clone());
        let (sign, bound) = match at < *variable {
            true => (signs[at].flipped(), end(&side, false, budget)?),
            false => (signs[*variable], end(&side, false, budget)?),
        };
        let Some(bound) = bound else {
            return linear(&values, signs, budget);
        };
        let Some(half) = half_line(sign, bound) else {
            return Ok(None);
        };
        set = set.intersection(half);
    }
    match folded(values[*variable]) {
        Some((of, squared)) => unfolded(set, of, squared, budget),
        None => Ok(Some(set)),
    }
}

/// The numbers on one side of `bound`.
fn half_line(sign: Sign, mut bound: End) -> Option<RealSet> {
    bound.closed = !matches!(sign, Sign::Less | Sign::Greater | Sign::NotEqual);
    let point = |mut bound: End| {
        bound.closed = true;
        RealSet {
            intervals: vec![Interval {
                low: bound.clone(),
                high: bound,
            }],
        }
    };
    Some(match sign {
        Sign::Less | Sign::LessEqual => RealSet::between(infinity(false), bound)?,
        Sign::Greater | Sign::GreaterEqual => RealSet::between(bound, infinity(true))?,
        Sign::Equal => point(bound),
        Sign::NotEqual => point(bound).complement(),
        Sign::Congruent => return None,
    })
}

/// What stands in `|u|` or, then true, in `u^2`, where it varies.
fn folded(expr: &Expr) -> Option<(&Expr, bool)> {
    let (of, squared) = match expr {
        Expr::Call(Function::Abs, args) => (args.first()?, false),
        Expr::Power(base, exponent) if **exponent == Expr::integer(2) => (&**base, true),
        _ => return None,
    };
    (!of.symbols().is_empty()).then_some((of, squared))
}

/// The x for which |ax + b|, or its square, lies in `set`.
fn unfolded(
    set: RealSet,
    of: &Expr,
    squared: bool,
    budget: &Budget,
) -> Result<Option<RealSet>, Stop> {
    budget.spend(64)?;
    let Some(line) = Line::read(of, budget)? else {
        return Ok(None);
    };
    let zero = End {
        value: Expr::integer(0),
        at: 0.0,
        closed: true,
    };
    let Some(from_zero) = RealSet::between(zero, infinity(true)) else {
        return Ok(None);
    };
    let mut set = set.intersection(from_zero);
    if squared {
        let root = |end: &End| End {
            value: match end.at.is_finite() {
                true => Expr::Call(Function::Root, vec![end.value.clone(), Expr::integer(2)]),
                false => end.value.clone(),
            },
            at: end.at.max(0.0).sqrt(),
            closed: end.closed,
        };
        set = set.mapped(root, false);
    }
    let mirrored = set.clone().mapped(
        |end| End {
            value: end.value.clone().negate(),
            at: 0.0 - end.at,
            closed: end.closed,
        },
        true,
    );
    let solved = |end: &End| match end.at.is_finite() {
        true => End {
            value: Expr::sum(vec![end.value.clone(), line.offset.clone().negate()])
                .divide(line.slope.clone()),
            at: (end.at - line.height) / line.steepness,
            closed: end.closed,
        },
        false => infinity((end.at > 0.0) == (line.steepness > 0.0)),
    };
    let both = set.union(mirrored);
    Ok(Some(both.mapped(solved, line.steepness < 0.0)))
}

impl RealSet {
    /// Each end as `change` makes it; `turned` where that turns the order.
    fn mapped(self, change: impl Fn(&End) -> End, turned: bool) -> RealSet {
        let intervals = self.intervals.iter().map(|interval| {
            let (low, high) = (change(&interval.low), change(&interval.high));
            match turned {
                true => Interval {
                    low: high,
                    high: low,
                },
                false => Interval { low, high },
            }
        });
        RealSet::of(intervals.collect())
    }
}

/// An expression that is linear in its only variable.
struct Line {
    slope: Expr,
    offset: Expr,
    steepness: f64,
    height: f64,
}

impl Line {
    fn read(expr: &Expr, budget: &Budget) -> Result<Option<Line>, Stop> {
        let names = expr.symbols();
        let [name] = names.as_slice() else {
            return Ok(None);
        };
        budget.spend(expr.size() * 6)?;
        // |x| is linear on either side of zero: functions are not looked into.
        let varies = |part: &Expr| {
            matches!(part, Expr::Call(..) | Expr::Apply(..)) && !part.symbols().is_empty()
        };
        if expr.any(&varies) {
            return Ok(None);
        }
        let at = |x: i64| expr.substitute(name, &Expr::integer(x));
        let (zero, one, two, below) = (at(0), at(1), at(2), at(-3));
        let slope = Expr::sum(vec![one, zero.clone().negate()]);
        for (value, times) in [(two, 2), (below, -3)] {
            let rise = Expr::sum(vec![value, zero.clone().negate()]);
            let wanted = Expr::product(vec![Expr::integer(times), slope.clone()]);
            match same_value(&rise, &wanted, budget) {
                Ok((true, _)) => {}
                Ok(_) | Err(Stop::Undefined | Stop::Unreadable) => return Ok(None),
                Err(stop) => return Err(stop),
            }
        }
        let (Some(steepness), Some(height)) = (number(&slope, budget)?, number(&zero, budget)?)
        else {
            return Ok(None);
        };
        Ok((steepness.abs() >= 1e-12).then_some(Line {
            slope,
            offset: zero,
            steepness,
            height,
        }))
    }
}

/// `ax + b < cx + d`, solved.
fn linear(values: &[&Expr], signs: &[Sign], budget: &Budget) -> Result<Option<RealSet>, Stop> {
    let ([left, right], [sign]) = (values, signs) else {
        return Ok(None);
    };
    let difference = Expr::sum(vec![(*left).clone(), (*right).clone().negate()]);
    let Some(line) = Line::read(&difference, budget)? else {
        return Ok(None);
    };
    let sign = match line.steepness < 0.0 {
        true => sign.flipped(),
        false => *sign,
    };
    let bound = End {
        at: -line.height / line.steepness,
        value: line.offset.negate().divide(line.slope),
        closed: false,
    };
    Ok(half_line(sign, bound))
}
