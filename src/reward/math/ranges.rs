//! Lists with dots in them: `1, 2, \ldots, 10` written out.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, ToPrimitive, Zero};

use super::budget::{Budget, Stop};
use super::exact;
use super::tree::{Answer, Expr};

/// Elements that dots stand for, at most.
const MOST: i64 = 64;

/// The list with what its dots stand for; where the last element is no number
/// only the first two and the last, so that all ways to begin look the same.
pub fn written_out(items: Vec<Answer>, budget: &Budget) -> Result<Vec<Answer>, Stop> {
    let Some(at) = items.iter().position(is_dots).filter(|at| *at > 0) else {
        return Ok(items);
    };
    budget.spend(items.len() * 8)?;
    let numbers: Option<Vec<BigRational>> = items[..at].iter().map(number).collect();
    // Long numbers would make long sums.
    let short = |numbers: &Vec<BigRational>| numbers.iter().all(|n| exact::bits(n) <= 128);
    let Some(numbers) = numbers.filter(short) else {
        return Ok(items);
    };
    let step = match numbers.as_slice() {
        [.., a, b] => b - a,
        _ => BigRational::one(),
    };
    let even = numbers.windows(2).all(|pair| &pair[1] - &pair[0] == step);
    if !even || step.is_zero() || at + 2 < items.len() {
        return Ok(items);
    }
    match items.get(at + 1).map(number) {
        Some(Some(end)) if exact::bits(&end) <= 128 => {
            let start = &numbers[0];
            let count = (&end - start) / &step;
            let count = match count.is_integer() {
                true => count.to_i64().filter(|count| (1..=MOST).contains(count)),
                false => None,
            };
            let Some(count) = count else {
                return Ok(items);
            };
            budget.spend(count as usize * 8)?;
            let nth = |n: i64| start + &step * BigRational::from_integer(BigInt::from(n));
            Ok((0..=count)
                .map(|n| Answer::value(Expr::Number(nth(n))))
                .collect())
        }
        // 1, 2, 3, ... and 1, 2, ..., n
        _ if numbers.len() > 2 => {
            let mut items = items;
            items.drain(2..at);
            Ok(items)
        }
        _ => Ok(items),
    }
}

fn is_dots(item: &Answer) -> bool {
    matches!(item, Answer::Value { value: Expr::Symbol(name), .. } if name == "\\ldots")
}

fn number(item: &Answer) -> Option<BigRational> {
    match item {
        Answer::Value { value, .. } => value.as_number().cloned(),
        _ => None,
    }
}
