//! Long floating point numbers for the comparisons that machine numbers
//! cannot decide.

use std::cell::RefCell;

use astro_float_num::{BigFloat, Consts, RoundingMode, Sign};
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::Signed;

use super::numeric::Real;

const ROUND: RoundingMode = RoundingMode::ToEven;

/// Arithmetic of a given number of bits.
pub struct Precise {
    bits: usize,
}

impl Precise {
    /// At least `bits` bits.
    pub fn new(bits: usize) -> Self {
        Precise {
            bits: bits.next_multiple_of(64),
        }
    }

    fn integer(&self, value: &BigInt) -> BigFloat {
        let digits = value.magnitude().to_u64_digits();
        if digits.is_empty() {
            return BigFloat::from_word(0, self.bits);
        }
        let sign = if value.is_negative() {
            Sign::Neg
        } else {
            Sign::Pos
        };
        // Read as a fraction below 1, so the exponent is the length.
        let mut number = BigFloat::from_words(&digits, sign, (digits.len() * 64) as i32);
        // Rounds to the precision, which fails for no finite number.
        let _ = number.set_precision(self.bits, ROUND);
        number
    }
}

thread_local! {
    /// pi and ln 2, computed once a thread for the longest use of them.
    static CONSTANTS: RefCell<Option<Consts>> = const { RefCell::new(None) };
}

/// Runs `work` with the constants' cache.
fn with_constants(work: impl FnOnce(&mut Consts) -> BigFloat) -> BigFloat {
    CONSTANTS.with(|cell| {
        let mut cell = cell.borrow_mut();
        if cell.is_none() {
            *cell = Consts::new().ok();
        }
        match cell.as_mut() {
            Some(constants) => work(constants),
            None => BigFloat::nan(None),
        }
    })
}

impl Real for Precise {
    type Number = BigFloat;

    fn add(&self, a: &BigFloat, b: &BigFloat) -> BigFloat {
        a.add(b, self.bits, ROUND)
    }
    fn sub(&self, a: &BigFloat, b: &BigFloat) -> BigFloat {
        a.sub(b, self.bits, ROUND)
    }
    fn mul(&self, a: &BigFloat, b: &BigFloat) -> BigFloat {
        a.mul(b, self.bits, ROUND)
    }
    fn div(&self, a: &BigFloat, b: &BigFloat) -> BigFloat {
        a.div(b, self.bits, ROUND)
    }
    fn sqrt(&self, a: &BigFloat) -> BigFloat {
        a.sqrt(self.bits, ROUND)
    }
    fn exp(&self, a: &BigFloat) -> BigFloat {
        with_constants(|constants| a.exp(self.bits, ROUND, constants))
    }
    fn ln(&self, a: &BigFloat) -> BigFloat {
        with_constants(|constants| a.ln(self.bits, ROUND, constants))
    }
    fn sin(&self, a: &BigFloat) -> BigFloat {
        with_constants(|constants| a.sin(self.bits, ROUND, constants))
    }
    fn cos(&self, a: &BigFloat) -> BigFloat {
        with_constants(|constants| a.cos(self.bits, ROUND, constants))
    }
    fn atan(&self, a: &BigFloat) -> BigFloat {
        with_constants(|constants| a.atan(self.bits, ROUND, constants))
    }
    fn pi(&self) -> BigFloat {
        with_constants(|constants| constants.pi(self.bits, ROUND))
    }
    fn rational(&self, value: &BigRational) -> BigFloat {
        let top = self.integer(value.numer());
        match value.is_integer() {
            true => top,
            false => self.div(&top, &self.integer(value.denom())),
        }
    }

    fn to_f64(&self, a: &BigFloat) -> f64 {
        if a.is_nan() {
            return f64::NAN;
        }
        if a.is_zero() {
            return 0.0;
        }
        let (Some(words), Some(sign), Some(exponent)) =
            (a.mantissa_digits(), a.sign(), a.exponent())
        else {
            return f64::INFINITY;
        };
        let top = words.last().copied().unwrap_or(0) as f64 / 2f64.powi(64);
        let value = top * 2f64.powi(exponent.clamp(-1070, 1023));
        match sign {
            Sign::Neg => -value,
            Sign::Pos => value,
        }
    }

    fn epsilon(&self) -> f64 {
        2f64.powi(2 - i32::try_from(self.bits.min(1000)).unwrap_or(1000))
    }

    fn cost(&self) -> (usize, usize) {
        let words = self.bits / 64;
        // Measured, in steps of 50 ns: a logarithm takes 30 us at 192 bits,
        // 82 at 1,024 and 950 at 4,096; a product 0.1 to 2.4.
        (8 + words * words / 64, 500 + 5 * words * words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_the_way_there_and_back() {
        let real = Precise::new(192);
        for (top, bottom) in [
            (0, 1),
            (1, 1),
            (-3, 2),
            (22, 7),
            (i64::MAX, 3),
            (1, i64::MAX),
        ] {
            let value = BigRational::new(top.into(), bottom.into());
            let expected = top as f64 / bottom as f64;
            let found = real.to_f64(&real.rational(&value));
            assert!(
                (found - expected).abs() <= expected.abs() * 1e-15,
                "{value}: {found}"
            );
        }
        let long: BigInt = BigInt::from(10).pow(40) + 1;
        let number = real.rational(&BigRational::from(long.clone()));
        let back = real.sub(&number, &real.rational(&BigRational::from(long - 1)));
        assert_eq!(real.to_f64(&back), 1.0);
    }

    #[test]
    fn functions_agree_with_the_machine() {
        let real = Precise::new(256);
        for x in [0.1f64, 0.5, 1.0, 2.5, 7.0] {
            let value = BigFloat::from_f64(x, 256);
            for (name, found, expected) in [
                ("exp", real.exp(&value), x.exp()),
                ("ln", real.ln(&value), x.ln()),
                ("sin", real.sin(&value), x.sin()),
                ("cos", real.cos(&value), x.cos()),
                ("atan", real.atan(&value), x.atan()),
                ("sqrt", real.sqrt(&value), x.sqrt()),
            ] {
                let found = real.to_f64(&found);
                assert!(
                    (found - expected).abs() <= 1e-14 * expected.abs(),
                    "{name}({x})"
                );
            }
        }
    }
}
