//! Machine numbers: the first and cheapest look at two values.

use num_rational::BigRational;
use num_traits::ToPrimitive;

use super::numeric::Real;

/// Machine numbers.
pub struct Machine;

impl Real for Machine {
    type Number = f64;

    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }
    fn sub(&self, a: &f64, b: &f64) -> f64 {
        a - b
    }
    fn mul(&self, a: &f64, b: &f64) -> f64 {
        a * b
    }
    fn div(&self, a: &f64, b: &f64) -> f64 {
        a / b
    }
    fn sqrt(&self, a: &f64) -> f64 {
        a.sqrt()
    }
    fn exp(&self, a: &f64) -> f64 {
        a.exp()
    }
    fn ln(&self, a: &f64) -> f64 {
        a.ln()
    }
    fn sin(&self, a: &f64) -> f64 {
        a.sin()
    }
    fn cos(&self, a: &f64) -> f64 {
        a.cos()
    }
    fn atan(&self, a: &f64) -> f64 {
        a.atan()
    }
    fn pi(&self) -> f64 {
        std::f64::consts::PI
    }
    fn rational(&self, value: &BigRational) -> f64 {
        match (value.numer().to_i64(), value.denom().to_i64()) {
            (Some(top), Some(bottom)) => top as f64 / bottom as f64,
            _ => value.to_f64().unwrap_or(f64::NAN),
        }
    }
    fn to_f64(&self, a: &f64) -> f64 {
        *a
    }
    fn epsilon(&self) -> f64 {
        f64::EPSILON
    }
    fn cost(&self) -> (usize, usize) {
        (4, 8)
    }
}
