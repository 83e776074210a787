//! A cleaned text as tokens: numbers with their thousands marks and repeating
//! digits, letters, words, commands.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Pow, Zero};

use super::budget::{Budget, Stop};

/// A piece of a formula.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Number(Number),
    /// `204_5`: digits and the base they are written in.
    Based {
        digits: String,
        base: u32,
    },
    /// One letter, or the name of a Greek one.
    Letter(String),
    /// Bare letters, two or more: `bh`, `odd`.
    Word(String),
    /// `\text{...}` with letters in it.
    Text(String),
    /// A named function or operator, without its backslash.
    Command(&'static str),
    /// An operator, a relation, a bracket; `{` and `}` are `\{` and `\}`.
    Sign(char),
    /// `{` and `}`: grouping.
    Open,
    Close,
    And,
    Or,
    /// `\\` in an environment.
    Row,
    Begin(String),
    End,
}

/// A literal number.
#[derive(Clone, Debug, PartialEq)]
pub struct Number {
    pub value: BigRational,
    /// Digits after the point.
    pub decimals: usize,
    /// Written without a point, marks or exponent.
    pub integer: bool,
    /// White space stands before it.
    pub spaced: bool,
}

/// Reads `text`, which `clean` has seen.
pub fn lex(text: &str, budget: &Budget) -> Result<Vec<Token>, Stop> {
    budget.spend(text.len() * 2)?;
    let mut lexer = Lexer {
        text,
        bytes: text.as_bytes(),
        at: 0,
        brackets: 0,
        spaced: false,
        tokens: Vec::with_capacity(text.len() / 2 + 4),
        budget,
        depth: 0,
    };
    lexer.run()?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// Open ( [ \{: a comma in them parts elements, not thousands.
    brackets: usize,
    spaced: bool,
    tokens: Vec<Token>,
    budget: &'a Budget,
    depth: usize,
}

