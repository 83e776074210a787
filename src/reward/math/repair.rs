//! Small patterns of tokens that TeX and people write in several ways.

use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{Signed, ToPrimitive};

use super::lex::{Number, Token};
use super::words;

/// One form for degree signs, ordinals and the digits of `\frac12`.
pub fn repair(tokens: Vec<Token>) -> Vec<Token> {
    split_raised_words(split_fraction_digits(raised_signs(ratios_in_words(tokens))))
}

/// `3 \text{ to } 4` as `3 : 4`.
fn ratios_in_words(mut tokens: Vec<Token>) -> Vec<Token> {
    let to = |token: &Token| match token {
        Token::Text(text) | Token::Word(text) => text == "to",
        _ => false,
    };
    if let [Token::Number(_), word, Token::Number(_)] = tokens.as_slice()
        && to(word)
    {
        tokens[1] = Token::Sign(':');
    }
    tokens
}

/// `xy^2` raises y alone; `cm^2` is a unit.
fn split_raised_words(tokens: Vec<Token>) -> Vec<Token> {
    let raised = |at: usize| match (&tokens[at], tokens.get(at + 1)) {
        (Token::Word(word), Some(Token::Sign('^' | '!'))) => {
            word.len() <= 4
                && word.bytes().all(|b| b.is_ascii_lowercase())
                && words::canonical(word).is_none()
        }
        _ => false,
    };
    if !(0..tokens.len()).any(raised) {
        return tokens;
    }
    let mut out = Vec::with_capacity(tokens.len() + 4);
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Word(word) if raised(at) => {
                let letters = word.chars().map(|c| Token::Letter(c.to_string()));
                out.extend(letters);
            }
            token => out.push(token.clone()),
        }
    }
    out
}

/// `^\circ`, `^{\circ}` and `^{th}` without the power that they are not.
fn raised_signs(tokens: Vec<Token>) -> Vec<Token> {
    let raisable = |token: &Token| {
        matches!(
            token,
            Token::Command("circ") | Token::Sign('°') | Token::Text(_) | Token::Word(_)
        )
    };
    if !tokens.contains(&Token::Sign('^')) || !tokens.iter().any(raisable) {
        return tokens;
    }
    let mut out = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let grouped = tokens.get(at + 1) == Some(&Token::Open);
        let inner = at + 1 + usize::from(grouped);
        let closed = !grouped || tokens.get(inner + 1) == Some(&Token::Close);
        let raised = match tokens.get(inner) {
            _ if tokens[at] != Token::Sign('^') || !closed => None,
            Some(Token::Command("circ") | Token::Sign('°')) => Some(Token::Sign('°')),
            Some(Token::Text(text) | Token::Word(text))
                if matches!(text.as_str(), "th" | "st" | "nd" | "rd") =>
            {
                Some(Token::Text(text.clone()))
            }
            _ => None,
        };
        match raised {
            Some(token) => {
                out.push(token);
                at = inner + 1 + usize::from(grouped);
            }
            None => {
                out.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    out
}

/// `\frac12` as `\frac 1 2`: TeX takes one digit for an argument.
fn split_fraction_digits(mut tokens: Vec<Token>) -> Vec<Token> {
    let mut at = 0;
    while at < tokens.len() {
        let fraction = matches!(
            tokens[at],
            Token::Command("frac" | "dfrac" | "tfrac" | "cfrac" | "binom" | "dbinom" | "tbinom")
        );
        at += 1;
        if !fraction {
            continue;
        }
        let mut argument = at;
        for _ in 0..2 {
            match tokens.get(argument) {
                Some(Token::Open) => argument = after_group(&tokens, argument),
                Some(Token::Number(_)) => {
                    split_first_digit(&mut tokens, argument);
                    argument += 1;
                }
                _ => argument += 1,
            }
        }
    }
    tokens
}

/// The token behind the group that opens at `open`.
fn after_group(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Open => depth += 1,
            Token::Close => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

fn split_first_digit(tokens: &mut Vec<Token>, at: usize) {
    let Some(Token::Number(number)) = tokens.get(at) else {
        return;
    };
    let fits = number.integer && !number.value.is_negative();
    let Some(value) = number.value.to_i64().filter(|value| fits && *value >= 10) else {
        return;
    };
    let mut tail = 1i64;
    while value / tail >= 10 {
        tail *= 10;
    }
    let (first, rest) = value.div_rem(&tail);
    let literal = |value: i64, spaced| {
        Token::Number(Number {
            value: BigRational::from_integer(value.into()),
            decimals: 0,
            integer: true,
            spaced,
        })
    };
    let spaced = number.spaced;
    tokens[at] = literal(first, spaced);
    tokens.insert(at + 1, literal(rest, false));
}
