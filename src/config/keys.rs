//! The known names, derived from the serialised default [`Config`], and the
//! nearest of them to a misspelt one.

use serde_json::Value;

use super::{Config, UsageError};

/// A name in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Table,
    /// A key that takes a value.
    Leaf,
    /// A key that may be absent.
    Optional,
}

/// Every leaf and its value, sorted by key. Optional keys that are
/// absent are null: JSON keeps them where TOML would leave them out.
pub(super) fn values(config: &Config) -> anyhow::Result<Vec<(String, Value)>> {
    let mut leaves = Vec::new();
    flatten("", serde_json::to_value(config)?, &mut leaves);
    Ok(leaves)
}

fn flatten(prefix: &str, value: Value, leaves: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                flatten(&join(prefix, &name), value, leaves);
            }
        }
        leaf => leaves.push((prefix.to_string(), leaf)),
    }
}

/// `prefix.name`, or `name` at the top.
pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_string()
    } else {
        format!("{prefix}.{name}")
    }
}

/// Every known dotted key, sorted.
pub(super) fn known() -> Vec<String> {
    defaults().into_iter().map(|(key, _)| key).collect()
}

/// What `key` names, if anything.
pub(super) fn kind(key: &str) -> Option<Kind> {
    let defaults = defaults();
    if let Some((_, default)) = defaults.iter().find(|(known, _)| known == key) {
        return Some(match default {
            Value::Null => Kind::Optional,
            _ => Kind::Leaf,
        });
    }
    let inside = format!("{key}.");
    defaults
        .iter()
        .any(|(known, _)| known.starts_with(&inside))
        .then_some(Kind::Table)
}

/// The keys of one table, for a message.
pub(super) fn of_table(table: &str) -> Vec<String> {
    let inside = format!("{table}.");
    known()
        .into_iter()
        .filter(|key| key.starts_with(&inside))
        .collect()
}

/// The known key that `key` was most likely meant to be.
pub(super) fn nearest_key(key: &str) -> String {
    let known = known();
    let (table, name) = split(key);
    // Within its table a key may be abbreviated (`optimizer.lr`); in another
    // one it must be spelt closely (`learning_rate`, `train.temperature`).
    let likeness = |candidate: &String| {
        let (other_table, other_name) = split(candidate);
        strsim::jaro_winkler(name, other_name) + 0.15 * strsim::jaro_winkler(table, other_table)
    };
    known
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .cloned()
        .unwrap_or_default()
}

fn split(key: &str) -> (&str, &str) {
    key.split_once('.').unwrap_or(("", key))
}

fn defaults() -> Vec<(String, Value)> {
    // A struct of plain values always serialises; were that ever to change, the
    // tests of this module would see an empty list.
    values(&Config::default()).unwrap_or_default()
}

/// The name in `known` that is spelt most like `given`.
pub fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .copied()
        .max_by(|a, b| strsim::jaro_winkler(given, a).total_cmp(&strsim::jaro_winkler(given, b)))
}

/// Refuses `given` as the value of `key` unless it is one of `known`, with the
/// nearest of them and the list.
pub fn check_name(key: &str, given: &str, known: &[&str]) -> Result<(), UsageError> {
    if known.contains(&given) {
        return Ok(());
    }
    let hint = nearest(given, known)
        .map(|name| format!("did you mean `{name}`? "))
        .unwrap_or_default();
    Err(UsageError::new(format!(
        "{key} = \"{given}\" is not known: {hint}(known: {})",
        known.join(", ")
    )))
}
