//! Guards the way from text to ids and from files to problems to rewards.

mod data;
mod grade;
mod reward;
mod tokenizer;

use std::path::PathBuf;

use arca::episode::Problem;

/// A file below `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    crate::common::fixtures().join(name)
}

fn problem(id: &str, problem: &str, answer: &str) -> Problem {
    Problem {
        id: id.into(),
        problem: problem.into(),
        answer: answer.into(),
        solution: None,
        level: None,
        subject: None,
    }
}
