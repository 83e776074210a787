//! One row of a data file: which of its keys mean what.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use crate::reward::extract;

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
        ("solution", None) => extract::last_box(&text)
            .map(|found| found.content)
            .unwrap_or_default(),
        (_, None) => text.trim().to_string(),
    };
    let gold = match gold.trim() {
        "" if key == "solution" => Err("its solution has no closed, filled \\boxed{}".to_string()),
        "" => Err(format!("its {key} is empty")),
        gold => Ok(gold.to_string()),
    };
    let several_boxes = solution.as_deref().is_some_and(|solution| {
        extract::boxes(solution)
            .windows(2)
            .any(|pair| pair[0].content != pair[1].content)
    });
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
