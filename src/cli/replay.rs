//! `arca replay`: gradients and one step for given episodes.

use anyhow::bail;

use super::Outcome;
use super::args::ReplayArgs;

/// Runs the verb.
pub fn run(args: ReplayArgs) -> anyhow::Result<Outcome> {
    let _config = args.load()?;
    bail!("`arca replay` is not written yet: the update is missing")
}
