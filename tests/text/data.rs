//! Guards: what rows mean, in every layout; nothing is dropped, repeated or
//! misread in silence; the order is the same for the same seed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use arca::data::{self, Cursor, DataOrder, Dataset};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::fixture;

/// As a run loads by default.
fn load(path: &Path) -> anyhow::Result<Dataset> {
    data::load(path, false)
}

fn written(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    (dir, path)
}

fn loaded(name: &str, content: impl AsRef<[u8]>) -> Dataset {
    let (_dir, path) = written(name, content);
    load(&path).unwrap()
}

fn refused(name: &str, content: impl AsRef<[u8]>) -> String {
    let (_dir, path) = written(name, content);
    format!("{:#}", load(&path).unwrap_err())
}

fn one(row: Value) -> arca::episode::Problem {
    loaded("a.jsonl", row.to_string()).problems.remove(0)
}

#[test]
fn rows_of_the_usual_data_sets_are_understood() {
    let dataset = load(&fixture("data/mixed.jsonl")).unwrap();
    let golds: Vec<_> = dataset
        .problems
        .iter()
        .map(|p| (p.id.as_str(), p.answer.as_str()))
        .collect();
    assert_eq!(
        golds,
        [
            ("test/algebra/1.json", r"\frac{1}{2}"),
            ("mixed.jsonl:2", "1,234"),
            ("7", "12"),
            ("mixed.jsonl:5", "x^{2}"),
            ("7#2", "3"),
        ]
    );
    let first = &dataset.problems[0];
    assert_eq!(first.level.as_deref(), Some("Level 2"));
    assert_eq!(first.subject.as_deref(), Some("Algebra"));
    assert_eq!(
        dataset.problems[1].solution.as_deref(),
        Some("Half of it.\n#### 1,234")
    );

    let dropped: Vec<_> = dataset
        .dropped
        .iter()
        .map(|row| row.place.as_str())
        .collect();
    assert_eq!(
        dropped,
        [
            "mixed.jsonl:6",
            "mixed.jsonl:8",
            "mixed.jsonl:9",
            "mixed.jsonl:10"
        ]
    );
    let report = dataset.to_string();
    assert!(
        report.contains("empty/1 (mixed.jsonl:8): its solution has no closed, filled"),
        "{report}"
    );
    assert!(
        report.contains("mixed.jsonl:9: its answer is empty"),
        "{report}"
    );
    assert_eq!(dataset.several_boxes, ["mixed.jsonl:6"]);
    assert!(
        report.contains("dropped 1 rows: the solution boxes several different answers"),
        "{report}"
    );
    assert!(report.contains("such rows): mixed.jsonl:6\n"), "{report}");

    let all = data::load(&fixture("data/mixed.jsonl"), true).unwrap();
    assert_eq!(all.problems.len(), dataset.problems.len() + 1);
    assert_eq!(all.problems[4].answer, "2");
    assert_eq!(all.several_boxes, dataset.several_boxes);
    let report = all.to_string();
    assert!(
        report.contains("1 rows box several different answers in their solution (kept, as "),
        "{report}"
    );
}

