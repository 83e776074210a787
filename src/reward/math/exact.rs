//! Values that are rational, exactly.

use num_bigint::{BigInt, BigUint};
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, ToPrimitive, Zero};

use super::budget::{Budget, Stop};
use super::tree::{Constant, Expr, Function};

/// Bits beyond which a number is left to the arithmetic of residues.
const MOST_BITS: u64 = 6_000;

type Value = Result<Option<BigRational>, Stop>;

/// The value of `expr` where rational arithmetic alone gives it, else `None`.
pub fn rational(expr: &Expr, budget: &Budget) -> Value {
    budget.spend(2)?;
    match expr {
        Expr::Number(value) => Ok(Some(value.clone())),
        Expr::Sum(terms) => {
            let mut total = BigRational::zero();
            for term in terms {
                let Some(value) = rational(term, budget)? else {
                    return Ok(None);
                };
                pay(&[&total, &value], budget)?;
                add(&mut total, value);
                if bits(&total) > MOST_BITS {
                    return Ok(None);
                }
            }
            Ok(Some(total))
        }
        Expr::Product(factors) => {
            let mut total = BigRational::one();
            for factor in factors {
                let Some(value) = rational(factor, budget)? else {
                    return Ok(None);
                };
                pay(&[&total, &value], budget)?;
                multiply(&mut total, value);
                if bits(&total) > MOST_BITS {
                    return Ok(None);
                }
            }
            Ok(Some(total))
        }
        Expr::Power(base, exponent) => {
            let (Some(base), Some(exponent)) =
                (rational(base, budget)?, rational(exponent, budget)?)
            else {
                return Ok(None);
            };
            power(&base, &exponent, budget)
        }
        Expr::Call(function, args) => {
            let mut values = Vec::with_capacity(args.len());
            for arg in args {
                let Some(value) = rational(arg, budget)? else {
                    return Ok(None);
                };
                values.push(value);
            }
            call(*function, &values, budget)
        }
        Expr::Constant(Constant::Pi | Constant::E | Constant::I)
        | Expr::Constant(Constant::Infinity | Constant::Degree)
        | Expr::Symbol(_)
        | Expr::Text(_)
        | Expr::Apply(..)
        | Expr::PlusMinus { .. }
        | Expr::Matrix(_) => Ok(None),
    }
}

/// `number += by`. Answers' numbers are short as a rule: then machine words do
/// what else takes a dozen allocations, with the same reduced fraction.
pub fn add(number: &mut BigRational, by: BigRational) {
    if number.is_zero() {
        *number = by;
    } else if let (Some((a, b)), Some((c, d))) = (short(number), short(&by)) {
        let (a, b, c, d) = (i128::from(a), i128::from(b), i128::from(c), i128::from(d));
        let (top, bottom) = (a * d + c * b, b * d);
        let divisor = top.gcd(&bottom);
        *number = BigRational::new_raw((top / divisor).into(), (bottom / divisor).into());
    } else {
        *number += by;
    }
}

/// `number *= by`, as [`add`] adds.
pub fn multiply(number: &mut BigRational, by: BigRational) {
    if number.is_one() {
        *number = by;
    } else if let (Some((a, b)), Some((c, d))) = (short(number), short(&by)) {
        let (left, right) = (a.gcd(&d), c.gcd(&b));
        let product = |x: i64, y: i64| BigInt::from(i128::from(x) * i128::from(y));
        *number = BigRational::new_raw(product(a / left, c / right), product(b / right, d / left));
    } else {
        *number *= by;
    }
}

/// Numerator and denominator, if each fits into a word with a bit to spare:
/// a sum of two products of such words fits into two words.
fn short(number: &BigRational) -> Option<(i64, i64)> {
    let part = |part: &BigInt| part.to_i64().filter(|value| value.unsigned_abs() < 1 << 62);
    Some((part(number.numer())?, part(number.denom())?))
}

/// Numerator and denominator together.
pub fn bits(value: &BigRational) -> u64 {
    value.numer().bits() + value.denom().bits()
}

/// Rational arithmetic reduces by a greatest common divisor, which is
/// quadratic in the size.
fn pay(values: &[&BigRational], budget: &Budget) -> Result<(), Stop> {
    let words: u64 = values.iter().map(|value| bits(value) / 64).sum();
    budget.spend((2 * words * words + words) as usize + 8)
}

fn power(base: &BigRational, exponent: &BigRational, budget: &Budget) -> Value {
    if base.is_zero() {
        return match exponent.is_positive() {
            true => Ok(Some(BigRational::zero())),
            false => Err(Stop::Undefined),
        };
    }
    if base.is_one() {
        return Ok(Some(BigRational::one()));
    }
    if !exponent.is_integer() {
        let Some(index) = exponent.denom().to_u32() else {
            return Ok(None);
        };
        if base.is_negative() {
            return Ok(None);
        }
        let Some(root) = perfect_root(base, index, budget)? else {
            return Ok(None);
        };
        return power(&root, &BigRational::from(exponent.numer().clone()), budget);
    }
    if *base == -BigRational::one() {
        return Ok(Some(match exponent.numer().is_even() {
            true => BigRational::one(),
            false => base.clone(),
        }));
    }
    let Some(count) = exponent.to_i64().filter(|n| n.unsigned_abs() <= MOST_BITS) else {
        return Ok(None);
    };
    let size = bits(base) * count.unsigned_abs();
    if size > MOST_BITS {
        return Ok(None);
    }
    budget.spend((size / 64 * size / 64) as usize / 8)?;
    let raise = |n: &BigInt| -> BigInt { Pow::pow(n, count.unsigned_abs()) };
    let (top, bottom) = (raise(base.numer()), raise(base.denom()));
    Ok(Some(match count < 0 {
        true => BigRational::new(bottom, top),
        false => BigRational::new_raw(top, bottom),
    }))
}

