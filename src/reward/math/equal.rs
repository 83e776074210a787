//! Whether two expressions are the same: by exact arithmetic, by their values
//! at random points of a finite field, by long numbers. In this order, for
//! each step decides more and costs more.

use num_traits::One;

use super::budget::{Budget, Stop};
use super::exact;
use super::machine::Machine;
use super::modular::{self, Element, Field, PRIMES, Refusal};
use super::numeric::{Ball, Evaluation, Real, height};
use super::precise::Precise;
use super::tree::{Constant, Expr, Function};

/// How far two expressions must be equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Up {
    /// The same value.
    Value,
    /// One a constant multiple of the other, as the two sides of an equation.
    Factor,
    /// The same, but the factor must be positive or negative, as it is for
    /// inequalities.
    SignedFactor { negative: bool },
}

/// What decided, for the verdict.
pub type Decision = Result<(bool, &'static str), Stop>;

/// Compares two values.
pub fn same_value(a: &Expr, b: &Expr, budget: &Budget) -> Decision {
    same(a, b, Up::Value, budget)
}

/// Compares two expressions up to `up`.
pub fn same(a: &Expr, b: &Expr, up: Up, budget: &Budget) -> Decision {
    budget.spend(4)?;
    let degrees = |e: &Expr| e.any(&|part| matches!(part, Expr::Constant(Constant::Degree)));
    if degrees(a) || degrees(b) {
        return same_angles(a, b, up, budget);
    }
    compare(a, b, up, budget)
}

/// Degree signs: in a trigonometric function they are pi/180. Elsewhere they
/// are marks that may be missing, or pi/180 against an answer in radians.
fn same_angles(a: &Expr, b: &Expr, up: Up, budget: &Budget) -> Decision {
    let plain = |e: &Expr| degrees_as(e, &Expr::integer(1));
    let first = compare(&plain(a), &plain(b), up, budget)?;
    if first.0 {
        return Ok(first);
    }
    let radian = Expr::Constant(Constant::Pi).divide(Expr::integer(180));
    let turned = |e: &Expr| degrees_as(e, &radian);
    let second = compare(&turned(a), &turned(b), up, budget)?;
    match second.0 {
        true => Ok((true, "degrees and radians of one angle")),
        false => Ok(first),
    }
}

fn degrees_as(expr: &Expr, outside: &Expr) -> Expr {
    match expr {
        Expr::Constant(Constant::Degree) => outside.clone(),
        Expr::Call(
            Function::Sin
            | Function::Cos
            | Function::Tan
            | Function::Cot
            | Function::Sec
            | Function::Csc,
            _,
        ) => {
            let radian = Expr::Constant(Constant::Pi).divide(Expr::integer(180));
            expr.map(&mut |part| degrees_as(part, &radian))
        }
        other => other.map(&mut |part| degrees_as(part, outside)),
    }
}

fn compare(a: &Expr, b: &Expr, up: Up, budget: &Budget) -> Decision {
    if up == Up::Value {
        if a == b {
            return match exists(a, budget)? {
                true => Ok((true, "the same expression")),
                false => Err(Stop::Undefined),
            };
        }
        let (left, right) = (a.infinite(), b.infinite());
        if left != 0 || right != 0 {
            return Ok((left == right, "infinity"));
        }
        if let Some(decided) = matrices(a, b, budget)? {
            return Ok(decided);
        }
        if let (Some(left), Some(right)) =
            (exact::rational(a, budget)?, exact::rational(b, budget)?)
        {
            return Ok((left == right, "rational numbers"));
        }
    }
    let words = |e: &Expr| e.any(&|part| matches!(part, Expr::Text(_)));
    if words(a) || words(b) {
        return Ok((false, "words in a formula"));
    }
    match by_residues(a, b, up, budget) {
        Ok(equal) => return Ok((equal, "values at random points of a finite field")),
        Err(Refusal::NotAlgebraic) => {}
        Err(Refusal::Undefined) => return Err(Stop::Undefined),
        Err(Refusal::Stop(stop)) => return Err(stop),
    }
    by_numbers(a, b, up, budget)
}

/// Whether an expression has a value at all; 1/0 equals nothing, itself
/// included.
fn exists(expr: &Expr, budget: &Budget) -> Result<bool, Stop> {
    if !expr.any(&|part| matches!(part, Expr::Power(..) | Expr::Call(..))) {
        return Ok(true);
    }
    match exact::rational(expr, budget) {
        Ok(_) => Ok(true),
        Err(Stop::Undefined) => Ok(false),
        Err(stop) => Err(stop),
    }
}

fn matrices(a: &Expr, b: &Expr, budget: &Budget) -> Result<Option<(bool, &'static str)>, Stop> {
    match (a, b) {
        (Expr::Matrix(a), Expr::Matrix(b)) => {
            let shape = a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.len() == b.len());
            if !shape {
                return Ok(Some((false, "matrices of different shapes")));
            }
            for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
                if !same_value(a, b, budget)?.0 {
                    return Ok(Some((false, "matrices, entry by entry")));
                }
            }
            Ok(Some((true, "matrices, entry by entry")))
        }
        (Expr::Matrix(_), _) | (_, Expr::Matrix(_)) => Ok(Some((false, "a matrix and no matrix"))),
        _ => Ok(None),
    }
}

