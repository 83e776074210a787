//! Functions, series and matrices within an expression.

use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, ToPrimitive, Zero};

use super::budget::Stop;
use super::expression::{Parsed, Parser};
use super::lex::Token;
use super::tree::{Constant, Expr, Function};

impl Parser<'_> {
    /// `a, b, c)`.
    pub(super) fn arguments(&mut self, close: char) -> Result<Vec<Expr>, Stop> {
        let bars = std::mem::take(&mut self.bars);
        let mut list = vec![self.sum()?];
        while self.eat(',') {
            list.push(self.sum()?);
        }
        self.expect(&Token::Sign(close))?;
        self.bars = bars;
        Ok(list)
    }

    pub(super) fn command(&mut self, name: &'static str) -> Parsed {
        Ok(match name {
            "frac" | "dfrac" | "tfrac" | "cfrac" => {
                let top = self.argument()?;
                let bottom = self.argument()?;
                self.quotient(top, bottom)?
            }
            "binom" | "dbinom" | "tbinom" => {
                let top = self.argument()?;
                Expr::Call(Function::Binomial, vec![top, self.argument()?])
            }
            "sqrt" => {
                let index = match self.eat('[') {
                    true => self.enclosed(']')?,
                    false => Expr::integer(2),
                };
                Expr::Call(Function::Root, vec![self.argument()?, index])
            }
            "infty" => Expr::Constant(Constant::Infinity),
            "exp" => Expr::Constant(Constant::E).power(self.function_argument()?),
            "log" | "lg" | "ln" => self.logarithm(name)?,
            "gcd" | "lcm" | "max" | "min" => {
                let function = match name {
                    "gcd" => Function::Gcd,
                    "lcm" => Function::Lcm,
                    "max" => Function::Max,
                    _ => Function::Min,
                };
                let close = match self.peek() {
                    Some(Token::Sign('(')) => ')',
                    Some(Token::Sign('[')) => ']',
                    Some(Token::Sign('{')) => '}',
                    _ => return Err(Stop::Unreadable),
                };
                self.at += 1;
                Expr::Call(function, self.arguments(close)?)
            }
            "floor" => Expr::Call(Function::Floor, vec![self.function_argument()?]),
            "ceil" => Expr::Call(Function::Ceil, vec![self.function_argument()?]),
            "abs" => Expr::Call(Function::Abs, vec![self.function_argument()?]),
            "sum" | "prod" => self.series(name == "prod")?,
            "ldots" | "cdots" | "dots" | "dotsc" => Expr::Symbol("\\ldots".into()),
            _ => match (trigonometric(name), area(name)) {
                (Some(function), _) => self.trigonometry(function)?,
                (_, Some(function)) => {
                    let x = self.function_argument()?;
                    self.inverse_hyperbolic(function, x)?
                }
                _ => return Err(Stop::Unreadable),
            },
        })
    }

    /// What a function without brackets is of: `2x` in `\sin 2x + 1`.
    pub(super) fn function_argument(&mut self) -> Parsed {
        if self.is_sign('(') || self.peek() == Some(&Token::Open) {
            return self.argument();
        }
        let mut factors = Vec::new();
        if self.eat('-') {
            factors.push(Expr::integer(-1));
        }
        factors.push(self.factor()?);
        while let Some(token) = self.peek() {
            let next = match token {
                Token::Number(_) | Token::Letter(_) | Token::Word(_) => true,
                Token::Command(name) => matches!(*name, "frac" | "dfrac" | "tfrac" | "sqrt"),
                _ => false,
            };
            if next {
                factors.push(self.factor()?);
            } else if self.is_sign('/') {
                self.at += 1;
                let by = self.factor()?;
                factors.push(Expr::integer(1).divide(by));
            } else {
                break;
            }
        }
        Ok(Expr::product(factors))
    }

    /// `\sin^2 x`, `\sin^{-1} x`.
    pub(super) fn trigonometry(&mut self, function: Function) -> Parsed {
        let exponent = match self.eat('^') {
            true => Some(self.exponent()?),
            false => None,
        };
        let argument = self.function_argument()?;
        match exponent {
            Some(Expr::Number(n)) if n == -BigRational::one() => {
                if matches!(function, Function::Sinh | Function::Cosh | Function::Tanh) {
                    return self.inverse_hyperbolic(function, argument);
                }
                let inverse = match function {
                    Function::Sin => Function::Arcsin,
                    Function::Cos => Function::Arccos,
                    Function::Tan => Function::Arctan,
                    Function::Cot => Function::Arccot,
                    _ => return Err(Stop::Unreadable),
                };
                Ok(Expr::Call(inverse, vec![argument]))
            }
            Some(exponent) => Ok(Expr::Call(function, vec![argument]).power(exponent)),
            None => Ok(Expr::Call(function, vec![argument])),
        }
    }

    /// Paid by the argument's size, which each nesting doubles.
    fn inverse_hyperbolic(&self, function: Function, x: Expr) -> Parsed {
        self.budget.spend(x.size() * 8)?;
        Ok(inverse_hyperbolic(function, x))
    }

    /// Logarithms as quotients of natural ones; `\log` alone has base 10.
    pub(super) fn logarithm(&mut self, name: &str) -> Parsed {
        let mut exponent = None;
        let mut base = match name {
            "ln" => None,
            _ => Some(Expr::integer(10)),
        };
        loop {
            if self.eat('_') {
                base = Some(self.argument()?);
            } else if self.eat('^') {
                exponent = Some(self.exponent()?);
            } else {
                break;
            }
        }
        let argument = self.function_argument()?;
        let ln = |of: Expr| Expr::Call(Function::Ln, vec![of]);
        let value = match base {
            Some(base) => ln(argument).divide(ln(base)),
            None => ln(argument),
        };
        Ok(match exponent {
            Some(exponent) => value.power(exponent),
            None => value,
        })
    }

    /// `\sum_{k=1}^{10} k`, written out.
    pub(super) fn series(&mut self, product: bool) -> Parsed {
        self.expect(&Token::Sign('_'))?;
        self.expect(&Token::Open)?;
        let Some(Token::Letter(name)) = self.peek().cloned() else {
            return Err(Stop::Unreadable);
        };
        self.at += 1;
        self.expect(&Token::Sign('='))?;
        let from = self.sum()?;
        self.expect(&Token::Close)?;
        self.expect(&Token::Sign('^'))?;
        let to = self.argument()?;
        let body = self.product()?;
        let (Some(from), Some(to)) = (small_integer(&from), small_integer(&to)) else {
            return Err(Stop::Unreadable);
        };
        let count = (to - from + 1).max(0) as usize;
        self.budget
            .spend(count.saturating_mul(body.size()).saturating_mul(8))?;
        // The index may be called i, which elsewhere is the imaginary unit.
        let terms = (from..=to).map(|k| match name.as_str() {
            "i" => replace_unit(&body, &Expr::integer(k)),
            name => body.substitute(name, &Expr::integer(k)),
        });
        Ok(match product {
            true => Expr::product(terms.collect()),
            false => Expr::sum(terms.collect()),
        })
    }

    /// Rows and columns up to the environment's end.
    pub(super) fn matrix(&mut self, name: &str) -> Parsed {
        if !matches!(
            name,
            "pmatrix" | "bmatrix" | "Bmatrix" | "matrix" | "smallmatrix" | "array"
        ) {
            return Err(Stop::Unreadable);
        }
        let bars = std::mem::take(&mut self.bars);
        let mut rows = vec![Vec::new()];
        loop {
            self.budget.spend(8)?;
            match self.peek() {
                Some(Token::End) => break,
                Some(Token::Row) => {
                    self.at += 1;
                    rows.push(Vec::new());
                }
                Some(Token::Sign('&')) => self.at += 1,
                Some(_) => {
                    let entry = self.sum()?;
                    if let Some(row) = rows.last_mut() {
                        row.push(entry);
                    }
                }
                None => return Err(Stop::Unreadable),
            }
        }
        self.at += 1;
        self.bars = bars;
        rows.retain(|row: &Vec<Expr>| !row.is_empty());
        let even = rows.windows(2).all(|pair| pair[0].len() == pair[1].len());
        match even && !rows.is_empty() {
            true => Ok(Expr::Matrix(rows)),
            false => Err(Stop::Unreadable),
        }
    }
}

