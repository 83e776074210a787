//! One row of a data file: which of its keys mean what.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use crate::reward::extract::{self, Found};

const PROBLEM: [&str; 3] = ["problem", "question", "prompt"];
const GOLD: [&str; 3] = ["answer", "ground_truth", "solution"];

/// A row understood.
pub(super) struct Row {
    pub id: Option<String>,
    pub problem: String,
    /// Why the row has no gold, where it has none.
    pub gold: Result<String, String>,
    pub solution: Option<String>,
    pub level: Option<String>,
    pub subject: Option<String>,
    /// The solution boxes different answers, of which the gold is perhaps one.
    pub several_boxes: bool,
}

/// The gold is `answer` (what follows `####` in it, GSM8K's way), else
/// `ground_truth`, else the last box of `solution`. An empty gold is no error
/// but a row to drop: it could pay for anything.
pub(super) fn parse(value: &Value) -> Result<Row> {
    let Some(row) = value.as_object() else {
        bail!("expected a JSON object with a problem and an answer");
    };
    let problem = first_text(row, &PROBLEM)?
        .with_context(|| missing("problem statement", &PROBLEM, row))?
        .1;
    if problem.trim().is_empty() {
        bail!("the problem statement is empty");
    }
    let (key, text) = first_text(row, &GOLD)?.with_context(|| missing("answer", &GOLD, row))?;
    let mut solution = text_of(row, "solution")?;
    let gold = match (key, text.rsplit_once("####")) {
        (_, Some((_, answer))) => {
            solution.get_or_insert_with(|| text.clone());
            answer.trim().to_string()
        }
        ("solution", None) => written_boxes(&text)
            .pop()
            .map(|found| found.content)
            .filter(|content| !is_blank(content))
            .unwrap_or_default(),
        (_, None) => text.trim().to_string(),
    };
    let gold = match gold.trim() {
        "" if key == "solution" => Err("its solution has no closed, filled \\boxed{}".to_string()),
        "" => Err(format!("its {key} is empty")),
        gold => Ok(gold.to_string()),
    };
    let several_boxes = solution.as_deref().is_some_and(boxes_differ);
    Ok(Row {
        id: first_text(row, &["unique_id", "id"])?
            .map(|(_, id)| id)
            .filter(|id| !id.is_empty()),
        problem,
        gold,
        solution,
        level: filled(text_of(row, "level")?),
        subject: filled(first_text(row, &["subject", "type"])?.map(|(_, subject)| subject)),
        several_boxes,
    })
}

/// The boxes of a solution's words and formulas. What a figure's source boxes
/// is drawn, not answered, and its braces need not match.
fn written_boxes(solution: &str) -> Vec<Found> {
    let mut words = String::with_capacity(solution.len());
    let mut rest = solution;
    while let Some((before, figure)) = rest.split_once("[asy]") {
        let Some((_, after)) = figure.split_once("[/asy]") else {
            break;
        };
        words.push_str(before);
        words.push(' ');
        rest = after;
    }
    words.push_str(rest);
    let found = extract::boxes(&words);
    // A box whose only content is a box is one answer with two frames.
    let framed = |(i, outer): (usize, &Found)| {
        found
            .get(i + 1)
            .is_some_and(|inner| words[inner.range.clone()] == outer.content)
    };
    found
        .iter()
        .enumerate()
        .filter(|&at| !framed(at))
        .map(|(_, found)| found.clone())
        .collect()
}

/// Whether a solution boxes several answers that are printed differently. The
/// checker is not asked: boxes that are equal in value are as often two steps
/// of a solution as two spellings of its answer.
fn boxes_differ(solution: &str) -> bool {
    let mut contents = written_boxes(solution)
        .into_iter()
        .filter(|found| !is_blank(&found.content))
        .map(|found| printed(&found.content));
    let first = contents.next();
    contents.any(|content| Some(content) != first)
}

/// A formula without white space, LaTeX's own included, and with fractions of
/// one size.
fn printed(content: &str) -> String {
    let mut bare = String::with_capacity(content.len());
    let mut rest = content;
    while let Some(at) = rest.find('\\') {
        bare.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        // "\\" ends a line; what follows it is no space command.
        if let Some(after) = rest.strip_prefix('\\') {
            bare.push_str("\\\\");
            rest = after;
        } else if let Some(after) = rest.strip_prefix([',', ';', ':', '!', ' ']) {
            rest = after;
        } else {
            bare.push('\\');
            if rest.starts_with("dfrac") || rest.starts_with("tfrac") {
                rest = &rest[1..];
            }
        }
    }
    bare.push_str(rest);
    bare.retain(|c| !c.is_whitespace());
    bare
}

/// Whether a box shows nothing: a frame to be filled in by the reader.
fn is_blank(content: &str) -> bool {
    let content = content.trim();
    let Some(rest) = ["\\phantom", "\\hphantom", "\\vphantom"]
        .into_iter()
        .find_map(|command| {
            content
                .strip_prefix(command)?
                .trim_start()
                .strip_prefix('{')
        })
    else {
        return content.is_empty();
    };
    let mut depth = 1;
    let end = rest.find(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth == 0
    });
    end.is_some_and(|end| rest[end + 1..].trim().is_empty())
}

fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// The first of `keys` that the row has, with its text.
fn first_text(
    row: &Map<String, Value>,
    keys: &[&'static str],
) -> Result<Option<(&'static str, String)>> {
    for key in keys {
        if let Some(text) = text_of(row, key)? {
            return Ok(Some((key, text)));
        }
    }
    Ok(None)
}

/// Text or a number, as text; null is as good as absent.
fn text_of(row: &Map<String, Value>, key: &str) -> Result<Option<String>> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(Value::Array(_)) if key == "prompt" => {
            bail!(
                "key prompt is a list; give the problem's text (the chat template is set by data.prompt_template)"
            )
        }
        Some(other) => bail!("key {key}: expected text, found {}", kind(other)),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "an object",
        Value::Array(_) => "a list",
        Value::Bool(_) => "a truth value",
        _ => "another type",
    }
}

fn missing(what: &str, expected: &[&str], row: &Map<String, Value>) -> String {
    let keys: Vec<_> = row.keys().map(String::as_str).collect();
    format!(
        "no {what}: expected one of the keys {}; the row has {}",
        expected.join(", "),
        if keys.is_empty() {
            "none".to_string()
        } else {
            keys.join(", ")
        }
    )
}
