//! What a text means: an answer, made of expressions.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Signed, Zero};

use super::exact;
use super::words::Unit;

/// A constant with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Constant {
    Pi,
    E,
    I,
    Infinity,
    /// The degree sign: 1, or pi/180 where an angle is needed.
    Degree,
}

/// A function of one or more arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Function {
    /// The real root where there is one: arguments radicand and index.
    Root,
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Arcsin,
    Arccos,
    Arctan,
    Arccot,
    Sinh,
    Cosh,
    Tanh,
    Ln,
    Abs,
    Floor,
    Ceil,
    Factorial,
    Binomial,
    Gcd,
    Lcm,
    Max,
    Min,
    Mod,
}

/// An expression of values.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    Number(BigRational),
    Constant(Constant),
    /// A variable, by name.
    Symbol(String),
    /// Words in a formula: equal to themselves and to nothing else.
    Text(String),
    Sum(Vec<Expr>),
    Product(Vec<Expr>),
    Power(Box<Expr>, Box<Expr>),
    Call(Function, Vec<Expr>),
    /// `f(x)` of a function that nobody defined.
    Apply(String, Vec<Expr>),
    /// Either sign; `flipped` for the lower one first.
    PlusMinus {
        of: Box<Expr>,
        flipped: bool,
    },
    Matrix(Vec<Vec<Expr>>),
}

impl Expr {
    /// An integer.
    pub fn integer(value: i64) -> Expr {
        Expr::Number(BigRational::from(BigInt::from(value)))
    }

    /// The number this is, if it is written as one.
    pub fn as_number(&self) -> Option<&BigRational> {
        match self {
            Expr::Number(value) => Some(value),
            _ => None,
        }
    }

    /// Terms added, numbers folded, nested sums opened.
    pub fn sum(terms: Vec<Expr>) -> Expr {
        let mut number = BigRational::zero();
        let mut rest = Vec::with_capacity(terms.len());
        let mut add = |term: Expr| match term {
            Expr::Number(value) if foldable(&number, &value) => exact::add(&mut number, value),
            term => rest.push(term),
        };
        for term in terms {
            match term {
                Expr::Sum(inner) => inner.into_iter().for_each(&mut add),
                term => add(term),
            }
        }
        if let Some(matrix) = matrix_sum(&rest, &number) {
            return matrix;
        }
        if !number.is_zero() || rest.is_empty() {
            rest.push(Expr::Number(number));
        }
        match rest.len() {
            1 => rest.remove(0),
            _ => Expr::Sum(rest),
        }
    }

    /// Factors multiplied, numbers folded, nested products opened. A zero
    /// stays beside what it is multiplied with: that may not exist.
    pub fn product(factors: Vec<Expr>) -> Expr {
        let mut number = BigRational::one();
        let mut rest = Vec::with_capacity(factors.len());
        let mut matrix: Option<Vec<Vec<Expr>>> = None;
        let mut multiply = |factor: Expr| match factor {
            Expr::Number(value) if foldable(&number, &value) => exact::multiply(&mut number, value),
            Expr::Matrix(rows) if matrix.is_none() => matrix = Some(rows),
            factor => rest.push(factor),
        };
        for factor in factors {
            match factor {
                Expr::Product(inner) => inner.into_iter().for_each(&mut multiply),
                factor => multiply(factor),
            }
        }
        if let Some(rows) = matrix {
            // Each entry takes a copy of the factors: those must be few.
            let heavy = rest.iter().map(Expr::size).sum::<usize>() > 64;
            if heavy || rest.iter().any(|factor| matches!(factor, Expr::Matrix(_))) {
                rest.push(Expr::Matrix(rows));
                return Expr::Product(rest);
            }
            let scale = |entry: Expr| {
                let mut factors = vec![Expr::Number(number.clone()), entry];
                factors.extend(rest.iter().cloned());
                Expr::product(factors)
            };
            let scaled = |row: Vec<Expr>| row.into_iter().map(scale).collect();
            return Expr::Matrix(rows.into_iter().map(scaled).collect());
        }
        if !number.is_one() || rest.is_empty() {
            rest.insert(0, Expr::Number(number));
        }
        match rest.len() {
            1 => rest.remove(0),
            _ => Expr::Product(rest),
        }
    }

    /// The negative.
    pub fn negate(self) -> Expr {
        Expr::product(vec![Expr::integer(-1), self])
    }

    /// One over the other. A zero below stays, for the evaluation to refuse.
    pub fn divide(self, by: Expr) -> Expr {
        Expr::product(vec![self, by.power(Expr::integer(-1))])
    }

    /// To the power of `exponent`.
    pub fn power(self, exponent: Expr) -> Expr {
        if let (Expr::Number(base), Expr::Number(exponent)) = (&self, &exponent) {
            if exponent.is_one() {
                return self;
            }
            if !base.is_zero() && *exponent == -BigRational::one() {
                return Expr::Number(base.recip());
            }
        }
        Expr::Power(Box::new(self), Box::new(exponent))
    }

    /// Direct parts.
    pub fn children(&self) -> Vec<&Expr> {
        match self {
            Expr::Sum(list) | Expr::Product(list) | Expr::Call(_, list) | Expr::Apply(_, list) => {
                list.iter().collect()
            }
            Expr::Power(base, exponent) => vec![base, exponent],
            Expr::PlusMinus { of, .. } => vec![of],
            Expr::Matrix(rows) => rows.iter().flatten().collect(),
            Expr::Number(_) | Expr::Constant(_) | Expr::Symbol(_) | Expr::Text(_) => Vec::new(),
        }
    }

