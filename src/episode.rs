//! The values that travel from a prompt to a gradient.
//!
//! `Problem` -> `Episode` -> `Group` -> packed rows -> `TokenSignals` ->
//! per-token coefficients. Plain data: every one can be printed, saved and
//! replayed.

use serde::{Deserialize, Serialize};

use crate::reward::Verdict;

/// One task with a verifiable answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable name: the row's `unique_id` / `id`, else `file:row`.
    pub id: String,
    /// The statement as the data file has it (not the rendered prompt).
    pub problem: String,
    /// The gold answer (contents of the last box of the solution where the
    /// row had no `answer`).
    pub answer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solution: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

impl Problem {
    /// 64-bit key of the problem for counter-based random numbers: depends on
    /// the id alone, so that a sample does not depend on the row's place.
    pub fn key(&self) -> u64 {
        crate::rng::hash_bytes(self.id.as_bytes())
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop id (kept in `completion_ids`) or stop string was produced.
    Stop,
    /// `max_completion_length` was reached.
    Length,
    /// Nobody wanted the rest.
    Cancelled,
}

/// An adapter resident on the device; `None` in its place means the base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AdapterId(pub u32);

/// One sampled completion and what became of it.
#[derive(Clone, Debug)]
pub struct Episode {
    pub adapter: Option<AdapterId>,
    /// Index of the sample within its group, part of its random key.
    pub sample: u32,
    pub prompt_ids: Vec<u32>,
    /// Includes the stop id where one ended the completion.
    pub completion_ids: Vec<u32>,
    /// Log-prob of each completion token under the distribution it was drawn
    /// from before top-k / top-p / min-p truncation, at the rollout temperature.
    pub logprobs: Vec<f32>,
    pub finish: FinishReason,
    /// The completion decoded, special tokens removed.
    pub text: String,
    /// Weighted sum of the reward functions.
    pub reward: f32,
    /// Each reward function's own value, in the config's order.
    pub rewards: Vec<f32>,
    pub verdict: Verdict,
}

/// One problem and its K episodes.
#[derive(Clone, Debug)]
pub struct Group {
    pub problem: Problem,
    pub episodes: Vec<Episode>,
    /// One per episode, see [`crate::advantage`].
    pub advantages: Vec<f32>,
}

impl Group {
    /// All rewards equal: the advantages are zero under a mean baseline.
    pub fn zero_variance(&self) -> bool {
        self.episodes
            .windows(2)
            .all(|pair| pair[0].reward == pair[1].reward)
    }
}

/// What one scoring forward tells about each token of one completion.
/// All vectors have the completion's length, except those a run did not ask
/// for, which are empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenSignals {
    /// log pi(y_t) at the rollout temperature (nats).
    pub logprobs: Vec<f32>,
    /// Full-vocabulary entropy of the distribution y_t was drawn from (nats).
    pub entropies: Vec<f32>,
    /// log pi_ref(y_t): the reference adapter's, or the base model's.
    pub reference_logprobs: Vec<f32>,
    /// ||h_on - h_off||_2 of the state that predicts y_t.
    pub residuals: Vec<f32>,
    /// log pi(y_t) with the contrast prompt in place of the prompt.
    pub contrast_logprobs: Vec<f32>,
    /// The states that predict the tokens, post-norm, `[tokens, hidden]`. Large:
    /// the update drops them once the weights are there.
    pub states: Vec<f32>,
}
