//! Guards `arca generate` and `arca bench rollout` through the real binary:
//! input from a file or standard input, rows with settings of their own, output
//! in order as it comes, and errors that name row and key.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::common::arca;

fn generate(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(arca())
        .args(["generate", "--quiet"])
        .args(args)
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn rows(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Rows in, rows out: in order, whatever ends first, and each as its own
/// settings have it.
#[test]
fn rows_have_settings_of_their_own() {
    let input = r#"{"id": "long", "prompt": "Problem: 1 + 1", "max_tokens": 60, "stop_ids": []}
{"id": "short", "prompt_ids": [5, 6, 7], "max_tokens": 3, "stop_ids": []}

{"id": "greedy", "prompt": "Problem: 2 + 3", "temperature": 0}
{"id": "stop", "prompt": "Problem: 12 + 30\n", "stop": "1", "max_tokens": 120, "stop_ids": []}
"#;
    let args = ["--input", "-", "--json", "-", "--samples", "2"];
    let done = rows(&generate(&args, input));
    let places: Vec<(&str, u64)> = done
        .iter()
        .map(|r| (r["id"].as_str().unwrap(), r["sample"].as_u64().unwrap()))
        .collect();
    let ids = ["long", "short", "greedy", "stop"];
    let expected: Vec<(&str, u64)> = ids.iter().flat_map(|id| [(*id, 0), (*id, 1)]).collect();
    assert_eq!(places, expected);
    let tokens = |i: usize| done[i]["completion_ids"].as_array().unwrap();
    assert_eq!((tokens(0).len(), tokens(2).len()), (60, 3));
    assert_eq!(done[2]["finish_reason"], "length");
    assert_eq!(tokens(4), tokens(5));
    assert_ne!(tokens(0), tokens(1));
    for i in [6, 7] {
        assert_eq!(done[i]["finish_reason"], "stop");
        let text = done[i]["text"].as_str().unwrap();
        let at = text.find('1').unwrap();
        assert!(text[at..].len() < 8, "{text:?} goes on after the stop");
    }
    assert_eq!(
        tokens(0).len(),
        done[0]["logprobs"].as_array().unwrap().len()
    );

    // A row alone says what it said in company.
    let third = input.lines().next().unwrap();
    let alone = rows(&generate(&args, third));
    assert_eq!(alone[..], done[..2]);
    // And in memory for hardly one sample at a time.
    let squeezed = [&args[..], &["--set", "rollout.kv_memory=1M"]].concat();
    assert_eq!(rows(&generate(&squeezed, input)), done);
}

/// A long prompt beside a long completion: each fits the context, if not both
/// together. And a start that fails leaves an earlier file as it was.
#[test]
fn rows_fit_the_context_one_by_one() {
    let ids: Vec<u32> = (0..230).map(|i| i % 400).collect();
    let input = format!(
        "{{\"prompt_ids\": {ids:?}, \"max_tokens\": 20, \"stop_ids\": []}}\n\
         {{\"prompt_ids\": [1, 2], \"max_tokens\": 240, \"stop_ids\": []}}\n"
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out.jsonl");
    let path = file.to_str().unwrap();
    let args = ["--input", "-", "--json", path];
    let output = generate(&args, &input);
    assert!(output.status.success(), "{output:?}");
    let written = std::fs::read_to_string(&file).unwrap();
    let lengths: Vec<usize> = written
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            row["completion_ids"].as_array().unwrap().len()
        })
        .collect();
    assert_eq!(lengths, [20, 240]);
    let refused = [&args[..], &["--set", "rollout.kv_memory=10K"]].concat();
    assert_eq!(generate(&refused, &input).status.code(), Some(2));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), written);
}

