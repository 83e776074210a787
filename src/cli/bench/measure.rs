//! What benches have in common: timed runs, and how they are told.

use std::time::Instant;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::cli::{Outcome, print};
use crate::config::Config;
use crate::model::plan::peak_memory;
use crate::train::session::{OnDevice, on_device};

/// What a bench found out.
pub trait Findings {
    /// For people.
    fn table(&self) -> String;
    /// With `--json`, the last line.
    fn json(&self) -> Value;
}

/// Run a bench where the configuration says, and tell what it found.
pub fn tell<B>(config: &Config, bench: B, json: bool) -> Result<Outcome>
where
    B: OnDevice<Output: Findings>,
{
    let findings = on_device(config, bench)?;
    print(&findings.table())?;
    if json {
        print(&format!("{}\n", findings.json()))?;
    }
    Ok(Outcome::Done)
}

/// One timed run.
#[derive(Clone, Debug)]
pub struct Timed<T> {
    pub seconds: f64,
    /// Time on all cores together, where the system tells.
    pub cpu_seconds: Option<f64>,
    /// What the run found out.
    pub detail: T,
}

impl<T> Timed<T> {
    pub fn run(work: impl FnOnce() -> Result<T>) -> Result<Timed<T>> {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let detail = work()?;
        Ok(Timed {
            seconds: start.elapsed().as_secs_f64(),
            cpu_seconds: cpu_seconds().zip(cpu).map(|(after, before)| after - before),
            detail,
        })
    }
}

/// The run of median time, the later one of two; there must be one.
pub fn median<T>(runs: &[Timed<T>]) -> &Timed<T> {
    let mut sorted: Vec<&Timed<T>> = runs.iter().collect();
    sorted.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    sorted[sorted.len() / 2]
}

/// Seconds that this process's threads have been on a core, where the system
/// tells (Linux).
fn cpu_seconds() -> Option<f64> {
    let mut nanoseconds = 0u64;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(nanoseconds as f64 * 1e-9)
}

pub fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// Lines of a name and what there is to say.
#[derive(Default)]
pub struct Table(String);

impl Table {
    pub fn row(&mut self, what: &str, value: impl std::fmt::Display) {
        self.0 += &format!("{what:<14} {value}\n");
    }

    /// Median and fastest of the runs.
    pub fn seconds<T>(&mut self, runs: &[Timed<T>]) {
        let fastest = runs.iter().map(|t| t.seconds).fold(f64::MAX, f64::min);
        let median = median(runs).seconds;
        self.row(
            "seconds",
            format!(
                "{median:.4} (median of {}, fastest {fastest:.4})",
                runs.len()
            ),
        );
    }

    /// How busy the median run kept the cores, and the process's peak memory.
    pub fn resources<T>(&mut self, runs: &[Timed<T>]) {
        let median = median(runs);
        if let Some(cpu) = median.cpu_seconds {
            self.row("cores in use", format!("{:.2}", cpu / median.seconds));
        }
        if let Some(peak) = peak_memory() {
            self.row("peak MiB", format!("{:.1}", mib(peak as f64)));
        }
    }

    /// The lines so far, and text that is not laid out so.
    pub fn text(self) -> String {
        self.0
    }
}

/// What every bench's JSON object says of its runs; `tokens` are those of one.
pub fn json_of<T>(runs: &[Timed<T>], tokens: usize) -> Map<String, Value> {
    let median = median(runs);
    let mut map = Map::new();
    let mut set = |key: &str, value: Value| map.insert(key.to_string(), value);
    set("tokens_per_second", json!(tokens as f64 / median.seconds));
    set("seconds", json!(median.seconds));
    set("peak_bytes", json!(peak_memory()));
    set("cpu_seconds", json!(median.cpu_seconds));
    set("tokens", json!(tokens));
    let all: Vec<f64> = runs.iter().map(|t| t.seconds).collect();
    set("runs", json!(all));
    map
}

/// The object with more keys after it.
pub fn with(mut map: Map<String, Value>, more: Value) -> Value {
    if let Value::Object(more) = more {
        map.extend(more);
    }
    Value::Object(map)
}
