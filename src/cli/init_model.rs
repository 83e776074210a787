//! `arca init-model`: a randomly initialised checkpoint.

use anyhow::bail;

use super::Outcome;
use super::args::InitModelArgs;

/// Runs the verb.
pub fn run(_args: InitModelArgs) -> anyhow::Result<Outcome> {
    bail!("`arca init-model` is not written yet: the model's weights are missing")
}
