//! `arca eval`: held-out accuracy of the base model and adapters.

use anyhow::bail;

use super::Outcome;
use super::args::EvalArgs;

/// Runs the verb.
pub fn run(args: EvalArgs) -> anyhow::Result<Outcome> {
    let _config = args.load()?;
    bail!("`arca eval` is not written yet: the rollout is missing")
}
