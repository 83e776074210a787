//! Guards what profiles say: that a trace is loadable and its ranges nest and
//! add up, that the table's sums are the trace's, that a profiler is told what
//! NVTX has to tell, and that all of it is off unless asked for.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::common::arca;

fn run(folder: &Path, args: &[&str]) -> Output {
    Command::new(arca())
        .args(args)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

fn done(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {errors}");
    assert!(output.stdout.is_empty(), "{args:?}");
    errors
}

/// A complete event of a trace: times in microseconds.
#[derive(Clone, Debug)]
struct Event {
    name: String,
    level: String,
    track: u64,
    start: f64,
    end: f64,
}

impl Event {
    fn seconds(&self) -> f64 {
        (self.end - self.start) * 1e-6
    }
}

fn read(path: &Path) -> Vec<Event> {
    let json: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let events = json["traceEvents"].as_array().unwrap();
    assert!(events.iter().all(|e| e["pid"] == 1 && e["tid"].is_u64()));
    events
        .iter()
        .filter(|e| e["ph"] == "X")
        .map(|e| Event {
            name: e["name"].as_str().unwrap().to_string(),
            level: e["cat"].as_str().unwrap().to_string(),
            track: e["tid"].as_u64().unwrap(),
            start: e["ts"].as_f64().unwrap(),
            end: e["ts"].as_f64().unwrap() + e["dur"].as_f64().unwrap(),
        })
        .collect()
}

/// Rounding of a sum of microseconds in binary.
const ROUNDING: f64 = 1e-3;

/// Each event lies wholly within those of its track that began before it and
/// have not ended, and levels only go down.
fn assert_nested(events: &[Event]) {
    let depth = |e: &Event| {
        let levels = ["step", "phase", "layer", "op"];
        levels.iter().position(|l| *l == e.level).unwrap()
    };
    for track in [1, 2, 3] {
        let mut sorted: Vec<&Event> = events.iter().filter(|e| e.track == track).collect();
        sorted.sort_by(|a, b| {
            let by_start = a.start.total_cmp(&b.start);
            by_start.then(depth(a).cmp(&depth(b)))
        });
        let mut open: Vec<&Event> = Vec::new();
        for event in sorted {
            assert!(event.end >= event.start, "{event:?}");
            while open.last().is_some_and(|o| o.end <= event.start + ROUNDING) {
                open.pop();
            }
            if let Some(outer) = open.last() {
                assert!(event.end <= outer.end + ROUNDING, "{event:?} in {outer:?}");
                assert!(depth(event) > depth(outer), "{event:?} in {outer:?}");
            }
            open.push(event);
        }
    }
}

fn of_level<'a>(events: &'a [Event], level: &str, track: u64) -> Vec<&'a Event> {
    events
        .iter()
        .filter(|e| e.level == level && e.track == track)
        .collect()
}

fn total(events: &[&Event]) -> f64 {
    events.iter().map(|e| e.seconds()).sum()
}

