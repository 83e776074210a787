//! Guards: `arca grade` as a program: whose verdict stands on which line, what
//! the table counts, and what a bad line does to those before it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use arca::reward::{Fallback, Grader, Verdict};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Grades `input` on standard input, or the file `rows.jsonl` that holds it.
fn grade(args: &[&str], input: Input) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(crate::common::arca());
    command
        .arg("grade")
        .args(args)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    match input {
        Input::None => command.output().unwrap(),
        Input::File(text) => {
            std::fs::write(dir.path().join("rows.jsonl"), text).unwrap();
            command.arg("rows.jsonl").output().unwrap()
        }
        Input::Stdin(text) => {
            let mut child = command.arg("-").stdin(Stdio::piped()).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let text = text.to_vec();
            let writer = std::thread::spawn(move || stdin.write_all(&text));
            let output = child.wait_with_output().unwrap();
            writer.join().unwrap().unwrap();
            output
        }
    }
}

enum Input<'a> {
    None,
    File(&'a [u8]),
    Stdin(&'a [u8]),
}

fn rows(rows: &[Value]) -> Vec<u8> {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    lines.into_bytes()
}

fn verdicts(output: &Output) -> Vec<Verdict> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn correct(output: &Output) -> Vec<bool> {
    verdicts(output).iter().map(|v| v.correct).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The cells of the table's row of that name.
fn row_of(table: &str, name: &str) -> Vec<String> {
    let line = table
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name));
    line.unwrap_or_else(|| panic!("no row {name} in:\n{table}"))
        .split_whitespace()
        .skip(1)
        .map(String::from)
        .collect()
}

#[test]
fn one_pair_prints_one_verdict_and_no_table() {
    let output = grade(&["--gold", "-5", "--answer", "-5"], Input::None);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(correct(&output), [true]);
    assert_eq!(stderr(&output), "");

    let output = grade(&["--gold", "7", "--answer", "no box"], Input::None);
    assert_eq!(
        output.status.code(),
        Some(0),
        "a wrong answer is no failure"
    );
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys: Vec<&String> = verdict.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["correct", "extracted", "rule"]);
}

#[test]
fn every_kind_of_row_is_judged_as_what_it_is() {
    let boxed = r"so \boxed{7}";
    let input = rows(&[
        json!({"gold": "7", "answer": "7"}),
        json!({"gold": "7", "answer": boxed}),
        json!({"gold": "7", "completion": boxed}),
        json!({"gold": "7", "completion": "7"}),
        json!({"gold": "7", "pred": "7"}),
        json!({"gold": "7", "pred": "7", "kind": "answer"}),
        json!({"gold": "7", "pred": boxed, "kind": "answer"}),
        json!({"gold": "7", "pred": "7", "kind": "response"}),
        json!({"gold": "7", "pred": boxed, "kind": "response"}),
    ]);
    let output = grade(&[], Input::File(&input));
    assert_eq!(
        correct(&output),
        [true, true, true, false, true, true, true, false, true]
    );
    let none = &verdicts(&output)[3];
    assert_eq!((none.extracted.as_deref(), none.position), (None, None));
    let found = &verdicts(&output)[8];
    assert_eq!(found.position, Some((3, boxed.len())));
    assert!(found.found_by.is_some());
}

/// More lines than one block has, with blank ones between, from a file and
/// from standard input.
#[test]
fn verdicts_are_in_the_order_of_the_lines() {
    let mut input = Vec::new();
    let n = 9000;
    for i in 0..n {
        // What is asked differs from line to line, and so does its length.
        let answer = format!("{}{i}", " ".repeat(i % 97));
        let row = json!({"gold": (i / 2 * 2).to_string(), "answer": answer});
        writeln!(input, "{row}").unwrap();
        if i % 1000 == 0 {
            input.extend_from_slice(b"\n  \r\n");
        }
    }
    for source in [Input::File(&input), Input::Stdin(&input)] {
        let output = grade(&[], source);
        assert_eq!(output.status.code(), Some(0));
        let verdicts = verdicts(&output);
        assert_eq!(verdicts.len(), n);
        for (i, verdict) in verdicts.iter().enumerate() {
            assert_eq!(verdict.extracted, Some(i.to_string()));
            assert_eq!(verdict.correct, i % 2 == 0, "{i}");
        }
        let table = stderr(&output);
        assert_eq!(row_of(&table, "total"), ["9000", "4500", "50.00", "0"]);
        assert_eq!(row_of(&table, "all"), row_of(&table, "total"));
        assert_eq!(
            table.lines().next().map(|l| l.split_whitespace().collect()),
            Some(vec!["group", "rows", "correct", "%", "undecided"])
        );
    }
}

