//! Text of a completion while its ids still arrive.

use super::Tokenizer;

/// Turns ids into text one at a time. The pieces it returns are whole
/// characters, and all of them together are exactly
/// [`Tokenizer::decode`] of all the ids.
pub struct IncrementalDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The start of a character whose other bytes have not come: at most three.
    pending: Vec<u8>,
}

impl<'a> IncrementalDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        IncrementalDecoder {
            tokenizer,
            skip_special,
            pending: Vec::new(),
        }
    }

    /// The text that `id` completes; empty while a character is unfinished.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        let Some(bytes) = self.tokenizer.token_bytes(id) else {
            return String::new();
        };
        self.pending.extend_from_slice(&bytes);
        drain_utf8(&mut self.pending)
    }

    /// What is left when no more ids will come: an unfinished character
    /// becomes U+FFFD. The decoder can then be used for another completion.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

/// Takes all finished characters off the front of `bytes`, replacing what can
/// never become one by U+FFFD just where `String::from_utf8_lossy` does.
fn drain_utf8(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    while done < bytes.len() {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(valid) => {
                text.push_str(valid);
                done = bytes.len();
            }
            Err(error) => {
                let valid = done..done + error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[valid.clone()]));
                done = valid.end;
                match error.error_len() {
                    Some(length) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        done += length;
                    }
                    None => break,
                }
            }
        }
    }
    bytes.drain(..done);
    text
}

/// The bytes a token's text stands for. Byte-level BPE writes every byte as a
/// printable character: itself where it is one in Latin-1, else the next free
/// one from U+0100 on. A token with any other character (an added token) is
/// its own UTF-8.
pub(super) fn byte_level(token: &str) -> Vec<u8> {
    token
        .chars()
        .map(|c| BYTE_OF.get(c as usize).copied().flatten())
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}

const BYTE_OF: [Option<u8>; 324] = {
    let mut table = [None; 324];
    let mut next = 256;
    let mut byte = 0u8;
    loop {
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            table[byte as usize] = Some(byte);
        } else {
            table[next] = Some(byte);
            next += 1;
        }
        if byte == u8::MAX {
            break;
        }
        byte += 1;
    }
    assert!(next == table.len());
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn byte_alphabet_is_the_crate_s_own() {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert_eq!(alphabet.len(), 256);
        for c in alphabet {
            assert!(BYTE_OF[c as usize].is_some(), "{c:?}");
        }
        assert_eq!(byte_level("Ġa"), b" a");
        assert_eq!(byte_level("Ċ"), b"\n");
        // A space is no character of the alphabet, so this is an added token.
        assert_eq!(byte_level("Ġ b"), "Ġ b".as_bytes());
    }

    proptest! {
        /// However bytes are cut up, the pieces are the lossy text of the whole.
        #[test]
        fn pieces_make_the_lossy_whole(chunks in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..4),
                any::<char>().prop_map(|c| c.to_string().into_bytes()),
                any::<char>().prop_map(|c| c.to_string().into_bytes()[..1].to_vec()),
            ], 0..40)) {
            let mut pending = Vec::new();
            let mut text = String::new();
            for chunk in &chunks {
                pending.extend_from_slice(chunk);
                text.push_str(&drain_utf8(&mut pending));
                prop_assert!(pending.len() < 4);
            }
            text.push_str(&String::from_utf8_lossy(&pending));
            let whole = chunks.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&whole));
        }
    }
}
