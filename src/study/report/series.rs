//! `metrics.jsonl` as columns over steps.

use std::collections::BTreeMap;

use serde_json::Value;

/// The numbers of a run, step by step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Ascending, without repeats.
    pub steps: Vec<u64>,
    /// One value per step; NaN where the step has none.
    columns: BTreeMap<String, Vec<f64>>,
}

impl Series {
    /// Reads the lines of a metrics file that lies at `place`, and says which
    /// of them it could not use. A run that is under way or was killed leaves
    /// a torn last line.
    pub fn parse(bytes: &[u8], place: &str) -> (Series, Vec<String>) {
        let mut rows: BTreeMap<u64, serde_json::Map<String, Value>> = BTreeMap::new();
        let mut notes = Vec::new();
        let lines: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
        for (i, line) in lines.iter().enumerate() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let row = match serde_json::from_slice(line) {
                Ok(Value::Object(row)) => row,
                _ => {
                    let last = lines[i + 1..].iter().all(|l| l.trim_ascii().is_empty());
                    let what = if last {
                        "the last line is torn and was left out"
                    } else {
                        "no JSON object; the line was left out"
                    };
                    notes.push(format!("{place}:{}: {what}", i + 1));
                    continue;
                }
            };
            match row.get("step").and_then(Value::as_u64) {
                Some(step) => {
                    rows.insert(step, row);
                }
                None => notes.push(format!(
                    "{place}:{}: no `step`; the line was left out",
                    i + 1
                )),
            }
        }
        let mut series = Series {
            steps: rows.keys().copied().collect(),
            columns: BTreeMap::new(),
        };
        for (i, row) in rows.values().enumerate() {
            for (key, value) in row.iter().filter(|(key, _)| *key != "step") {
                if let Some(x) = value.as_f64() {
                    let column = series
                        .columns
                        .entry(key.clone())
                        .or_insert_with(|| vec![f64::NAN; rows.len()]);
                    column[i] = x;
                }
            }
        }
        (series, notes)
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The finite values of a column with their steps.
    pub fn points(&self, key: &str) -> impl Iterator<Item = (u64, f64)> {
        let column = self.columns.get(key).map_or(&[][..], Vec::as_slice);
        let pairs = self.steps.iter().copied().zip(column.iter().copied());
        pairs.filter(|(_, x)| x.is_finite())
    }

    /// Mean of a column over its steps.
    pub fn mean(&self, key: &str) -> Option<f64> {
        let (sum, n) = self
            .points(key)
            .fold((0.0, 0usize), |(s, n), (_, x)| (s + x, n + 1));
        (n > 0).then(|| sum / n as f64)
    }

    /// The last value of a column.
    pub fn last(&self, key: &str) -> Option<f64> {
        self.points(key).last().map(|(_, x)| x)
    }

    /// A column's running total, for time.
    pub fn running_total(&self, key: &str) -> Vec<(u64, f64)> {
        self.points(key)
            .scan(0.0, |sum, (step, x)| {
                *sum += x;
                Some((step, *sum))
            })
            .collect()
    }

    /// Names of the columns that begin with `prefix`, without it.
    pub fn names<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.columns
            .keys()
            .filter_map(move |key| key.strip_prefix(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_named() {
        let text = b"{\"step\":1,\"a\":1.0,\"b\":null}\nnonsense\n{\"a\":2}\n\n{\"step\":3,\"a\":4.0,\"b\":2}\n{\"step\":4,\"a\":";
        let (series, notes) = Series::parse(text, "m.jsonl");
        assert_eq!(series.steps, [1, 3]);
        assert_eq!(series.points("a").collect::<Vec<_>>(), [(1, 1.0), (3, 4.0)]);
        assert_eq!(series.points("b").collect::<Vec<_>>(), [(3, 2.0)]);
        assert_eq!(series.mean("a"), Some(2.5));
        assert_eq!(series.last("a"), Some(4.0));
        assert_eq!(series.mean("c"), None);
        assert_eq!(series.running_total("a"), [(1, 1.0), (3, 5.0)]);
        assert_eq!(series.names("").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(notes.len(), 3);
        assert!(notes[0].starts_with("m.jsonl:2: no JSON"), "{notes:?}");
        assert!(notes[1].contains("m.jsonl:3: no `step`"));
        assert!(notes[2].contains("m.jsonl:6: the last line is torn"));
    }
}
