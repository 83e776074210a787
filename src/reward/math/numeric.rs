//! Expressions as numbers with a bound on their error: complex balls, over
//! machine numbers first and over long ones where those cannot tell.

use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{Signed, ToPrimitive};

use super::budget::{Budget, Stop};
use super::exact;
use super::tree::{Constant, Expr, Function};
use crate::rng::{hash_bytes, mix};

/// Real arithmetic of one precision.
pub trait Real {
    type Number: Clone;

    fn add(&self, a: &Self::Number, b: &Self::Number) -> Self::Number;
    fn sub(&self, a: &Self::Number, b: &Self::Number) -> Self::Number;
    fn mul(&self, a: &Self::Number, b: &Self::Number) -> Self::Number;
    fn div(&self, a: &Self::Number, b: &Self::Number) -> Self::Number;
    fn sqrt(&self, a: &Self::Number) -> Self::Number;
    fn exp(&self, a: &Self::Number) -> Self::Number;
    fn ln(&self, a: &Self::Number) -> Self::Number;
    fn sin(&self, a: &Self::Number) -> Self::Number;
    fn cos(&self, a: &Self::Number) -> Self::Number;
    fn atan(&self, a: &Self::Number) -> Self::Number;
    fn pi(&self) -> Self::Number;
    fn rational(&self, value: &BigRational) -> Self::Number;
    fn to_f64(&self, a: &Self::Number) -> f64;
    /// The relative error of one operation.
    fn epsilon(&self) -> f64;
    /// Steps of one simple operation and of one elementary function.
    fn cost(&self) -> (usize, usize);
}

/// A complex number known up to `err` in each direction.
#[derive(Clone, Debug)]
pub struct Ball<N> {
    pub re: N,
    pub im: N,
    /// The imaginary part is exactly zero.
    pub real: bool,
    pub err: f64,
}

/// An evaluation: the arithmetic, the point and what may be spent.
pub struct Evaluation<'a, R: Real> {
    pub real: &'a R,
    pub point: u64,
    /// Variables take negative values too.
    pub signed: bool,
    pub budget: &'a Budget,
}

type Value<R> = Result<Ball<<R as Real>::Number>, Stop>;

