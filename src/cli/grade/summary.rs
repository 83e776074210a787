//! What `arca grade` says about all its verdicts: counts per group, and how
//! long a verdict takes.

use std::collections::HashMap;
use std::fmt;

use super::{Graded, shown};

/// Counts and times of the verdicts so far, in memory that does not grow with
/// their number.
#[derive(Default)]
pub struct Summary {
    /// In the order of their first rows.
    groups: Vec<(String, Counts)>,
    index: HashMap<String, usize>,
    times: Times,
    slowest: String,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    rows: u64,
    correct: u64,
    undecided: u64,
    labelled: u64,
    labelled_equal: u64,
    false_positives: u64,
    false_negatives: u64,
}

impl Summary {
    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Counts a row.
    pub fn add(&mut self, row: Graded) {
        if self.is_empty() || row.nanoseconds > self.times.longest {
            self.slowest = row.place;
        }
        self.times.add(row.nanoseconds);
        let at = match self.index.get(&row.group) {
            Some(&at) => at,
            None => {
                self.index.insert(row.group.clone(), self.groups.len());
                self.groups.push((row.group, Counts::default()));
                self.groups.len() - 1
            }
        };
        let counts = &mut self.groups[at].1;
        let correct = row.verdict.correct;
        counts.rows += 1;
        counts.correct += u64::from(correct);
        counts.undecided += u64::from(row.verdict.undecided);
        if let Some(equal) = row.label {
            counts.labelled += 1;
            counts.labelled_equal += u64::from(equal);
            counts.false_positives += u64::from(correct && !equal);
            counts.false_negatives += u64::from(!correct && equal);
        }
    }

    fn total(&self) -> Counts {
        self.groups
            .iter()
            .fold(Counts::default(), |sum, (_, counts)| Counts {
                rows: sum.rows + counts.rows,
                correct: sum.correct + counts.correct,
                undecided: sum.undecided + counts.undecided,
                labelled: sum.labelled + counts.labelled,
                labelled_equal: sum.labelled_equal + counts.labelled_equal,
                false_positives: sum.false_positives + counts.false_positives,
                false_negatives: sum.false_negatives + counts.false_negatives,
            })
    }
}

impl Counts {
    /// A row of the table: with labels how often the verdicts are as labelled,
    /// without how often they are "correct".
    fn cells(&self, with_labels: bool) -> Vec<String> {
        if !with_labels {
            return vec![
                self.rows.to_string(),
                self.correct.to_string(),
                percent(self.correct, self.rows),
                self.undecided.to_string(),
            ];
        }
        let as_labelled = self.labelled - self.false_positives - self.false_negatives;
        vec![
            self.rows.to_string(),
            self.labelled_equal.to_string(),
            percent(as_labelled, self.labelled),
            self.false_positives.to_string(),
            self.false_negatives.to_string(),
            self.undecided.to_string(),
        ]
    }
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_string(),
        _ => format!("{:.2}", 100.0 * part as f64 / whole as f64),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        let with_labels = total.labelled > 0;
        let heads: &[&str] = match with_labels {
            true => &[
                "group",
                "rows",
                "labelled equal",
                "accuracy %",
                "false positives",
                "false negatives",
                "undecided",
            ],
            false => &["group", "rows", "correct", "%", "undecided"],
        };
        let mut table = vec![heads.iter().map(|head| head.to_string()).collect()];
        for (name, counts) in &self.groups {
            table.push(line(name, counts, with_labels));
        }
        table.push(line("total", &total, with_labels));
        let widths: Vec<usize> = (0..heads.len())
            .map(|i| {
                let cells = table.iter().map(|cells: &Vec<String>| cells[i].chars());
                cells.map(Iterator::count).max().unwrap_or(0)
            })
            .collect();
        for cells in &table {
            write!(f, "{:<1$}", cells[0], widths[0])?;
            for (cell, width) in cells.iter().zip(&widths).skip(1) {
                write!(f, "  {cell:>width$}")?;
            }
            writeln!(f)?;
        }
        let times = &self.times;
        writeln!(
            f,
            "{:.0} answers per second and core; ms per verdict: {:.4} p50, {:.4} p99, {:.4} slowest ({})",
            times.count as f64 / (times.sum.max(1) as f64 * 1e-9),
            times.quantile(0.50) as f64 * 1e-6,
            times.quantile(0.99) as f64 * 1e-6,
            times.longest as f64 * 1e-6,
            self.slowest,
        )
    }
}

fn line(name: &str, counts: &Counts, with_labels: bool) -> Vec<String> {
    let mut cells = counts.cells(with_labels);
    cells.insert(0, shown(name, 40));
    cells
}

/// A histogram of nanoseconds: 64 buckets for every doubling, so that a
/// quantile is right to 1.6 %.
struct Times {
    count: u64,
    sum: u128,
    longest: u64,
    buckets: Vec<u64>,
}

const BITS: u32 = 6;

impl Default for Times {
    fn default() -> Self {
        Times {
            count: 0,
            sum: 0,
            longest: 0,
            // Of u64::MAX the shift is 57.
            buckets: vec![0; 59 << BITS],
        }
    }
}

impl Times {
    fn add(&mut self, nanoseconds: u64) {
        self.count += 1;
        self.sum += u128::from(nanoseconds);
        self.longest = self.longest.max(nanoseconds);
        let shift = (u64::BITS - nanoseconds.leading_zeros()).saturating_sub(BITS + 1);
        self.buckets[((shift as usize) << BITS) + (nanoseconds >> shift) as usize] += 1;
    }

    /// The time that this part of the verdicts does not exceed.
    fn quantile(&self, part: f64) -> u64 {
        let wanted = (part * self.count as f64).ceil() as u64;
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted.max(1) {
                let shift = (at >> BITS).saturating_sub(1) as u32;
                let mantissa = (at - ((shift as usize) << BITS)) as u64;
                let end = (u128::from(mantissa) + 1) << shift;
                return u64::try_from(end - 1).unwrap_or(u64::MAX).min(self.longest);
            }
        }
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_a_sixty_fourth() {
        let mut times = Times::default();
        for n in 1..=100_000u64 {
            times.add(n);
        }
        for (part, exact) in [(0.0, 1), (0.5, 50_000), (0.99, 99_000), (1.0, 100_000)] {
            let found = times.quantile(part);
            assert!(
                found >= exact && found - exact <= exact / 64,
                "{part}: {found}"
            );
        }
        let mut extremes = Times::default();
        extremes.add(0);
        extremes.add(u64::MAX);
        assert_eq!(
            (extremes.quantile(0.5), extremes.quantile(1.0)),
            (0, u64::MAX)
        );
        assert_eq!(Times::default().quantile(0.99), 0);
    }
}