    /// The same expression with `change` applied to each direct part.
    pub fn map(&self, change: &mut dyn FnMut(&Expr) -> Expr) -> Expr {
        let mut list = |list: &[Expr]| -> Vec<Expr> { list.iter().map(&mut *change).collect() };
        match self {
            Expr::Sum(terms) => Expr::sum(list(terms)),
            Expr::Product(factors) => Expr::product(list(factors)),
            Expr::Call(function, args) => Expr::Call(*function, list(args)),
            Expr::Apply(name, args) => Expr::Apply(name.clone(), list(args)),
            Expr::Power(base, exponent) => {
                let base = change(base);
                base.power(change(exponent))
            }
            Expr::PlusMinus { of, flipped } => Expr::PlusMinus {
                of: Box::new(change(of)),
                flipped: *flipped,
            },
            Expr::Matrix(rows) => Expr::Matrix(rows.iter().map(|row| list(row)).collect()),
            leaf => leaf.clone(),
        }
    }

    /// Whether any part satisfies `test`.
    pub fn any(&self, test: &dyn Fn(&Expr) -> bool) -> bool {
        test(self) || self.children().into_iter().any(|part| part.any(test))
    }

    /// Every part a step.
    pub fn size(&self) -> usize {
        1 + self.children().into_iter().map(Expr::size).sum::<usize>()
    }

    /// With every `name` replaced.
    pub fn substitute(&self, name: &str, value: &Expr) -> Expr {
        match self {
            Expr::Symbol(symbol) if symbol == name => value.clone(),
            other => other.map(&mut |part| part.substitute(name, value)),
        }
    }

    /// Names of variables, sorted, each once.
    pub fn symbols(&self) -> Vec<String> {
        fn collect(expr: &Expr, into: &mut Vec<String>) {
            match expr {
                Expr::Symbol(name) => into.push(name.clone()),
                other => {
                    for part in other.children() {
                        collect(part, into);
                    }
                }
            }
        }
        let mut names = Vec::new();
        collect(self, &mut names);
        names.sort();
        names.dedup();
        names
    }

    /// Whether it is minus or plus infinity: -1, 1, or 0 for neither.
    pub fn infinite(&self) -> i32 {
        match self {
            Expr::Constant(Constant::Infinity) => 1,
            Expr::Product(factors) => match factors.as_slice() {
                [Expr::Number(n), Expr::Constant(Constant::Infinity)] if n.is_negative() => -1,
                [Expr::Number(_), Expr::Constant(Constant::Infinity)] => 1,
                _ => 0,
            },
            _ => 0,
        }
    }
}

/// Whether two numbers are short enough to be folded while a tree is built,
/// where nothing counts the steps.
fn foldable(a: &BigRational, b: &BigRational) -> bool {
    exact::bits(a) + exact::bits(b) <= 128
}

/// Matrices of one shape added up, if that is what the terms are.
fn matrix_sum(terms: &[Expr], number: &BigRational) -> Option<Expr> {
    let mut rows = terms.iter().map(|term| match term {
        Expr::Matrix(rows) => Some(rows),
        _ => None,
    });
    let mut total = rows.next()??.clone();
    if !number.is_zero() {
        return None;
    }
    for matrix in rows {
        let matrix = matrix?;
        let same = total.len() == matrix.len()
            && total.iter().zip(matrix).all(|(a, b)| a.len() == b.len());
        if !same {
            return None;
        }
        for (entry, other) in total.iter_mut().flatten().zip(matrix.iter().flatten()) {
            *entry = Expr::sum(vec![entry.clone(), other.clone()]);
        }
    }
    Some(Expr::Matrix(total))
}

/// A relation between two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// a is congruent to b; the modulus is part of the right side.
    Congruent,
}

impl Sign {
    /// The sign read from the other side.
    pub fn flipped(self) -> Sign {
        match self {
            Sign::Less => Sign::Greater,
            Sign::LessEqual => Sign::GreaterEqual,
            Sign::Greater => Sign::Less,
            Sign::GreaterEqual => Sign::LessEqual,
            same => same,
        }
    }
}

/// What an answer is.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A value; `decimals` if it is written as one decimal number.
    Value {
        value: Expr,
        decimals: Option<usize>,
    },
    /// Words, as their key.
    Text(String),
    /// `204_5`.
    Based {
        digits: String,
        base: u32,
    },
    /// A value with what it is measured in.
    Quantity {
        value: Box<Answer>,
        unit: Unit,
    },
    /// `3:4`, `12:30`.
    Ratio(Vec<Expr>),
    /// Elements in brackets: a tuple, an interval, or a set for `{`.
    Bracketed {
        open: char,
        items: Vec<Answer>,
        close: char,
    },
    /// Elements without brackets, in no order. `or` where one of them is said
    /// to hold.
    List {
        items: Vec<Answer>,
        or: bool,
    },
    /// `a < b = c`: one more side than signs.
    Relation {
        sides: Vec<Answer>,
        signs: Vec<Sign>,
    },
    /// `x \equiv 3 \pmod 7`, without its x.
    Congruence {
        residue: Expr,
        modulus: Expr,
    },
    /// `x \in S`.
    Member(Box<Answer>, Box<Answer>),
    /// `\{x \mid ...\}`, as its condition.
    Builder(Box<Answer>),
    /// Sets joined, met and taken away.
    Union(Vec<Answer>),
    Intersection(Vec<Answer>),
    Difference(Box<Answer>, Box<Answer>),
    /// The real numbers.
    Reals,
    /// Another named set of numbers.
    Named(&'static str),
    Empty,
}

impl Answer {
    /// An expression as an answer.
    pub fn value(value: Expr) -> Answer {
        Answer::Value {
            value,
            decimals: None,
        }
    }
}