fn labelled() -> Vec<u8> {
    rows(&[
        json!({"id": "a", "gold": "1", "answer": "1", "group": "zeta", "equal": true}),
        json!({"id": "b", "gold": "1", "answer": "1", "group": "zeta", "equal": false}),
        json!({"id": 3, "gold": "1", "answer": "2\u{1b}[31m\n", "group": "zeta", "equal": true}),
        json!({"gold": "1", "answer": "2", "group": "alpha", "equal": false}),
        json!({"gold": "1", "answer": "2", "equal": false}),
        // Without a label a row counts, but in no accuracy.
        json!({"gold": "1", "answer": "2", "equal": null, "group": "unlabelled"}),
        json!({"gold": "1", "answer": "2".repeat(300), "equal": true, "group": "alpha"}),
    ])
}

#[test]
fn the_table_counts_what_is_not_as_labelled() {
    let output = grade(&[], Input::File(&labelled()));
    let table = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{table}");
    for (group, cells) in [
        ("zeta", ["3", "2", "33.33", "1", "1", "0"]),
        ("alpha", ["2", "1", "50.00", "0", "1", "0"]),
        ("all", ["1", "0", "100.00", "0", "0", "0"]),
        ("unlabelled", ["1", "0", "-", "0", "0", "0"]),
        ("total", ["7", "3", "50.00", "1", "2", "0"]),
    ] {
        assert_eq!(row_of(&table, group), cells, "{group}:\n{table}");
    }
    let lines: Vec<&str> = table.lines().collect();
    let names: Vec<_> = lines[1..6]
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(names, ["zeta", "alpha", "all", "unlabelled", "total"]);
    assert!(
        lines[..6].iter().all(|line| line.len() == lines[0].len()),
        "{table}"
    );
    assert_eq!(lines.len(), 7, "{table}");
    for part in [
        "answers per second and core",
        "p50",
        "p99",
        "slowest (rows.jsonl:",
    ] {
        assert!(lines[6].contains(part), "{part}: {}", lines[6]);
    }
}

#[test]
fn disagreements_are_shown_by_name() {
    let output = grade(&["--disagreements"], Input::File(&labelled()));
    let text = stderr(&output);
    let shown: Vec<&str> = text
        .lines()
        .take_while(|l| l.starts_with("false "))
        .collect();
    assert_eq!(shown.len(), 3, "{text}");
    assert!(
        shown[0].starts_with("false positive rows.jsonl:2 b: gold 1, extracted 1: "),
        "{text}"
    );
    assert!(shown[1].starts_with("false negative rows.jsonl:3 3: gold 1, extracted 2"));
    assert!(
        !text.contains('\u{1b}'),
        "a file does not colour the terminal"
    );
    let cut = format!(
        "false negative rows.jsonl:7 (no id): gold 1, extracted {}...: ",
        "2".repeat(200)
    );
    assert!(shown[2].starts_with(&cut), "{text}");
    assert!(shown[2].len() < 600);
}

