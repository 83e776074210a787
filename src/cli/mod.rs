//! The command line: one file per verb, one error chain, exit codes.

pub mod args;
mod resolve;
mod rows;

pub mod bench;
pub mod bench_kernels;
pub mod bench_rollout;
pub mod bench_sweep;
pub mod eval;
pub mod generate;
pub mod grade;
pub mod init_model;
pub mod inspect;
pub mod plan;
pub mod replay;
pub mod report;
pub mod sweep;
pub mod train;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

pub use crate::config::UsageError;
use args::{Cli, Verb};

/// How a verb that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Stopped by a signal, after a clean save.
    Interrupted,
}

/// Exit codes that callers rely on; clap's own usage error is 2 as well.
const FAILED: u8 = 1;
const USAGE: u8 = 2;
/// 128 + SIGINT, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// Parse, dispatch, report. 0 done, 1 failed, 2 bad usage or config,
/// 130 interrupted after a clean save.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // Also the way of --help and --version. Nothing is left to do if
            // the terminal is gone.
            let _ = answer.print();
            return ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(USAGE));
        }
    };
    if let Err(e) = crate::profile::listen_to_tools() {
        eprintln!("warning: no ranges are told to the profiler: {e}");
    }
    match dispatch(cli.verb) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let usage = error.chain().any(|cause| cause.is::<UsageError>());
            ExitCode::from(if usage { USAGE } else { FAILED })
        }
    }
}

fn dispatch(verb: Verb) -> anyhow::Result<Outcome> {
    match verb {
        Verb::Train(args) => train::run(args),
        Verb::Sweep(args) => sweep::run(args),
        Verb::Eval(args) => eval::run(args),
        Verb::Generate(args) => generate::run(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::Replay(args) => replay::run(args),
        Verb::Grade(args) => grade::run(args),
        Verb::Report(args) => report::run(args),
        Verb::Plan(args) => plan::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::InitModel(args) => init_model::run(args),
    }
}

/// The reader of standard output has gone (`arca inspect ... | head`): the
/// program ends quietly.
#[derive(Debug)]
pub struct StdoutClosed;

impl std::fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Writes to standard output at once, where `print!` would panic on a closed
/// pipe.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to standard output")),
    }
}

/// Writes a result to a file, or to standard output where it is named `-`.
pub fn write_output(path: &std::path::Path, text: &str) -> anyhow::Result<()> {
    use anyhow::Context;
    if path.as_os_str() == "-" {
        return print(text);
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