/// `bench update` at the demo's shape: what it says, and a trace of two runs.
#[test]
fn a_bench_of_the_update_is_told_and_traced() {
    let dir = tempfile::tempdir().unwrap();
    let out = done(
        dir.path(),
        &[
            "bench",
            "update",
            "--shape",
            "demo",
            "--device",
            "cpu",
            "--prompts",
            "2",
            "--repeats",
            "3",
            "--profile-steps",
            "2:3",
            "--out",
            "t.json",
            "--json",
        ],
    );
    let json: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let number = |key: &str| json[key].as_f64().unwrap();
    assert!(number("tokens_per_second") > 0.0);
    let share = number("share_of_roof");
    assert!(share > 0.0 && share < 1.5, "{share}");
    let rate = number("useful_flops") / number("seconds");
    let roof = json["roof"]["flops_per_second"].as_f64().unwrap();
    assert!((rate / roof / share - 1.0).abs() < 1e-9);
    // 2 prompts of 64 and 16 completions of 64 tokens.
    assert_eq!(json["tokens"], 2 * 64 + 16 * 64);
    for word in ["backward n (2P + 4A)", "share of roof", "optimizer"] {
        assert!(out.contains(word), "{word}:\n{out}");
    }

    let events = read(&dir.path().join("t.json"));
    assert_nested(&events);
    let steps = of_level(&events, "step", 1);
    let names: Vec<&str> = steps.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["step 2", "step 3"]);
    let phases = of_level(&events, "phase", 1);
    for name in ["forward", "backward", "optimizer"] {
        assert_eq!(phases.iter().filter(|e| e.name == name).count(), 2);
    }
    // A forward and a backward of six layers each.
    assert_eq!(of_level(&events, "layer", 1).len(), 2 * 2 * 6);
    let ops = of_level(&events, "op", 1);
    // The update is its phases, and its phases are their ops.
    let step = total(&steps);
    for part in [total(&phases), total(&ops)] {
        assert!(part <= step && part > 0.9 * step, "{part} of {step} s");
    }

    let profile = &json["profile"];
    assert_eq!(profile["steps"], 2);
    assert!((profile["seconds"].as_f64().unwrap() - step).abs() < 1e-6);
    let rows = profile["ops"].as_array().unwrap();
    let calls: u64 = rows.iter().map(|r| r["calls"].as_u64().unwrap()).sum();
    assert_eq!(calls as usize, ops.len());
    let row = |name: &str| rows.iter().find(|r| r["op"] == name).unwrap();
    // Four groups of products in each of 6 layers of two runs.
    assert_eq!(row("lora_shrink")["calls"], 4 * 6 * 2);
    // 2 prompts and 16 completions but for their last tokens, 128 x 512.
    let product = 2.0 * 1136.0 * 128.0 * 512.0 * 12.0;
    let ratio = row("linear_forward gate_up")["flops"].as_f64().unwrap() / product;
    assert!((1.0..1.3).contains(&ratio), "LoRA adds a little: {ratio}");
    // All that was declared against the formula of useful operations: norms,
    // activations and the head's softmax come on top.
    let declared: f64 = rows.iter().map(|r| r["flops"].as_f64().unwrap()).sum();
    let ratio = declared / (2.0 * number("useful_flops"));
    assert!((0.95..1.1).contains(&ratio), "{ratio}");
}

