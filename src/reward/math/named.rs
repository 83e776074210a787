//! Sets of numbers that have a name: `\mathbb{R}`, `\mathbb{Z}^+`, `x \in R`.

use super::lex::Token;
use super::tree::{Answer, Constant, Expr};

/// A set's sign, with what follows it.
pub(super) fn named_set(tokens: &[Token]) -> Option<Answer> {
    match tokens {
        [Token::Sign('∅')] => Some(Answer::Empty),
        [Token::Command(name), rest @ ..] => set(name, rest),
        _ => None,
    }
}

/// A letter behind `\in` that stands for a set: nothing else is an R.
pub(super) fn letter_set(tokens: &[Token]) -> Option<Answer> {
    let (Token::Letter(letter), rest) = tokens.split_first()? else {
        return None;
    };
    let name = match letter.as_str() {
        "R" => "Reals",
        "Z" => "Integers",
        "N" => "Naturals",
        "Q" => "Rationals",
        "C" => "Complexes",
        _ => return None,
    };
    set(name, rest)
}

fn set(name: &str, rest: &[Token]) -> Option<Answer> {
    let plain = matches!(
        name,
        "Reals" | "Integers" | "Naturals" | "Rationals" | "Complexes"
    );
    if !plain {
        return None;
    }
    let signs: String = rest
        .iter()
        .filter(|token| !matches!(token, Token::Open | Token::Close))
        .map(|token| match token {
            Token::Sign(sign) => *sign,
            Token::Number(number) if number.value == num_traits::Zero::zero() => '0',
            _ => '?',
        })
        .collect();
    let interval = |close: bool| Answer::Bracketed {
        open: if close { '[' } else { '(' },
        items: vec![
            Answer::value(Expr::integer(0)),
            Answer::value(Expr::Constant(Constant::Infinity)),
        ],
        close: ')',
    };
    let below = || Answer::Bracketed {
        open: '(',
        items: vec![
            Answer::value(Expr::Constant(Constant::Infinity).negate()),
            Answer::value(Expr::integer(0)),
        ],
        close: ')',
    };
    Some(match (name, signs.as_str()) {
        ("Reals", "") => Answer::Reals,
        ("Reals", "^+" | "_+" | "_>0" | "^*_+" | "_+^*") => interval(false),
        ("Reals", "_≥0") => interval(true),
        ("Reals", "^-" | "_-" | "_<0") => below(),
        ("Integers", "") => Answer::Named("integers"),
        ("Integers", "^+" | "_+" | "_>0") => Answer::Named("positive integers"),
        ("Integers", "_≥0") => Answer::Named("non-negative integers"),
        ("Naturals", "") => Answer::Named("naturals"),
        ("Naturals", "^" | "^*" | "^+" | "_+" | "_>0") => Answer::Named("positive integers"),
        ("Naturals", "_0") => Answer::Named("non-negative integers"),
        ("Rationals", "") => Answer::Named("rationals"),
        ("Rationals", "^+" | "_+" | "_>0") => Answer::Named("positive rationals"),
        ("Complexes", "") => Answer::Named("complexes"),
        _ => return None,
    })
}
