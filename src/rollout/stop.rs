//! Stop strings: matched on text as it is decoded, across token borders.

use std::sync::Arc;

use crate::tokenizer::Tokenizer;

/// Watches one sample's text.
pub struct StopStrings {
    tokenizer: Arc<Tokenizer>,
    stops: Arc<[String]>,
    /// Bytes decoded so far; only the end that a stop could begin in is kept.
    tail: Vec<u8>,
}

impl StopStrings {
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Arc<[String]>) -> Self {
        StopStrings {
            tokenizer,
            stops,
            tail: Vec::new(),
        }
    }

    /// True once the text holds a stop string.
    pub fn push(&mut self, id: u32) -> bool {
        let Some(bytes) = self.tokenizer.token_bytes(id) else {
            return false;
        };
        self.tail.extend_from_slice(&bytes);
        let found = self.stops.iter().any(|stop| {
            !stop.is_empty()
                && self
                    .tail
                    .windows(stop.len())
                    .any(|window| window == stop.as_bytes())
        });
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let keep = self.tail.len().min(longest);
        self.tail.drain(..self.tail.len() - keep);
        found
    }
}
