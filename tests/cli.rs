//! The real binary: exit codes, what errors say and where they go.

use std::path::Path;
use std::process::{Command, Output};

/// Runs arca in `folder`, with no terminal and no colours.
fn arca(folder: &Path, args: &[&str]) -> Output {
    Command::new(crate::common::arca())
        .args(args)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .output()
        .expect("the binary starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command line that cannot be meant: exit code 2, one error on
/// standard error and nothing on standard output.
fn refused(folder: &Path, args: &[&str]) -> String {
    let output = arca(folder, args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(message.matches("error: ").count(), 1, "{message}");
    message
}

#[test]
fn help_names_every_verb() {
    let dir = tempfile::tempdir().unwrap();
    let output = arca(dir.path(), &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for verb in [
        "train",
        "sweep",
        "eval",
        "generate",
        "inspect",
        "replay",
        "grade",
        "report",
        "plan",
        "bench",
        "init-model",
    ] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb}:\n{help}");
        let own = arca(dir.path(), &[verb, "--help"]);
        assert_eq!(own.status.code(), Some(0), "{verb}");
    }
}

#[test]
fn bad_usage_is_2() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["trian"][..],
        &["train", "--no-such-flag"],
        &["train", "--resume"],
        &["train", "--set", "train.steps"],
        &["train", "--config", "no-such.toml"],
        &["train", "--device", "gpu"],
        &["generate", "--prompt", "x", "--input", "y"],
        &[
            "generate",
            "--prompt",
            "x",
            "--greedy",
            "--temperature",
            "1",
        ],
        &["grade", "--gold", "1"],
        &["bench", "everything"],
        &["inspect"],
        &["plan", "--run", "no-such-run"],
        &["sweep"],
        &["sweep", "--resume"],
        &["sweep", "--config", "no-such.toml"],
        &["report"],
        &["report", "no-such-run"],
        &["report", "."],
    ] {
        refused(dir.path(), args);
    }
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let message = refused(dir.path(), &["train", "--set", "credit.methd=arca"]);
    assert_eq!(
        message,
        "error: --set: unknown key `credit.methd`; the nearest known key is `credit.method`\n"
    );

    std::fs::write(dir.path().join("a.toml"), "[rollout]\ngroupsize = 4\n").unwrap();
    let message = refused(dir.path(), &["plan", "--config", "a.toml"]);
    assert_eq!(
        message,
        "error: a.toml:2: unknown key `rollout.groupsize`; the nearest known key is \
         `rollout.group_size`\n"
    );
}

#[test]
fn flags_are_checked_like_the_keys_they_stand_for() {
    let dir = tempfile::tempdir().unwrap();
    let message = refused(dir.path(), &["eval", "--top-p", "1.5"]);
    assert!(message.contains("rollout.top_p = 1.5"), "{message}");
    let message = refused(dir.path(), &["train", "--set", "rollout.top_p=0.9"]);
    assert!(message.contains("allow_truncated_sampling"), "{message}");
}

#[test]
fn a_resumed_run_keeps_its_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("r");
    let config = arca::config::Config::demo_defaults().unwrap();
    arca::train::run_dir::RunDir::create(Some(&run), &config).unwrap();

    let changed = ["train", "--run", "r", "--resume", "--set", "lora.r=4"];
    let message = refused(dir.path(), &changed);
    assert!(message.contains("lora.r differs"), "{message}");
    let message = refused(dir.path(), &["train", "--run", "s", "--resume"]);
    assert!(message.contains("config.toml"), "{message}");
}
