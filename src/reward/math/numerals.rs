//! Literal numbers: thousands marks, repeating digits, exponents, bases.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Pow, Zero};

use super::budget::Stop;
use super::lex::{Lexer, Number, Token, closing_brace};

impl Lexer<'_> {
    /// A number with its marks, or digits in a base.
    pub(super) fn number(&mut self) -> Result<(), Stop> {
        let start = self.at;
        let spaced = self.spaced;
        if let Some((digits, base, end)) = self.based() {
            self.tokens.push(Token::Based { digits, base });
            self.at = end;
            return Ok(());
        }
        let mut digits = self.digits();
        self.budget.spend(digits.len() * digits.len() / 256)?;
        let mut integer = true;
        if (1..=3).contains(&digits.len()) && !digits.starts_with('0') {
            integer &= !self.thousands(&mut digits);
        }
        let whole = digits.len();
        let mut repeating = 0;
        if self.bytes.get(self.at) == Some(&b'.')
            && (self.digit(self.at + 1) || self.overline_at(self.at + 1).is_some() || whole > 0)
            && !self.rest().starts_with("...")
        {
            self.at += 1;
            integer = false;
            let mut fraction = self.digits();
            // 0.12\,345 and 3.141 592 are groups of a fraction; rare, not read.
            if let Some((repeated, end)) = self.overline_at(self.at) {
                repeating = repeated.len();
                fraction.push_str(&repeated);
                self.at = end;
            } else if let Some((period, end)) = self.repeats(&fraction) {
                fraction.push_str(&period);
                repeating = period.len();
                self.at = end;
            }
            digits.push_str(&fraction);
        }
        let decimals = digits.len() - whole;
        // Reducing a fraction is quadratic in its digits.
        self.budget.spend(if decimals > 0 {
            digits.len() * digits.len() / 64
        } else {
            0
        })?;
        let mut value = decimal(&digits, decimals, repeating)?;
        if let Some((exponent, end)) = self.exponent(repeating) {
            self.budget
                .spend(exponent.unsigned_abs().pow(2) as usize / 300)?;
            let power: BigInt = Pow::pow(BigInt::from(10), exponent.unsigned_abs());
            value = match exponent < 0 {
                true => value / BigRational::from(power),
                false => value * BigRational::from(power),
            };
            self.at = end;
            integer = false;
        }
        debug_assert!(self.at > start);
        self.tokens.push(Token::Number(Number {
            value,
            decimals,
            integer,
            spaced,
        }));
        Ok(())
    }

    /// `0.333...`, `0.1212\ldots` and, at the end of a text, `0.1(6)`: the
    /// digits that go on for ever and where that is said.
    fn repeats(&self, fraction: &str) -> Option<(String, usize)> {
        let rest = self.rest();
        if let Some(inner) = rest.strip_prefix('(') {
            let period = inner.strip_suffix(')')?;
            let fits =
                (1..=6).contains(&period.len()) && period.bytes().all(|b| b.is_ascii_digit());
            return fits.then(|| (period.to_string(), self.text.len()));
        }
        let dots = ["...", "\\ldots", "\\dots", "\\cdots"]
            .iter()
            .find(|dots| rest.starts_with(**dots))?;
        let end = self.at + dots.len();
        (1..=6)
            .map(|length| (length, length * if length == 1 { 3 } else { 2 }))
            .filter(|(_, seen)| *seen <= fraction.len())
            .find_map(|(length, seen)| {
                let tail = &fraction[fraction.len() - seen..];
                let period = &tail[..length];
                let again = tail
                    .as_bytes()
                    .chunks(length)
                    .all(|c| c == period.as_bytes());
                again.then(|| (period.to_string(), end))
            })
    }

    fn digits(&mut self) -> String {
        let rest = self.rest();
        let length = rest.bytes().take_while(u8::is_ascii_digit).count();
        let digits = rest[..length].to_string();
        self.at += length;
        digits
    }

    /// `1,234`, `1{,}234`, `1\,234`, `1 234`: the groups after the first, where
    /// all of them are of three digits.
    fn thousands(&mut self, digits: &mut String) -> bool {
        let start = self.at;
        let mut all = String::new();
        let mut style = None;
        while let Some((length, mark)) = self.thousands_mark() {
            let group = self.at + length;
            let three = (0..3).all(|i| self.digit(group + i));
            if !three || style.is_some_and(|style| style != mark) {
                break;
            }
            if self.digit(group + 3) {
                // 1,2345 is no group at all: what looked like one was a list.
                all.clear();
                self.at = start;
                break;
            }
            style = Some(mark);
            all.push_str(&self.text[group..group + 3]);
            self.at = group + 3;
        }
        // "1,234,5" is a list.
        if style == Some(Mark::Comma)
            && self.bytes.get(self.at) == Some(&b',')
            && self.digit(self.at + 1)
        {
            all.clear();
            self.at = start;
        }
        digits.push_str(&all);
        !all.is_empty()
    }

    fn thousands_mark(&self) -> Option<(usize, Mark)> {
        let rest = self.rest();
        if rest.starts_with("{,}") {
            return Some((3, Mark::Braced));
        }
        // A comma, then white space with a \! in it: ",\!" and ", \! ".
        if let Some(after) = rest.strip_prefix(',') {
            let space = after.len() - after.trim_start_matches([' ', '\\', '!']).len();
            if after[..space].contains("\\!") {
                return Some((1 + space, Mark::Braced));
            }
            if space == 0 && self.brackets == 0 {
                return Some((1, Mark::Comma));
            }
            return None;
        }
        for mark in ["\\,", "\\ ", "\\;", "\\:"] {
            if rest.starts_with(mark) {
                return Some((2, Mark::Space));
            }
        }
        // A plain space before three digits, but not before a fraction's.
        let three = rest.starts_with(' ') && (1..=3).all(|i| self.digit(self.at + i));
        let fraction = self.bytes.get(self.at + 4) == Some(&b'/');
        (three && !fraction).then_some((1, Mark::Space))
    }

    /// `\overline{3}` (also `\bar`, or with a single digit) at `at`.
    fn overline_at(&self, at: usize) -> Option<(String, usize)> {
        let rest = self.text.get(at..)?;
        let name = ["\\overline", "\\bar", "\\dot"]
            .into_iter()
            .find(|name| rest.starts_with(name))?;
        let after = rest[name.len()..].trim_start();
        let skipped = rest.len() - after.len();
        let (digits, length) = match after.strip_prefix('{') {
            Some(inner) => {
                let end = inner.find('}')?;
                (inner[..end].trim(), end + 2)
            }
            None => (after.get(..1)?, 1),
        };
        (!digits.is_empty() && digits.len() <= 200 && digits.bytes().all(|b| b.is_ascii_digit()))
            .then(|| (digits.to_string(), at + skipped + length))
    }

    /// `E-3`: the exponent and where it ends.
    fn exponent(&self, repeating: usize) -> Option<(i32, usize)> {
        let rest = self.rest().as_bytes();
        if repeating > 0 || !matches!(rest.first(), Some(b'e' | b'E')) {
            return None;
        }
        let signed = matches!(rest.get(1), Some(b'-' | b'+'));
        let from = 1 + usize::from(signed);
        let digits = rest[from..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count();
        if !(1..=3).contains(&digits) || (rest[0] == b'e' && !signed && digits == 0) {
            return None;
        }
        let end = self.at + from + digits;
        if self
            .bytes
            .get(end)
            .is_some_and(|b| b.is_ascii_alphabetic() || *b == b'.')
        {
            return None;
        }
        let value: i32 = self.text[self.at + from..end].parse().ok()?;
        Some((if rest[1] == b'-' { -value } else { value }, end))
    }

    /// `\text{A5}_{11}`, whose text has been read: the digits with their base.
    pub(super) fn based_behind(&mut self, digits: &str) -> bool {
        let digits = digits.trim();
        let Some((base, end)) = base_at(self.text, self.at) else {
            return false;
        };
        let fits = digits
            .chars()
            .all(|c| c.to_digit(36).is_some_and(|digit| digit < base));
        if fits && digits.bytes().any(|b| b.is_ascii_digit()) {
            let digits = digits.to_ascii_uppercase();
            self.tokens.push(Token::Based { digits, base });
            self.at = end;
            return true;
        }
        false
    }

    /// `(204)_5`: reads it, if that is what stands here.
    pub(super) fn based_in_brackets(&mut self) -> bool {
        let inner = &self.rest()[1..];
        let Some(close) = inner.find(')').filter(|close| *close <= 64) else {
            return false;
        };
        let digits = inner[..close].trim();
        let (start, inner) = (self.at, digits.to_string());
        self.at += close + 2;
        let read = self.based_behind(&inner);
        if !read {
            self.at = start;
        }
        read
    }

    /// `204_5`, `2E5_{16}`, `101_{\text{two}}` at the reading point.
    pub(super) fn based(&self) -> Option<(String, u32, usize)> {
        let rest = self.rest();
        let length = rest
            .bytes()
            .take_while(|b| b.is_ascii_alphanumeric() || *b == b'.')
            .count();
        let (base, end) = base_at(self.text, self.at + length)?;
        let digits = &rest[..length];
        let fits = digits
            .chars()
            .all(|c| c == '.' || c.to_digit(36).is_some_and(|digit| digit < base));
        (fits && digits.bytes().any(|b| b.is_ascii_digit()))
            .then(|| (digits.to_ascii_uppercase(), base, end))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    Comma,
    Braced,
    Space,
}

/// A subscript at `at` that is a base: its value and its end.
pub(super) fn base_at(text: &str, at: usize) -> Option<(u32, usize)> {
    let rest = text.get(at..)?;
    let after = rest.strip_prefix('_')?;
    let (content, end) = match after.starts_with('{') {
        true => {
            let close = closing_brace(after)?;
            (&after[1..close], at + 1 + close + 1)
        }
        false => {
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            // x_12 is x_1 times 2 to TeX, but a base has two digits at times.
            (after.get(..digits)?, at + 1 + digits)
        }
    };
    base_value(content).map(|base| (base, end))
}

/// `5`, `\text{5}`, `five`, `\text{five}`: a base from 2 to 36.
pub(super) fn base_value(content: &str) -> Option<u32> {
    let inner: String = content
        .replace("\\text", "")
        .replace("\\mathrm", "")
        .chars()
        .filter(|c| c.is_alphanumeric())
        .collect();
    let base = inner
        .parse()
        .ok()
        .or_else(|| super::words::small_number(&inner.to_lowercase()))?;
    (2..=36).contains(&base).then_some(base)
}

/// The value of digits with `decimals` behind the point, the last `repeating`
/// of them for ever.
fn decimal(digits: &str, decimals: usize, repeating: usize) -> Result<BigRational, Stop> {
    let parse = |digits: &str| -> Result<BigInt, Stop> {
        match digits {
            "" => Ok(BigInt::zero()),
            // The common case without the general parser.
            _ if digits.len() <= 18 => digits
                .parse::<i64>()
                .map(BigInt::from)
                .map_err(|_| Stop::Unreadable),
            _ => digits.parse().map_err(|_| Stop::Unreadable),
        }
    };
    let ten = |power: usize| -> BigInt { Pow::pow(BigInt::from(10), power) };
    if decimals == 0 {
        return Ok(BigRational::from(parse(digits)?));
    }
    if repeating == 0 {
        return Ok(BigRational::new(parse(digits)?, ten(decimals)));
    }
    // 0.1666...: (166... - 16...) over 9 and zeros.
    let fixed = parse(&digits[..digits.len() - repeating])?;
    let denominator = (ten(repeating) - BigInt::one()) * ten(decimals - repeating);
    Ok(BigRational::new(parse(digits)? - fixed, denominator))
}
