//! `arca train`: a run from its config to its run folder.

use super::Outcome;
use super::args::TrainArgs;
use crate::train::run;

/// Runs the verb.
pub fn run(args: TrainArgs) -> anyhow::Result<Outcome> {
    let config = args.load()?;
    run::train(
        config,
        args.run,
        args.resume,
        args.common.quiet,
        args.profile_steps,
    )
}
