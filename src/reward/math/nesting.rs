//! Which tokens stand inside of which brackets.

use super::lex::Token;

/// The tokens outside all brackets, groups and environments.
pub(super) fn at_depth_zero(tokens: &[Token]) -> impl Iterator<Item = (usize, &Token)> {
    let mut depth = 0i32;
    tokens.iter().enumerate().filter(move |(_, token)| {
        let change = nesting(token);
        if change < 0 {
            depth += change;
            return false;
        }
        let here = depth == 0 && change == 0;
        depth += change;
        here
    })
}

pub(super) fn nesting(token: &Token) -> i32 {
    match token {
        Token::Open | Token::Begin(_) | Token::Sign('(' | '[' | '{' | '⟨' | '⌊' | '⌈') => 1,
        Token::Close | Token::End | Token::Sign(')' | ']' | '}' | '⟩' | '⌋' | '⌉') => -1,
        _ => 0,
    }
}

/// Where the bracket that opens at `open` closes.
pub(super) fn closing(tokens: &[Token], open: usize) -> Option<usize> {
    let mut depth = 0i32;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        depth += nesting(token);
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// The parts between the separators at depth zero.
pub(super) fn split(tokens: &[Token], separator: impl Fn(&Token) -> bool) -> Vec<&[Token]> {
    let mut parts = Vec::new();
    let mut from = 0;
    for (at, token) in at_depth_zero(tokens) {
        if separator(token) {
            parts.push(&tokens[from..at]);
            from = at + 1;
        }
    }
    parts.push(&tokens[from..]);
    parts
}