/// Which solutions are taken to have one answer, and which it is.
#[test]
fn a_solution_with_several_answers_is_told_from_one_with_several_boxes() {
    let figure = r#"[asy] label("$\boxed{" + string(n) + "}$"); // }}{ [/asy]"#;
    for (solution, gold) in [
        (r"$\boxed{1}$ or $\boxed{2}$", None),
        (r"$\boxed{1}$, $\boxed{1}$ and $\fbox 2$", None),
        // Equal in value, but as likely a step and its end.
        (r"$\boxed{16/5} = \boxed{\frac{16}{5}}$", None),
        (r"$\boxed{\boxed{1}\text{ or }\boxed{2}}$", None),
        (r"$\boxed{x = \boxed{2}}$", None),
        (r"$\boxed{1}$ [asy] no end \boxed{2}", None),
        (r"$\boxed{(1, 2)}$ so $\boxed{(1,2)}$", Some("(1,2)")),
        (
            r"$\boxed{\dfrac12\text{ m}}$, $\boxed{\frac12\,\text{ m}}$",
            Some(r"\frac12\,\text{ m}"),
        ),
        (r"$\boxed{1\\,2}$, $\boxed{1\\2}$", None),
        (r"$\boxed{\boxed{7}}$", Some("7")),
        (
            r"Fill in $\boxed{}$ or $\boxed{\phantom{09}}$: $\boxed{5}$",
            Some("5"),
        ),
        (r"$\boxed{\phantom{{1}2} \hphantom {3}}$: $\boxed{5}$", None),
        (r"$\boxed{\phantom é}$, $\boxed{5}$", None),
        (&format!(r"{figure} $\boxed{{22}}$"), Some("22")),
        (&format!(r"$\boxed{{22}}$ {figure}"), Some("22")),
        (&format!(r"$\boxed{{22}}$ {figure} $\boxed{{23}}$"), None),
    ] {
        let row = json!({"problem": "p", "solution": solution});
        // A second row, for a file without any problem is an error.
        let other = json!({"problem": "q", "answer": "1"});
        let dataset = loaded("a.jsonl", format!("{row}\n{other}"));
        let found = dataset.problems.iter().find(|p| p.problem == "p");
        assert_eq!(found.map(|p| p.answer.as_str()), gold, "{solution}");
        assert_eq!(dataset.several_boxes.len(), usize::from(gold.is_none()));
        assert_eq!(dataset.dropped.len(), usize::from(gold.is_none()));
    }
    // A last box to be filled in by the reader is no gold, whatever stands before.
    let error = refused(
        "a.jsonl",
        json!({"problem": "p", "solution": r"\boxed{5}, \boxed{\phantom{5}}"}).to_string(),
    );
    assert!(error.contains("no closed, filled"), "{error}");
}

#[test]
fn gold_is_answer_then_ground_truth_then_the_solution_s_box() {
    let all = json!({"problem": "p", "answer": "1", "ground_truth": "2", "solution": r"\boxed{3}"});
    assert_eq!(one(all.clone()).answer, "1");
    let mut row = all.as_object().unwrap().clone();
    row["answer"] = Value::Null;
    assert_eq!(one(row.clone().into()).answer, "2");
    row.shift_remove("ground_truth");
    assert_eq!(one(row.into()).answer, "3");
    assert_eq!(one(json!({"question": "q", "answer": 2.5})).answer, "2.5");
}