fn small_integer(expr: &Expr) -> Option<i64> {
    let number = expr.as_number()?;
    let (value, rest) = number.numer().div_rem(number.denom());
    let value = value.to_i64()?;
    (rest.is_zero() && value.abs() <= 100_000).then_some(value)
}

fn replace_unit(expr: &Expr, value: &Expr) -> Expr {
    match expr {
        Expr::Constant(Constant::I) => value.clone(),
        other => other.map(&mut |part| replace_unit(part, value)),
    }
}

fn trigonometric(name: &str) -> Option<Function> {
    Some(match name {
        "sin" => Function::Sin,
        "cos" => Function::Cos,
        "tan" | "tg" => Function::Tan,
        "cot" | "ctg" => Function::Cot,
        "sec" => Function::Sec,
        "csc" | "cosec" => Function::Csc,
        "arcsin" | "asin" => Function::Arcsin,
        "arccos" | "acos" => Function::Arccos,
        "arctan" | "atan" | "arctg" => Function::Arctan,
        "arccot" | "arcctg" => Function::Arccot,
        "sinh" => Function::Sinh,
        "cosh" => Function::Cosh,
        "tanh" => Function::Tanh,
        _ => return None,
    })
}

/// The hyperbolic function that a name inverts.
fn area(name: &str) -> Option<Function> {
    Some(match name {
        "arsinh" | "arcsinh" | "asinh" => Function::Sinh,
        "arcosh" | "arccosh" | "acosh" => Function::Cosh,
        "artanh" | "arctanh" | "atanh" => Function::Tanh,
        _ => return None,
    })
}

/// Inverse hyperbolic functions as the logarithms that they are.
fn inverse_hyperbolic(function: Function, x: Expr) -> Expr {
    let ln = |of: Expr| Expr::Call(Function::Ln, vec![of]);
    let one = || Expr::integer(1);
    if function == Function::Tanh {
        let above = Expr::sum(vec![one(), x.clone()]);
        let below = Expr::sum(vec![one(), x.negate()]);
        return ln(above.divide(below)).divide(Expr::integer(2));
    }
    let square = x.clone().power(Expr::integer(2));
    let unit = match function {
        Function::Sinh => one(),
        _ => Expr::integer(-1),
    };
    let radicand = Expr::sum(vec![square, unit]);
    let root = Expr::Call(Function::Root, vec![radicand, Expr::integer(2)]);
    ln(Expr::sum(vec![x, root]))
}