/// Points at which residues are compared, per prime.
const POINTS: u64 = 2;

fn by_residues(a: &Expr, b: &Expr, up: Up, budget: &Budget) -> Result<bool, Refusal> {
    // A factor's sign is not to be seen in a finite field.
    if matches!(up, Up::SignedFactor { .. }) {
        return Err(Refusal::NotAlgebraic);
    }
    let counting = modular::counts(a) || modular::counts(b);
    for prime in PRIMES {
        let mut pairs: Vec<(Element, Element)> = Vec::new();
        let mut point = 0;
        let wanted = if up == Up::Value { POINTS } else { POINTS + 1 };
        while (pairs.len() as u64) < wanted {
            point += 1;
            let tries = if counting { 60 } else { 8 };
            if point > tries {
                return Err(Refusal::Undefined);
            }
            let field = Field {
                prime,
                point,
                counting,
                budget,
            };
            match (field.evaluate(a), field.evaluate(b)) {
                (Ok(left), Ok(right)) => pairs.push((left, right)),
                (Err(Refusal::Undefined), _) | (_, Err(Refusal::Undefined)) => continue,
                (Err(refusal), _) | (_, Err(refusal)) => return Err(refusal),
            }
        }
        let field = Field {
            prime,
            point: 0,
            counting,
            budget,
        };
        let equal = match up {
            Up::Value => pairs.iter().all(|(a, b)| a == b),
            _ => {
                let (a0, b0) = pairs[0];
                !a0.is_zero()
                    && !b0.is_zero()
                    && pairs
                        .iter()
                        .all(|(a, b)| field.multiply(*a, b0) == field.multiply(*b, a0))
            }
        };
        if !equal {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Agreement asked of long numbers, beyond the height of the expressions.
const AGREEMENT: u64 = 110;

fn by_numbers(a: &Expr, b: &Expr, up: Up, budget: &Budget) -> Decision {
    const RULE: &str = "values to more digits than a coincidence has";
    let imaginary = |e: &Expr| e.any(&|part| matches!(part, Expr::Constant(Constant::I)));
    let imaginary = imaginary(a) || imaginary(b);
    let variables = !a.symbols().is_empty() || !b.symbols().is_empty();
    let machine = points(a, b, up, &Machine, imaginary, variables, budget)?;
    if machine == Some(false) {
        return Ok((false, "values at random points"));
    }
    let tall = height(a).saturating_add(height(b));
    if tall > 1500 {
        return Err(Stop::Budget);
    }
    let needed = AGREEMENT + tall;
    for bits in [needed + 80, 2 * needed + 200] {
        let real = Precise::new(bits as usize);
        if let Some(equal) = points(a, b, up, &real, imaginary, variables, budget)? {
            return Ok((equal, RULE));
        }
    }
    Err(Stop::Budget)
}

/// Compares at several points with one arithmetic. `None` where its precision
/// cannot tell.
fn points<R: Real>(
    a: &Expr,
    b: &Expr,
    up: Up,
    real: &R,
    imaginary: bool,
    variables: bool,
    budget: &Budget,
) -> Result<Option<bool>, Stop> {
    let exact_enough = real.epsilon() < 1e-20;
    // Long numbers only confirm what machine numbers have found likely.
    let wanted = match (variables, up, exact_enough) {
        (false, Up::Value, _) => 1,
        (true, Up::Value, false) => 6,
        (_, _, false) => 6,
        (_, _, true) => 3,
    };
    let mut kept: Vec<[Ball<R::Number>; 2]> = Vec::new();
    let mut beyond_real = Vec::new();
    let mut undefined = 0;
    let tries = if variables { 3 * wanted as u64 + 4 } else { 1 };
    for point in 0..tries {
        if kept.len() >= wanted {
            break;
        }
        let at = Evaluation {
            real,
            point,
            // Positive points first: most identities are meant for them.
            signed: point % 2 == 1,
            budget,
        };
        let (left, right) = match (at.evaluate(a), at.evaluate(b)) {
            (Ok(left), Ok(right)) => (left, right),
            (Err(Stop::Undefined), _) | (_, Err(Stop::Undefined)) => {
                undefined += 1;
                continue;
            }
            (Err(stop), _) | (_, Err(stop)) => return Err(stop),
        };
        // Also what is real again after complex parts: sqrt(x) sqrt(y) is
        // sqrt(xy) only where all three are real.
        let outside = variables && !imaginary && !(left.real && right.real);
        match outside {
            true => beyond_real.push([left, right]),
            false => kept.push([left, right]),
        }
    }
    // Never real: then it is meant to be complex, like (-1)^n.
    if kept.is_empty() {
        kept = beyond_real;
    }
    if kept.is_empty() {
        return match undefined {
            0 => Err(Stop::Unreadable),
            _ => Err(Stop::Undefined),
        };
    }
    let at = Evaluation {
        real,
        point: 0,
        signed: false,
        budget,
    };
    if up != Up::Value {
        return Ok(proportional(&at, &kept, up));
    }
    let mut certain = true;
    for [left, right] in &kept {
        let (distance, error) = at.distance(left, right);
        if !distance.is_finite() || !error.is_finite() {
            certain = false;
            continue;
        }
        if distance > error {
            return Ok(Some(false));
        }
        let scale = at.size(left).max(1.0);
        certain &= exact_enough && error <= scale * 2f64.powi(-(AGREEMENT as i32));
    }
    Ok(certain.then_some(true))
}

/// Whether left : right is the same everywhere, by cross products.
fn proportional<R: Real>(
    at: &Evaluation<R>,
    kept: &[[Ball<R::Number>; 2]],
    up: Up,
) -> Option<bool> {
    let parts: Vec<[(f64, f64); 2]> = kept
        .iter()
        .map(|pair| {
            pair.each_ref()
                .map(|z| (at.real.to_f64(&z.re), z.err.max(at.real.epsilon())))
        })
        .collect();
    let [(a0, _), (b0, _)] = parts
        .iter()
        .copied()
        .find(|[(a, ea), (b, eb)]| a.abs() > 1e6 * ea && b.abs() > 1e6 * eb)?;
    if let Up::SignedFactor { negative } = up
        && (a0 / b0 < 0.0) != negative
    {
        return Some(false);
    }
    // Machine digits of a ratio at many points are enough: a constant factor
    // is a small rational, and no two equations agree to ten digits by chance.
    let equal = parts.iter().all(|[(a, ea), (b, eb)]| {
        let (left, right) = (a * b0, b * a0);
        let slack = (ea * b0.abs() + eb * a0.abs()) * 8.0;
        (left - right).abs() <= slack.max(1e-10 * left.abs().max(right.abs()))
    });
    match (equal, at.real.epsilon() < 1e-20) {
        (true, false) => None,
        (equal, _) => Some(equal),
    }
}

/// Whether a value is a plain number with a finite decimal expansion.
pub fn terminates(value: &num_rational::BigRational) -> bool {
    use num_integer::Integer;
    use num_traits::Zero;
    let mut rest = value.denom().clone();
    for prime in [2u32, 5] {
        let prime = num_bigint::BigInt::from(prime);
        loop {
            let (quotient, remainder) = rest.div_rem(&prime);
            if !remainder.is_zero() {
                break;
            }
            rest = quotient;
        }
    }
    rest.is_one()
}
