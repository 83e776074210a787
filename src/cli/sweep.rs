//! `arca sweep`: many adapters trained side by side, and compared.

use super::Outcome;
use super::args::SweepArgs;
use crate::study::sweep;

/// Runs the verb.
pub fn run(args: SweepArgs) -> anyhow::Result<Outcome> {
    let arms = args.load()?;
    sweep::sweep(arms, args.run, args.resume, args.common.quiet)
}
