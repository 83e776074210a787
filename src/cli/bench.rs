//! `arca bench`: the speed of a part of a run.

use anyhow::bail;

use super::Outcome;
use super::args::BenchArgs;

/// Runs the verb.
pub fn run(args: BenchArgs) -> anyhow::Result<Outcome> {
    let _config = args.load()?;
    bail!("`arca bench` is not written yet: the engine is missing")
}
