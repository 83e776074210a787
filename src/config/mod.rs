//! What a run was told to do: TOML and dotted overrides, defaults filled in,
//! checked, printed and saved with every run.
//!
//! ```text
//! defaults < bundled demo (while model.path is empty) < config file < --set
//! ```
//!
//! [`tables`] holds the keys, [`settings`] what was typed and where, [`keys`]
//! the known names, [`validate`] the ranges.

mod keys;
mod settings;
mod tables;
mod validate;

use std::fmt;
use std::path::Path;

use anyhow::Context;

pub use keys::{check_name, nearest};
pub use tables::*;

use crate::model::peft::decimal;
use settings::{Place, Setting};

/// What the user typed cannot be meant: an unknown key, a value out of range, a
/// run folder in use. The program answers with exit code 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl UsageError {
    /// An error that says what is wrong, where, and what to do about it.
    pub fn new(message: impl Into<String>) -> Self {
        UsageError(message.into())
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Settings of the bundled demo, used while no model is named.
const DEMO: &str = include_str!("../../assets/demo/demo.toml");

impl Config {
    /// Reads `file`, then `overrides` (each `KEY=VALUE` with a dotted key), over
    /// the defaults, and checks the ranges that hold for every verb.
    ///
    /// An override's value is TOML where it parses as what the key takes, else
    /// the text itself, so that `credit.method=arca` needs no quotes.
    pub fn load(file: Option<&Path>, overrides: &[String]) -> Result<Config, UsageError> {
        Given::read(file, overrides)?.resolve()
    }

    /// The configuration of the bundled demo, with nothing else said.
    pub fn demo_defaults() -> Result<Config, UsageError> {
        Config::load(None, &[])
    }

    /// The resolved configuration as TOML; [`Config::load`] reads it back equal.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        toml::to_string_pretty(self).context("cannot write the configuration as TOML")
    }

    /// Dotted keys whose values differ between two configurations.
    pub fn differences(&self, other: &Config) -> anyhow::Result<Vec<String>> {
        let (mine, theirs) = (keys::values(self)?, keys::values(other)?);
        Ok(mine
            .into_iter()
            .zip(theirs)
            .filter(|(a, b)| a != b)
            .map(|((key, _), _)| key)
            .collect())
    }

    /// Later settings win over earlier ones.
    fn from_settings(given: &[Setting]) -> Result<Config, UsageError> {
        let mut table = toml::Table::new();
        for setting in given {
            setting.check()?.apply(&mut table);
        }
        Config::from_table(table).map_err(|error| UsageError::new(error.message()))
    }

    fn from_table(table: toml::Table) -> Result<Config, toml::de::Error> {
        table.try_into()
    }
}

/// What was typed, before it is resolved. `arca sweep` resolves it once per arm.
#[derive(Clone, Debug)]
pub struct Given {
    settings: Vec<Setting>,
}

impl Given {
    /// Reads `file`, then `overrides`, as [`Config::load`] has them.
    pub fn read(file: Option<&Path>, overrides: &[String]) -> Result<Given, UsageError> {
        let mut settings = match file {
            Some(path) => settings::from_file(path)?,
            None => Vec::new(),
        };
        for text in overrides {
            settings.extend(settings::from_override(text)?);
        }
        Ok(Given { settings })
    }

    /// Takes out `[sweep]`, if it is there, and says where it stood.
    pub fn take_sweep(&mut self) -> Option<(toml::Table, String)> {
        let of_sweep: Vec<Setting> = self
            .settings
            .extract_if(.., |s| s.sweep_key().is_some())
            .collect();
        let place = of_sweep.first()?.place();
        let mut table = toml::Table::new();
        for setting in &of_sweep {
            match setting.sweep_key() {
                // An empty table says nothing.
                None | Some("") => {}
                Some(key) => {
                    table.insert(key.to_string(), setting.value());
                }
            }
        }
        Some((table, place))
    }

    /// The configuration that these settings mean.
    pub fn resolve(&self) -> Result<Config, UsageError> {
        let mut config = Config::from_settings(&self.settings)?;
        if config.model.path.is_empty() {
            let mut with_demo = settings::from_toml(DEMO, &Place::Demo)?;
            with_demo.extend(self.settings.iter().cloned());
            config = Config::from_settings(&with_demo)?;
        }
        config.validate()?;
        Ok(config)
    }

    /// The same with what an arm of a sweep sets beside them, which wins.
    pub fn resolve_arm(&self, name: &str, sets: &toml::Table) -> Result<Config, UsageError> {
        let mut given = self.clone();
        let place = Place::Arm(name.to_string());
        given.settings.extend(settings::from_table(sets, &place));
        given
            .resolve()
            .map_err(|e| match e.to_string().starts_with("sweep arm") {
                true => e,
                false => UsageError::new(format!("sweep arm {name}: {e}")),
            })
    }
}

impl Config {
    /// What `self` has otherwise than `base`, as a table by dotted key; a key
    /// that is absent here is `"none"`.
    pub fn changes(&self, base: &Config) -> anyhow::Result<toml::Table> {
        let (mine, theirs) = (keys::values(self)?, keys::values(base)?);
        let mut changes = toml::Table::new();
        for ((key, value), (_, other)) in mine.into_iter().zip(theirs) {
            if value != other {
                let value = match value {
                    serde_json::Value::Null => toml::Value::String("none".into()),
                    // Every float is an f32: its own shortest decimals.
                    value => match value.as_f64().filter(|_| value.is_f64()) {
                        Some(float) => toml::Value::Float(decimal(float as f32)),
                        None => toml::Value::try_from(value).context("cannot write as TOML")?,
                    },
                };
                changes.insert(key, value);
            }
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests;
