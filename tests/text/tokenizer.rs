//! Guards: ids, decoded text and rendered chats equal transformers' for
//! Qwen3; text while streaming equals text decoded at once; a folder that
//! lacks something is refused with a reason.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use arca::config::DataConfig;
use arca::tokenizer::{PromptTemplate, Tokenizer, stop_ids};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{fixture, problem};

/// The Qwen3 tokenizer's folder, unpacked once per build folder.
fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("qwen3-tokenizer");
    if !folder.exists() {
        // Made aside and renamed: another test process may do the same.
        let aside = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for name in [
            "tokenizer_config.json",
            "chat_template.jinja",
            "generation_config.json",
        ] {
            fs::copy(fixture("tokenizer").join(name), aside.path().join(name)).unwrap();
        }
        let packed = fs::File::open(fixture("tokenizer/tokenizer.json.gz")).unwrap();
        let mut plain = fs::File::create(aside.path().join("tokenizer.json")).unwrap();
        std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut plain).unwrap();
        if fs::rename(aside.path(), &folder).is_ok() {
            let _ = aside.keep();
        }
    }
    folder
}

static QWEN3: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::load(&folder()).unwrap());

fn rows(path: &Path) -> Vec<Value> {
    BufReader::new(fs::File::open(path).unwrap())
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn streamed(ids: &[u32], skip_special: bool) -> String {
    let mut stream = QWEN3.stream(skip_special);
    let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
    text.push_str(&stream.finish());
    text
}

fn check_tokens(row: &Value) {
    let text = row["text"].as_str().unwrap();
    let expected = ids(&row["ids"]);
    assert_eq!(QWEN3.encode(text).unwrap(), expected, "{text:?}");
    let decoded = QWEN3.decode(&expected, false).unwrap();
    // A row without `decoded` is one that comes back unchanged.
    assert_eq!(decoded, row["decoded"].as_str().unwrap_or(text));
    if let Some(plain) = row["plain"].as_str() {
        assert_eq!(QWEN3.decode(&expected, true).unwrap(), plain, "{text:?}");
    }
    for skip_special in [false, true] {
        let whole = QWEN3.decode(&expected, skip_special).unwrap();
        assert_eq!(streamed(&expected, skip_special), whole, "{text:?}");
    }
}

fn check_chat(row: &Value) {
    let list = |key: &str| row[key].as_array().cloned().unwrap_or_default();
    let rendered = QWEN3
        .render_chat_with_tools(
            &list("messages"),
            &list("tools"),
            row["add_generation_prompt"].as_bool().unwrap(),
            row["enable_thinking"].as_bool(),
        )
        .unwrap();
    assert_eq!(rendered, row["rendered"].as_str().unwrap());
    if row.get("ids").is_some() {
        assert_eq!(
            QWEN3.encode(&rendered).unwrap(),
            ids(&row["ids"]),
            "{rendered:?}"
        );
    }
}

#[test]
fn tokens_are_transformers_own() {
    rows(&fixture("tokenizer/tokens.jsonl"))
        .iter()
        .for_each(check_tokens);
}

#[test]
fn chats_are_transformers_own() {
    rows(&fixture("tokenizer/chat.jsonl"))
        .iter()
        .for_each(check_chat);
}

/// More golden files of the same form than the project may carry.
#[test]
#[ignore = "needs ARCA_GOLDEN_TOKENIZER, a folder with golden_tokens.jsonl and golden_chat.jsonl"]
fn golden_files_given_by_hand() {
    let folder = PathBuf::from(std::env::var_os("ARCA_GOLDEN_TOKENIZER").unwrap());
    let (tokens, chats) = (
        rows(&folder.join("golden_tokens.jsonl")),
        rows(&folder.join("golden_chat.jsonl")),
    );
    tokens.iter().for_each(check_tokens);
    chats.iter().for_each(check_chat);
    println!("{} texts and {} chats agree", tokens.len(), chats.len());
}

#[test]
fn one_character_over_two_tokens_comes_out_whole() {
    let ids = QWEN3.encode("\u{200d}x").unwrap();
    let mut stream = QWEN3.stream(true);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert!(pieces.len() > 2 && pieces[0].is_empty(), "{pieces:?}");
    assert_eq!(pieces.concat(), "\u{200d}x");
    // Cut in the middle: one mark, as decoding at once gives.
    assert_eq!(stream.push(ids[0]), "");
    assert_eq!(stream.finish(), QWEN3.decode(&ids[..1], true).unwrap());
    assert_eq!(stream.finish(), "");
}

#[test]
fn ids_have_their_qwen3_meaning() {
    assert_eq!(QWEN3.vocab_size(), 151_669);
    assert_eq!(QWEN3.token_id("<|im_end|>"), Some(151_645));
    assert!(QWEN3.is_special(151_645));
    assert!(!QWEN3.is_special(151_668), "</think> is text");
    assert_eq!(QWEN3.token_bytes(220).as_deref(), Some(b" ".as_slice()));
    // Rows of the embedding table beyond the vocabulary have no text.
    assert_eq!(QWEN3.token_bytes(151_900), None);
    assert_eq!(QWEN3.decode(&[64, 151_900, 65], true).unwrap(), "ab");
    assert_eq!(streamed(&[64, 151_900, 65], true), "ab");
}

#[test]
fn only_stop_ids_come_from_the_generation_config() {
    assert_eq!(stop_ids(&folder(), &[7]).unwrap(), [7, 151_643, 151_645]);
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(stop_ids(dir.path(), &[5, 5, 2]).unwrap(), [2, 5]);
    fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 9}"#).unwrap();
    fs::write(
        dir.path().join("generation_config.json"),
        r#"{"eos_token_id": null, "top_k": 20}"#,
    )
    .unwrap();
    assert_eq!(stop_ids(dir.path(), &[]).unwrap(), [9]);
    fs::write(
        dir.path().join("generation_config.json"),
        r#"{"eos_token_id": [1, "x"]}"#,
    )
    .unwrap();
    let error = format!("{:#}", stop_ids(dir.path(), &[]).unwrap_err());
    assert!(
        error.contains("generation_config.json") && error.contains("eos_token_id"),
        "{error}"
    );
}