impl Lexer<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        while let Some(&byte) = self.bytes.get(self.at) {
            match byte {
                b'\\' => self.command()?,
                b'0'..=b'9' => self.number()?,
                b'.' if self.digit(self.at + 1) => self.number()?,
                b'a'..=b'z' | b'A'..=b'Z' => self.word(),
                b' ' | b'~' => {
                    self.at += 1;
                    self.spaced = true;
                    continue;
                }
                b'{' => self.push_byte(Token::Open),
                b'}' => self.push_byte(Token::Close),
                b'.' if self.rest().starts_with("...") => {
                    self.tokens.push(Token::Command("ldots"));
                    self.at += 3;
                }
                b'<' | b'>' | b'!' if self.bytes.get(self.at + 1) == Some(&b'=') => {
                    self.tokens.push(Token::Sign(match byte {
                        b'<' => '≤',
                        b'>' => '≥',
                        _ => '≠',
                    }));
                    self.at += 2;
                }
                b'=' if self.bytes.get(self.at + 1) == Some(&b'=') => self.at += 1,
                b'*' if self.bytes.get(self.at + 1) == Some(&b'*') => {
                    self.tokens.push(Token::Sign('^'));
                    self.at += 2;
                }
                b'"' | b'`' => self.at += 1,
                _ => {
                    let c = self.rest().chars().next().ok_or(Stop::Unreadable)?;
                    if c.is_alphabetic() {
                        let rest = self.rest();
                        let end = rest
                            .find(|c: char| !c.is_alphanumeric())
                            .unwrap_or(rest.len());
                        self.tokens.push(Token::Word(rest[..end].to_string()));
                        self.at += end;
                    } else {
                        self.sign(c);
                        self.at += c.len_utf8();
                    }
                }
            }
            self.spaced = false;
        }
        Ok(())
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn digit(&self, at: usize) -> bool {
        self.bytes.get(at).is_some_and(u8::is_ascii_digit)
    }

    fn push_byte(&mut self, token: Token) {
        self.tokens.push(token);
        self.at += 1;
    }

    fn sign(&mut self, c: char) {
        match c {
            '(' | '[' | '{' => self.brackets += 1,
            ')' | ']' | '}' => self.brackets = self.brackets.saturating_sub(1),
            _ => {}
        }
        self.tokens.push(Token::Sign(c));
    }

    /// Letters in a row: a function's name, a connective, or a word.
    fn word(&mut self) {
        let rest = self.rest();
        let length = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let word = &rest[..length];
        let token = match word {
            "and" => Token::And,
            "or" => Token::Or,
            _ if length == 1 => Token::Letter(word.to_string()),
            _ => match FUNCTIONS.iter().find(|name| **name == word) {
                Some(name) => Token::Command(name),
                None => match word {
                    "pi" | "theta" | "alpha" | "beta" | "gamma" | "lambda" => letter(word),
                    "inf" | "infinity" | "oo" => Token::Command("infty"),
                    _ => Token::Word(word.to_string()),
                },
            },
        };
        self.tokens.push(token);
        self.at += length;
    }

    /// A number with its marks, or digits in a base.
    fn number(&mut self) -> Result<(), Stop> {
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

    /// `204_5`, `2E5_{16}`, `101_{\text{two}}` at the reading point.
    fn based(&self) -> Option<(String, u32, usize)> {
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

    fn command(&mut self) -> Result<(), Stop> {
        let rest = &self.text[self.at + 1..];
        let length = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        if length == 0 {
            let c = rest.chars().next().unwrap_or(' ');
            self.at += 1 + if rest.is_empty() { 0 } else { c.len_utf8() };
            match c {
                '{' | '}' | '%' | '|' => self.sign(c),
                '$' => self.tokens.push(Token::Sign('$')),
                '\\' => self.tokens.push(Token::Row),
                '&' | '#' | '_' => self.tokens.push(Token::Sign(c)),
                // \, \; \! \: and "\ " are space; \( \) \[ \] are dollars.
                _ => {}
            }
            return Ok(());
        }
        let name = &rest[..length];
        self.at += 1 + length;
        if let Some((_, signs)) = SIGNS.iter().find(|(known, _)| *known == name) {
            signs.chars().for_each(|c| self.sign(c));
            return Ok(());
        }
        if IGNORED.contains(&name) {
            // \left. and \right. are delimiters that are not there.
            if matches!(name, "left" | "right" | "mleft" | "mright")
                && self.rest().trim_start().starts_with('.')
            {
                let space = self.rest().len() - self.rest().trim_start().len();
                self.at += space + 1;
            }
            return Ok(());
        }
        match name {
            "text" | "textbf" | "textit" | "textrm" | "textnormal" | "texttt" | "textsf"
            | "mbox" | "hbox" | "emph" | "mathrm" | "mathbf" | "mathit" | "mathsf" | "mathtt"
            | "mathcal" | "boldsymbol" | "bm" | "underline" | "operatorname" | "boxed" | "fbox"
            | "mathop" | "pmb" | "textup" | "mathnormal" | "underset" => {
                if self.rest().starts_with('*') {
                    self.at += 1;
                }
                let words = name.starts_with("text") || matches!(name, "mbox" | "hbox" | "emph");
                match self.argument() {
                    Some(content) => self.styled(content, words)?,
                    None => return Ok(()),
                }
            }
            "color" | "textcolor" | "phantom" | "hphantom" | "vphantom" | "hspace" | "vspace"
            | "tag" | "label" | "colorbox" => {
                let _ = self.argument();
            }
            "mathbb" => {
                let set = self.argument().unwrap_or_default();
                let name = match set.trim() {
                    "R" => "Reals",
                    "Z" => "Integers",
                    "N" => "Naturals",
                    "Q" => "Rationals",
                    "C" => "Complexes",
                    _ => return Err(Stop::Unreadable),
                };
                self.tokens.push(Token::Command(name));
            }
            "begin" => {
                let name = self.argument().unwrap_or_default();
                let name = name.trim().trim_end_matches('*').to_string();
                if name == "array" {
                    let _ = self.argument();
                }
                self.tokens.push(Token::Begin(name));
            }
            "end" => {
                let _ = self.argument();
                self.tokens.push(Token::End);
            }
            "vec" | "hat" | "bar" | "overline" | "tilde" | "overrightarrow" | "dot" | "widehat"
            | "widetilde" => {
                // An accent makes another name of its letters.
                let content = self.argument().unwrap_or_default();
                let letters: String = content.chars().filter(|c| c.is_alphanumeric()).collect();
                let kind = match name {
                    "bar" | "overline" => "bar",
                    "overrightarrow" | "vec" => "vec",
                    other => other,
                };
                self.tokens.push(Token::Letter(format!("{kind} {letters}")));
            }
            "cancel" | "not" => return Err(Stop::Unreadable),
            _ => match FUNCTIONS.iter().find(|known| **known == name) {
                Some(known) => self.tokens.push(Token::Command(known)),
                None => self.tokens.push(letter(name)),
            },
        }
        Ok(())
    }

    /// The argument of a command, in braces or one character, consumed.
    fn argument(&mut self) -> Option<String> {
        let rest = self.rest();
        let trimmed = rest.trim_start();
        let skipped = rest.len() - trimmed.len();
        if !trimmed.starts_with('{') {
            // \mathbb R, \mathbf x, \mathbf\alpha.
            let length = match trimmed.strip_prefix('\\') {
                Some(name) => 1 + name.bytes().take_while(u8::is_ascii_alphabetic).count(),
                None => trimmed.chars().next()?.len_utf8(),
            };
            let content = trimmed[..length].to_string();
            self.at += skipped + length;
            return Some(content);
        }
        let end = closing_brace(trimmed)?;
        let content = trimmed[1..end].to_string();
        self.at += skipped + end + 1;
        Some(content)
    }

    /// What stands in `\text{}`, `\mathrm{}`, `\boxed{}` and their like.
    fn styled(&mut self, content: String, words: bool) -> Result<(), Stop> {
        let bare = content.trim();
        let bare = bare.trim_matches(',').trim();
        match bare {
            "and" | "or" => {
                self.tokens.push(match bare {
                    "and" => Token::And,
                    _ => Token::Or,
                });
                return Ok(());
            }
            _ => {}
        }
        let first_digit = bare.starts_with(|c: char| c.is_ascii_digit());
        let has_letters = bare.chars().any(char::is_alphabetic);
        let math = bare.contains('\\') || !words;
        let plain_words = bare
            .chars()
            .all(|c| c.is_alphabetic() || matches!(c, ' ' | '.' | '-' | '/' | '\''));
        if has_letters && plain_words && !bare.contains('\\') {
            if let Some(name) = FUNCTIONS.iter().find(|name| **name == bare) {
                self.tokens.push(Token::Command(name));
            } else if !words && bare.chars().count() == 1 {
                self.tokens.push(Token::Letter(bare.to_string()));
            } else {
                self.tokens.push(Token::Text(bare.to_string()));
            }
            return Ok(());
        }
        if has_letters && !math && !first_digit {
            self.tokens.push(Token::Text(bare.to_string()));
            return Ok(());
        }
        // Mathematics in another font: read in its place, grouped.
        self.depth += 1;
        if self.depth > 8 {
            return Err(Stop::Unreadable);
        }
        self.budget.spend(content.len() * 2)?;
        let mut inner = Lexer {
            text: &content,
            bytes: content.as_bytes(),
            at: 0,
            brackets: self.brackets,
            spaced: self.spaced,
            tokens: Vec::new(),
            budget: self.budget,
            depth: self.depth,
        };
        inner.run()?;
        self.depth -= 1;
        self.tokens.append(&mut inner.tokens);
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    Comma,
    Braced,
    Space,
}

/// A Greek letter, or any command without a meaning of its own: a name.
fn letter(name: &str) -> Token {
    let name = match name {
        "varepsilon" => "epsilon",
        "varphi" => "phi",
        "vartheta" => "theta",
        "varrho" => "rho",
        other => other,
    };
    Token::Letter(format!("\\{name}"))
}

/// The byte of the brace that closes the one `text` starts with.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if std::mem::take(&mut escaped) => {}
            b'\\' => escaped = true,
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
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

/// Functions and operators that the parser knows by name.
pub(super) const FUNCTIONS: &[&str] = &[
    "sqrt", "frac", "dfrac", "tfrac", "cfrac", "binom", "dbinom", "tbinom", "choose", "over",
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "asin",
    "acos", "atan", "sinh", "cosh", "tanh", "ln", "log", "lg", "exp", "gcd", "lcm", "max", "min",
    "floor", "ceil", "bmod", "mod", "pmod", "sum", "prod", "int", "lim", "infty", "abs", "circ",
    "ldots", "cdots", "forall", "sgn", "deg",
];

/// Commands that are signs.
const SIGNS: &[(&str, &str)] = &[
    ("cdot", "*"),
    ("times", "*"),
    ("ast", "*"),
    ("div", "÷"),
    ("pm", "±"),
    ("mp", "∓"),
    ("cup", "∪"),
    ("bigcup", "∪"),
    ("cap", "∩"),
    ("setminus", "∖"),
    ("backslash", "∖"),
    ("in", "∈"),
    ("le", "≤"),
    ("leq", "≤"),
    ("leqslant", "≤"),
    ("ge", "≥"),
    ("geq", "≥"),
    ("geqslant", "≥"),
    ("lt", "<"),
    ("gt", ">"),
    ("ne", "≠"),
    ("neq", "≠"),
    ("approx", "≈"),
    ("simeq", "≈"),
    ("sim", "≈"),
    ("mid", "|"),
    ("vert", "|"),
    ("lvert", "|"),
    ("rvert", "|"),
    ("Vert", "|"),
    ("lbrace", "{"),
    ("rbrace", "}"),
    ("lbrack", "["),
    ("rbrack", "]"),
    ("lparen", "("),
    ("rparen", ")"),
    ("lgroup", "("),
    ("rgroup", ")"),
    ("langle", "⟨"),
    ("rangle", "⟩"),
    ("lfloor", "⌊"),
    ("rfloor", "⌋"),
    ("llcorner", "⌊"),
    ("lrcorner", "⌋"),
    ("lceil", "⌈"),
    ("rceil", "⌉"),
    ("ulcorner", "⌈"),
    ("urcorner", "⌉"),
    ("colon", ":"),
    ("prime", "'"),
    ("degree", "°"),
    ("textdegree", "°"),
    ("textcirc", "°"),
    ("percent", "%"),
    ("emptyset", "∅"),
    ("varnothing", "∅"),
    ("dots", "…"),
    ("dotsc", "…"),
    ("iff", "⇒"),
    ("implies", "⇒"),
    ("Rightarrow", "⇒"),
    ("rightarrow", "⇒"),
    ("to", "⇒"),
    ("equiv", "≡"),
];

/// Commands that change nothing but the looks.
const IGNORED: &[&str] = &[
    "left",
    "right",
    "mleft",
    "mright",
    "middle",
    "big",
    "Big",
    "bigg",
    "Bigg",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "biggl",
    "biggr",
    "Biggl",
    "Biggr",
    "displaystyle",
    "textstyle",
    "scriptstyle",
    "limits",
    "nolimits",
    "quad",
    "qquad",
    "thinspace",
    "enspace",
    "space",
    "rm",
    "bf",
    "it",
    "hline",
    "nonumber",
    "hfill",
    "par",
    "newline",
];
