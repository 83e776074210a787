//! What a rollout counts of itself.

use crate::model::config::ModelShape;

/// One forward.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepRecord {
    pub seconds: f64,
    /// All rows: one per running sample, and those of prompts.
    pub rows: usize,
    /// Samples that were running.
    pub live: usize,
    /// Tokens drawn.
    pub drawn: usize,
    /// Positions that the running samples attended to, in sum.
    pub context: usize,
    /// KV pages in use, kept prefixes included.
    pub held_pages: usize,
}

/// Counts of a rollout so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RolloutStats {
    /// Rows of running samples, one per token but the first.
    pub decode_rows: usize,
    /// Rows of prompts, and of what was computed again.
    pub prefill_rows: usize,
    /// (query, key) pairs of those rows.
    pub prefill_pairs: usize,
    /// Rows of prompts that were found in pages.
    pub reused_rows: usize,
    /// Drawn tokens that were computed again after stepping back.
    pub recomputed_rows: usize,
    /// How often a sample or a prompt stepped back for want of pages.
    pub preemptions: usize,
    /// Shared pages copied before a sample wrote into them.
    pub copied_pages: usize,
    /// Seconds from the submission to the first token, by sample as they came.
    pub first_token_seconds: Vec<f64>,
    pub steps: Vec<StepRecord>,
}

impl RolloutStats {
    /// Floating-point operations of the prefill in the decoder layers (the
    /// base model's products and attention; a multiply-add is two): a prompt
    /// costs the same whatever the number of its samples.
    pub fn prefill_flops(&self, shape: &ModelShape) -> f64 {
        2.0 * self.prefill_rows as f64 * trunk_parameters(shape) as f64
            + attention_flops(shape) * self.prefill_pairs as f64
    }

    /// Most KV pages in use at once.
    pub fn peak_pages(&self) -> usize {
        let held = self.steps.iter().map(|s| s.held_pages);
        held.max().unwrap_or(0)
    }
}

impl StepRecord {
    /// Least seconds of the forward on a machine that does so many operations
    /// and moves so many bytes a second: the weights and the running samples'
    /// keys and values are read once, every row is multiplied once. `weights`
    /// are bytes of all that is read of the model, `adapter` are LoRA's
    /// parameters, `element` is the size of a cached element.
    pub fn bound(
        &self,
        shape: &ModelShape,
        weights: f64,
        adapter: usize,
        element: usize,
        flops_per_second: f64,
        bytes_per_second: f64,
    ) -> f64 {
        let kv = 2 * shape.kv_width() * shape.num_layers * element;
        let bytes = weights + (kv * self.context) as f64;
        let rows = 2.0 * (self.rows * (trunk_parameters(shape) + adapter)) as f64;
        let head = 2.0 * (self.drawn * shape.hidden_size * shape.vocab_size) as f64;
        let flops = rows + head + attention_flops(shape) * self.context as f64;
        (flops / flops_per_second).max(bytes / bytes_per_second)
    }
}

/// Parameters of the decoder layers' products.
pub fn trunk_parameters(shape: &ModelShape) -> usize {
    let (h, i) = (shape.hidden_size, shape.intermediate_size);
    let attention = h * shape.qkv_width() + shape.q_width() * h;
    shape.num_layers * (attention + 3 * h * i)
}

/// Operations per (query, key) pair, over all layers.
fn attention_flops(shape: &ModelShape) -> f64 {
    (4 * shape.q_width() * shape.num_layers) as f64
}
