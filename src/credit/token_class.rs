//! What kind of token the weight lies on, from decoded text.
//!
//! - box: any part of it lies in `\boxed{...}`, content and braces included;
//! - words: else, it has a letter (`the`, `x`, `frac`);
//! - digits: else, it has a digit (`12`, `3.`);
//! - operators: else, it has a sign of arithmetic or comparison (`+`, ` =`);
//! - other: all else: punctuation, brackets, blanks, special tokens.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::tokenizer::Tokenizer;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenClass {
    Digits,
    Operators,
    Words,
    Box,
    Other,
}

const OPENING: &[u8] = b"\\boxed{";
const OPERATORS: &str = "+-*/=<>^%×÷·±≤≥≠≈−√!";

impl TokenClass {
    /// All, in the order of their numbers.
    pub const ALL: [TokenClass; 5] = [
        TokenClass::Digits,
        TokenClass::Operators,
        TokenClass::Words,
        TokenClass::Box,
        TokenClass::Other,
    ];

    /// As the metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            TokenClass::Digits => "digits",
            TokenClass::Operators => "operators",
            TokenClass::Words => "words",
            TokenClass::Box => "box",
            TokenClass::Other => "other",
        }
    }

    /// The class of a token outside of boxes.
    fn of(text: &str) -> TokenClass {
        if text.chars().any(char::is_alphabetic) {
            TokenClass::Words
        } else if text.chars().any(char::is_numeric) {
            TokenClass::Digits
        } else if text.chars().any(|c| OPERATORS.contains(c)) {
            TokenClass::Operators
        } else {
            TokenClass::Other
        }
    }
}

/// Classifies tokens; remembers those it has seen.
pub struct TokenClasses {
    tokenizer: Arc<Tokenizer>,
    seen: HashMap<u32, (Vec<u8>, TokenClass)>,
}

impl TokenClasses {
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        TokenClasses {
            tokenizer,
            seen: HashMap::new(),
        }
    }

    /// The class of each token of a completion.
    pub fn of(&mut self, ids: &[u32]) -> Vec<TokenClass> {
        let mut text = Vec::new();
        let mut spans = Vec::with_capacity(ids.len());
        let mut classes = Vec::with_capacity(ids.len());
        for &id in ids {
            let (bytes, class) = self.seen.entry(id).or_insert_with(|| {
                let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
                let class = match self.tokenizer.is_special(id) {
                    true => TokenClass::Other,
                    false => TokenClass::of(&String::from_utf8_lossy(&bytes)),
                };
                (bytes, class)
            });
            let start = text.len();
            text.extend_from_slice(bytes);
            spans.push(start..text.len());
            classes.push(*class);
        }
        for inside in boxes(&text) {
            for (span, class) in spans.iter().zip(&mut classes) {
                if span.start < inside.end && inside.start < span.end {
                    *class = TokenClass::Box;
                }
            }
        }
        classes
    }
}

/// Where `\boxed{...}` stands; one that is never closed ends with the text.
fn boxes(text: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..]
        .windows(OPENING.len())
        .position(|w| w == OPENING)
    {
        let start = from + at;
        let mut end = start + OPENING.len();
        let mut depth = 1;
        while depth > 0 && end < text.len() {
            match text[end] {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            end += 1;
        }
        found.push(start..end);
        from = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_texts() {
        for (text, class) in [
            ("12", TokenClass::Digits),
            (" 3.", TokenClass::Digits),
            (" =", TokenClass::Operators),
            ("+(", TokenClass::Operators),
            (" the", TokenClass::Words),
            ("x2", TokenClass::Words),
            (".\n", TokenClass::Other),
            ("(", TokenClass::Other),
            (" ", TokenClass::Other),
            ("", TokenClass::Other),
        ] {
            assert_eq!(TokenClass::of(text), class, "{text:?}");
        }
    }

    #[test]
    fn boxes_nest_and_may_stay_open() {
        let text = br"a \boxed{\frac{1}{2}} b \boxed{3} \boxed{4";
        let inside: Vec<&[u8]> = boxes(text).into_iter().map(|r| &text[r]).collect();
        assert_eq!(
            inside,
            [&br"\boxed{\frac{1}{2}}"[..], br"\boxed{3}", br"\boxed{4"]
        );
        assert!(boxes(b"no box").is_empty());
    }
}
