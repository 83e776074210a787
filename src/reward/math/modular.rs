//! Expressions as elements of a finite field: whether two are identical is
//! decided by their values at random points, without a number ever growing.
//!
//! Variables, pi and e become random elements, i and square roots of rational
//! numbers the roots that the field has of them. This respects sums, products
//! and powers, so values that differ prove expressions to differ; values that
//! agree at several points modulo two primes of 61 bits leave a chance of
//! about 2^-100 (Schwartz 1980, Zippel 1979).

use num_bigint::BigInt;
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::ToPrimitive;

use super::budget::{Budget, Stop};
use super::exact;
use super::tree::{Constant, Expr, Function};
use crate::rng::{hash_bytes, mix};

/// Both are 3 modulo 4, so that -1 has no root modulo them and a + bi with
/// i^2 = -1 is a field.
pub const PRIMES: [u64; 2] = [(1 << 61) - 1, (1 << 61) - 45];

/// An element a + bi of the field of `p` squared elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    re: u64,
    im: u64,
}

impl Element {
    /// The unit.
    pub const ONE: Element = Element { re: 1, im: 0 };
    const ZERO: Element = Element { re: 0, im: 0 };

    /// Whether it is the zero.
    pub fn is_zero(self) -> bool {
        self == Element::ZERO
    }
}

/// Why an expression has no value in the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has parts that are no sums, products, powers or square roots.
    NotAlgebraic,
    /// Not at this point: a division by zero, a factorial of a negative.
    Undefined,
    Stop(Stop),
}

impl From<Stop> for Refusal {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Undefined => Refusal::Undefined,
            stop => Refusal::Stop(stop),
        }
    }
}

/// One evaluation: the field, the point and how large variables may be.
pub struct Field<'a> {
    pub prime: u64,
    /// Which point; the same for both sides of a comparison.
    pub point: u64,
    /// Variables are small and positive: they are counted with.
    pub counting: bool,
    pub budget: &'a Budget,
}

type Value = Result<Element, Refusal>;

