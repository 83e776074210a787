//! Guards that a run is a function of its configuration, and of nothing else:
//! not of when it was interrupted, nor of how a step was cut into batches.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::run::{Bench, Run, SMALL, expect};

/// ARCA draws on all that a step computes: reference rows, residuals, weights.
const ARCA: &str = "credit.method=arca";

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let bench = Bench::new();
    let straight = bench.train("straight", &[ARCA, "train.steps=4"]);
    bench.train("resumed", &[ARCA, "train.steps=2"]);
    let resumed = bench.resume("resumed", &["train.steps=4"]);
    straight.assert_same(&resumed, 4);
    assert_eq!(resumed.checkpoints(), [2, 4]);

    // Nothing is left to do: the folder stays as it is.
    let metrics = resumed.bytes("metrics.jsonl");
    let resumed = bench.resume("resumed", &[]);
    assert_eq!(resumed.bytes("metrics.jsonl"), metrics);
}

/// Moments, dropout masks, the learning rate and the data cursor of a run with
/// everything on must survive as well.
#[test]
fn a_resumed_run_keeps_every_piece_of_state() {
    let bench = Bench::new();
    let settings = [
        ARCA,
        "lora.dropout=0.1",
        "loss.beta=0.05",
        "loss.inner_iterations=2",
        "rollout.refill_zero_variance=1",
        "optimizer.schedule=cosine",
        "optimizer.warmup_steps=2",
        "credit.warmup_steps=1",
        "train.steps=4",
        "train.save_every=1",
        "train.eval_every=2",
    ];
    let straight = bench.train("straight", &settings);
    assert_eq!(straight.checkpoints(), [1, 2, 3, 4]);

    // As if the process had died in the middle of step 3.
    bench.train("crashed", &settings);
    let crashed = bench.run("crashed");
    for step in [3, 4] {
        let dir = crashed.root.join(format!("checkpoints/step_{step}"));
        std::fs::remove_dir_all(dir).unwrap();
    }
    let resumed = bench.resume("crashed", &[]);
    straight.assert_same(&resumed, 4);
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_one_does_not() {
    let bench = Bench::new();
    let one = bench.train("one", &["train.seed=7"]);
    let same = bench.train("same", &["train.seed=7"]);
    one.assert_same(&same, 2);
    let other = bench.train("other", &["train.seed=8"]);
    assert_ne!(one.adapter(), other.adapter());
    assert_ne!(one.completions(1), other.completions(1));
}

/// `train.tokens_per_batch` is a physical limit: where groups stay whole,
/// nothing in a run depends on it.
#[test]
fn the_physical_split_changes_nothing() {
    let bench = Bench::new();
    // The longest prompt of the demo and two completions fit (for ARCA twice
    // over, with the reference rows); six groups do not.
    for (method, few) in [("uniform", 256), ("arca", 512)] {
        let method_key = format!("credit.method={method}");
        let train = |rows: usize| {
            let settings = [
                &method_key,
                "train.prompts_per_step=6",
                "rollout.group_size=2",
                &format!("train.tokens_per_batch={rows}"),
            ];
            bench.train(&format!("{method}-{rows}"), &settings)
        };
        train(8192).assert_same(&train(few), 2);
    }
}

/// Neither does the number of threads.
#[test]
fn the_number_of_threads_changes_nothing() {
    let bench = Bench::new();
    let one = bench.train("one", &[ARCA]);
    let output = bench
        .command("three", &[ARCA])
        .env("RAYON_NUM_THREADS", "3")
        .output()
        .unwrap();
    expect(&output, 0, "three threads");
    one.assert_same(&bench.run("three"), 2);
}

#[test]
fn a_used_run_folder_is_refused() {
    let bench = Bench::new();
    let run = bench.train("used", &["train.steps=1"]);
    let before = run.adapter();
    let output = bench.command("used", &["train.steps=1"]).output().unwrap();
    let message = expect(&output, 2, "a second run in the same folder");
    assert!(message.contains("--resume"), "{message}");
    assert_eq!(run.adapter(), before);
}

/// Starts a run that would go on for long, and waits until it has written
/// `lines` lines of metrics.
#[cfg(unix)]
fn under_way(bench: &Bench, name: &str, settings: &[&str], lines: usize) -> std::process::Child {
    let mut child = bench
        .command(name, &[settings, &["train.steps=100000"]].concat())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let metrics = bench.path().join(name).join("metrics.jsonl");
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(&metrics).unwrap_or_default();
        if text.lines().count() >= lines {
            return child;
        }
        assert!(child.try_wait().unwrap().is_none(), "the run ended");
        assert!(
            start.elapsed() < Duration::from_secs(300),
            "no {lines} steps in five minutes"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(unix)]
fn signal(child: &std::process::Child, signal: rustix::process::Signal) {
    let id = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(id, signal).unwrap();
}

/// Continues an interrupted run for two steps; a run that was never
/// interrupted must agree.
fn continue_and_compare(bench: &Bench, name: &str, settings: &[&str]) -> Run {
    let done = *bench.run(name).checkpoints().last().expect("a checkpoint");
    let steps = format!("train.steps={}", done + 2);
    let resumed = bench.resume(name, &[&steps]);
    let straight = bench.train("straight", &[settings, &[&steps]].concat());
    straight.assert_same(&resumed, done + 2);
    resumed
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_the_run_goes_on_as_if_nothing_had_been() {
    let bench = Bench::new();
    let settings = ["credit.method=divergence"];
    let child = under_way(&bench, "run", &settings, 1);
    signal(&child, rustix::process::Signal::INT);
    let output = child.wait_with_output().unwrap();
    let message = expect(&output, 130, "SIGINT");
    assert!(message.contains("--resume"), "{message}");
    let run = bench.run("run");
    assert!(!run.root.join("summary.json").exists());
    let done = *run.checkpoints().last().unwrap();
    assert_eq!(run.metrics().len(), done, "whole steps only");
    continue_and_compare(&bench, "run", &settings);
}

/// The power goes: nothing is saved but what `train.save_every` saved.
#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let bench = Bench::new();
    let settings = ["train.save_every=2"];
    let mut child = under_way(&bench, "run", &settings, 3);
    signal(&child, rustix::process::Signal::KILL);
    child.wait().unwrap();
    let resumed = continue_and_compare(&bench, "run", &settings);
    let names = std::fs::read_dir(&resumed.root).unwrap();
    for name in names.map(|e| e.unwrap().file_name().into_string().unwrap()) {
        assert!(!name.contains(".tmp-") && !name.contains(".old-"), "{name}");
    }
}

/// A run that died before its first checkpoint starts over.
#[test]
fn a_run_without_a_checkpoint_starts_over() {
    let bench = Bench::new();
    let straight = bench.train("straight", &[]);
    bench.train("died", &[]);
    let died = bench.run("died");
    std::fs::remove_dir_all(died.root.join("checkpoints")).unwrap();
    std::fs::remove_file(died.root.join("summary.json")).unwrap();
    let resumed = bench.resume("died", &[]);
    straight.assert_same(&resumed, 2);
}

/// The settings of the tests are part of what they promise.
#[test]
fn a_resumed_run_takes_its_settings_from_its_folder() {
    let bench = Bench::new();
    bench.train("run", &["train.steps=1", "lora.r=4"]);
    let output = Command::new(crate::common::arca())
        .args(["train", "--run", "run", "--resume", "--set", "lora.r=8"])
        .current_dir(bench.path())
        .output()
        .unwrap();
    let message = expect(&output, 2, "another rank");
    assert!(message.contains("lora.r"), "{message}");

    let run = bench.resume("run", &["train.steps=2"]);
    let config = String::from_utf8(run.bytes("config.toml")).unwrap();
    for setting in SMALL.iter().filter(|s| !s.starts_with("train.steps")) {
        let (key, value) = setting.split_once('=').unwrap();
        let name = key.rsplit('.').next().unwrap();
        let line = format!("{name} = {value}\n");
        assert!(config.contains(&line), "{line} is not in:\n{config}");
    }
}
