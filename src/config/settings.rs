//! What was typed: one value for one dotted key, and the place it stands.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Table, Value};

use super::keys::{self, Kind};
use super::{Config, UsageError};

/// Where a setting stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Place {
    File {
        path: PathBuf,
        line: usize,
    },
    Flag,
    Demo,
    /// An arm of a sweep, by name.
    Arm(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { path, line } => write!(f, "{}:{line}", path.display()),
            Place::Flag => f.write_str("--set"),
            Place::Demo => f.write_str("the demo's settings"),
            Place::Arm(name) => write!(f, "sweep arm {name}"),
        }
    }
}

/// One value for one dotted key.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    key: String,
    value: Value,
    /// The value as typed, where other readings of it are allowed.
    text: Option<String>,
    place: Place,
}

/// A setting whose key is known and whose value has the key's type.
pub(super) enum Checked<'a> {
    Set(&'a str, Value),
    /// The optional key goes back to being absent.
    Unset(&'a str),
    /// An empty table says nothing.
    Nothing,
}

/// The table that only `arca sweep` reads.
const SWEEP: &str = "sweep";

impl Setting {
    /// The key within `[sweep]`, if it is one of those.
    pub fn sweep_key(&self) -> Option<&str> {
        match self.key.strip_prefix(SWEEP)? {
            "" => Some(""),
            rest => rest.strip_prefix('.'),
        }
    }

    /// The value, a bare list such as `[arca, uniform]` read as one of texts.
    pub fn value(&self) -> Value {
        let bare = self.text.as_deref().and_then(bare_list);
        match (&self.value, bare) {
            (Value::String(_), Some(list)) => list,
            (value, _) => value.clone(),
        }
    }

    /// Where it stands, for messages.
    pub fn place(&self) -> String {
        self.place.to_string()
    }

    /// Refuses an unknown key and a value of the wrong type.
    pub fn check(&self) -> Result<Checked<'_>, UsageError> {
        match keys::kind(&self.key) {
            None if self.sweep_key().is_some() => {
                Err(self.refuse("[sweep] is read by `arca sweep` alone".to_string()))
            }
            None => Err(self.refuse(format!(
                "unknown key `{}`; the nearest known key is `{}`",
                self.key,
                keys::nearest_key(&self.key)
            ))),
            Some(Kind::Table) => match &self.value {
                Value::Table(table) if table.is_empty() => Ok(Checked::Nothing),
                _ => Err(self.refuse(format!(
                    "`{}` is a table, set one of its keys: {}",
                    self.key,
                    keys::of_table(&self.key).join(", ")
                ))),
            },
            Some(Kind::Optional) if self.value.as_str() == Some("none") => {
                Ok(Checked::Unset(&self.key))
            }
            Some(Kind::Leaf | Kind::Optional) => self.typed().map(|v| Checked::Set(&self.key, v)),
        }
    }

    /// The first reading of the value that the key's type accepts.
    fn typed(&self) -> Result<Value, UsageError> {
        let refusal = match accept(&self.key, &self.value) {
            Ok(()) => return Ok(self.value.clone()),
            Err(error) => error,
        };
        if let Some(text) = &self.text {
            for reading in [Some(Value::String(text.clone())), bare_list(text)] {
                if let Some(value) = reading
                    && accept(&self.key, &value).is_ok()
                {
                    return Ok(value);
                }
            }
        }
        Err(self.refuse(format!("`{}`: {}", self.key, in_words(&refusal))))
    }

    fn refuse(&self, message: String) -> UsageError {
        UsageError::new(format!("{}: {message}", self.place))
    }
}

impl Checked<'_> {
    pub fn apply(self, table: &mut Table) {
        let (key, value) = match self {
            Checked::Set(key, value) => (key, Some(value)),
            Checked::Unset(key) => (key, None),
            Checked::Nothing => return,
        };
        let (path, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = table;
        for step in path.split('.').filter(|step| !step.is_empty()) {
            let inner = table
                .entry(step)
                .or_insert_with(|| Value::Table(Table::new()));
            // Known keys only nest under known tables.
            let Value::Table(inner) = inner else { return };
            table = inner;
        }
        match value {
            Some(value) => table.insert(name.to_string(), value),
            None => table.remove(name),
        };
    }
}

/// Asks the configuration's own types whether `key` takes `value`.
fn accept(key: &str, value: &Value) -> Result<(), String> {
    let mut table = Table::new();
    Checked::Set(key, value.clone()).apply(&mut table);
    Config::from_table(table)
        .map(|_| ())
        .map_err(|error| error.message().to_string())
}

