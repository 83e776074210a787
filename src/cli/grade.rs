//! `arca grade`: judge answers against gold answers.

mod summary;

use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde_json::Value;

use super::Outcome;
use super::args::GradeArgs;
use super::rows::{Line, Lines, parse_object};
use crate::reward::{Grader, Verdict};
use summary::Summary;

/// So many rows are in memory at a time, or as many as make so many bytes.
const BLOCK_LINES: usize = 4096;
const BLOCK_BYTES: usize = 16 << 20;

/// Runs the verb. Whatever the verdicts, it has done its work.
pub fn run(args: GradeArgs) -> Result<Outcome> {
    let grader = Grader {
        lenient: args.lenient,
        fallback: args.fallback.into(),
    };
    if let (Some(gold), Some(answer)) = (&args.gold, &args.answer) {
        let verdict = grader.text(gold, answer);
        super::print(&format!("{}\n", serde_json::to_string(&verdict)?))?;
        return Ok(Outcome::Done);
    }
    let file = args.file.context("name a file of answers")?;
    grade_file(&file, grader, args.disagreements)?;
    Ok(Outcome::Done)
}

fn grade_file(file: &Path, grader: Grader, disagreements: bool) -> Result<()> {
    let mut lines = Lines::open(file)?;
    let mut summary = Summary::default();
    loop {
        let block = lines.block(BLOCK_LINES, BLOCK_BYTES)?;
        if block.is_empty() {
            break;
        }
        let graded: Vec<Result<Graded>> = block
            .par_iter()
            .map(|line| Graded::new(&grader, line))
            .collect();
        // What precedes a bad line is written before the error is reported.
        let mut text = String::new();
        let mut failed = None;
        for row in graded {
            match row {
                Ok(row) => {
                    text += &row.json;
                    text.push('\n');
                    if disagreements && let Some(kind) = row.disagreement() {
                        say(&format!("{}\n", row.described(kind)));
                    }
                    summary.add(row);
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        super::print(&text)?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    if summary.is_empty() {
        bail!("{} holds no rows", file.display());
    }
    say(&summary.to_string());
    Ok(())
}

/// Writes to standard error, where `eprint!` would panic if its reader has
/// gone. The verdicts are the work; what is said about them may be lost.
fn say(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// A row with its verdict.
struct Graded {
    /// `file:line`.
    place: String,
    id: Option<String>,
    group: String,
    gold: String,
    /// What the row says that the verdict should be.
    label: Option<bool>,
    verdict: Verdict,
    json: String,
    /// Of the grader alone, without reading the row.
    nanoseconds: u64,
}

impl Graded {
    fn new(grader: &Grader, line: &Line) -> Result<Self> {
        let row = parse_object(line)?;
        let place = &line.place;
        let text = |key: &str| row.get(key).and_then(Value::as_str);
        let Some(gold) = text("gold") else {
            bail!("{place} has no text under gold");
        };
        let bare: fn(&Grader, &str, &str) -> Verdict = Grader::text;
        let (judge, judged) = match (text("answer"), text("completion"), text("pred")) {
            (Some(answer), ..) => (bare, answer),
            (_, Some(completion), _) => (Grader::completion as _, completion),
            (_, _, Some(pred)) => match row.get("kind") {
                None | Some(Value::Null) => (bare, pred),
                Some(kind) if kind == "answer" => (bare, pred),
                Some(kind) if kind == "response" => (Grader::completion as _, pred),
                Some(kind) => {
                    bail!("{place} says that pred is of kind {kind}; known are answer and response")
                }
            },
            _ => bail!("{place} has no text under answer, completion or pred"),
        };
        let start = Instant::now();
        let verdict = judge(grader, gold, judged);
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(Graded {
            place: place.clone(),
            id: row.get("id").filter(|id| !id.is_null()).map(plain),
            group: match row.get("group") {
                None | Some(Value::Null) => "all".to_string(),
                Some(group) => plain(group),
            },
            gold: gold.to_string(),
            label: row.get("equal").and_then(Value::as_bool),
            json: serde_json::to_string(&verdict)?,
            verdict,
            nanoseconds,
        })
    }

    /// How the verdict differs from the label, if it does.
    fn disagreement(&self) -> Option<&'static str> {
        match (self.label, self.verdict.correct) {
            (Some(false), true) => Some("false positive"),
            (Some(true), false) => Some("false negative"),
            _ => None,
        }
    }

    fn described(&self, kind: &str) -> String {
        let id = self.id.as_deref().unwrap_or("(no id)");
        let extracted = self.verdict.extracted.as_deref();
        format!(
            "{kind} {} {}: gold {}, extracted {}: {}",
            self.place,
            shown(id, 200),
            shown(&self.gold, 200),
            extracted.map_or("nothing".to_string(), |text| shown(text, 200)),
            shown(&self.verdict.rule, 200),
        )
    }
}

/// Text as it is, other values as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// At most so many characters of a text, on one line: texts come from files,
/// and are not to break a table or command a terminal.
fn shown(text: &str, most: usize) -> String {
    let bare = |c: char| if c.is_control() { ' ' } else { c };
    let mut chars = text.chars();
    let mut shown: String = chars.by_ref().take(most).map(bare).collect();
    if chars.next().is_some() {
        shown.push_str("...");
    }
    shown
}
