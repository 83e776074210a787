//! Problems from files: JSON Lines, JSON arrays, MATH's folder tree.
//!
//! Field names of the usual data sets are understood (`data/row.rs`); what cannot
//! be asked or graded is dropped with its name in the report, and what is
//! malformed is an error that names file and row.

pub mod order;
mod row;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::episode::Problem;
pub use order::{Cursor, DataOrder};

/// Why a row with a gold is dropped all the same.
const PARTIAL: &str = "the solution boxes several different answers, so that the gold is perhaps \
                       only part of the answer (data.keep_partial_golds = true keeps such rows)";

/// The problems of one file or folder, and what was found on the way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    /// In the file's order; a folder's by split, subject and number. Ids are
    /// distinct: a second `x` is called `x#2`.
    pub problems: Vec<Problem>,
    /// Rows left out, and why.
    pub dropped: Vec<Dropped>,
    /// Ids of rows whose statement and answer, white space folded, an earlier
    /// row has too. They are kept: how often to ask is the file's choice.
    pub duplicates: Vec<String>,
    /// Ids of rows whose solution boxes different answers, dropped or kept.
    /// The gold is the last one, or the row's own `answer`, and may be half of
    /// the truth: a completion that gives the whole of it would be unpaid.
    pub several_boxes: Vec<String>,
    /// Splits found below one folder (`test`, `train`) when there was more
    /// than one: training on such a folder trains on its test split.
    pub splits: Vec<String>,
}

/// One row that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The row's id.
    pub id: String,
    /// `file:row`; for a folder's row the same as the id.
    pub place: String,
    /// Why, for people to read.
    pub reason: String,
}

/// Reads problems from a file of JSON Lines or a JSON array (gzipped or not:
/// told by content, not by name), or from a folder tree in MATH's layout.
///
/// Rows whose solution boxes several different answers are dropped unless
/// `keep_partial_golds` (`data.keep_partial_golds`) asks for them.
pub fn load(path: &Path, keep_partial_golds: bool) -> Result<Dataset> {
    let kind = fs::metadata(path)
        .with_context(|| format!("data file {} cannot be opened", path.display()))?;
    let mut dataset = if kind.is_dir() {
        load_tree(path, keep_partial_golds)?
    } else {
        let mut dataset = Dataset::default();
        for (number, value) in read_rows(path)? {
            dataset
                .add(place(path, number), None, value, keep_partial_golds)
                .with_context(|| format!("{}, row {number}", path.display()))?;
        }
        dataset
    };
    ensure!(
        !dataset.problems.is_empty(),
        "{} has no usable problem ({} rows dropped{})",
        path.display(),
        dataset.dropped.len(),
        match dataset.dropped.first() {
            Some(row) => format!(", the first: {row}"),
            None => String::new(),
        }
    );
    dataset.make_ids_distinct();
    dataset.find_duplicates();
    Ok(dataset)
}

impl Dataset {
    fn add(
        &mut self,
        place: String,
        id: Option<String>,
        value: Value,
        keep_partial_golds: bool,
    ) -> Result<()> {
        let row = row::parse(&value)?;
        let id = id.or(row.id).unwrap_or_else(|| place.clone());
        if row.several_boxes && row.gold.is_ok() {
            self.several_boxes.push(id.clone());
        }
        let gold = match row.gold {
            Ok(_) if row.several_boxes && !keep_partial_golds => Err(PARTIAL.to_string()),
            gold => gold,
        };
        match gold {
            Ok(answer) => {
                self.problems.push(Problem {
                    id,
                    problem: row.problem,
                    answer,
                    solution: row.solution,
                    level: row.level,
                    subject: row.subject,
                });
            }
            Err(reason) => self.dropped.push(Dropped { id, place, reason }),
        }
        Ok(())
    }

    fn make_ids_distinct(&mut self) {
        let mut taken: HashSet<String> = self.problems.iter().map(|p| p.id.clone()).collect();
        let mut seen: HashMap<String, usize> = HashMap::new();
        for problem in &mut self.problems {
            let count = seen.entry(problem.id.clone()).or_insert(0);
            *count += 1;
            if *count > 1 {
                let base = std::mem::take(&mut problem.id);
                let mut name = format!("{base}#{count}");
                while !taken.insert(name.clone()) {
                    *count += 1;
                    name = format!("{base}#{count}");
                }
                problem.id = name;
            }
        }
    }

    fn find_duplicates(&mut self) {
        let mut seen = HashSet::new();
        for problem in &self.problems {
            let key = (fold_space(&problem.problem), fold_space(&problem.answer));
            if !seen.insert(key) {
                self.duplicates.push(problem.id.clone());
            }
        }
    }
}

