//! `arca inspect`: signals and credit of each token.

use anyhow::bail;

use super::Outcome;
use super::args::InspectArgs;

/// Runs the verb.
pub fn run(args: InspectArgs) -> anyhow::Result<Outcome> {
    let _config = args.load()?;
    bail!("`arca inspect` is not written yet: the scoring forward is missing")
}
