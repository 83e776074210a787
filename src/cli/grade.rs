//! `arca grade`: verdicts on answers.

use anyhow::bail;

use super::Outcome;
use super::args::GradeArgs;

/// Runs the verb.
pub fn run(_args: GradeArgs) -> anyhow::Result<Outcome> {
    bail!("`arca grade` is not written yet: the answer checker is missing")
}