#[test]
fn a_bad_line_is_named_and_those_before_it_are_judged() {
    let good = json!({"gold": "1", "answer": "1"}).to_string();
    let deep = "[".repeat(100_000);
    for (line, part) in [
        (r#"{"gold": "1", "#.as_bytes(), "is no JSON (column"),
        (b"[1]", "is no JSON object"),
        (b"null", "is no JSON object"),
        (b"{\"gold\": \"\xff\", \"answer\": \"1\"}", "is no JSON"),
        (deep.as_bytes(), "is no JSON"),
        (br#"{"answer": "1"}"#, "has no text under gold"),
        (br#"{"gold": 1, "answer": "1"}"#, "has no text under gold"),
        (
            br#"{"gold": null, "answer": "1"}"#,
            "has no text under gold",
        ),
        (
            br#"{"gold": "1"}"#,
            "has no text under answer, completion or pred",
        ),
        (br#"{"gold": "1", "answer": 1}"#, "has no text under answer"),
        (
            br#"{"gold": "1", "pred": "1", "kind": "text"}"#,
            "known are answer and response",
        ),
    ] {
        // The second block is not whole when the line is met.
        for before in [0, 2, 5000] {
            let mut input = format!("\n{}", format!("{good}\n").repeat(before)).into_bytes();
            input.extend_from_slice(line);
            input.extend_from_slice(format!("\n{good}\n").as_bytes());
            let output = grade(&[], Input::File(&input));
            let message = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{message}");
            assert_eq!(correct(&output), vec![true; before], "{message}");
            let place = format!("error: rows.jsonl:{} ", before + 2);
            assert!(message.starts_with(&place), "{message}");
            assert!(message.contains(part), "{part}: {message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }
    let output = grade(&[], Input::Stdin(b"{}"));
    assert!(stderr(&output).starts_with("error: -:1 has no text under gold"));
    for nothing in [&b""[..], b"\n \n"] {
        let output = grade(&[], Input::File(nothing));
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(stderr(&output), "error: rows.jsonl holds no rows\n");
    }
}

#[test]
fn odd_but_valid_rows_are_rows() {
    let dir = TempDir::new().unwrap();
    let input = [
        b"\xef\xbb\xbf".to_vec(),
        rows(&[
            json!({"gold": "", "answer": "", "equal": "yes", "group": 5, "id": {"a": 1}}),
            json!({"gold": "1", "answer": "1", "completion": "2", "group": "a\nb\u{1b}[2J"}),
            json!({"gold": "\u{0}", "answer": "\u{10ffff}", "group": "x".repeat(1000)}),
        ]),
        // The last line may end with the file.
        json!({"gold": "1", "answer": "1"}).to_string().into_bytes(),
    ]
    .concat();
    let output = grade(&[], Input::File(&input));
    let table = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{table}");
    assert_eq!(correct(&output), [false, true, false, true]);
    assert_eq!(row_of(&table, "total"), ["4", "2", "50.00", "0"]);
    assert_eq!(row_of(&table, "5"), ["1", "0", "0.00", "0"]);
    assert!(
        !table.contains('\u{1b}') && table.lines().count() == 7,
        "{table}"
    );
    assert!(
        table.lines().all(|line| line.chars().count() < 200),
        "{table}"
    );

    assert_eq!(missing(dir.path()).status.code(), Some(1));
    assert!(stderr(&missing(dir.path())).contains("cannot read no-such.jsonl"));
}

fn missing(folder: &Path) -> Output {
    Command::new(crate::common::arca())
        .args(["grade", "no-such.jsonl"])
        .current_dir(folder)
        .output()
        .unwrap()
}

#[test]
fn how_strict_it_is_can_be_said() {
    let input = rows(&[
        json!({"gold": "7", "completion": "The answer is 7."}),
        json!({"gold": "7", "completion": "It is 3 + 4, so 7"}),
        json!({"gold": "7", "completion": r"The answer is 7: \boxed{8}"}),
        json!({"gold": "7", "completion": r"\boxed{7}"}),
    ]);
    for (fallback, expected) in [
        (&[][..], [false, false, false, true]),
        (&["--fallback", "none"], [false, false, false, true]),
        (&["--fallback", "phrase"], [true, false, false, true]),
        (&["--fallback", "number"], [true, true, false, true]),
    ] {
        let output = grade(fallback, Input::File(&input));
        assert_eq!(correct(&output), expected, "{fallback:?}");
    }

    let doubtful = [
        ("5", "5 apples"),
        ("10", "10\\%"),
        ("\\frac{1}{3}", "0.333"),
        ("x=5", "5"),
        ("\\text{(A)}", "a"),
    ];
    let list: Vec<Value> = doubtful
        .iter()
        .map(|(gold, answer)| json!({"gold": gold, "answer": answer}))
        .collect();
    for (args, lenient) in [(&[][..], false), (&["--lenient"], true)] {
        let grader = Grader {
            lenient,
            fallback: Fallback::None,
        };
        let output = grade(args, Input::File(&rows(&list)));
        let expected: Vec<Verdict> = doubtful
            .iter()
            .map(|(gold, answer)| grader.text(gold, answer))
            .collect();
        assert_eq!(verdicts(&output), expected, "{args:?}");
    }
}

#[test]
fn bad_usage_is_refused() {
    for args in [
        &["--fallback", "phrases", "rows.jsonl"][..],
        &["--gold", "1"],
        &["--gold", "1", "--answer", "1", "rows.jsonl"],
        &["--gold", "1", "--answer", "1", "--disagreements"],
        &[],
    ] {
        let output = grade(args, Input::None);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty());
    }
}
