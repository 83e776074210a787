//! `arca plan`: the memory a run would need.

use anyhow::bail;

use super::Outcome;
use super::args::PlanArgs;

/// Runs the verb.
pub fn run(args: PlanArgs) -> anyhow::Result<Outcome> {
    let _config = args.load()?;
    bail!("`arca plan` is not written yet: the model's memory plan is missing")
}
