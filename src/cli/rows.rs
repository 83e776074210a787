//! JSONL rows that verbs read: prompts, completions, episodes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};

use crate::tokenizer::Tokenizer;

/// One row and where it stands.
pub struct Row {
    pub value: Value,
    /// `file:line`, for messages.
    pub place: String,
}

/// Read a JSONL file (`-`: standard input). Blank lines are passed over.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let text = match path.as_os_str() == "-" {
        true => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read standard input")?;
            text
        }
        false => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?,
    };
    let mut rows = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let place = format!("{}:{}", path.display(), i + 1);
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("{place} is no JSON"))?;
        ensure!(value.is_object(), "{place} is no JSON object");
        rows.push(Row { value, place });
    }
    ensure!(!rows.is_empty(), "{} holds no rows", path.display());
    Ok(rows)
}

/// A line of a JSONL file that is not blank.
pub struct Line {
    pub bytes: Vec<u8>,
    /// `file:line`, for messages.
    pub place: String,
}

/// The lines of a JSONL file, a block at a time, for files that are too long
/// to be held.
pub struct Lines {
    input: Box<dyn BufRead>,
    name: String,
    read: usize,
    /// Reported when the lines before it have been handed out.
    failed: Option<Error>,
}

impl Lines {
    /// Opens a file (`-`: standard input).
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let input: Box<dyn BufRead> = match path.as_os_str() == "-" {
            true => Box::new(io::stdin().lock()),
            false => {
                let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
                Box::new(BufReader::with_capacity(1 << 16, file))
            }
        };
        Ok(Lines {
            input,
            name,
            read: 0,
            failed: None,
        })
    }

    /// The next lines that are not blank, up to so many lines or bytes; none
    /// at the end.
    pub fn block(&mut self, lines: usize, bytes: usize) -> Result<Vec<Line>> {
        let mut block = Vec::new();
        let mut size = 0;
        while block.len() < lines && size < bytes && self.failed.is_none() {
            let mut line = Vec::new();
            match self.input.read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(length) => size += length,
                Err(error) => {
                    let what = format!("cannot read {} after line {}", self.name, self.read);
                    self.failed = Some(Error::new(error).context(what));
                    break;
                }
            }
            if self.read == 0 && line.starts_with(b"\xef\xbb\xbf") {
                line.drain(..3);
            }
            self.read += 1;
            if !line.trim_ascii().is_empty() {
                let place = format!("{}:{}", self.name, self.read);
                block.push(Line { bytes: line, place });
            }
        }
        match self.failed.take_if(|_| block.is_empty()) {
            Some(error) => Err(error),
            None => Ok(block),
        }
    }
}

/// The JSON object that a line holds.
pub fn parse_object(line: &Line) -> Result<Map<String, Value>> {
    match serde_json::from_slice(&line.bytes) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(_) => bail!("{} is no JSON object", line.place),
        // The line number serde_json states is within the row: always 1.
        Err(error) => Err(anyhow!(
            "{} is no JSON (column {}: {})",
            line.place,
            error.column(),
            error
                .to_string()
                .split(" at line ")
                .next()
                .unwrap_or_default()
        )),
    }
}

impl Row {
    /// A row with only a prompt.
    pub fn of_prompt(text: &str) -> Row {
        Row {
            value: json!({ "prompt": text }),
            place: "--prompt".into(),
        }
    }

    /// Token ids under `<what>_ids`, or the text under `<what>` encoded.
    pub fn ids(&self, what: &str, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
        let key = format!("{what}_ids");
        match (&self.value[&key], &self.value[what]) {
            (Value::Array(list), _) => list
                .iter()
                .map(|v| {
                    v.as_u64()
                        .and_then(|x| u32::try_from(x).ok())
                        .with_context(|| {
                            format!("{}: {key} holds {v}, which is no token id", self.place)
                        })
                })
                .collect(),
            (Value::Null, Value::String(text)) => match tokenizer {
                Some(t) => t.encode(text).with_context(|| self.place.clone()),
                None => bail!(
                    "{}: {what} is text, but the model has no tokenizer.json: give {key}",
                    self.place
                ),
            },
            (Value::Null, Value::Null) => bail!(
                "{} has neither {key} nor {what}; it has {}",
                self.place,
                self.keys()
            ),
            _ => bail!(
                "{}: {key} must be a list of ids and {what} a string",
                self.place
            ),
        }
    }

    /// A list of `n` numbers under `key`, if it is there.
    pub fn numbers(&self, key: &str, n: usize) -> Result<Option<Vec<f32>>> {
        let list = match &self.value[key] {
            Value::Null => return Ok(None),
            Value::Array(list) => list,
            other => bail!(
                "{}: {key} is {other}, a list of numbers is expected",
                self.place
            ),
        };
        ensure!(
            list.len() == n,
            "{}: {key} has {} values for the {n} completion tokens",
            self.place,
            list.len()
        );
        list.iter()
            .map(|v| {
                v.as_f64()
                    .map(|x| x as f32)
                    .filter(|x| x.is_finite())
                    .with_context(|| {
                        format!(
                            "{}: {key} holds {v}, a finite number is expected",
                            self.place
                        )
                    })
            })
            .collect::<Result<_>>()
            .map(Some)
    }

    /// One number under `key`, if it is there.
    pub fn number(&self, key: &str) -> Result<Option<f32>> {
        match &self.value[key] {
            Value::Null => Ok(None),
            v => v
                .as_f64()
                .map(|x| x as f32)
                .filter(|x| x.is_finite())
                .with_context(|| {
                    format!("{}: {key} is {v}, a finite number is expected", self.place)
                })
                .map(Some),
        }
    }

    fn keys(&self) -> String {
        self.value
            .as_object()
            .map(|o| o.keys().cloned().collect::<Vec<_>>().join(", "))
            .unwrap_or_default()
    }
}
