//! Run and sweep folders as they are read: what is missing or torn becomes a
//! note, not an error.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde_json::Value;

use super::inspected::{self, Inspected};
use super::marks::{self, Marks};
use super::series::Series;
use super::summary::{Heldout, Outcome};
use crate::config::UsageError;
use crate::study::comparison::Comparison;

/// How a run stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It came to its end.
    Done,
    /// It has not, or died without a word.
    Unfinished,
    /// It ended with this error.
    Failed(String),
}

/// One run folder.
#[derive(Clone, Debug)]
pub struct Run {
    /// The folder's or the arm's name.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
    /// Whether it ended, and how.
    pub status: Status,
    /// Values by dotted key, as `config.toml` has them.
    pub config: BTreeMap<String, String>,
    /// `metrics.jsonl`.
    pub series: Series,
    /// `summary.json`.
    pub outcome: Outcome,
    /// Right or wrong on each held-out problem, where a sweep has it.
    pub marks: Option<Marks>,
    /// `inspect.jsonl`.
    pub inspected: Vec<Inspected>,
}

impl Run {
    /// A value of the configuration.
    pub fn key(&self, key: &str) -> Option<&str> {
        self.config.get(key).map(String::as_str)
    }

    /// The credit method.
    pub fn method(&self) -> &str {
        self.key("credit.method")
            .or(self.outcome.credit.as_deref())
            .unwrap_or("unknown")
    }

    /// The seed, as text.
    pub fn seed(&self) -> &str {
        self.key("train.seed").unwrap_or("?")
    }

    /// The base model.
    pub fn model(&self) -> &str {
        match self.key("model.path") {
            Some("") | None => "bundled demo",
            Some(path) => path,
        }
    }
}

/// What is known of a sweep as a whole.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// The folder.
    pub dir: PathBuf,
    /// The base model on the held-out problems.
    pub base: Option<Heldout>,
    /// Seconds altogether, in rollouts, and in updates.
    pub seconds: [Option<f64>; 3],
    /// The program's commit.
    pub commit: Option<String>,
    /// The sweep's own comparisons of its arms with their controls.
    pub comparisons: Vec<Comparison>,
}

/// All that was read.
#[derive(Clone, Debug, Default)]
pub struct Study {
    /// The runs in the order given; a sweep's arms in its own order.
    pub runs: Vec<Run>,
    /// The sweeps among the folders.
    pub sweeps: Vec<Sweep>,
    /// What was missing or could not be read, naming the file.
    pub notes: Vec<String>,
}

/// Reads run and sweep folders; a sweep stands for its arms.
///
/// # Errors
/// A folder that is missing, or that is neither.
pub fn read(folders: &[PathBuf]) -> anyhow::Result<Study> {
    let mut study = Study::default();
    let mut seen = HashSet::new();
    for folder in folders {
        let refuse = |why: &str| UsageError::new(format!("{} {why}", folder.display()));
        if !folder.is_dir() {
            return Err(refuse(match folder.exists() {
                true => "is not a folder; name a run folder or a sweep folder",
                false => "does not exist; name a run folder or a sweep folder",
            })
            .into());
        }
        let has = |name: &str| folder.join(name).exists();
        if has("sweep.json") || has("sweep.toml") || folder.join("arms").is_dir() {
            study.read_sweep(folder, &mut seen);
        } else if has("config.toml") || has("metrics.jsonl") {
            if seen.insert(canonical(folder)) {
                let run = study.read_run(folder, name_of(folder));
                study.runs.push(run);
            }
        } else {
            return Err(refuse(
                "is neither a run folder (it has no config.toml and no metrics.jsonl) nor a sweep \
                 folder (it has no sweep.json and no arms)",
            )
            .into());
        }
    }
    study.tell_names_apart();
    Ok(study)
}

