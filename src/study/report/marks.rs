//! Right or wrong, problem by problem: a sweep's `evaluation.json`.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::estimate::Estimate;
use super::summary::Heldout;

/// One model's marks; the problems are in the file's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marks {
    /// 1 where the greedy completion is right.
    pub greedy: Vec<f64>,
    /// Share of right samples.
    pub sampled: Vec<f64>,
    /// 1 where any sample is right.
    pub pass: Vec<f64>,
    /// 1 where the commonest answer is right.
    pub maj: Vec<f64>,
    /// Samples per problem.
    pub samples: usize,
    /// Names of the problems: marks on others cannot be paired.
    pub problems: Arc<[String]>,
}

impl Marks {
    /// Accuracies; errors are over problems.
    pub fn heldout(&self) -> Heldout {
        let mean = |marks: &[f64]| Estimate::of(marks.iter().copied());
        Heldout {
            sampled: mean(&self.sampled),
            greedy: mean(&self.greedy),
            pass_at_k: mean(&self.pass),
            maj_at_k: mean(&self.maj),
            samples: Some(self.samples as u64),
            problems: Some(self.greedy.len().max(self.sampled.len()) as u64),
            ..Heldout::default()
        }
    }
}

/// The rows by name (`base` and the arms), and what is wrong with the file
/// that lies at `place`.
pub fn parse(evaluation: &Value, place: &str) -> (HashMap<String, Marks>, Vec<String>) {
    let problems = evaluation["problems"].as_array().map(Vec::len);
    let names: Arc<[String]> = evaluation["problems"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|problem| problem["id"].to_string())
        .collect();
    let (mut rows, mut notes) = (HashMap::new(), Vec::new());
    for row in evaluation["rows"].as_array().into_iter().flatten() {
        let name = row["name"].as_str().unwrap_or("(no name)").to_string();
        let marks = Marks {
            problems: names.clone(),
            ..marks(row)
        };
        let lengths = [
            marks.greedy.len(),
            marks.sampled.len(),
            marks.pass.len(),
            marks.maj.len(),
        ];
        let of_all = |&n: &usize| n == 0 || problems.is_none_or(|p| p == n);
        if lengths.iter().all(of_all) && lengths.iter().any(|&n| n > 0) {
            rows.insert(name, marks);
        } else {
            notes.push(format!(
                "{place}: row `{name}` does not have one mark for each of the {} problems; it was left out",
                problems.unwrap_or(0)
            ));
        }
    }
    if rows.is_empty() && notes.is_empty() {
        notes.push(format!("{place}: no `rows`"));
    }
    (rows, notes)
}

fn marks(row: &Value) -> Marks {
    // Written as 0 and 1; true and false say the same.
    let mark = |value: &Value| {
        value
            .as_f64()
            .or(value.as_bool().map(|b| f64::from(u8::from(b))))
    };
    let list = |value: &Value| -> Vec<f64> {
        value.as_array().map_or(Vec::new(), |all| {
            all.iter().map(|x| mark(x).unwrap_or(f64::NAN)).collect()
        })
    };
    let samples: Vec<Vec<f64>> = row["samples"]
        .as_array()
        .map_or(Vec::new(), |all| all.iter().map(list).collect());
    Marks {
        greedy: list(&row["greedy"]),
        sampled: samples
            .iter()
            .map(|s| s.iter().sum::<f64>() / s.len().max(1) as f64)
            .collect(),
        pass: samples
            .iter()
            .map(|s| s.iter().copied().fold(0.0, f64::max))
            .collect(),
        maj: list(&row["maj"]),
        samples: samples.iter().map(Vec::len).max().unwrap_or(0),
        problems: Arc::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn marks_by_problem() {
        let file = json!({"problems": [{}, {}], "rows": [
            {"name": "base", "greedy": [0, 1], "samples": [[0, 1], [0, 0]], "maj": [0, 0]},
            {"name": "short", "greedy": [0], "samples": [[0]], "maj": [0]},
        ]});
        let (rows, notes) = parse(&file, "e.json");
        let base = &rows["base"];
        assert_eq!(base.sampled, [0.5, 0.0]);
        assert_eq!(base.pass, [1.0, 0.0]);
        let held = base.heldout();
        assert_eq!(held.greedy.unwrap().mean, 0.5);
        assert_eq!(held.samples, Some(2));
        assert_eq!(held.problems, Some(2));
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("row `short`"), "{notes:?}");
    }
}
