//! The `arca` binary: parse, dispatch, one error chain, exit code.

fn main() -> std::process::ExitCode {
    arca::cli::main()
}