/// The rational whose `index`-th power is `value`.
fn perfect_root(value: &BigRational, index: u32, budget: &Budget) -> Value {
    if !(1..=64).contains(&index) {
        return Ok(None);
    }
    let words = (bits(value) / 64 + 1) as usize;
    budget.spend(words * words * 16 + 16)?;
    let exact = |n: &BigInt| -> Option<BigInt> {
        let root = n.nth_root(index);
        (Pow::pow(&root, index) == *n).then_some(root)
    };
    let (Some(top), Some(bottom)) = (exact(value.numer()), exact(value.denom())) else {
        return Ok(None);
    };
    Ok(Some(BigRational::new_raw(top, bottom)))
}

fn call(function: Function, args: &[BigRational], budget: &Budget) -> Value {
    let integer = |value: &BigRational| value.is_integer().then(|| value.numer().clone());
    Ok(match (function, args) {
        (Function::Root, [radicand, index]) => {
            let Some(index) = index.to_u32().filter(|_| index.is_integer()) else {
                return Ok(None);
            };
            if radicand.is_negative() && index % 2 == 0 {
                return Ok(None);
            }
            let root = perfect_root(&radicand.abs(), index, budget)?;
            root.map(|root| root * radicand.signum())
                .or_else(|| radicand.is_zero().then(BigRational::zero))
        }
        (Function::Abs, [x]) => Some(x.abs()),
        (Function::Floor, [x]) => Some(x.floor()),
        (Function::Ceil, [x]) => Some(x.ceil()),
        (Function::Factorial, [n]) => {
            let Some(n) = integer(n) else {
                return Ok(None);
            };
            if n.is_negative() {
                return Err(Stop::Undefined);
            }
            let Some(n) = n.to_u32().filter(|n| *n <= 600) else {
                return Ok(None);
            };
            budget.spend((n as usize).pow(2) / 128 + 8)?;
            let product = (2..=n).fold(BigUint::one(), |product, k| product * k);
            Some(BigRational::from(BigInt::from(product)))
        }
        (Function::Binomial, [n, k]) => {
            let (Some(n), Some(k)) = (integer(n), integer(k)) else {
                return Ok(None);
            };
            let (Some(n), Some(k)) = (n.to_u32(), k.to_u32()) else {
                return Ok(None);
            };
            if k > n {
                return Ok(Some(BigRational::zero()));
            }
            let k = k.min(n - k);
            if k > 300 {
                return Ok(None);
            }
            budget.spend((k as usize).pow(2) / 16 + 8)?;
            let mut value = BigUint::one();
            for step in 0..k {
                value = value * (n - step) / (step + 1);
            }
            Some(BigRational::from(BigInt::from(value)))
        }
        (Function::Gcd | Function::Lcm, [first, rest @ ..]) => {
            let mut total = first.abs();
            for value in rest {
                pay(&[&total, value], budget)?;
                budget.spend(40)?;
                total = match function {
                    Function::Gcd => common_divisor(&total, value),
                    _ if total.is_zero() || value.is_zero() => BigRational::zero(),
                    _ => (&total * value).abs() / common_divisor(&total, value),
                };
            }
            Some(total)
        }
        (Function::Max, [first, rest @ ..]) => {
            Some(rest.iter().fold(first, |max, value| max.max(value)).clone())
        }
        (Function::Min, [first, rest @ ..]) => {
            Some(rest.iter().fold(first, |min, value| min.min(value)).clone())
        }
        (Function::Mod, [a, b]) => {
            if b.is_zero() {
                return Err(Stop::Undefined);
            }
            pay(&[a, b], budget)?;
            Some(a - (a / b).floor() * b)
        }
        (Function::Ln, [x]) if x.is_one() => Some(BigRational::zero()),
        _ => None,
    })
}

/// Of fractions: the largest number that both are whole multiples of.
fn common_divisor(a: &BigRational, b: &BigRational) -> BigRational {
    if a.is_zero() {
        return b.abs();
    }
    if b.is_zero() {
        return a.abs();
    }
    let top = (a.numer() * b.denom()).gcd(&(b.numer() * a.denom()));
    BigRational::new(top, a.denom() * b.denom())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number() -> impl Strategy<Value = BigRational> {
        let part = prop_oneof![
            -12i128..=12,
            any::<i64>().prop_map(i128::from),
            prop::sample::select(vec![
                i128::from(i64::MAX),
                i128::from(i64::MIN),
                1 << 62,
                -(1 << 62),
                (1 << 62) - 1,
                1 << 100,
            ]),
        ];
        (part.clone(), part.prop_filter("no zero", |x| *x != 0))
            .prop_map(|(a, b)| BigRational::new(a.into(), b.into()))
    }

    proptest! {
        /// Machine words give the fractions that long arithmetic gives.
        #[test]
        fn short_arithmetic_is_arithmetic(a in number(), b in number()) {
            let (mut sum, mut product) = (a.clone(), a.clone());
            add(&mut sum, b.clone());
            multiply(&mut product, b.clone());
            for (got, wanted) in [(sum, &a + &b), (product, &a * &b)] {
                prop_assert_eq!(got.numer(), wanted.numer());
                prop_assert_eq!(got.denom(), wanted.denom());
            }
        }
    }
}