impl Field<'_> {
    /// The value of `expr`.
    pub fn evaluate(&self, expr: &Expr) -> Value {
        self.budget.spend(3)?;
        match expr {
            Expr::Number(value) => self.number(value),
            Expr::Symbol(name) => Ok(self.integer(self.variable(name))),
            Expr::Constant(Constant::I) => Ok(Element { re: 0, im: 1 }),
            Expr::Constant(Constant::Pi) => Ok(self.generic("\\pi")),
            Expr::Constant(Constant::E) => Ok(self.generic("e")),
            Expr::Constant(Constant::Degree) => Ok(self.generic("degree")),
            Expr::Sum(terms) => {
                let mut total = Element::ZERO;
                for term in terms {
                    total = self.add(total, self.evaluate(term)?);
                }
                Ok(total)
            }
            Expr::Product(factors) => {
                let mut total = Element::ONE;
                for factor in factors {
                    total = self.multiply(total, self.evaluate(factor)?);
                }
                Ok(total)
            }
            Expr::Power(base, exponent) => self.power(base, exponent),
            Expr::Call(Function::Root, args) => match args.as_slice() {
                [radicand, Expr::Number(index)] if *index == two() => self.root(radicand),
                _ => Err(Refusal::NotAlgebraic),
            },
            Expr::Call(Function::Factorial, args) => {
                let n = self.whole(&args[0])?;
                if n < 0 {
                    return Err(Refusal::Undefined);
                }
                self.product_of(1, n)
            }
            Expr::Call(Function::Binomial, args) => {
                let (n, k) = (self.whole(&args[0])?, self.whole(&args[1])?);
                if n < 0 {
                    return Err(Refusal::Undefined);
                }
                if k < 0 || k > n {
                    return Ok(Element::ZERO);
                }
                let k = k.min(n - k);
                let top = self.product_of(n - k + 1, n)?;
                let bottom = self.product_of(1, k)?;
                Ok(self.multiply(top, self.inverse(bottom)?))
            }
            Expr::Call(..) => match exact::rational(expr, self.budget)? {
                Some(value) => self.number(&value),
                None => Err(Refusal::NotAlgebraic),
            },
            Expr::Apply(name, args) => {
                // An unknown function: equal arguments, equal values.
                let mut hash = mix(hash_bytes(name.as_bytes()) ^ self.point);
                for arg in args {
                    let value = self.evaluate(arg)?;
                    hash = mix(hash ^ mix(value.re) ^ value.im.rotate_left(32));
                }
                Ok(Element {
                    re: hash % self.prime,
                    im: 0,
                })
            }
            Expr::Constant(Constant::Infinity)
            | Expr::Text(_)
            | Expr::PlusMinus { .. }
            | Expr::Matrix(_) => Err(Refusal::NotAlgebraic),
        }
    }

    /// One product against another: a/b = c/d without dividing.
    pub fn multiply(&self, a: Element, b: Element) -> Element {
        if a.im == 0 && b.im == 0 {
            return Element {
                re: self.mul(a.re, b.re),
                im: 0,
            };
        }
        Element {
            re: self.sub(self.mul(a.re, b.re), self.mul(a.im, b.im)),
            im: (self.mul(a.re, b.im) + self.mul(a.im, b.re)) % self.prime,
        }
    }

    fn mul(&self, a: u64, b: u64) -> u64 {
        (u128::from(a) * u128::from(b) % u128::from(self.prime)) as u64
    }

    fn sub(&self, a: u64, b: u64) -> u64 {
        (a + self.prime - b) % self.prime
    }

    fn add(&self, a: Element, b: Element) -> Element {
        Element {
            re: (a.re + b.re) % self.prime,
            im: (a.im + b.im) % self.prime,
        }
    }

    fn inverse(&self, a: Element) -> Value {
        let norm = (self.mul(a.re, a.re) + self.mul(a.im, a.im)) % self.prime;
        if norm == 0 {
            return Err(Refusal::Undefined);
        }
        let inverse = self.raise_real(norm, self.prime - 2);
        Ok(Element {
            re: self.mul(a.re, inverse),
            im: self.mul(self.sub(0, a.im), inverse),
        })
    }

    fn raise_real(&self, base: u64, mut exponent: u64) -> u64 {
        let (mut base, mut result) = (base, 1);
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = self.mul(result, base);
            }
            base = self.mul(base, base);
            exponent >>= 1;
        }
        result
    }

    fn raise(&self, base: Element, exponent: i128) -> Value {
        self.budget.spend(32)?;
        let mut base = match exponent < 0 {
            true => self.inverse(base)?,
            false => base,
        };
        let mut left = exponent.unsigned_abs();
        let mut result = Element::ONE;
        while left > 0 {
            if left & 1 == 1 {
                result = self.multiply(result, base);
            }
            base = self.multiply(base, base);
            left >>= 1;
        }
        Ok(result)
    }

    fn integer(&self, value: i64) -> Element {
        Element {
            re: value.rem_euclid(self.prime as i64) as u64,
            im: 0,
        }
    }

    fn big(&self, value: &BigInt) -> u64 {
        if let Some(small) = value.to_i64() {
            return self.integer(small).re;
        }
        value
            .mod_floor(&BigInt::from(self.prime))
            .to_u64()
            .unwrap_or(0)
    }

    fn number(&self, value: &BigRational) -> Value {
        self.budget.spend((exact::bits(value) / 64) as usize)?;
        let top = Element {
            re: self.big(value.numer()),
            im: 0,
        };
        if value.is_integer() {
            return Ok(top);
        }
        let bottom = Element {
            re: self.big(value.denom()),
            im: 0,
        };
        Ok(self.multiply(top, self.inverse(bottom)?))
    }

    /// The value of a variable, an integer so that it can be an exponent.
    fn variable(&self, name: &str) -> i64 {
        let hash = mix(hash_bytes(name.as_bytes()) ^ mix(self.point));
        match self.counting {
            true => 2 + (hash % 18) as i64,
            false => (hash % (1 << 21)) as i64 - (1 << 20),
        }
    }

    fn generic(&self, name: &str) -> Element {
        Element {
            re: mix(hash_bytes(name.as_bytes()) ^ mix(self.point)) % self.prime,
            im: 0,
        }
    }

    fn power(&self, base: &Expr, exponent: &Expr) -> Value {
        if let Expr::Number(number) = exponent {
            if number.is_integer() {
                let exponent = number.to_i128().ok_or(Refusal::NotAlgebraic)?;
                let base = self.evaluate(base)?;
                if exponent <= 0 && base.is_zero() {
                    return Err(Refusal::Undefined);
                }
                return self.raise(base, exponent);
            }
            if *number.denom() == BigInt::from(2) {
                let exponent = number.numer().to_i128().ok_or(Refusal::NotAlgebraic)?;
                let root = self.root(base)?;
                return self.raise(root, exponent);
            }
            return Err(Refusal::NotAlgebraic);
        }
        let exponent = self.whole_wide(exponent)?;
        let base = self.evaluate(base)?;
        if exponent <= 0 && base.is_zero() {
            return Err(Refusal::Undefined);
        }
        self.raise(base, exponent)
    }

    /// A root of a rational number, the same for every way of writing it:
    /// the product of fixed roots of its primes.
    fn root(&self, radicand: &Expr) -> Value {
        let value = exact::rational(radicand, self.budget)?.ok_or(Refusal::NotAlgebraic)?;
        let (top, bottom) = (value.numer().to_i64(), value.denom().to_i64());
        let (Some(top), Some(bottom)) = (top, bottom) else {
            return Err(Refusal::NotAlgebraic);
        };
        let mut result = self.root_of_whole(top.unsigned_abs())?;
        if top < 0 {
            result = self.multiply(result, Element { re: 0, im: 1 });
        }
        if bottom != 1 {
            let below = self.root_of_whole(bottom.unsigned_abs())?;
            result = self.multiply(result, self.inverse(below)?);
        }
        Ok(result)
    }

    fn root_of_whole(&self, mut n: u64) -> Value {
        if n == 0 {
            return Ok(Element::ZERO);
        }
        let mut result = Element::ONE;
        let mut factor = 2;
        while factor * factor <= n {
            // What is left might have two large primes: not worth the search.
            if factor > 2_000 {
                return Err(Refusal::NotAlgebraic);
            }
            self.budget.spend(1)?;
            while n.is_multiple_of(factor * factor) {
                n /= factor * factor;
                result = self.multiply(result, self.integer(factor as i64));
            }
            if n.is_multiple_of(factor) {
                n /= factor;
                result = self.multiply(result, self.root_of_prime(factor)?);
            }
            factor += 1;
        }
        match n {
            1 => Ok(result),
            prime => Ok(self.multiply(result, self.root_of_prime(prime)?)),
        }
    }

    fn root_of_prime(&self, q: u64) -> Value {
        self.budget.spend(64)?;
        let q = q % self.prime;
        let root = self.raise_real(q, self.prime.div_ceil(4));
        if self.mul(root, root) == q {
            return Ok(Element { re: root, im: 0 });
        }
        // Then -q is a square.
        let root = self.raise_real(self.sub(0, q), self.prime.div_ceil(4));
        Ok(Element { re: 0, im: root })
    }

    /// The exact integer that `expr` is at this point, if it is a small one.
    fn whole(&self, expr: &Expr) -> Result<i64, Refusal> {
        let value = self.whole_wide(expr)?;
        i64::try_from(value)
            .ok()
            .filter(|value| value.abs() <= 20_000)
            .ok_or(Refusal::NotAlgebraic)
    }

    fn whole_wide(&self, expr: &Expr) -> Result<i128, Refusal> {
        let value = self.fraction(expr)?;
        match value.1 {
            1 => Ok(value.0),
            _ => Err(Refusal::NotAlgebraic),
        }
    }

    /// A reduced fraction in machine words.
    fn fraction(&self, expr: &Expr) -> Result<(i128, i128), Refusal> {
        self.budget.spend(4)?;
        let wide = |value: Option<i128>| value.ok_or(Refusal::NotAlgebraic);
        let reduced = |top: i128, bottom: i128| {
            let divisor = top.gcd(&bottom).max(1);
            (top / divisor, bottom / divisor)
        };
        match expr {
            Expr::Number(value) => Ok((
                wide(value.numer().to_i128())?,
                wide(value.denom().to_i128())?,
            )),
            Expr::Symbol(name) => Ok((i128::from(self.variable(name)), 1)),
            Expr::Sum(terms) => {
                let mut total = (0, 1);
                for term in terms {
                    let (top, bottom) = self.fraction(term)?;
                    let left = wide(i128::checked_mul(total.0, bottom))?;
                    let right = wide(i128::checked_mul(top, total.1))?;
                    total = reduced(
                        wide(left.checked_add(right))?,
                        wide(i128::checked_mul(total.1, bottom))?,
                    );
                }
                Ok(total)
            }
            Expr::Product(factors) => {
                let mut total = (1, 1);
                for factor in factors {
                    let (top, bottom) = self.fraction(factor)?;
                    total = reduced(
                        wide(i128::checked_mul(total.0, top))?,
                        wide(i128::checked_mul(total.1, bottom))?,
                    );
                }
                Ok(total)
            }
            Expr::Power(base, exponent) => {
                let (top, bottom) = self.fraction(base)?;
                let exponent = self.whole_wide(exponent)?;
                let count = u32::try_from(exponent).map_err(|_| Refusal::NotAlgebraic)?;
                Ok((
                    wide(top.checked_pow(count))?,
                    wide(bottom.checked_pow(count))?,
                ))
            }
            other => {
                let value = exact::rational(other, self.budget)?.ok_or(Refusal::NotAlgebraic)?;
                Ok((
                    wide(value.numer().to_i128())?,
                    wide(value.denom().to_i128())?,
                ))
            }
        }
    }

    fn product_of(&self, from: i64, to: i64) -> Value {
        self.budget.spend((to - from).max(0) as usize / 2 + 1)?;
        let product = (from..=to).fold(1, |product, n| self.mul(product, n as u64));
        Ok(Element { re: product, im: 0 })
    }
}

fn two() -> BigRational {
    BigRational::from_integer(2.into())
}

/// Whether an expression counts things: its variables must be small whole
/// numbers.
pub fn counts(expr: &Expr) -> bool {
    let symbolic = |arg: &Expr| !arg.symbols().is_empty();
    expr.any(&|part| {
        matches!(part, Expr::Call(Function::Factorial | Function::Binomial, args) if args.iter().any(symbolic))
    })
}
