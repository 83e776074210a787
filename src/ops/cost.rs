//! What each op costs at least: floating-point operations, and bytes that must
//! be read or written once if everything else stayed on the chip.
//!
//! `act` is the size of an activation in bytes, `residual` that of an element
//! of the residual stream. A multiply-add is two operations; exponentials and
//! roots count as one.

use crate::model::adapter::AdapterLayout;
use crate::model::batch::Batch;
use crate::model::config::{Group, ModelShape};

/// Least work of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    pub flops: f64,
    pub bytes: f64,
}

impl std::ops::Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            flops: self.flops + other.flops,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl Cost {
    /// Of copies and clears: bytes alone.
    pub fn of_bytes(bytes: usize) -> Cost {
        Cost::new(0, bytes)
    }

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

/// LoRA's factors in one group of products, as a batch's adapted rows go
/// through them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ranks {
    pub rows: usize,
    pub inputs: usize,
    /// Of all modules together.
    pub outputs: usize,
    /// Sum of the modules' ranks.
    pub r: usize,
    /// Parameters of the modules' B: sum of outputs times rank.
    pub b: usize,
}

impl Ranks {
    pub fn new(layout: &AdapterLayout, layer: usize, group: Group, rows: usize) -> Ranks {
        let factors = group.modules().iter().map(|&m| layout.factor(layer, m));
        factors.flatten().fold(
            Ranks {
                rows,
                inputs: group.inputs(layout.shape()),
                ..Ranks::default()
            },
            |sum, f| Ranks {
                outputs: sum.outputs + f.outputs,
                r: sum.r + f.r,
                b: sum.b + f.outputs * f.r,
                ..sum
            },
        )
    }

    /// s = c x A^T.
    pub fn shrink(self, act: usize) -> Cost {
        let a = self.inputs * self.r;
        Cost::new(
            2 * self.rows * a,
            act * (self.rows * (self.inputs + self.r) + a),
        )
    }

    /// ds = c dy B.
    pub fn shrink_backward(self, act: usize) -> Cost {
        Cost::new(
            2 * self.rows * self.b,
            act * (self.rows * (self.outputs + self.r) + self.b),
        )
    }

    /// What s B^T adds to a product that reads and writes x and y anyway.
    pub fn expand(self, act: usize) -> Cost {
        Cost::new(2 * self.rows * self.b, act * (self.rows * self.r + self.b))
    }

    /// What ds A adds to the product's backward.
    pub fn expand_backward(self, act: usize) -> Cost {
        let a = self.inputs * self.r;
        Cost::new(2 * self.rows * a, act * (self.rows * self.r + a))
    }

    /// dA and dB, in f32.
    pub fn gradients(self, act: usize) -> Cost {
        let parameters = self.inputs * self.r + self.b;
        Cost::new(
            2 * self.rows * parameters,
            act * self.rows * (self.inputs + self.outputs + 2 * self.r) + 8 * parameters,
        )
    }

    /// ds, dA and dB together: dy is read once, and ds stays on the chip.
    pub fn backward(self, act: usize) -> Cost {
        let apart = self.shrink_backward(act) + self.gradients(act);
        let again = act * self.rows * (self.outputs + self.r);
        Cost {
            bytes: apart.bytes - again as f64,
            ..apart
        }
    }
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

/// The rows of a batch over KV pages: every position of a segment's context is
/// read once for the segment.
pub fn paged_attention(batch: &Batch, rows: usize, shape: &ModelShape, act: usize) -> Cost {
    let pairs: usize = batch.positions[..rows]
        .iter()
        .map(|&p| p as usize + 1)
        .sum();
    let context: usize = batch
        .segments
        .iter()
        .filter(|s| !s.rows.is_empty() && s.rows.end <= rows)
        .map(|s| batch.positions[s.rows.end - 1] as usize + 1)
        .sum();
    Cost::new(
        4 * pairs * shape.q_width(),
        act * (2 * context * shape.kv_width() + 2 * rows * (shape.q_width() + shape.kv_width())),
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

/// The head over pairs: 2 M H V for log-probs, as much again for u. Logits do not
/// count; the kernels that keep them in memory move 12 bytes each for u.
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

/// Values read and their squares added.
pub fn squared_norm(values: usize) -> Cost {
    Cost::new(2 * values, 4 * values)
}

/// Parameters and two moments updated from gradients, all f32.
pub fn adamw(parameters: usize) -> Cost {
    Cost::new(12 * parameters, 28 * parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::adapter::LoraSettings;
    use crate::model::config::Module;

    #[test]
    fn ranks_count_the_adapter_s_parameters() {
        let config = include_str!("../../tools/compare/5m.json");
        let shape = ModelShape::from_json(&serde_json::from_str(config).unwrap()).unwrap();
        let settings = LoraSettings::uniform(&shape, &Module::ALL, 4, 8.0, 0.0, false);
        let layout = AdapterLayout::new(&shape, settings).unwrap();
        // Every parameter takes part in one multiply-add a row.
        let flops: f64 = (0..shape.num_layers)
            .flat_map(|layer| Group::ALL.map(|g| Ranks::new(&layout, layer, g, 1)))
            .map(|r| r.shrink(4).flops + r.expand(4).flops)
            .sum();
        assert_eq!(flops, 2.0 * layout.len() as f64);
        // q 256, k and v 128 columns of 256 inputs.
        let qkv = Ranks::new(&layout, 0, Group::Qkv, 10);
        assert_eq!((qkv.r, qkv.outputs, qkv.b), (12, 512, 4 * 512));
        assert_eq!(qkv.gradients(4).flops, 20.0 * (256.0 * 12.0 + 2048.0));
        let backward = qkv.backward(4);
        assert_eq!(backward.flops, 20.0 * (256.0 * 12.0 + 2.0 * 2048.0));
        // x, dy, s and ds of 10 rows, B, and gradients updated.
        let bytes = 40 * (256 + 512 + 2 * 12) + 4 * 2048 + 8 * (256 * 12 + 2048);
        assert_eq!(backward.bytes, bytes as f64);
    }

    #[test]
    fn paged_rows_read_their_context_once() {
        let shape = ModelShape::from_json(
            &serde_json::from_str(include_str!("../../tools/compare/5m.json")).unwrap(),
        )
        .unwrap();
        let mut batch = Batch::default();
        batch.push_segment(&[1, 2, 3], &[], None);
        batch.push_segment(&[4], &[], None);
        batch.positions[3] = 9;
        let cost = paged_attention(&batch, 4, &shape, 4);
        // 1 + 2 + 3 and 10 pairs, of heads x head_dim = 256.
        assert_eq!(cost.flops, 4.0 * 16.0 * 256.0);
        // Contexts of 3 and 10 positions, k and v of 128 each.
        assert_eq!(cost.bytes, 4.0 * (2.0 * 13.0 * 128.0 + 8.0 * 384.0));
    }
}