/// Says serde's message in the user's terms.
fn in_words(message: &str) -> String {
    let Some((given, expected)) = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))
        .and_then(|rest| rest.split_once(", expected "))
    else {
        return message.to_string();
    };
    let expected = match expected {
        "usize" | "u64" => "a whole number, 0 or more",
        "f32" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list such as [\"a\", \"b\"]",
        "path string" => "a path",
        other => other,
    };
    format!("given {given}, expected {expected}")
}

/// `[q_proj, k_proj]`: what a shell leaves of a list whose quotes it ate.
fn bare_list(text: &str) -> Option<Value> {
    let inside = text.trim().strip_prefix('[')?.strip_suffix(']')?;
    if inside.contains(['[', ']', '"', '\'', '{', '}']) {
        return None;
    }
    let items = inside.split(',').map(str::trim);
    Some(Value::Array(
        items.map(|item| Value::String(item.to_string())).collect(),
    ))
}

/// The settings of a config file, in its order.
pub(super) fn from_file(path: &Path) -> Result<Vec<Setting>, UsageError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        UsageError::new(format!(
            "cannot read the config {}: {error}",
            path.display()
        ))
    })?;
    from_toml(
        &text,
        &Place::File {
            path: path.to_path_buf(),
            line: 0,
        },
    )
}

/// The settings of one `KEY=VALUE`: several where the value is a table.
pub(super) fn from_override(text: &str) -> Result<Vec<Setting>, UsageError> {
    let Some((key, raw)) = text.split_once('=') else {
        return Err(UsageError::new(format!(
            "--set takes KEY=VALUE, such as --set train.steps=5; given `{text}`"
        )));
    };
    let (key, raw) = (key.trim(), raw.trim());
    let value = ValueDeserializer::parse(raw)
        .and_then(Value::deserialize)
        .unwrap_or_else(|_| Value::String(raw.to_string()));

    let mut settings = Vec::new();
    flatten_override(key.to_string(), value, raw, &mut settings);
    Ok(settings)
}

fn flatten_override(key: String, value: Value, raw: &str, settings: &mut Vec<Setting>) {
    match value {
        Value::Table(table) if !table.is_empty() => {
            for (name, value) in table {
                let text = value.to_string();
                flatten_override(keys::join(&key, &name), value, &text, settings);
            }
        }
        value => settings.push(Setting {
            key,
            value,
            text: Some(raw.to_string()),
            place: Place::Flag,
        }),
    }
}

/// The settings of a table, nested or with dotted keys, that stands at `place`.
pub(super) fn from_table(table: &Table, place: &Place) -> Vec<Setting> {
    fn add(prefix: &str, table: &Table, place: &Place, settings: &mut Vec<Setting>) {
        for (name, value) in table {
            let key = keys::join(prefix, name);
            match value {
                Value::Table(inner) if !inner.is_empty() => add(&key, inner, place, settings),
                value => settings.push(Setting {
                    key,
                    value: value.clone(),
                    text: None,
                    place: place.clone(),
                }),
            }
        }
    }
    let mut settings = Vec::new();
    add("", table, place, &mut settings);
    settings
}

/// The settings of a TOML text that stands at `place`.
pub(super) fn from_toml(text: &str, place: &Place) -> Result<Vec<Setting>, UsageError> {
    let at = |offset: usize| match place {
        Place::File { path, .. } => Place::File {
            path: path.clone(),
            line: 1 + text[..offset.min(text.len())].matches('\n').count(),
        },
        other => other.clone(),
    };
    let syntax = |error: toml::de::Error| {
        let offset = error.span().map_or(0, |span| span.start);
        UsageError::new(format!("{}: {}", at(offset), error.message()))
    };
    // Parsed twice: once for the values, once for where they stand.
    let values: Table = toml::from_str(text).map_err(syntax)?;
    let spans = DeTable::parse(text).map_err(syntax)?;

    let mut settings = Vec::new();
    flatten("", &values, spans.get_ref(), &at, &mut settings);
    Ok(settings)
}

fn flatten(
    prefix: &str,
    values: &Table,
    spans: &DeTable<'_>,
    at: &dyn Fn(usize) -> Place,
    settings: &mut Vec<Setting>,
) {
    for (name, span) in spans {
        let Some(value) = values.get(name.get_ref().as_ref()) else {
            continue;
        };
        let key = keys::join(prefix, name.get_ref());
        match (value, span.get_ref()) {
            (Value::Table(inner), DeValue::Table(inner_spans)) if !inner.is_empty() => {
                flatten(&key, inner, inner_spans, at, settings);
            }
            _ => settings.push(Setting {
                key,
                value: value.clone(),
                text: None,
                place: at(name.span().start),
            }),
        }
    }
}
