//! The real binary training the bundled demo in a folder of its own; shared by
//! `resume`, `options` and `learning`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Map, Value};
use tempfile::TempDir;

/// Settings that make a run of seconds, even in a build without optimisation.
pub const SMALL: &[&str] = &[
    "train.steps=2",
    "train.prompts_per_step=2",
    "rollout.group_size=4",
    "eval.limit=4",
    "eval.samples=2",
];

/// A folder that runs are written to; gone when the test ends.
pub struct Bench {
    dir: TempDir,
}

impl Bench {
    pub fn new() -> Bench {
        Bench {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn run(&self, name: &str) -> Run {
        Run {
            root: self.dir.path().join(name),
        }
    }

    /// `arca train --run <name>`, with [`SMALL`] and then these settings.
    pub fn command(&self, name: &str, settings: &[&str]) -> Command {
        let mut command = Command::new(crate::common::arca());
        command
            .args(["train", "--run", name])
            .current_dir(self.path())
            .env("NO_COLOR", "1")
            // The test runner keeps the cores busy with other tests.
            .env("RAYON_NUM_THREADS", "1");
        for setting in SMALL.iter().chain(settings) {
            command.args(["--set", setting]);
        }
        command
    }

    /// Trains to the end.
    pub fn train(&self, name: &str, settings: &[&str]) -> Run {
        let output = self.command(name, settings).output().unwrap();
        expect(&output, 0, &format!("{name} {settings:?}"));
        self.run(name)
    }

    /// Goes on with an earlier run, with these changes.
    pub fn resume(&self, name: &str, changes: &[&str]) -> Run {
        let mut command = Command::new(crate::common::arca());
        command
            .args(["train", "--run", name, "--resume"])
            .current_dir(self.path())
            .env("RAYON_NUM_THREADS", "1");
        for change in changes {
            command.args(["--set", change]);
        }
        let output = command.output().unwrap();
        expect(&output, 0, &format!("resume {name} {changes:?}"));
        self.run(name)
    }

    /// Trains in vain: the message, and nothing written to the run folder.
    pub fn refused(&self, code: i32, settings: &[&str]) -> String {
        let output = self.command("refused", settings).output().unwrap();
        let message = expect(&output, code, &format!("{settings:?}"));
        assert_eq!(message.matches("error: ").count(), 1, "{message}");
        assert!(
            !self.path().join("refused").exists(),
            "{settings:?} left a run folder behind"
        );
        message
    }
}

/// Standard error of a process that ended with this code.
pub fn expect(output: &Output, code: i32, what: &str) -> String {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{what}: {message}");
    message
}

/// A run folder.
pub struct Run {
    pub root: PathBuf,
}

impl Run {
    pub fn bytes(&self, file: &str) -> Vec<u8> {
        let path = self.root.join(file);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    fn rows(&self, file: &str) -> Vec<Map<String, Value>> {
        let text = String::from_utf8(self.bytes(file)).unwrap();
        text.lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{file}: {e}: {line}"))
            })
            .collect()
    }

    /// `metrics.jsonl`, one map per step.
    pub fn metrics(&self) -> Vec<Map<String, Value>> {
        self.rows("metrics.jsonl")
    }

    /// The same without what a clock or the machine says.
    pub fn timeless(&self) -> Vec<String> {
        let mut rows = self.metrics();
        for row in &mut rows {
            row.retain(|key, _| {
                !key.starts_with("time/") && !key.starts_with("perf/") && key != "train/step_time"
            });
        }
        // As text, so that -0 and 0 count as different.
        rows.into_iter()
            .map(|row| Value::Object(row).to_string())
            .collect()
    }

    /// One metric over the steps; panics where a step lacks it or has a null.
    pub fn series(&self, key: &str) -> Vec<f64> {
        self.metrics()
            .iter()
            .map(|row| {
                row.get(key)
                    .and_then(Value::as_f64)
                    .unwrap_or_else(|| panic!("no {key} in {row:?}"))
            })
            .collect()
    }

    pub fn completions(&self, step: usize) -> Vec<Map<String, Value>> {
        self.rows(&format!("completions/step_{step:05}.jsonl"))
    }

    pub fn adapter(&self) -> Vec<u8> {
        self.bytes("adapter/adapter_model.safetensors")
    }

    /// Steps of which there is a checkpoint, ascending.
    pub fn checkpoints(&self) -> Vec<usize> {
        let Ok(entries) = fs::read_dir(self.root.join("checkpoints")) else {
            return Vec::new();
        };
        let mut steps: Vec<usize> = entries
            .filter_map(|e| {
                let name = e.unwrap().file_name().into_string().unwrap();
                name.strip_prefix("step_")?.parse().ok()
            })
            .collect();
        steps.sort_unstable();
        steps
    }

    /// Everything of `self` that the configuration decides equals that of
    /// `other`, bit for bit, after `steps` steps.
    pub fn assert_same(&self, other: &Run, steps: usize) {
        let (mine, theirs) = (self.timeless(), other.timeless());
        assert_eq!(mine.len(), steps);
        assert_eq!(mine, theirs);
        for step in 1..=steps {
            let file = format!("completions/step_{step:05}.jsonl");
            assert!(self.bytes(&file) == other.bytes(&file), "{file} differs");
        }
        for file in [
            "adapter/adapter_model.safetensors".to_string(),
            "adapter/adapter_config.json".to_string(),
            format!("checkpoints/step_{steps}/adapter/adapter_model.safetensors"),
            format!("checkpoints/step_{steps}/optimizer.safetensors"),
        ] {
            assert!(self.bytes(&file) == other.bytes(&file), "{file} differs");
        }
        let summary = |run: &Run| -> Value {
            let all: Value = serde_json::from_slice(&run.bytes("summary.json")).unwrap();
            // The rest are times, or depends on how often was evaluated.
            let keys = [
                "base",
                "final",
                "steps",
                "num_tokens",
                "credit",
                "reward_last_ten",
            ];
            keys.iter().map(|key| all[key].clone()).collect()
        };
        assert_eq!(summary(self), summary(other));
    }
}
