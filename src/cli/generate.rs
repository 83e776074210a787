//! `arca generate`: completions of given prompts.

use anyhow::bail;

use super::Outcome;
use super::args::GenerateArgs;

/// Runs the verb.
pub fn run(args: GenerateArgs) -> anyhow::Result<Outcome> {
    let _config = args.load()?;
    bail!("`arca generate` is not written yet: the rollout is missing")
}