#[test]
fn layouts_are_told_by_content() {
    let rows = [
        json!({"problem": "a", "answer": "1"}),
        json!({"problem": "b", "answer": "2"}),
    ];
    let lines = rows
        .iter()
        .map(|row| format!("{row}\n\n"))
        .collect::<String>();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(lines.as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    let answers = |dataset: Dataset| {
        dataset
            .problems
            .into_iter()
            .map(|p| (p.id, p.answer))
            .collect::<Vec<_>>()
    };
    let expected = |first: &str, second: &str| {
        vec![
            (first.to_string(), "1".to_string()),
            (second.to_string(), "2".to_string()),
        ]
    };
    assert_eq!(
        answers(loaded("a.jsonl", &lines)),
        expected("a.jsonl:1", "a.jsonl:3")
    );
    assert_eq!(
        answers(loaded("a.jsonl.gz", &packed)),
        expected("a.jsonl.gz:1", "a.jsonl.gz:3")
    );
    assert_eq!(
        answers(loaded("a.json", format!("\u{feff} {}", json!(rows)))),
        expected("a.json:1", "a.json:2")
    );
    assert_eq!(
        answers(loaded("crlf.jsonl", lines.replace('\n', "\r\n"))),
        expected("crlf.jsonl:1", "crlf.jsonl:3")
    );
}

#[test]
fn malformed_rows_are_named() {
    let good = json!({"problem": "p", "answer": "1"});
    for (name, content, parts) in [
        (
            "a.jsonl",
            format!("{good}\n{{\"problem\": \"p\""),
            ["a.jsonl, row 2", "not valid JSON"],
        ),
        (
            "a.jsonl",
            format!("{good}\n{{\"text\": 1, \"gold\": 2}}"),
            ["row 2", "the row has text, gold"],
        ),
        (
            "a.jsonl",
            format!("{good}\n{{\"problem\": \"p\"}}"),
            ["row 2", "answer, ground_truth, solution"],
        ),
        ("a.jsonl", "[1".into(), ["a.jsonl", "JSON array"]),
        ("a.json", "[1]".into(), ["a.json, row 1", "JSON object"]),
        (
            "a.jsonl",
            json!({"prompt": [{"role": "user"}], "answer": "1"}).to_string(),
            ["row 1", "prompt is a list"],
        ),
        (
            "a.jsonl",
            json!({"problem": "p", "answer": {}}).to_string(),
            ["row 1", "answer: expected text"],
        ),
        (
            "a.jsonl",
            json!({"problem": " ", "answer": "1"}).to_string(),
            ["row 1", "statement is empty"],
        ),
        (
            "a.jsonl",
            json!({"problem": "p", "answer": ""}).to_string(),
            ["no usable problem", "its answer is empty"],
        ),
        ("a.jsonl", String::new(), ["a.jsonl", "no usable problem"]),
    ] {
        let error = refused(name, content);
        assert!(
            parts.iter().all(|part| error.contains(part)),
            "{parts:?}: {error}"
        );
    }
    assert!(refused("a.jsonl", b"{\"problem\": \"\xff\"}").contains("row 1"));
    assert!(refused("a.jsonl.gz", [0x1f, 0x8b, 8, 0, 0]).contains("un-gzipping"));
    let error = format!("{:#}", load(Path::new("no/such/file.jsonl")).unwrap_err());
    assert!(error.contains("no/such/file.jsonl"), "{error}");
}

#[test]
fn repeated_rows_are_counted_and_get_ids_of_their_own() {
    let row = |id: &str, problem: &str, answer: &str| {
        json!({"id": id, "problem": problem, "answer": answer}).to_string() + "\n"
    };
    let dataset = loaded(
        "a.jsonl",
        row("x", "p  q", "1")
            + &row("x", "p\nq", "1")
            + &row("x#2", "p", "1")
            + &row("x", "p", "2"),
    );
    let ids: Vec<_> = dataset.problems.iter().map(|p| p.id.as_str()).collect();
    assert_eq!(ids, ["x", "x#3", "x#2", "x#4"]);
    assert_eq!(dataset.duplicates, ["x#3"]);
}

fn write_tree(root: &Path, files: &[&str]) {
    for name in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let row = json!({"problem": name, "level": "Level 1", "type": "T", "solution": format!("\\boxed{{{name}}}")});
        // The original files are laid out over several lines.
        fs::write(path, serde_json::to_string_pretty(&row).unwrap()).unwrap();
    }
}

