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
        let mut given = match file {
            Some(path) => settings::from_file(path)?,
            None => Vec::new(),
        };
        for text in overrides {
            given.extend(settings::from_override(text)?);
        }

        let mut config = Config::from_settings(&given)?;
        if config.model.path.is_empty() {
            let mut with_demo = settings::from_toml(DEMO, &Place::Demo)?;
            with_demo.append(&mut given);
            config = Config::from_settings(&with_demo)?;
        }
        config.validate()?;
        Ok(config)
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

#[cfg(test)]
mod tests;