impl Study {
    fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// A file's bytes; a missing one is noted with what it is needed for.
    fn bytes(&mut self, path: &Path, needed_for: Option<&str>) -> Option<Vec<u8>> {
        match fs::read(path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(what) = needed_for {
                    self.note(format!("{}: missing, so {what}", path.display()));
                }
                None
            }
            Err(error) => {
                self.note(format!("{}: cannot be read: {error}", path.display()));
                None
            }
        }
    }

    fn json(&mut self, path: &Path, needed_for: Option<&str>) -> Option<Value> {
        let bytes = self.bytes(path, needed_for)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| self.note(format!("{}: no JSON: {error}", path.display())))
            .ok()
    }

    fn read_run(&mut self, dir: &Path, name: String) -> Run {
        let config = self.read_config(&dir.join("config.toml"));
        let path = dir.join("metrics.jsonl");
        let (series, notes) = match self.bytes(&path, Some("the run has no curves")) {
            Some(bytes) => Series::parse(&bytes, &path.display().to_string()),
            None => Default::default(),
        };
        self.notes.extend(notes);
        let path = dir.join("summary.json");
        // Its absence is said where the run is said to be unfinished.
        let summary = self.json(&path, None);
        let status = match summary {
            Some(_) => Status::Done,
            None => Status::Unfinished,
        };
        let path = dir.join("inspect.jsonl");
        let (inspected, notes) = match self.bytes(&path, None) {
            Some(bytes) => inspected::parse(&bytes, &path.display().to_string()),
            None => Default::default(),
        };
        self.notes.extend(notes);
        let mut outcome = Outcome::of(&summary.unwrap_or_default());
        if outcome.finished.is_none() {
            outcome.finished = modified(&dir.join("summary.json"))
                .or_else(|| modified(&dir.join("metrics.jsonl")));
        }
        Run {
            name,
            dir: dir.to_path_buf(),
            status,
            config,
            series,
            outcome,
            marks: None,
            inspected,
        }
    }

    fn read_config(&mut self, path: &Path) -> BTreeMap<String, String> {
        let mut config = BTreeMap::new();
        let Some(bytes) = self.bytes(path, Some("the run's settings are unknown")) else {
            return config;
        };
        match toml::from_str::<toml::Table>(&String::from_utf8_lossy(&bytes)) {
            Ok(table) => flatten("", &table, &mut config),
            Err(error) => self.note(format!("{}: no TOML: {}", path.display(), error.message())),
        }
        config
    }

    fn read_sweep(&mut self, dir: &Path, seen: &mut HashSet<PathBuf>) {
        let listing = self.json(
            &dir.join("sweep.json"),
            Some("the arms are those found under arms/"),
        );
        let listing = listing.unwrap_or_default();
        let comparisons = match &listing["comparisons"] {
            Value::Null => Vec::new(),
            listed => Vec::deserialize(listed).unwrap_or_else(|error| {
                let path = dir.join("sweep.json");
                self.note(format!("{}: comparisons: {error}", path.display()));
                Vec::new()
            }),
        };
        self.sweeps.push(Sweep {
            comparisons,
            dir: dir.to_path_buf(),
            base: Heldout::of(&listing["base"]),
            seconds: ["seconds", "rollout_seconds", "update_seconds"].map(|k| listing[k].as_f64()),
            commit: listing["commit"]
                .as_str()
                .filter(|commit| !commit.is_empty())
                .map(String::from),
        });
        let mut arms: Vec<(String, PathBuf, Value)> = Vec::new();
        for arm in listing["arms"].as_array().into_iter().flatten() {
            let Some(name) = arm["name"].as_str() else {
                self.note(format!(
                    "{}: an arm without a name",
                    dir.join("sweep.json").display()
                ));
                continue;
            };
            let folder = arm["dir"]
                .as_str()
                .map_or_else(|| Path::new("arms").join(name), PathBuf::from);
            arms.push((name.to_string(), dir.join(folder), arm.clone()));
        }
        if arms.is_empty() {
            let mut folders: Vec<PathBuf> = fs::read_dir(dir.join("arms"))
                .into_iter()
                .flatten()
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.is_dir())
                .collect();
            folders.sort();
            arms.extend(
                folders
                    .into_iter()
                    .map(|path| (name_of(&path), path, Value::Null)),
            );
        }
        if arms.is_empty() {
            self.note(format!("{}: the sweep has no arms", dir.display()));
        }
        let path = dir.join("evaluation.json");
        let why = "differences are taken without pairing the problems";
        let mut marks = match self.json(&path, Some(why)) {
            Some(evaluation) => {
                let (marks, notes) = marks::parse(&evaluation, &path.display().to_string());
                self.notes.extend(notes);
                marks
            }
            None => Default::default(),
        };
        if let (Some(sweep), Some(base)) = (self.sweeps.last_mut(), marks.remove("base")) {
            sweep.base.get_or_insert_with(|| base.heldout());
        }
        for (name, folder, arm) in arms {
            if !seen.insert(canonical(&folder)) {
                continue;
            }
            let mut run = self.read_arm(&folder, &name, &arm);
            run.marks = marks.remove(&name);
            self.runs.push(run);
        }
    }

    /// An arm: its folder, and what the sweep's listing says of it.
    fn read_arm(&mut self, folder: &Path, name: &str, arm: &Value) -> Run {
        let failed = arm["status"] == "failed";
        let before = self.notes.len();
        let mut run = self.read_run(folder, name.to_string());
        if failed {
            // Files that a failed arm lacks are no news.
            self.notes.truncate(before);
            let error = arm["error"].as_str().unwrap_or("no error text was kept");
            run.status = Status::Failed(error.to_string());
        }
        if run.outcome.trained.is_none() {
            run.outcome.trained = Heldout::of(&arm["evaluation"]);
        }
        for (key, of_listing) in [
            ("credit.method", "method"),
            ("lora.r", "r"),
            ("credit.exponent", "exponent"),
            ("credit.hidden", "hidden"),
            ("train.seed", "seed"),
        ] {
            let value = &arm[of_listing];
            if !value.is_null() && !run.config.contains_key(key) {
                let text = match (value.as_str(), value.as_f64()) {
                    (Some(text), _) => text.to_string(),
                    (None, Some(x)) => x.to_string(),
                    (None, None) => value.to_string(),
                };
                run.config.insert(key.to_string(), text);
            }
        }
        run
    }

    /// Runs of one name get their parent folder before it, and a number where
    /// that does not do.
    fn tell_names_apart(&mut self) {
        let repeated = |runs: &[Run]| -> Vec<usize> {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for run in runs {
                *counts.entry(&run.name).or_default() += 1;
            }
            (0..runs.len())
                .filter(|&i| counts[runs[i].name.as_str()] > 1)
                .collect()
        };
        for i in repeated(&self.runs) {
            let run = &mut self.runs[i];
            let mut above = run.dir.ancestors().skip(1);
            let parent = above.find(|p| p.file_name().is_some_and(|n| n != "arms"));
            if let Some(parent) = parent {
                run.name = format!("{}/{}", name_of(parent), run.name);
            }
        }
        for (nth, i) in repeated(&self.runs).into_iter().enumerate() {
            let run = &mut self.runs[i];
            run.name = format!("{} ({})", run.name, nth + 1);
        }
    }
}

