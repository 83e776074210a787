//! Rewards: what a completion earns, and why.

use serde::{Deserialize, Serialize};

/// A judgement that explains itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub correct: bool,
    /// The answer found in the completion, if any.
    pub extracted: Option<String>,
    /// Why equal or not, for people to read.
    pub rule: String,
}
