//! `arca train`: a run from its config to its run folder.

use anyhow::bail;

use super::Outcome;
use super::args::TrainArgs;

/// Runs the verb.
pub fn run(args: TrainArgs) -> anyhow::Result<Outcome> {
    let _config = args.load()?;
    bail!("`arca train` is not written yet: the training loop is missing")
}
