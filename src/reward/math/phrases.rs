//! Words among the tokens: units, fillers, qualifiers, answers in words.

use super::lex::Token;
use super::nesting::at_depth_zero;
use super::sentences;
use super::tree::Answer;
use super::words;

/// Whether a token behind a number measures it rather than multiplies it.
pub(super) fn is_unit(token: &Token, before: Option<&Token>) -> bool {
    match token {
        Token::Text(_) => true,
        Token::Word(word) => {
            words::canonical(&word.to_lowercase()).is_some()
                || word.len() > 4
                || matches!(word.as_str(), "square" | "cubic" | "sq" | "per")
                // Words behind words: "15th day".
                || matches!(before, Some(Token::Word(w)) if words::canonical(w).is_some())
        }
        Token::Command("min") => matches!(before, Some(Token::Number(_))),
        Token::Sign('/') => matches!(before, Some(Token::Text(_) | Token::Word(_))),
        _ => false,
    }
}

pub(super) fn text_of(token: &Token) -> Option<&str> {
    match token {
        Token::Text(text) | Token::Word(text) => Some(text),
        Token::Command("min") => Some("min"),
        Token::Sign('/') => Some("per"),
        _ => None,
    }
}

/// The words of an answer that has nothing but words.
pub(super) fn all_words(tokens: &[Token]) -> Option<Vec<String>> {
    let tokens = match tokens {
        [Token::Sign('('), inner @ .., Token::Sign(')')] => inner,
        [Token::Open, inner @ .., Token::Close] => inner,
        tokens => tokens,
    };
    match tokens.first()? {
        Token::Text(_) => {}
        // One of these alone might be a product of letters: decided where it
        // is compared.
        Token::Word(_) => {}
        _ => return None,
    }
    tokens
        .iter()
        .map(|token| match token {
            Token::Text(text) | Token::Word(text) | Token::Letter(text) => {
                (!text.starts_with('\\')).then(|| text.clone())
            }
            Token::Number(number) => Some(number.value.to_string()),
            Token::Sign('.' | '\'' | '-' | '"' | '!' | '?') => Some(String::new()),
            _ => None,
        })
        .collect()
}

/// Words as text, or as a list where they are one: "B, E and G".
pub(super) fn text_answer(words: &[String]) -> Answer {
    let joined = words.join(" ");
    match words::key(&joined).as_str() {
        "all real numbers" | "all reals" | "real numbers" | "the real numbers"
        | "all real values" => return Answer::Reals,
        "empty set" | "the empty set" => return Answer::Empty,
        key if sentences::says_none(key) => return Answer::Empty,
        _ => {}
    }
    let items: Vec<Answer> = joined
        .replace(" and ", ",")
        .split(',')
        .map(words::key)
        .filter(|key| !key.is_empty())
        .map(Answer::Text)
        .collect();
    match items.len() {
        0 | 1 => Answer::Text(words::key(&joined)),
        _ => Answer::List {
            items,
            or: joined.contains(" or "),
        },
    }
}

/// Without the words around an answer that say nothing of it.
pub(super) fn without_fillers(tokens: &[Token]) -> &[Token] {
    let mut tokens = tokens;
    loop {
        tokens = match tokens {
            [Token::Sign(',' | ';' | '.' | ':'), rest @ ..] if !rest.is_empty() => rest,
            [rest @ .., Token::Sign(',' | ';' | '.' | ':')] if !rest.is_empty() => rest,
            [Token::Text(text), rest @ ..] if !rest.is_empty() && is_filler(text) => rest,
            [Token::Word(text), rest @ ..] if !rest.is_empty() && is_filler(text) => rest,
            _ => return tokens,
        };
    }
}

/// Without qualifiers, each with all behind it up to the next answer: "f(x) = x
/// for all real x". `None` where there are none.
pub(super) fn without_qualifiers(tokens: &[Token]) -> Option<Vec<Token>> {
    at_depth_zero(tokens).find(|(at, token)| *at > 0 && is_qualifier(token))?;
    let outside: Vec<usize> = at_depth_zero(tokens).map(|(at, _)| at).collect();
    let mut kept = Vec::with_capacity(tokens.len());
    let mut qualifying = false;
    for (at, token) in tokens.iter().enumerate() {
        if outside.binary_search(&at).is_ok() {
            if matches!(token, Token::And | Token::Or) {
                qualifying = false;
            } else if at > 0 && is_qualifier(token) {
                qualifying = true;
            }
        }
        if !qualifying {
            kept.push(token.clone());
        }
    }
    Some(kept)
}

pub(super) fn is_filler(text: &str) -> bool {
    matches!(
        words::key(text).as_str(),
        "only"
            | "so"
            | "thus"
            | "hence"
            | "approximately"
            | "about"
            | "approx"
            | "exactly"
            | "the answer is"
            | "answer"
            | "therefore"
            | "all"
            | "either"
    )
}

pub(super) fn is_qualifier(token: &Token) -> bool {
    match token {
        Token::Text(text) | Token::Word(text) => {
            let key = words::key(text);
            [
                "for all",
                "for any",
                "for every",
                "for each",
                "for real",
                "for some",
                "for integer",
                "for integers",
                "for arbitrary",
                "where",
            ]
            .iter()
            .any(|start| key == *start || key.starts_with(&format!("{start} ")))
                || key == "for"
        }
        Token::Command("forall") => true,
        _ => false,
    }
}