impl<R: Real> Evaluation<'_, R> {
    /// The value of `expr`; undefined where it has none at this point.
    pub fn evaluate(&self, expr: &Expr) -> Value<R> {
        let (simple, _) = self.real.cost();
        self.budget.spend(simple)?;
        match expr {
            Expr::Number(value) => Ok(self.number(value)),
            Expr::Symbol(name) => Ok(self.number(&self.variable(name))),
            Expr::Constant(Constant::Pi) => Ok(self.exact(self.real.pi())),
            Expr::Constant(Constant::E) => self.exp(&self.small(1)),
            Expr::Constant(Constant::I) => {
                let mut unit = self.small(0);
                unit.im = self.whole(1);
                unit.real = false;
                Ok(unit)
            }
            Expr::Constant(Constant::Degree) => Ok(self.small(1)),
            Expr::Sum(terms) => {
                let mut total = self.small(0);
                for term in terms {
                    total = self.plus(&total, &self.evaluate(term)?);
                }
                Ok(total)
            }
            Expr::Product(factors) => {
                let mut total = self.small(1);
                for factor in factors {
                    self.budget.spend(simple)?;
                    total = self.times(&total, &self.evaluate(factor)?);
                }
                Ok(total)
            }
            Expr::Power(base, exponent) => self.power(base, exponent),
            Expr::Call(function, args) => {
                // What is about whole numbers is exact or nothing.
                let whole = matches!(
                    function,
                    Function::Factorial
                        | Function::Binomial
                        | Function::Gcd
                        | Function::Lcm
                        | Function::Floor
                        | Function::Ceil
                        | Function::Mod
                );
                if whole && let Some(value) = exact::rational(expr, self.budget)? {
                    return Ok(self.number(&value));
                }
                let values = args
                    .iter()
                    .map(|arg| self.evaluate(arg))
                    .collect::<Result<Vec<_>, _>>()?;
                self.call(*function, &values)
            }
            Expr::Constant(Constant::Infinity) => Err(Stop::Undefined),
            Expr::Text(_) | Expr::Apply(..) | Expr::PlusMinus { .. } | Expr::Matrix(_) => {
                Err(Stop::Unreadable)
            }
        }
    }

    /// A rational between 1/20 and 6 in size that depends on the name and the
    /// point alone.
    fn variable(&self, name: &str) -> BigRational {
        let hash = mix(hash_bytes(name.as_bytes()) ^ mix(self.point));
        let top = 11 + (hash % 331) as i64;
        let bottom = 60 + (hash >> 20) as i64 % 97;
        // All negative once, so that |x| is told from x whatever the names.
        let negative = self.signed && (self.point == 1 || hash >> 40 & 1 == 1);
        let sign = if negative { -1 } else { 1 };
        BigRational::new((sign * top).into(), bottom.into())
    }

    /// Whether the value is certainly not real.
    pub fn is_complex(&self, z: &Ball<R::Number>) -> bool {
        !z.real && self.real.to_f64(&z.im).abs() > z.err
    }

    /// How far apart two values are, and how far apart they may be by error.
    pub fn distance(&self, a: &Ball<R::Number>, b: &Ball<R::Number>) -> (f64, f64) {
        let re = self.real.to_f64(&self.real.sub(&a.re, &b.re));
        let im = self.real.to_f64(&self.real.sub(&a.im, &b.im));
        (re.abs().max(im.abs()), a.err + b.err)
    }

    /// The larger part's size.
    pub fn size(&self, z: &Ball<R::Number>) -> f64 {
        self.real
            .to_f64(&z.re)
            .abs()
            .max(self.real.to_f64(&z.im).abs())
    }

    /// Takes the steps of `count` elementary functions.
    fn pay(&self, count: usize) -> Result<(), Stop> {
        self.budget.spend(count * self.real.cost().1)
    }

    fn whole(&self, value: i64) -> R::Number {
        self.real.rational(&BigRational::from_integer(value.into()))
    }

    fn small(&self, value: i64) -> Ball<R::Number> {
        Ball {
            re: self.whole(value),
            im: self.whole(0),
            real: true,
            err: 0.0,
        }
    }

    /// A number right up to one rounding.
    fn exact(&self, re: R::Number) -> Ball<R::Number> {
        let err = self.real.to_f64(&re).abs() * self.real.epsilon();
        self.ball(re, err)
    }

    fn ball(&self, re: R::Number, err: f64) -> Ball<R::Number> {
        Ball {
            re,
            im: self.whole(0),
            real: true,
            err,
        }
    }

    fn number(&self, value: &BigRational) -> Ball<R::Number> {
        self.exact(self.real.rational(value))
    }

    /// The error with the rounding of the last operation.
    fn rounded(&self, mut z: Ball<R::Number>) -> Ball<R::Number> {
        z.err += self.size(&z) * self.real.epsilon() * 4.0;
        z
    }

    fn plus(&self, a: &Ball<R::Number>, b: &Ball<R::Number>) -> Ball<R::Number> {
        let re = self.real.add(&a.re, &b.re);
        let real = a.real && b.real;
        let im = match real {
            true => a.im.clone(),
            false => self.real.add(&a.im, &b.im),
        };
        self.rounded(Ball {
            re,
            im,
            real,
            err: a.err + b.err,
        })
    }

    fn minus(&self, a: &Ball<R::Number>, b: &Ball<R::Number>) -> Ball<R::Number> {
        self.plus(a, &self.times(&self.small(-1), b))
    }

    fn times(&self, a: &Ball<R::Number>, b: &Ball<R::Number>) -> Ball<R::Number> {
        let r = self.real;
        let err = 2.0 * (self.size(a) * b.err + self.size(b) * a.err + a.err * b.err);
        if a.real && b.real {
            let product = self.ball(r.mul(&a.re, &b.re), err);
            return self.rounded(product);
        }
        let mut product = Ball {
            re: r.sub(&r.mul(&a.re, &b.re), &r.mul(&a.im, &b.im)),
            im: r.add(&r.mul(&a.re, &b.im), &r.mul(&a.im, &b.re)),
            real: false,
            err,
        };
        product.err += self.size(a) * self.size(b) * r.epsilon() * 8.0;
        product
    }

    fn over(&self, a: &Ball<R::Number>, b: &Ball<R::Number>) -> Value<R> {
        let size = self.size(b);
        if size <= b.err {
            return Err(Stop::Undefined);
        }
        let r = self.real;
        if b.real {
            let mut quotient = Ball {
                re: r.div(&a.re, &b.re),
                im: match a.real {
                    true => a.im.clone(),
                    false => r.div(&a.im, &b.re),
                },
                real: a.real,
                err: 0.0,
            };
            quotient.err = (a.err + self.size(&quotient) * b.err) / (size - b.err);
            return Ok(self.rounded(quotient));
        }
        let norm = self.ball(
            r.add(&r.mul(&b.re, &b.re), &r.mul(&b.im, &b.im)),
            4.0 * size * b.err + size * size * r.epsilon() * 8.0,
        );
        let conjugate = Ball {
            re: b.re.clone(),
            im: r.sub(&self.whole(0), &b.im),
            real: false,
            err: b.err,
        };
        self.over(&self.times(a, &conjugate), &norm)
    }

    fn exp(&self, z: &Ball<R::Number>) -> Value<R> {
        if self.size(z) > 600.0 {
            return Err(Stop::Undefined);
        }
        let r = self.real;
        self.pay(if z.real { 1 } else { 3 })?;
        let scale = r.exp(&z.re);
        let size = r.to_f64(&scale);
        let err = size * (z.err.exp_m1()) * 2.0 + size * r.epsilon() * 8.0;
        if z.real {
            return Ok(self.ball(scale, err));
        }
        Ok(Ball {
            re: r.mul(&scale, &r.cos(&z.im)),
            im: r.mul(&scale, &r.sin(&z.im)),
            real: false,
            err,
        })
    }

    /// The principal logarithm.
    fn ln(&self, z: &Ball<R::Number>) -> Value<R> {
        let size = self.size(z);
        if size <= z.err {
            return Err(Stop::Undefined);
        }
        let r = self.real;
        self.pay(if z.real { 1 } else { 3 })?;
        let err = 2.0 * z.err / (size - z.err);
        if z.real && r.to_f64(&z.re) > 0.0 {
            let value = self.ball(r.ln(&z.re), err);
            return Ok(self.rounded(value));
        }
        let modulus = self.modulus(z);
        Ok(self.rounded(Ball {
            re: r.ln(&modulus),
            im: self.argument(&z.re, &z.im),
            real: false,
            err: err + 8.0 * r.epsilon(),
        }))
    }

    fn modulus(&self, z: &Ball<R::Number>) -> R::Number {
        let r = self.real;
        r.sqrt(&r.add(&r.mul(&z.re, &z.re), &r.mul(&z.im, &z.im)))
    }

    fn argument(&self, re: &R::Number, im: &R::Number) -> R::Number {
        let r = self.real;
        let (x, y) = (r.to_f64(re), r.to_f64(im));
        if x.abs() >= y.abs() {
            let angle = r.atan(&r.div(im, re));
            return match (x > 0.0, y >= 0.0) {
                (true, _) => angle,
                (false, true) => r.add(&angle, &r.pi()),
                (false, false) => r.sub(&angle, &r.pi()),
            };
        }
        let angle = r.atan(&r.div(re, im));
        let half = r.div(&r.pi(), &self.whole(if y > 0.0 { 2 } else { -2 }));
        r.sub(&half, &angle)
    }

    fn power(&self, base: &Expr, exponent: &Expr) -> Value<R> {
        let (simple, _) = self.real.cost();
        if let Expr::Number(n) = exponent
            && let Some(count) = n.to_i64().filter(|_| n.is_integer())
            && count.unsigned_abs() <= 4096
        {
            let base = self.evaluate(base)?;
            let mut result = self.small(1);
            let mut square = base.clone();
            let mut left = count.unsigned_abs();
            while left > 0 {
                self.budget.spend(simple * 2)?;
                if left & 1 == 1 {
                    result = self.times(&result, &square);
                }
                square = self.times(&square, &square);
                left >>= 1;
            }
            return match count < 0 {
                true => self.over(&self.small(1), &result),
                false if count == 0 && self.size(&base) <= base.err => Err(Stop::Undefined),
                false => Ok(result),
            };
        }
        if matches!(base, Expr::Constant(Constant::E)) {
            return self.exp(&self.evaluate(exponent)?);
        }
        let base = self.evaluate(base)?;
        if let Expr::Number(half) = exponent
            && *half == BigRational::new(1.into(), 2.into())
        {
            return self.square_root(&base);
        }
        let exponent = self.evaluate(exponent)?;
        self.raise(&base, &exponent)
    }

    fn raise(&self, base: &Ball<R::Number>, exponent: &Ball<R::Number>) -> Value<R> {
        if self.size(base) <= base.err {
            let positive = exponent.real && self.real.to_f64(&exponent.re) > exponent.err;
            return match positive && base.err == 0.0 {
                true => Ok(self.small(0)),
                false => Err(Stop::Undefined),
            };
        }
        self.exp(&self.times(exponent, &self.ln(base)?))
    }

    fn square_root(&self, z: &Ball<R::Number>) -> Value<R> {
        let size = self.size(z);
        if size <= z.err {
            // Nearly zero: its root is as uncertain as can be.
            let mut root = self.small(0);
            root.err = (size + z.err).sqrt();
            return Ok(root);
        }
        let err = z.err / (size - z.err).sqrt();
        if !z.real {
            return self.raise(z, &self.number(&BigRational::new(1.into(), 2.into())));
        }
        let r = self.real;
        self.pay(1)?;
        if r.to_f64(&z.re) > 0.0 {
            let root = self.ball(r.sqrt(&z.re), err);
            return Ok(self.rounded(root));
        }
        let mut root = self.ball(self.whole(0), err);
        root.im = r.sqrt(&r.sub(&self.whole(0), &z.re));
        root.real = false;
        Ok(self.rounded(root))
    }

    /// The real root of a real number where there is one.
    fn root(&self, z: &Ball<R::Number>, index: &Ball<R::Number>) -> Value<R> {
        let n = self.real.to_f64(&index.re);
        if n == 2.0 {
            return self.square_root(z);
        }
        let inverse = self.over(&self.small(1), index)?;
        if z.real && self.size(z) <= z.err && z.err == 0.0 {
            return Ok(self.small(0));
        }
        let odd = n.fract() == 0.0 && (n as i64).is_odd();
        if z.real && odd && self.real.to_f64(&z.re) < 0.0 {
            let positive = self.times(&self.small(-1), z);
            let root = self.raise(&positive, &inverse)?;
            return Ok(self.times(&self.small(-1), &root));
        }
        self.raise(z, &inverse)
    }

    fn sine_cosine(&self, z: &Ball<R::Number>) -> Result<[Ball<R::Number>; 2], Stop> {
        let r = self.real;
        // Beyond this a machine number has no digits left for the angle.
        if self.size(z) > 1e9 {
            return Err(Stop::Undefined);
        }
        if z.real {
            self.pay(2)?;
            let err = z.err + r.epsilon() * (4.0 + 4.0 * self.size(z));
            return Ok([self.ball(r.sin(&z.re), err), self.ball(r.cos(&z.re), err)]);
        }
        let unit = self.evaluate(&Expr::Constant(Constant::I))?;
        let up = self.exp(&self.times(&unit, z))?;
        let down = self.over(&self.small(1), &up)?;
        let sine = self.over(&self.minus(&up, &down), &self.times(&unit, &self.small(2)))?;
        let cosine = self.over(&self.plus(&up, &down), &self.small(2))?;
        Ok([sine, cosine])
    }

    fn call(&self, function: Function, args: &[Ball<R::Number>]) -> Value<R> {
        let r = self.real;
        let one = || self.small(1);
        let z = args.first().ok_or(Stop::Unreadable)?;
        match (function, args) {
            (Function::Root, [z, index]) => self.root(z, index),
            (Function::Sin, _) => Ok(self.sine_cosine(z)?[0].clone()),
            (Function::Cos, _) => Ok(self.sine_cosine(z)?[1].clone()),
            (Function::Tan | Function::Cot, _) => {
                let [sine, cosine] = self.sine_cosine(z)?;
                match function {
                    Function::Tan => self.over(&sine, &cosine),
                    _ => self.over(&cosine, &sine),
                }
            }
            (Function::Sec, _) => self.over(&one(), &self.sine_cosine(z)?[1]),
            (Function::Csc, _) => self.over(&one(), &self.sine_cosine(z)?[0]),
            (Function::Arcsin | Function::Arccos, _) => self.arc(function, z),
            (Function::Arctan | Function::Arccot, _) => {
                if !z.real {
                    return Err(Stop::Undefined);
                }
                self.pay(1)?;
                let value = self.ball(r.atan(&z.re), z.err);
                let value = self.rounded(value);
                match function {
                    Function::Arctan => Ok(value),
                    _ => Ok(self.minus(&self.quarter_turn()?, &value)),
                }
            }
            (Function::Sinh | Function::Cosh | Function::Tanh, _) => {
                let up = self.exp(z)?;
                let down = self.over(&one(), &up)?;
                let (sum, difference) = (self.plus(&up, &down), self.minus(&up, &down));
                match function {
                    Function::Sinh => self.over(&difference, &self.small(2)),
                    Function::Cosh => self.over(&sum, &self.small(2)),
                    _ => self.over(&difference, &sum),
                }
            }
            (Function::Ln, _) => self.ln(z),
            (Function::Abs, _) => {
                if !z.real {
                    let value = self.ball(self.modulus(z), z.err * 2.0);
                    return Ok(self.rounded(value));
                }
                match r.to_f64(&z.re) < 0.0 {
                    true => Ok(self.times(&self.small(-1), z)),
                    false => Ok(z.clone()),
                }
            }
            (Function::Floor | Function::Ceil, _) => {
                let value = self.real_part(z)?;
                let nearest = value.round();
                if (value - nearest).abs() <= z.err.max(1e-9) {
                    return match z.err < 1e-12 {
                        true => Ok(self.small(nearest as i64)),
                        false => Err(Stop::Undefined),
                    };
                }
                Ok(self.small(match function {
                    Function::Floor => value.floor(),
                    _ => value.ceil(),
                } as i64))
            }
            (Function::Max | Function::Min, _) => {
                let mut best = z.clone();
                for other in args {
                    let (a, b) = (self.real_part(other)?, self.real_part(&best)?);
                    if (function == Function::Max) == (a > b) {
                        best = other.clone();
                    }
                }
                Ok(best)
            }
            (Function::Mod, [a, b]) => {
                let quotient = self.over(a, b)?;
                let floor = self.call(Function::Floor, &[quotient])?;
                Ok(self.minus(a, &self.times(b, &floor)))
            }
            _ => Err(Stop::Unreadable),
        }
    }

    fn quarter_turn(&self) -> Value<R> {
        self.over(&self.exact(self.real.pi()), &self.small(2))
    }

    /// arcsin and arccos inside [-1, 1].
    fn arc(&self, function: Function, z: &Ball<R::Number>) -> Value<R> {
        let value = self.real_part(z)?;
        if value.abs() > 1.0 + z.err {
            return Err(Stop::Undefined);
        }
        self.pay(1)?;
        let rest = self.minus(&self.small(1), &self.times(z, z));
        let cosine = self.square_root(&rest)?;
        let sine = match value.abs() < 1e-3 || self.size(&cosine) > 0.5 {
            true => {
                let tangent = self.over(z, &cosine)?;
                let angle = self.ball(self.real.atan(&tangent.re), tangent.err);
                self.rounded(angle)
            }
            false => {
                // Near the ends the angle is a quarter turn less a small one.
                let tangent = self.over(&cosine, z)?;
                let angle = self.ball(self.real.atan(&tangent.re), tangent.err);
                let quarter = self.quarter_turn()?;
                let quarter = match value > 0.0 {
                    true => quarter,
                    false => self.times(&self.small(-1), &quarter),
                };
                self.minus(&quarter, &self.rounded(angle))
            }
        };
        match function {
            Function::Arcsin => Ok(sine),
            _ => Ok(self.minus(&self.quarter_turn()?, &sine)),
        }
    }

    fn real_part(&self, z: &Ball<R::Number>) -> Result<f64, Stop> {
        let value = self.real.to_f64(&z.re);
        match self.is_complex(z) || value.abs() > 1e15 {
            true => Err(Stop::Undefined),
            false => Ok(value),
        }
    }
}

/// Bits that the numbers of an expression take when written out: values of
/// expressions this tall may differ as late as that.
pub fn height(expr: &Expr) -> u64 {
    match expr {
        Expr::Number(value) => exact::bits(value),
        Expr::Power(base, exponent) => {
            let count = match &**exponent {
                Expr::Number(n) => n.abs().ceil().to_u64().unwrap_or(u64::MAX),
                other => height(other).max(2),
            };
            height(base).max(1).saturating_mul(count)
        }
        other => other
            .children()
            .into_iter()
            .map(height)
            .fold(0, u64::saturating_add),
    }
}
