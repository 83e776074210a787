//! Text to ids and back, as one model folder says.
//!
//! The `tokenizers` crate does the work on `tokenizer.json`; here live what a
//! folder holds around it: the chat template ([`chat`]), the prompt a problem
//! is asked with ([`prompt`]), text while it is still being sampled
//! ([`stream`]), and the ids that end a completion ([`stop_ids`]).

pub mod chat;
pub mod prompt;
pub mod stream;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use tokenizers::DecoderWrapper;

use chat::ChatTemplate;
pub use prompt::PromptTemplate;
pub use stream::IncrementalDecoder;

/// A byte-level BPE tokenizer and the chat template that came with it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    chat: Option<ChatTemplate>,
    dir: PathBuf,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where there is one, the chat template of a
    /// Hugging Face model folder.
    pub fn load(dir: &Path) -> Result<Self> {
        let file = dir.join("tokenizer.json");
        ensure!(
            file.is_file(),
            "no tokenizer.json in the model folder {}: copy it from the model's hub page, or give prompt_ids \
             instead of text where the command takes them",
            dir.display()
        );
        let mut inner = tokenizers::Tokenizer::from_file(&file)
            .map_err(|error| anyhow!("reading {}: {error}", file.display()))?;
        // A saved file may carry the cut and padding of someone's training
        // run; prompts must be neither cut nor padded in silence.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| anyhow!("{}: {error}", file.display()))?;
        ensure!(
            matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))),
            "{}: its decoder is not ByteLevel, and arca reads byte-level BPE tokenizers (Qwen's) alone",
            file.display()
        );
        let chat = ChatTemplate::load(dir)?;
        Ok(Tokenizer {
            inner,
            chat,
            dir: dir.to_path_buf(),
        })
    }

    /// Ids of `text`, no special tokens added. Special tokens written out in
    /// the text (`<|im_start|>`) become their ids, as the chat template needs.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| anyhow!("tokenizing with {}: {error}", self.dir.display()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `ids`. Ids without a token (the padded end of the embedding
    /// table) have no text; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|error| anyhow!("decoding with {}: {error}", self.dir.display()))
    }

    /// A decoder for ids that arrive one at a time.
    pub fn stream(&self, skip_special: bool) -> IncrementalDecoder<'_> {
        IncrementalDecoder::new(self, skip_special)
    }

    /// The bytes `id` stands for; `None` for an id without a token. One token
    /// need not be whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.id_to_token(id)?;
        Some(stream::byte_level(&token))
    }

    /// The id of a token by its exact text, such as `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether `id` is left out of text decoded with `skip_special`.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        added
            .simple_id_to_token(id)
            .is_some_and(|token| added.is_special_token(&token))
    }

    /// Tokens the file defines, added ones included; the model's embedding
    /// table may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The model folder's chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    /// `messages` through the chat template. `enable_thinking` is handed to
    /// the template only when given: its absence is the template's default.
    pub fn render_chat(
        &self,
        messages: &[Value],
        add_generation_prompt: bool,
        enable_thinking: Option<bool>,
    ) -> Result<String> {
        self.render_chat_with_tools(messages, &[], add_generation_prompt, enable_thinking)
    }

    /// [`Tokenizer::render_chat`] with tool descriptions for the template.
    pub fn render_chat_with_tools(
        &self,
        messages: &[Value],
        tools: &[Value],
        add_generation_prompt: bool,
        enable_thinking: Option<bool>,
    ) -> Result<String> {
        let Some(chat) = &self.chat else {
            bail!(
                "the model folder {} has no chat template (neither chat_template.jinja nor chat_template in \
                 tokenizer_config.json)",
                self.dir.display()
            );
        };
        chat.render(messages, tools, add_generation_prompt, enable_thinking)
    }
}

/// The ids that end a completion: `eos_token_id` of the folder's config.json
/// and generation_config.json, where these files are there, and `config_eos`
/// (for a model whose config was not read from the folder), ascending.
///
/// Nothing else is read from generation_config.json: its temperature, top_k
/// and top_p would change the distribution behind the user's back.
pub fn stop_ids(dir: &Path, config_eos: &[u32]) -> Result<Vec<u32>> {
    let mut ids = config_eos.to_vec();
    for name in ["config.json", "generation_config.json"] {
        let file = dir.join(name);
        if file.is_file() {
            let value = read_json(&file)?;
            ids.extend(
                eos_ids(&value["eos_token_id"])
                    .with_context(|| format!("{}: key eos_token_id", file.display()))?,
            );
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// An `eos_token_id` as model folders write it: an integer, a list, or null.
fn eos_ids(value: &Value) -> Result<Vec<u32>> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items.iter().map(token_id).collect(),
        single => Ok(vec![token_id(single)?]),
    }
}

fn token_id(value: &Value) -> Result<u32> {
    value
        .as_u64()
        .and_then(|id| u32::try_from(id).ok())
        .with_context(|| format!("expected a token id or a list of them, found {value}"))
}

fn read_json(file: &Path) -> Result<Value> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not valid JSON", file.display()))
}
