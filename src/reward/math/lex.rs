//! A cleaned text as tokens: numbers with their thousands marks and repeating
//! digits, letters, words, commands.

use num_rational::BigRational;

use super::budget::{Budget, Stop};
use super::commands::{FUNCTIONS, GLUED, IGNORED, SIGNS};

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

/// The reading of one text.
pub(super) struct Lexer<'a> {
    pub(super) text: &'a str,
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    /// Open ( [ \{: a comma in them parts elements, not thousands.
    pub(super) brackets: usize,
    pub(super) spaced: bool,
    pub(super) tokens: Vec<Token>,
    pub(super) budget: &'a Budget,
    depth: usize,
}

impl Lexer<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        while let Some(&byte) = self.bytes.get(self.at) {
            match byte {
                b'\\' => self.command()?,
                b'0'..=b'9' => self.number()?,
                b'.' if self.digit(self.at + 1) => self.number()?,
                b'A'..=b'Z' if self.based().is_some() => self.number()?,
                b'a'..=b'z' | b'A'..=b'Z' => self.word(),
                b' ' | b'~' => {
                    self.at += 1;
                    self.spaced = true;
                    continue;
                }
                b'(' if self.based_in_brackets() => {}
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

    pub(super) fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    pub(super) fn digit(&self, at: usize) -> bool {
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
                    Some(content) if self.based_behind(&content) => {}
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
                None => match GLUED.iter().find(|sign| name.starts_with(**sign)) {
                    Some(sign) => {
                        self.at -= name.len() - sign.len();
                        let known = SIGNS.iter().find(|(known, _)| known == sign);
                        known
                            .map_or("", |(_, signs)| signs)
                            .chars()
                            .for_each(|c| self.sign(c));
                    }
                    None => self.tokens.push(letter(name)),
                },
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
        // A brace that nobody closes is looked for to the end: many are paid for.
        self.budget.spend(1).ok()?;
        let Some(end) = closing_brace(trimmed) else {
            self.budget.spend(trimmed.len() / 64).ok()?;
            return None;
        };
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
pub(super) fn closing_brace(text: &str) -> Option<usize> {
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