/// A training run: only the asked steps, in the run's folder.
#[test]
fn steps_of_a_run_are_traced() {
    let bench = crate::run::Bench::new();
    let mut command = bench.command("run", &["train.steps=3", "train.eval_every=0"]);
    let output = command.args(["--profile-steps", "2:3"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("2 steps in"), "{table}");
    assert!(table.contains("decode_attention"), "{table}");

    let root = bench.path().join("run");
    let events = read(&root.join("trace.json"));
    assert_nested(&events);
    let names: Vec<String> = of_level(&events, "step", 1)
        .iter()
        .map(|e| e.name.clone())
        .collect();
    assert_eq!(names, ["step 2", "step 3"]);
    let count = |phase: &str| events.iter().filter(|e| e.name == phase).count();
    assert_eq!((count("rollout"), count("optimizer")), (2, 2));
    // A step whose groups have no advantage has neither.
    assert!((1..=2).contains(&count("forward")));
    assert_eq!(count("forward"), count("backward"));
    let profile: Value =
        serde_json::from_str(&std::fs::read_to_string(root.join("profile.json")).unwrap()).unwrap();
    assert_eq!(profile["steps"], 2);

    // Nothing of it where it is not asked for.
    let plain = bench.train("plain", &["train.steps=1"]);
    assert!(!plain.root.join("trace.json").exists());
    assert!(!plain.root.join("profile.json").exists());
}

/// A profiled run takes the same steps.
#[test]
fn a_profile_changes_no_bit() {
    let bench = crate::run::Bench::new();
    let plain = bench.train("plain", &[]);
    let mut command = bench.command("profiled", &[]);
    let output = command.args(["--profile-steps", "1:2"]).output().unwrap();
    assert!(output.status.success());
    plain.assert_same(&bench.run("profiled"), 2);
}

#[test]
fn bad_ranges_are_bad_usage() {
    let dir = tempfile::tempdir().unwrap();
    for (range, says) in [
        ("0:1", "the first step is 1"),
        ("3:2", "before it begins"),
        ("two", "no step"),
        ("1:2:3", "no step"),
        ("", "no step"),
    ] {
        for verb in [&["train"][..], &["bench", "update"]] {
            let message = refused(dir.path(), &[verb, &["--profile-steps", range]].concat());
            assert!(message.contains(says), "{range}: {message}");
        }
    }
    let message = refused(
        dir.path(),
        &["train", "--profile-steps", "2:9", "--set", "train.steps=8"],
    );
    assert!(message.contains("from step 1 to 8"), "{message}");
    assert!(!dir.path().join("runs").exists());
    let bench = ["bench", "update", "--shape", "demo"];
    let message = refused(
        dir.path(),
        &[&bench[..], &["--profile-steps", "6"]].concat(),
    );
    assert!(message.contains("5 timed runs"), "{message}");
    for args in [
        &["bench", "decode", "--profile-steps", "1"][..],
        &["bench", "rollout", "--shape", "demo"],
        &["bench", "update", "--shape", "demo,5m"],
        &["bench", "update", "--shape", "7b"],
        &["bench", "update", "--shape", "demo", "--model", "x"],
        &["bench", "update", "--out", "t.json"],
    ] {
        refused(dir.path(), args);
    }
}

#[cfg(all(feature = "emulator", target_os = "linux"))]
mod with_a_compiler {
    use super::*;
    use crate::common::root;

    /// On a device with a clock of its own ops have a track of their own.
    #[test]
    fn a_device_has_its_own_track() {
        let dir = tempfile::tempdir().unwrap();
        let small = [
            "bench",
            "update",
            "--shape",
            "demo",
            "--device",
            "emulator",
            "--prompts",
            "1",
            "--group-size",
            "2",
            "--prompt-length",
            "4",
            "--new-tokens",
            "8",
            "--repeats",
            "1",
            "--profile-steps",
            "1",
            "--json",
        ];
        let out = done(dir.path(), &small);
        let json: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        assert!(json["device_peak_bytes"].as_f64().unwrap() > 1e6);
        let events = read(&dir.path().join("trace.json"));
        assert_nested(&events);
        let (host, mut device) = (of_level(&events, "op", 1), of_level(&events, "op", 2));
        assert!(!host.is_empty());
        // What the host reads goes beside the rest.
        let beside = of_level(&events, "op", 3);
        assert!(!beside.is_empty() && beside.iter().all(|e| e.name == "download"));
        device.extend(beside);
        assert_eq!(host.len(), device.len());
        // The emulator runs a launch when it is made: both clocks tell the same.
        let (on_host, on_device) = (total(&host), total(&device));
        assert!(
            on_device <= on_host && on_device > 0.8 * on_host,
            "{on_device} of {on_host} s"
        );
        assert_eq!(of_level(&events, "layer", 2).len(), 2 * 6);
    }

    /// A profiler's library, as NVTX has it, that prints what it is told.
    #[test]
    fn a_profiler_is_told_nested_ranges() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("libtool.so");
        let built = Command::new(env!("ARCA_EMULATOR_CXX"))
            .args(["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Werror"])
            .arg(root().join("tests/profiles/tool.cpp"))
            .arg("-o")
            .arg(&library)
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{log}");
        let args = [
            "bench",
            "update",
            "--shape",
            "demo",
            "--device",
            "cpu",
            "--prompts",
            "1",
            "--group-size",
            "2",
            "--new-tokens",
            "8",
            "--repeats",
            "1",
        ];
        let under = |library: &Path| {
            Command::new(arca())
                .args(args)
                .current_dir(dir.path())
                .env("NVTX_INJECTION64_PATH", library)
                .output()
                .unwrap()
        };
        let told = under(&library);
        assert!(told.status.success());
        let text = String::from_utf8(told.stderr).unwrap();
        let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("nvtx ")).collect();
        assert_eq!(lines[0], "nvtx domain arca");
        let mut open: Vec<&str> = Vec::new();
        let mut deepest = Vec::new();
        for line in &lines[1..] {
            match line.strip_prefix("nvtx push ") {
                Some(name) => open.push(name),
                None => {
                    assert_eq!(*line, "nvtx pop");
                    assert!(open.pop().is_some());
                }
            }
            if open.len() == 4 && deepest.is_empty() {
                deepest = open.clone();
            }
        }
        assert!(open.is_empty(), "{open:?}");
        assert_eq!(deepest, ["step 0", "forward", "layer 0", "rmsnorm_forward"]);

        // A library that is none is a warning, no failure.
        let other = dir.path().join("other.so");
        std::fs::write(&other, "no library").unwrap();
        let output = under(&other);
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("warning: no ranges are told"), "{text}");
    }
}
