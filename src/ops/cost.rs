//! What each op costs at least: floating-point operations, and bytes that must
//! be read or written once if everything else stayed on the chip.
//!
//! `act` is the size of an activation in bytes, `residual` that of an element
//! of the residual stream. A multiply-add is two operations; exponentials and
//! roots count as one.

use crate::model::batch::Batch;
use crate::model::config::ModelShape;

/// Least work of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    pub flops: f64,
    pub bytes: f64,
}

impl Cost {
    fn new(flops: usize, bytes: usize) -> Cost {
        Cost {
            flops: flops as f64,
            bytes: bytes as f64,
        }
    }
}

/// Rows of a table, read and written.
pub fn embedding(rows: usize, hidden: usize, act: usize, residual: usize) -> Cost {
    Cost::new(0, rows * hidden * (act + residual) + 4 * rows)
}

/// The stream and what is added to it read, the sum and its norm written.
pub fn rmsnorm_forward(rows: usize, hidden: usize, act: usize, residual: usize) -> Cost {
    Cost::new(
        5 * rows * hidden,
        rows * hidden * (2 * residual + 2 * act) + 4 * (rows + hidden),
    )
}

/// h and dx read, the f32 gradient of the stream updated, dy written.
pub fn rmsnorm_backward(rows: usize, hidden: usize, act: usize, residual: usize) -> Cost {
    Cost::new(
        9 * rows * hidden,
        rows * hidden * (residual + 2 * act + 8) + 4 * (rows + hidden),
    )
}

/// x `[rows, inputs]` times a weight `[outputs, inputs]`.
pub fn product(rows: usize, inputs: usize, outputs: usize, act: usize, weight: usize) -> Cost {
    Cost::new(
        2 * rows * inputs * outputs,
        act * rows * (inputs + outputs) + weight * inputs * outputs,
    )
}

/// s = c x A^T over parts of one input: `ranks` is their sum.
pub fn lora_shrink(rows: usize, inputs: usize, ranks: usize, act: usize) -> Cost {
    Cost::new(
        2 * rows * inputs * ranks,
        act * (rows * (inputs + ranks) + inputs * ranks),
    )
}

/// y += s B^T as a kernel of its own: y is read and written once more.
pub fn lora_expand(rows: usize, outputs: usize, r: usize, act: usize) -> Cost {
    Cost::new(
        2 * rows * outputs * r,
        act * (rows * (2 * outputs + r) + outputs * r),
    )
}

/// dA and dB of one module, in f32.
pub fn lora_gradients(rows: usize, inputs: usize, outputs: usize, r: usize, act: usize) -> Cost {
    Cost::new(
        2 * rows * r * (inputs + outputs),
        act * rows * (inputs + outputs + 2 * r) + 8 * r * (inputs + outputs),
    )
}

/// q and k of qkv read, and written normalised and rotated.
pub fn qknorm_rope_forward(rows: usize, shape: &ModelShape, act: usize) -> Cost {
    let n = rows * (shape.q_width() + shape.kv_width());
    Cost::new(9 * n, 2 * n * act + rows * 4 * (1 + shape.head_dim))
}

/// The same, with the gradient read beside.
pub fn qknorm_rope_backward(rows: usize, shape: &ModelShape, act: usize) -> Cost {
    let n = rows * (shape.q_width() + shape.kv_width());
    Cost::new(15 * n, 3 * n * act + rows * 4 * (1 + shape.head_dim))
}

/// (query, key) pairs of a batch: each row attends to its context up to itself.
pub fn attended(batch: &Batch, rows: usize) -> usize {
    (0..batch.segments.len())
        .filter(|&s| batch.segments[s].rows.end <= rows)
        .map(|s| {
            let (n, t) = (batch.segments[s].rows.len(), batch.context_len(s));
            n * (t - n) + n * (n + 1) / 2
        })
        .sum()
}

/// Two products over the attended pairs; q, k, v read and the output written.
pub fn attention_forward(batch: &Batch, rows: usize, shape: &ModelShape, act: usize) -> Cost {
    let pairs = attended(batch, rows) * shape.num_heads;
    Cost::new(
        4 * pairs * shape.head_dim,
        rows * (act * (2 * shape.q_width() + 2 * shape.kv_width()) + 4 * shape.num_heads),
    )
}

/// Five products; q, k, v, out, d_out read, three gradients written.
pub fn attention_backward(batch: &Batch, rows: usize, shape: &ModelShape, act: usize) -> Cost {
    let pairs = attended(batch, rows) * shape.num_heads;
    Cost::new(
        10 * pairs * shape.head_dim,
        rows * (act * (4 * shape.q_width() + 4 * shape.kv_width()) + 4 * shape.num_heads),
    )
}

/// One row per sequence over `context` cached positions each.
pub fn decode_attention(rows: usize, context: usize, shape: &ModelShape, act: usize) -> Cost {
    Cost::new(
        4 * rows * context * shape.q_width(),
        act * rows * (2 * context * shape.kv_width() + 2 * shape.q_width()),
    )
}

/// gate and up read, their product written.
pub fn swiglu_forward(rows: usize, width: usize, act: usize) -> Cost {
    Cost::new(4 * rows * width, 3 * rows * width * act)
}

/// gate, up and d_act read, two gradients written.
pub fn swiglu_backward(rows: usize, width: usize, act: usize) -> Cost {
    Cost::new(10 * rows * width, 5 * rows * width * act)
}

/// The head over pairs: 2 M H V for log-probs, as much again for u.
pub fn logprob_forward(
    pairs: usize,
    grad_pairs: usize,
    hidden: usize,
    vocab: usize,
    act: usize,
) -> Cost {
    Cost::new(
        2 * (pairs + grad_pairs) * hidden * vocab,
        act * hidden * (pairs + grad_pairs + vocab) + 16 * pairs,
    )
}

/// dx = coefficient * u.
pub fn logprob_backward(rows: usize, grad_pairs: usize, hidden: usize, act: usize) -> Cost {
    Cost::new(
        2 * grad_pairs * hidden,
        act * hidden * (rows + grad_pairs) + 4 * grad_pairs,
    )
}

/// Two states read per pair.
pub fn residual(pairs: usize, hidden: usize, residual: usize) -> Cost {
    Cost::new(3 * pairs * hidden, pairs * (2 * hidden * residual + 12))
}

/// The head's product and one pass over the vocabulary.
pub fn sample(rows: usize, hidden: usize, vocab: usize, act: usize) -> Cost {
    Cost::new(
        2 * rows * hidden * vocab,
        act * hidden * (rows + vocab) + 48 * rows,
    )
}

/// Parameters and two moments updated from gradients, all f32.
pub fn adamw(parameters: usize) -> Cost {
    Cost::new(12 * parameters, 28 * parameters)
}