/// One line per finding, for the start of a run; empty when all is well.
impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (partial, others): (Vec<&Dropped>, Vec<&Dropped>) =
            self.dropped.iter().partition(|row| row.reason == PARTIAL);
        for row in others {
            writeln!(f, "dropped {row}")?;
        }
        // MATH has two dozen of them: one line, but every name in it.
        if let Some((first, more)) = partial.split_first() {
            write!(f, "dropped {} rows: {PARTIAL}: {}", partial.len(), first.id)?;
            for row in more {
                write!(f, ", {}", row.id)?;
            }
            writeln!(f)?;
        }
        let kept: &[String] = match partial.is_empty() {
            true => &self.several_boxes,
            false => &[],
        };
        let lists = [
            (
                self.duplicates.as_slice(),
                "rows repeat an earlier one (kept)",
            ),
            (
                kept,
                "rows box several different answers in their solution (kept, as \
                 data.keep_partial_golds says)",
            ),
        ];
        for (ids, what) in lists.into_iter().filter(|(ids, _)| !ids.is_empty()) {
            let shown = ids.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let more = if ids.len() > 5 { ", ..." } else { "" };
            writeln!(f, "{} {what}: {shown}{more}", ids.len())?;
        }
        if !self.splits.is_empty() {
            writeln!(
                f,
                "the folder holds the splits {} together",
                self.splits.join(" and ")
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        if self.id != self.place {
            write!(f, " ({})", self.place)?;
        }
        write!(f, ": {}", self.reason)
    }
}

fn fold_space(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn place(path: &Path, row: usize) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    format!("{}:{row}", name.to_string_lossy())
}

/// The rows of a file with their numbers from 1 (a JSON Lines row's is its
/// line), parsed but not understood.
fn read_rows(path: &Path) -> Result<Vec<(usize, Value)>> {
    let bytes = read_plain(path)?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'[') {
        let rows: Vec<Value> = serde_json::from_slice(text)
            .with_context(|| format!("{} is not a valid JSON array", path.display()))?;
        return Ok(rows
            .into_iter()
            .enumerate()
            .map(|(i, row)| (i + 1, row))
            .collect());
    }
    text.split(|&byte| byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(index, line)| {
            let row = serde_json::from_slice(line).map_err(|error| {
                // The line number serde_json states is within the row: always 1.
                anyhow!(
                    "{}, row {}: not valid JSON at column {} ({}); expected one JSON object per line, or one JSON array",
                    path.display(),
                    index + 1,
                    error.column(),
                    error.to_string().split(" at line ").next().unwrap_or_default()
                )
            })?;
            Ok((index + 1, row))
        })
        .collect()
}

/// A file's bytes, un-gzipped if they are a gzip stream.
fn read_plain(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes.as_slice())
        .read_to_end(&mut plain)
        .with_context(|| format!("un-gzipping {}", path.display()))?;
    Ok(plain)
}

/// MATH's layout: `<subject>/<n>.json`, maybe below `train` and `test`.
fn load_tree(root: &Path, keep_partial_golds: bool) -> Result<Dataset> {
    let mut files = Vec::new();
    collect_json(root, &mut Vec::new(), &mut files)?;
    ensure!(
        !files.is_empty(),
        "the folder {} has no .json file in it (expected MATH's layout, <subject>/<n>.json, or give a .jsonl file)",
        root.display()
    );
    files.sort_by_cached_key(|names| {
        let (file, folders) = names
            .split_last()
            .map_or(("", &[][..]), |(f, d)| (f.as_str(), d));
        let stem = file.strip_suffix(".json").unwrap_or(file);
        // Names that are no numbers come after those that are.
        (
            folders.to_vec(),
            stem.parse().unwrap_or(u64::MAX),
            file.to_string(),
        )
    });
    // A tree given by its split has the same ids as one given from above it.
    let split = root
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|name| is_split(name));
    let mut dataset = Dataset::default();
    for names in &files {
        let path = names
            .iter()
            .fold(root.to_path_buf(), |path, name| path.join(name));
        let id = split
            .into_iter()
            .chain(names.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join("/");
        let value: Value = serde_json::from_slice(&read_plain(&path)?)
            .with_context(|| format!("{} is not valid JSON", path.display()))?;
        dataset
            .add(id.clone(), Some(id), value, keep_partial_golds)
            .with_context(|| path.display().to_string())?;
        if split.is_none() && is_split(&names[0]) && !dataset.splits.contains(&names[0]) {
            dataset.splits.push(names[0].clone());
        }
    }
    if dataset.splits.len() < 2 {
        dataset.splits.clear();
    }
    Ok(dataset)
}

fn is_split(name: &str) -> bool {
    matches!(name, "train" | "test")
}

/// Collects the `.json` files below `folder` as lists of names. MATH is two
/// folders deep; a bound keeps a link that leads upwards from going on forever.
fn collect_json(
    folder: &Path,
    names: &mut Vec<String>,
    found: &mut Vec<Vec<String>>,
) -> Result<()> {
    const DEEPEST: usize = 4;
    let list = || format!("listing {}", folder.display());
    for entry in fs::read_dir(folder).with_context(list)? {
        let path: PathBuf = entry.with_context(list)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            bail!("{}: its name is not UTF-8", path.display());
        };
        names.push(name.to_string());
        if path.is_dir() {
            if names.len() <= DEEPEST {
                collect_json(&path, names, found)?;
            }
        } else if name.ends_with(".json") {
            found.push(names.clone());
        }
        names.pop();
    }
    Ok(())
}
