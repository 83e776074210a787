//! The numbers of one step, and `metrics.jsonl`: one JSON object per step.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Named numbers in the order they were first set, named as TRL names them
/// (`train/loss`, `eval/reward`, ...).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(Vec<(String, f64)>);

impl Metrics {
    /// No numbers.
    pub fn new() -> Self {
        Metrics::default()
    }

    /// Sets `name`, in its old place if it has one.
    pub fn set(&mut self, name: impl Into<String>, value: f64) {
        let name = name.into();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// The value of `name`, if it was set.
    pub fn get(&self, name: &str) -> Option<f64> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        Some(*value)
    }

    /// All numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

impl<N: Into<String>> FromIterator<(N, f64)> for Metrics {
    fn from_iter<I: IntoIterator<Item = (N, f64)>>(numbers: I) -> Self {
        let mut metrics = Metrics::new();
        metrics.extend(numbers);
        metrics
    }
}

impl<N: Into<String>> Extend<(N, f64)> for Metrics {
    fn extend<I: IntoIterator<Item = (N, f64)>>(&mut self, numbers: I) {
        for (name, value) in numbers {
            self.set(name, value);
        }
    }
}

/// One line of the file: `step`, then the numbers; NaN and infinities, which
/// JSON lacks, are null.
struct Line<'a> {
    step: usize,
    metrics: &'a Metrics,
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1 + self.metrics.0.len()))?;
        map.serialize_entry("step", &self.step)?;
        for (name, value) in self.metrics.iter() {
            map.serialize_entry(name, &value.is_finite().then_some(value))?;
        }
        map.end()
    }
}

/// Appends to a run's `metrics.jsonl`, a whole line per write.
#[derive(Debug)]
pub struct MetricsWriter {
    file: File,
    path: PathBuf,
}

impl MetricsWriter {
    /// A new file. An existing one is refused: runs are never overwritten.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create_new(path).with_context(|| cannot("create", path))?;
        Ok(MetricsWriter {
            file,
            path: path.to_path_buf(),
        })
    }

    /// Continues a file after `step`: what was written for later steps, and a
    /// line torn by a crash, are removed, as the steps will be run again.
    pub fn resume(path: &Path, step: usize) -> anyhow::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| cannot("open", path))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)
            .with_context(|| cannot("read", path))?;
        let keep = length_until(&text, step);
        file.set_len(keep as u64)
            .and_then(|()| file.seek(SeekFrom::End(0)))
            .with_context(|| cannot("truncate", path))?;
        Ok(MetricsWriter {
            file,
            path: path.to_path_buf(),
        })
    }

    /// Appends one step.
    pub fn write(&mut self, step: usize, metrics: &Metrics) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(&Line { step, metrics })?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .with_context(|| cannot("write to", &self.path))
    }
}

fn cannot(verb: &str, path: &Path) -> String {
    format!("cannot {verb} {}", path.display())
}

/// Bytes of the leading lines that are whole and of steps up to `step`.
fn length_until(text: &[u8], step: usize) -> usize {
    let mut length = 0;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let of_step = serde_json::from_slice::<serde_json::Value>(line)
            .ok()
            .and_then(|line| line.get("step")?.as_u64());
        match of_step {
            Some(s) if line.ends_with(b"\n") && s <= step as u64 => length += line.len(),
            _ => break,
        }
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: usize, loss: f64) -> (usize, Metrics) {
        (step, Metrics::from_iter([("train/loss", loss)]))
    }

    #[test]
    fn keeps_order_and_replaces_in_place() {
        let mut metrics = Metrics::from_iter([("b", 1.0), ("a", 2.0)]);
        metrics.set("b", 3.0);
        assert_eq!(metrics.iter().collect::<Vec<_>>(), [("b", 3.0), ("a", 2.0)]);
        assert_eq!(metrics.get("a"), Some(2.0));
        assert_eq!(metrics.get("c"), None);
    }

    #[test]
    fn one_object_per_step_and_null_for_what_json_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::create(&path).unwrap();
        for (step, metrics) in [line(1, 0.5), line(2, f64::NAN), line(3, f64::INFINITY)] {
            writer.write(step, &metrics).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"step\":1,\"train/loss\":0.5}\n\
             {\"step\":2,\"train/loss\":null}\n\
             {\"step\":3,\"train/loss\":null}\n"
        );
        assert!(MetricsWriter::create(&path).is_err());
    }

    #[test]
    fn resuming_removes_later_steps_and_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let whole = "{\"step\":1,\"a\":1.0}\n{\"step\":2,\"a\":1.0}\n";
        for tail in [
            "{\"step\":3,\"a\":1.0}\n",
            "{\"step\":2,\"b\":",
            "{\"step\":2}",
            "",
        ] {
            std::fs::write(&path, format!("{whole}{tail}")).unwrap();
            let mut writer = MetricsWriter::resume(&path, 2).unwrap();
            writer.write(3, &Metrics::new()).unwrap();
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                format!("{whole}{{\"step\":3}}\n"),
                "after {tail:?}"
            );
        }
    }
}
