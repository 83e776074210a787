//! Tokens as an expression: precedence, juxtaposition, functions, fractions.

use num_rational::BigRational;
use num_traits::{One, Signed, Zero};

use super::budget::{Budget, DEEPEST, Stop};
use super::exact;
use super::lex::Token;
use super::tree::{Constant, Expr, Function};

/// What a reading gives.
pub(super) type Parsed = Result<Expr, Stop>;

/// Reads all of `tokens` as one expression.
pub fn parse(tokens: &[Token], depth: usize, budget: &Budget) -> Parsed {
    let mut parser = Parser {
        tokens,
        at: 0,
        depth,
        bars: 0,
        budget,
    };
    let expr = parser.stacked()?;
    match parser.at == tokens.len() {
        true => Ok(expr),
        false => Err(Stop::Unreadable),
    }
}

/// The reading of one expression.
pub(super) struct Parser<'a> {
    pub(super) tokens: &'a [Token],
    pub(super) at: usize,
    depth: usize,
    /// Open bars of absolute values: the next one closes.
    pub(super) bars: usize,
    pub(super) budget: &'a Budget,
}

impl Parser<'_> {
    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    pub(super) fn is_sign(&self, sign: char) -> bool {
        self.peek() == Some(&Token::Sign(sign))
    }

    pub(super) fn eat(&mut self, sign: char) -> bool {
        let found = self.is_sign(sign);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, token: &Token) -> Result<(), Stop> {
        if self.peek() != Some(token) {
            return Err(Stop::Unreadable);
        }
        self.at += 1;
        Ok(())
    }

    pub(super) fn sum(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Stop::Budget);
        }
        let mut terms = Vec::new();
        loop {
            self.budget.spend(8)?;
            let mut sign = Some('+');
            let mut negative = false;
            let mut read = false;
            while let Some(Token::Sign(c @ ('+' | '-' | '±' | '∓'))) = self.peek() {
                match c {
                    '-' => negative = !negative,
                    '+' => {}
                    c => sign = Some(*c),
                }
                read = true;
                self.at += 1;
            }
            if !read && !terms.is_empty() {
                break;
            }
            let mut term = self.product()?;
            if let Some(c @ ('±' | '∓')) = sign {
                term = Expr::PlusMinus {
                    of: Box::new(term),
                    flipped: c == '∓',
                };
            }
            terms.push(if negative { term.negate() } else { term });
            sign.take();
        }
        self.depth -= 1;
        self.pay_folding(&terms)?;
        Ok(Expr::sum(terms))
    }

    pub(super) fn product(&mut self) -> Parsed {
        let mut factors = vec![self.factor()?];
        if let Some(mixed) = self.mixed_number(&factors[0])? {
            factors = vec![mixed];
        }
        loop {
            self.budget.spend(4)?;
            match self.peek() {
                Some(Token::Sign('*')) => {
                    self.at += 1;
                    let factor = self.signed_factor()?;
                    factors.push(factor);
                }
                Some(Token::Sign('/' | '÷')) => {
                    self.at += 1;
                    let by = self.signed_factor()?;
                    factors.push(Expr::integer(1).divide(by));
                }
                Some(Token::Command("bmod" | "mod")) => {
                    self.at += 1;
                    self.budget.spend(1_000)?;
                    let by = self.factor()?;
                    let left = Expr::product(std::mem::take(&mut factors));
                    factors.push(Expr::Call(Function::Mod, vec![left, by]));
                }
                Some(token) if self.starts_factor(token) => {
                    // Two numbers side by side are a slip or a list, not a product.
                    if matches!(token, Token::Number(_)) && self.after_number() {
                        return Err(Stop::Unreadable);
                    }
                    factors.push(self.factor()?);
                }
                _ => break,
            }
        }
        self.pay_folding(&factors)?;
        Ok(Expr::product(factors))
    }

    /// Takes the steps of folding the numbers among some parts into one: a
    /// greatest common divisor each, a step a bit.
    fn pay_folding(&self, parts: &[Expr]) -> Result<(), Stop> {
        let numbers = parts.iter().filter_map(Expr::as_number);
        let bits: u64 = numbers.map(exact::bits).sum();
        match parts.len() {
            0 | 1 => Ok(()),
            _ => self.budget.spend(bits.min(4096) as usize),
        }
    }

    /// One over the other.
    pub(super) fn quotient(&self, top: Expr, bottom: Expr) -> Parsed {
        let parts = [top, bottom];
        self.pay_folding(&parts)?;
        let [top, bottom] = parts;
        Ok(top.divide(bottom))
    }

    fn after_number(&self) -> bool {
        matches!(
            self.tokens.get(self.at.wrapping_sub(1)),
            Some(Token::Number(_))
        )
    }

    fn starts_factor(&self, token: &Token) -> bool {
        match token {
            Token::Number(_) | Token::Letter(_) | Token::Word(_) | Token::Text(_) => true,
            Token::Open | Token::Begin(_) => true,
            Token::Command(name) => {
                !matches!(*name, "over" | "choose" | "pmod" | "circ" | "forall")
            }
            Token::Sign('(' | '[' | '⌊' | '⌈' | '{') => true,
            Token::Sign('|') => self.bars == 0,
            _ => false,
        }
    }

    /// `-x` after an operator.
    fn signed_factor(&mut self) -> Parsed {
        let negative = self.signs();
        let factor = self.factor()?;
        Ok(if negative { factor.negate() } else { factor })
    }

    /// Reads signs; whether they make a minus.
    fn signs(&mut self) -> bool {
        let mut negative = false;
        while let Some(Token::Sign(c @ ('+' | '-'))) = self.peek() {
            negative ^= *c == '-';
            self.at += 1;
        }
        negative
    }

    /// `1\frac{1}{2}` and `7 3/4`, whose integer has just been read.
    fn mixed_number(&mut self, whole: &Expr) -> Result<Option<Expr>, Stop> {
        let (Expr::Number(whole), Some(Token::Number(before))) =
            (whole, self.tokens.get(self.at.wrapping_sub(1)))
        else {
            return Ok(None);
        };
        if !before.integer || whole.is_negative() {
            return Ok(None);
        }
        let start = self.at;
        let fraction = match self.peek() {
            Some(Token::Command("frac" | "dfrac" | "tfrac" | "cfrac")) => {
                self.at += 1;
                let [top, bottom] = [self.argument()?, self.argument()?];
                let proper = proper(&top, &bottom);
                // Not read again where nothing can stand behind it: each
                // nesting would double the work.
                let plain = matches!(
                    self.peek(),
                    None | Some(Token::Close | Token::Sign('+' | '-' | '*' | ')' | ',' | '='))
                );
                if proper.is_none() && plain {
                    let fraction = self.quotient(top, bottom)?;
                    return Ok(Some(Expr::product(vec![
                        Expr::Number(whole.clone()),
                        fraction,
                    ])));
                }
                proper
            }
            Some(Token::Number(top)) if top.integer => {
                let top = Expr::Number(top.value.clone());
                match (self.tokens.get(self.at + 1), self.tokens.get(self.at + 2)) {
                    (Some(Token::Sign('/')), Some(Token::Number(bottom))) if bottom.integer => {
                        let bottom = Expr::Number(bottom.value.clone());
                        self.at += 3;
                        proper(&top, &bottom)
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        match fraction {
            Some(fraction) => Ok(Some(Expr::Number(whole + fraction))),
            None => {
                self.at = start;
                Ok(None)
            }
        }
    }

    /// An atom with its powers, factorials and signs behind it.
    pub(super) fn factor(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Stop::Budget);
        }
        self.budget.spend(8)?;
        let mut base = self.atom()?;
        // Each sign behind nests what stands before it.
        let depth = self.depth;
        loop {
            self.depth += 1;
            if self.depth > DEEPEST {
                return Err(Stop::Budget);
            }
            match self.peek() {
                Some(Token::Sign('^')) => {
                    self.at += 1;
                    if self.peek().is_none() {
                        // "90^": a degree sign that lost its circle.
                        break;
                    }
                    let exponent = self.exponent()?;
                    base = base.power(exponent);
                }
                Some(Token::Sign('!')) => {
                    self.at += 1;
                    base = Expr::Call(Function::Factorial, vec![base]);
                }
                Some(Token::Sign('°')) => {
                    self.at += 1;
                    base = Expr::product(vec![base, Expr::Constant(Constant::Degree)]);
                    base = self.minutes(base)?;
                }
                Some(Token::Sign('%')) => {
                    self.at += 1;
                    base = base.divide(Expr::integer(100));
                }
                _ => break,
            }
        }
        self.depth = depth - 1;
        Ok(base)
    }

    /// `42'` behind degrees.
    fn minutes(&mut self, degrees: Expr) -> Parsed {
        let (Some(Token::Number(minutes)), Some(Token::Sign('\''))) =
            (self.peek(), self.tokens.get(self.at + 1))
        else {
            return Ok(degrees);
        };
        let part = minutes.value.clone() / BigRational::from_integer(60.into());
        self.at += 2;
        let part = Expr::product(vec![Expr::Number(part), Expr::Constant(Constant::Degree)]);
        Ok(Expr::sum(vec![degrees, part]))
    }

    pub(super) fn exponent(&mut self) -> Parsed {
        let negative = self.signs();
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Stop::Budget);
        }
        let mut base = self.atom()?;
        if self.eat('^') {
            let exponent = self.exponent()?;
            base = base.power(exponent);
        }
        self.depth -= 1;
        Ok(if negative { base.negate() } else { base })
    }

    /// An argument in braces, or one token.
    pub(super) fn argument(&mut self) -> Parsed {
        match self.peek() {
            Some(Token::Open) => self.group(),
            Some(Token::Sign('-')) => {
                self.at += 1;
                match self.is_sign('-') {
                    true => Err(Stop::Unreadable),
                    false => Ok(self.argument()?.negate()),
                }
            }
            _ => {
                self.depth += 1;
                if self.depth > DEEPEST {
                    return Err(Stop::Budget);
                }
                let atom = self.atom();
                self.depth -= 1;
                atom
            }
        }
    }

    /// `{...}`.
    fn group(&mut self) -> Parsed {
        self.expect(&Token::Open)?;
        let bars = std::mem::take(&mut self.bars);
        let inner = self.stacked()?;
        self.expect(&Token::Close)?;
        self.bars = bars;
        Ok(inner)
    }

    /// A sum, or one over the other: `a \over b`, `n \choose k`.
    fn stacked(&mut self) -> Parsed {
        let above = self.sum()?;
        let Some(Token::Command(name @ ("over" | "choose"))) = self.peek() else {
            return Ok(above);
        };
        let name = *name;
        self.at += 1;
        let below = self.sum()?;
        Ok(match name {
            "over" => above.divide(below),
            _ => Expr::Call(Function::Binomial, vec![above, below]),
        })
    }

    pub(super) fn enclosed(&mut self, close: char) -> Parsed {
        let bars = std::mem::take(&mut self.bars);
        let inner = self.sum()?;
        self.expect(&Token::Sign(close))?;
        self.bars = bars;
        Ok(inner)
    }

    fn atom(&mut self) -> Parsed {
        let token = self.peek().ok_or(Stop::Unreadable)?.clone();
        if token == Token::Open {
            return self.group();
        }
        self.at += 1;
        match token {
            Token::Number(number) => Ok(Expr::Number(number.value)),
            Token::Letter(name) => self.letter(name),
            Token::Word(word) => {
                if self.is_sign('_') {
                    let name = format!("{word}{}", self.subscript()?);
                    return Ok(Expr::Symbol(name));
                }
                Ok(spelt(&word))
            }
            Token::Text(text) => Ok(Expr::Text(super::words::key(&text))),
            Token::Sign('(') => self.enclosed(')'),
            Token::Sign('[') => self.enclosed(']'),
            Token::Sign('{') => self.enclosed('}'),
            Token::Sign('⌊') => Ok(Expr::Call(Function::Floor, vec![self.enclosed('⌋')?])),
            Token::Sign('⌈') => Ok(Expr::Call(Function::Ceil, vec![self.enclosed('⌉')?])),
            Token::Sign('|') => {
                self.bars += 1;
                let inner = self.sum()?;
                self.expect(&Token::Sign('|'))?;
                self.bars -= 1;
                Ok(Expr::Call(Function::Abs, vec![inner]))
            }
            Token::Begin(name) => self.matrix(&name),
            Token::Command(name) => self.command(name),
            _ => Err(Stop::Unreadable),
        }
    }

    fn letter(&mut self, name: String) -> Parsed {
        let mut name = name;
        if name == "C" && self.is_sign('_') {
            let start = self.at;
            if let Some(binomial) = self.combination()? {
                return Ok(binomial);
            }
            self.at = start;
        }
        if self.is_sign('_') {
            name.push_str(&self.subscript()?);
        }
        while self.is_sign('\'') {
            self.at += 1;
            name.push('\'');
        }
        let function = matches!(name.trim_end_matches('\''), "f" | "g" | "h");
        if function && self.is_sign('(') {
            self.at += 1;
            return Ok(Expr::Apply(name, self.arguments(')')?));
        }
        Ok(match name.as_str() {
            "e" => Expr::Constant(Constant::E),
            "i" => Expr::Constant(Constant::I),
            "\\pi" => Expr::Constant(Constant::Pi),
            _ => Expr::Symbol(name),
        })
    }

    /// `C_n^k`, where that can only be a number of combinations.
    fn combination(&mut self) -> Result<Option<Expr>, Stop> {
        self.at += 1;
        let below = self.argument()?;
        if !self.eat('^') {
            return Ok(None);
        }
        let above = self.argument()?;
        let fits = match (&below, &above) {
            (Expr::Number(n), Expr::Number(k)) => n >= k && *n > BigRational::one(),
            (Expr::Symbol(_) | Expr::Sum(_), Expr::Symbol(_) | Expr::Number(_)) => true,
            _ => false,
        };
        Ok(fits.then(|| Expr::Call(Function::Binomial, vec![below, above])))
    }

    /// `_{ab}` as text that becomes part of a name.
    fn subscript(&mut self) -> Result<String, Stop> {
        self.expect(&Token::Sign('_'))?;
        let mut name = String::from("_");
        let mut depth = 0usize;
        loop {
            let token = self.peek().ok_or(Stop::Unreadable)?;
            match token {
                Token::Open => depth += 1,
                Token::Close if depth == 0 => return Err(Stop::Unreadable),
                Token::Close => depth -= 1,
                Token::Number(number) => name.push_str(&number.value.to_string()),
                Token::Letter(text) | Token::Word(text) | Token::Text(text) => name.push_str(text),
                Token::Sign(c) => name.push(*c),
                Token::Command(text) => name.push_str(text),
                _ => return Err(Stop::Unreadable),
            }
            self.at += 1;
            self.budget.spend(2)?;
            if depth == 0 {
                return Ok(name);
            }
        }
    }
}

/// Bare letters in a formula: names in capitals, short ones as products.
fn spelt(word: &str) -> Expr {
    let capitals = word.chars().all(|c| c.is_ascii_uppercase());
    if capitals {
        return Expr::Symbol(word.to_string());
    }
    if word.len() > 4 || !word.is_ascii() {
        return Expr::Text(word.to_lowercase());
    }
    let letters = word.chars().map(|c| match c {
        'e' => Expr::Constant(Constant::E),
        'i' => Expr::Constant(Constant::I),
        c => Expr::Symbol(c.to_string()),
    });
    Expr::product(letters.collect())
}

/// A fraction of two positive integers below 1.
fn proper(top: &Expr, bottom: &Expr) -> Option<BigRational> {
    let (top, bottom) = (top.as_number()?, bottom.as_number()?);
    let fits = top.is_integer() && bottom.is_integer() && top.is_positive() && top < bottom;
    (fits && !bottom.is_zero()).then(|| top / bottom)
}