#[test]
fn a_math_folder_is_in_order_of_subject_and_number() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("MATH");
    write_tree(
        &root,
        &[
            "train/geometry/2.json",
            "train/algebra/10.json",
            "train/algebra/9.json",
            "train/algebra/x.json",
        ],
    );
    fs::write(root.join("README.txt"), "not data").unwrap();
    let names = |dataset: &Dataset| {
        dataset
            .problems
            .iter()
            .map(|p| p.id.clone())
            .collect::<Vec<_>>()
    };
    let expected = [
        "train/algebra/9.json",
        "train/algebra/10.json",
        "train/algebra/x.json",
        "train/geometry/2.json",
    ];
    let from_above = load(&root).unwrap();
    assert_eq!(names(&from_above), expected);
    // The same ids from the split's own folder.
    assert_eq!(load(&root.join("train")).unwrap(), from_above);
    assert_eq!(from_above.problems[0].subject.as_deref(), Some("T"));
    assert!(from_above.to_string().is_empty(), "{from_above}");

    write_tree(&root, &["test/algebra/1.json"]);
    let both = load(&root).unwrap();
    assert_eq!(both.problems.len(), 5);
    assert!(
        both.to_string().contains("test and train together"),
        "{both}"
    );

    fs::write(root.join("test/algebra/1.json"), "{\"problem\": 1").unwrap();
    let error = format!("{:#}", load(&root).unwrap_err());
    assert!(error.contains("1.json is not valid JSON"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = format!("{:#}", load(empty.path()).unwrap_err());
    assert!(error.contains("no .json file"), "{error}");
}

#[test]
fn every_epoch_asks_every_row_once_in_its_own_order() {
    let mut order = DataOrder::new(50, 3).unwrap();
    let epochs: Vec<Vec<usize>> = (0..3).map(|_| order.next_batch(50)).collect();
    for epoch in &epochs {
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    assert_ne!(DataOrder::new(50, 4).unwrap().next_batch(50), epochs[0]);
    assert!(DataOrder::new(0, 1).is_err());
    let beyond = Cursor {
        epoch: 0,
        position: 51,
    };
    assert!(DataOrder::resume(50, 3, beyond).is_err());
}

proptest! {
    /// The sequence does not depend on how it is cut into batches, nor on
    /// being saved and resumed between any two of them.
    #[test]
    fn order_is_one_sequence(rows in 1usize..20, seed in any::<u64>(), batches in prop::collection::vec(0usize..15, 0..10)) {
        let mut whole = DataOrder::new(rows, seed).unwrap();
        let mut order = DataOrder::new(rows, seed).unwrap();
        for n in batches {
            let saved = serde_json::to_string(&order.cursor()).unwrap();
            let mut resumed = DataOrder::resume(rows, seed, serde_json::from_str(&saved).unwrap()).unwrap();
            let batch = order.next_batch(n);
            prop_assert_eq!(&resumed.next_batch(n), &batch);
            prop_assert_eq!(&whole.next_batch(n), &batch);
            prop_assert_eq!(batch.len(), n);
        }
    }
}

/// The real data sets, which the project does not carry.
#[test]
#[ignore = "needs ARCA_MATH_DATA, a folder with math_train.jsonl.gz and its companions"]
fn data_sets_given_by_hand() {
    let folder = PathBuf::from(std::env::var_os("ARCA_MATH_DATA").unwrap());
    let grader = arca::reward::Grader::default();
    for (file, problems, dropped) in [
        ("math_train.jsonl.gz", 7476, 24),
        ("math_test.jsonl.gz", 4979, 21),
        ("math500.jsonl.gz", 499, 1),
        ("gsm8k_train.jsonl.gz", 7473, 0),
        ("gsm8k_test.jsonl.gz", 1319, 0),
    ] {
        let dataset = load(&folder.join(file)).unwrap();
        println!("{file}: {} problems\n{dataset}", dataset.problems.len());
        assert_eq!(
            (dataset.problems.len(), dataset.dropped.len()),
            (problems, dropped),
            "{file}"
        );
        if !file.starts_with("math") {
            continue;
        }
        // Every solution earns its own gold, and without the key `answer` its
        // last box is the same gold.
        let mut lines = String::new();
        for asked in &dataset.problems {
            let solution = asked.solution.as_deref().unwrap();
            let verdict = grader.completion(&asked.answer, solution);
            assert!(verdict.correct, "{}: {}", asked.id, verdict.rule);
            lines += &format!(
                "{}\n",
                json!({"id": asked.id, "problem": asked.problem, "solution": solution})
            );
        }
        for (asked, boxed) in dataset
            .problems
            .iter()
            .zip(loaded("boxed.jsonl", lines).problems)
        {
            assert_eq!(asked.answer.trim(), boxed.answer, "{}", asked.id);
        }
    }
}