fn flatten(prefix: &str, table: &toml::Table, config: &mut BTreeMap<String, String>) {
    for (name, value) in table {
        let key = match prefix {
            "" => name.clone(),
            prefix => format!("{prefix}.{name}"),
        };
        match value {
            toml::Value::Table(inner) => flatten(&key, inner, config),
            toml::Value::String(text) => {
                config.insert(key, text.clone());
            }
            toml::Value::Float(x) => {
                // `1.0` and `1` are one setting.
                let plain = *x == 0.0 || (1e-4..1e9).contains(&x.abs());
                let text = if plain {
                    format!("{x}")
                } else {
                    format!("{x:e}")
                };
                config.insert(key, text);
            }
            other => {
                config.insert(key, other.to_string());
            }
        }
    }
}

fn name_of(path: &Path) -> String {
    let full = canonical(path);
    full.file_name().map_or_else(
        || path.display().to_string(),
        |n| n.to_string_lossy().into(),
    )
}

fn canonical(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

/// When a file was last written, in UTC.
fn modified(path: &Path) -> Option<String> {
    let time = fs::metadata(path).ok()?.modified().ok()?;
    let stamp = jiff::Timestamp::try_from(time).ok()?;
    Some(stamp.strftime("%Y-%m-%d %H:%M UTC").to_string())
}