#[test]
fn a_folder_without_a_tokenizer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = format!("{:#}", Tokenizer::load(dir.path()).err().unwrap());
    assert!(error.contains("no tokenizer.json"), "{error}");
    fs::write(dir.path().join("tokenizer.json"), "{").unwrap();
    let error = format!("{:#}", Tokenizer::load(dir.path()).err().unwrap());
    assert!(error.contains("tokenizer.json"), "{error}");
}

/// A tokenizer of single bytes, for what does not depend on the merges.
fn small(dir: &Path, tokenizer_config: Value) -> Tokenizer {
    let mut file: Value =
        serde_json::from_str(&fs::read_to_string(folder().join("tokenizer.json")).unwrap())
            .unwrap();
    file["model"]["merges"] = json!([]);
    file["truncation"] =
        json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    fs::write(dir.join("tokenizer.json"), file.to_string()).unwrap();
    fs::write(
        dir.join("tokenizer_config.json"),
        tokenizer_config.to_string(),
    )
    .unwrap();
    Tokenizer::load(dir).unwrap()
}

#[test]
fn prompts_are_rendered_as_configured() {
    let config = |template: &str, enable_thinking| DataConfig {
        prompt_template: template.into(),
        enable_thinking,
        ..DataConfig::default()
    };
    let asked = problem("p", "What is {problem} + 1?", "2");
    let render = |config: &DataConfig| {
        PromptTemplate::from_config(config)
            .unwrap()
            .render(&QWEN3, &asked)
            .unwrap()
    };

    let plain = render(&config("plain", None));
    assert!(
        plain.ends_with("\\boxed{}.\n\nProblem: What is {problem} + 1?\n"),
        "{plain:?}"
    );
    let chat = render(&config("chat", Some(false)));
    assert!(
        chat.starts_with("<|im_start|>user\nWhat is {problem} + 1?\n\n"),
        "{chat:?}"
    );
    assert!(
        chat.ends_with("<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        "{chat:?}"
    );
    assert!(render(&config("chat", None)).ends_with("<|im_start|>assistant\n"));
    assert_eq!(
        render(&config("Q: {problem}\nA:", None)),
        "Q: What is {problem} + 1?\nA:"
    );

    for refused in [
        config("palin", None),
        config("", None),
        config("plain", Some(true)),
    ] {
        let error = format!("{:#}", PromptTemplate::from_config(&refused).unwrap_err());
        assert!(error.contains("data.prompt_template"), "{error}");
    }
    let template = PromptTemplate::from_config(&config("plain", None)).unwrap();
    let count = template.ids(&QWEN3, &asked, 512).unwrap().len();
    assert_eq!(
        template.ids(&QWEN3, &asked, count).unwrap(),
        QWEN3.encode(&plain).unwrap()
    );
    let error = format!("{:#}", template.ids(&QWEN3, &asked, count - 1).unwrap_err());
    assert!(
        error.contains("problem p") && error.contains("data.max_prompt_length"),
        "{error}"
    );
}

#[test]
fn chat_templates_are_found_where_folders_keep_them() {
    let chat = PromptTemplate::Chat {
        enable_thinking: None,
    };
    let asked = problem("p", "1+1?", "2");
    let dir = tempfile::tempdir().unwrap();

    let tokenizer = small(dir.path(), json!({}));
    // What a saved file says of cutting is not followed.
    assert_eq!(tokenizer.encode("abcdef").unwrap().len(), 6);
    let error = format!("{:#}", chat.render(&tokenizer, &asked).unwrap_err());
    assert!(
        error.contains("data.prompt_template") && error.contains("no chat template"),
        "{error}"
    );

    let text = json!({"chat_template": "{{ bos_token }}{{ messages[0].content[:4] }}", "bos_token": {"content": "<s>"}});
    assert_eq!(
        chat.render(&small(dir.path(), text), &asked).unwrap(),
        "<s>1+1?"
    );
    let list = json!({"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]});
    assert_eq!(
        chat.render(&small(dir.path(), list), &asked).unwrap(),
        "yes"
    );
    fs::write(dir.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(
        chat.render(
            &small(dir.path(), json!({"chat_template": "config"})),
            &asked
        )
        .unwrap(),
        "file"
    );

    fs::write(dir.path().join("chat_template.jinja"), "{% if %}").unwrap();
    let error = format!("{:#}", Tokenizer::load(dir.path()).err().unwrap());
    assert!(error.contains("chat_template.jinja"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Text made of characters that NFC leaves alone comes back as it was.
    #[test]
    fn decoding_undoes_encoding(text in "([ -~]|\n|[а-яё]|[一-鿕]|[α-ω]|😀|\\\\boxed\\{|<\\|im_end\\|>){0,60}") {
        let ids = QWEN3.encode(&text).unwrap();
        prop_assert_eq!(QWEN3.decode(&ids, false).unwrap(), text);
    }

    /// Any ids, characters cut anywhere.
    #[test]
    fn streaming_is_decoding(ids in prop::collection::vec(prop_oneof![0u32..300, 0u32..151_936, 151_640u32..151_672], 0..60)) {
        for skip_special in [false, true] {
            prop_assert_eq!(streamed(&ids, skip_special), QWEN3.decode(&ids, skip_special).unwrap());
        }
    }
}
