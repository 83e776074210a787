//! How units of one kind convert, and words that scale a number.

use num_rational::BigRational;

use super::words::Unit;

/// Units with what they measure and how many of the smallest they are.
const SCALES: &[(&str, &str, i64)] = &[
    ("mm", "metric length", 1),
    ("cm", "metric length", 10),
    ("dm", "metric length", 100),
    ("m", "metric length", 1_000),
    ("km", "metric length", 1_000_000),
    ("in", "length", 1),
    ("ft", "length", 12),
    ("yd", "length", 36),
    ("mi", "length", 63_360),
    ("s", "time", 1),
    ("min", "time", 60),
    ("h", "time", 3_600),
    ("day", "time", 86_400),
    ("week", "time", 604_800),
    ("month", "calendar", 1),
    ("year", "calendar", 12),
    ("mg", "metric mass", 1),
    ("g", "metric mass", 1_000),
    ("kg", "metric mass", 1_000_000),
    ("oz", "mass", 1),
    ("lb", "mass", 16),
    ("ml", "metric volume", 1),
    ("l", "metric volume", 1_000),
    ("cup", "volume", 1),
    ("pint", "volume", 2),
    ("quart", "volume", 4),
    ("gallon", "volume", 16),
    ("cent", "money", 1),
    ("dollar", "money", 100),
];

/// How many of the smallest unit of its kind a unit is, and the kind.
pub fn scale(unit: &Unit) -> Option<(&'static str, u32, BigRational)> {
    let (name, power) = match unit.name.split_once('^') {
        Some((name, power)) => (name, power.parse().ok()?),
        None => (unit.name.as_str(), 1u32),
    };
    let (_, kind, size) = SCALES.iter().find(|(known, ..)| *known == name)?;
    let size = num_bigint::BigInt::from(*size).pow(power.min(9));
    Some((kind, power, BigRational::from_integer(size)))
}

/// How many of `b` one `a` is, where both measure the same.
pub fn ratio(a: &Unit, b: &Unit) -> Option<BigRational> {
    let ((kind, power, size), (other, other_power, other_size)) = (scale(a)?, scale(b)?);
    (kind == other && power == other_power).then(|| size / other_size)
}

/// `million` as 1,000,000.
pub fn multiple(word: &str) -> Option<i64> {
    Some(match word {
        "hundred" => 100,
        "thousand" => 1_000,
        "million" => 1_000_000,
        "billion" => 1_000_000_000,
        "trillion" => 1_000_000_000_000,
        _ => return None,
    })
}