/// Lines come while later rows are still drawn.
#[test]
fn lines_come_as_samples_end() {
    let input: String = (0..40)
        .map(|i| {
            let n = if i == 39 { 200 } else { 2 };
            format!("{{\"prompt_ids\": [{i}], \"max_tokens\": {n}, \"stop_ids\": []}}\n")
        })
        .collect();
    let mut child = Command::new(arca())
        .args(["generate", "--quiet", "--input", "-", "--json", "-"])
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut at = Vec::new();
    let start = std::time::Instant::now();
    for line in lines {
        line.unwrap();
        at.push(start.elapsed());
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(at.len(), 40);
    // 39 samples of 2 tokens are out long before one of 200 has ended.
    assert!(at[38] < at[39], "{at:?}");
}

#[test]
fn bad_rows_are_named() {
    let cases = [
        (
            r#"{"prompt": "x", "max_tokens": 0}"#,
            "-:1: max_tokens is 0; it must be 1 or more",
        ),
        (
            r#"{"prompt": "x", "max_tokens": 1.5}"#,
            "-:1: max_tokens is 1.5, a whole number is expected",
        ),
        (
            r#"{"prompt": "x", "max_tokens": 9999}"#,
            "-:1: max_tokens is 9999, and the model's context has room for 255",
        ),
        (
            r#"{"prompt": "x", "temperature": -1}"#,
            "-:1: temperature is -1; it must be 0 (greedy) or more",
        ),
        (
            r#"{"prompt": "x", "top_p": 0}"#,
            "-:1: top_p is 0; it must be above 0 and at most 1",
        ),
        (
            r#"{"prompt": "x", "min_p": 1}"#,
            "-:1: min_p is 1; it must be from 0 to below 1",
        ),
        (
            r#"{"prompt": "x", "stop": ["a", ""]}"#,
            "-:1: stop is [\"a\",\"\"], a text that is not empty",
        ),
        (
            r#"{"prompt": "x", "stop_ids": ["a"]}"#,
            "-:1: stop_ids is [\"a\"], a list of token ids is expected",
        ),
        (r#"{"prompt": ""}"#, "-:1: the prompt has no tokens"),
    ];
    for (row, message) in cases {
        let output = generate(&["--input", "-", "--json", "-"], row);
        assert_eq!(output.status.code(), Some(1), "{row}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(message), "{row}: {error}");
        assert!(output.stdout.is_empty());
    }
    let output = generate(
        &["--input", "-", "--set", "rollout.kv_memory=10K"],
        r#"{"prompt": "x"}"#,
    );
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("rollout.kv_memory = \"10K\" holds 0 KV pages"),
        "{error}"
    );
}

fn bench(args: &[&str]) -> (String, Value) {
    let output = Command::new(arca())
        .args(["bench", "rollout", "--json"])
        .args(args)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap();
    (text.clone(), serde_json::from_str(last).unwrap())
}

/// Both workloads end with one object whose figures belong together.
#[test]
fn bench_counts_what_it_did() {
    let small = ["--prompts", "3", "--new-tokens", "24", "--repeats", "1"];
    let (table, grpo) =
        bench(&[&small[..], &["--group-size", "4", "--prompt-length", "20"]].concat());
    for row in ["tokens/s", "first token", "live rows", "bound", "KV pages"] {
        assert!(table.contains(row), "{table}");
    }
    assert_eq!(grpo["prefill"]["rows"], 60);
    let lengths: Vec<u64> = grpo["lengths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap())
        .collect();
    assert_eq!(lengths.len(), 12);
    assert_eq!(grpo["tokens"].as_u64(), Some(lengths.iter().sum()));
    // One row for each token but a sample's first.
    assert_eq!(
        grpo["decode_rows"].as_u64(),
        Some(lengths.iter().sum::<u64>() - 12)
    );
    let rate = grpo["tokens_per_second"].as_f64().unwrap();
    let seconds = grpo["seconds"].as_f64().unwrap();
    assert!((rate * seconds / grpo["tokens"].as_f64().unwrap() - 1.0).abs() < 1e-6);
    let live: Vec<f64> = grpo["live_rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_f64().unwrap())
        .collect();
    assert!(
        live.len() == 20 && live.iter().all(|&n| (0.0..12.001).contains(&n)),
        "{live:?}"
    );
    assert!(grpo["share_of_bound"].as_f64().unwrap() > 0.0);

    let squeezed = ["--workload", "offline", "--set", "rollout.kv_memory=600K"];
    let (_, offline) = bench(&[&small[..], &squeezed, &["--prompt-length", "40"]].concat());
    assert_eq!(offline["workload"], "offline");
    let (peak, pages) = (&offline["kv"]["peak_pages"], &offline["kv"]["pages"]);
    assert!(peak.as_u64() <= pages.as_u64() && pages.as_u64() == Some(6));
}
