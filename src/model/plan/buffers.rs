//! The list of buffers that batches run in: what is planned is what is
//! allocated, by name.

use crate::device::memory::{Dtype, Role};
use crate::model::config::{Group, ModelShape};
use crate::model::plan::Capacity;
use crate::ops::decode::page_elements;

/// When a buffer is in use. Phases follow one another: what one leaves in its
/// buffers, another may overwrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Sampling, evaluation and scoring: forwards that save nothing.
    Forward,
    /// Forward with saved activations, and backward.
    Update,
    /// The comparison with an exact residual stream.
    NoiseFloor,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Forward => "rollout, eval",
            Phase::Update => "update",
            Phase::NoiseFloor => "noise floor",
        }
    }
}

/// A buffer to be, or several equal ones.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub name: String,
    pub role: Role,
    pub dims: Vec<usize>,
    pub dtype: Dtype,
    /// Buffers of this size: one per layer.
    pub count: usize,
    /// None: all of them, one after another.
    pub phase: Option<Phase>,
    /// What makes it smaller.
    pub shrink: &'static str,
}

impl Buffer {
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    pub fn phases(&self) -> &'static str {
        self.phase.map_or("all", Phase::name)
    }
}

const BATCH: &str = "train.tokens_per_batch";
const STEP: &str = "train.tokens_per_batch, train.prompts_per_step, rollout.group_size or rollout.max_completion_length";
const PAGES: &str = "rollout.kv_memory, rollout.max_completion_length or data.max_prompt_length";

/// Before the names of activations that a forward without saved rows uses
/// where the others are not its to write.
pub const LIVE: &str = "live ";

/// The stack of what a layer can be computed from.
pub const STREAM: &str = "h_in";

/// The activations of one forward with a residual stream of type `residual`:
/// first the stacks over layers, then what comes after them.
///
/// Every level of a stack keeps its saved rows; the rows of a level that are
/// not saved lie where the next level's will be written, because by then they
/// are dead. With `recompute` one level serves all layers, but for the stream.
fn activations(
    shape: &ModelShape,
    capacity: &Capacity,
    act: Dtype,
    residual: Dtype,
) -> [Vec<Buffer>; 2] {
    let l = shape.num_layers;
    let (h, i) = (shape.hidden_size, shape.intermediate_size);
    let s = |g: Group| capacity.s_width[g as usize];
    let buffer = |name: &str, rows: usize, width: usize, dtype| Buffer {
        name: name.to_string(),
        role: Role::Activations,
        dims: vec![rows, width],
        dtype,
        count: 1,
        phase: None,
        shrink: BATCH,
    };
    let stack = |name: &str, levels: usize, width: usize, dtype| {
        let levels = match capacity.recompute && name != STREAM {
            true => 1,
            false => levels,
        };
        let rows = levels.saturating_sub(1) * capacity.saved_rows + capacity.rows;
        buffer(name, rows, width, dtype)
    };
    let statistic = Dtype::F32;
    let stacks = vec![
        // The residual stream entering each layer, and the final one.
        stack(STREAM, l + 1, h, residual),
        stack("xn1", l, h, act),
        stack("rstd1", l, 1, statistic),
        stack("s_qkv", l, s(Group::Qkv), act),
        stack("qkv", l, shape.qkv_width(), act),
        stack("qk", l, shape.q_width() + shape.kv_width(), act),
        stack("attended", l, shape.q_width(), act),
        stack("lse", l, shape.num_heads, statistic),
        stack("s_o", l, s(Group::O), act),
        stack("h_mid", l, h, residual),
        stack("xn2", l, h, act),
        stack("rstd2", l, 1, statistic),
        stack("s_gate_up", l, s(Group::GateUp), act),
        stack("gate_up", l, 2 * i, act),
        stack("act", l, i, act),
        stack("s_down", l, s(Group::Down), act),
    ];
    let last = vec![
        buffer("y", capacity.rows, h, act),
        buffer("x_final", capacity.rows, h, act),
        buffer("rstd_final", capacity.rows, 1, statistic),
    ];
    [stacks, last]
}

/// Buffers under another name, of one phase.
fn renamed(list: Vec<Buffer>, prefix: &str, phase: Phase) -> impl Iterator<Item = Buffer> {
    list.into_iter().map(move |b| Buffer {
        name: format!("{prefix}{}", b.name),
        phase: Some(phase),
        ..b
    })
}

/// What the head says of each pair.
fn head_output(capacity: &Capacity) -> Vec<Buffer> {
    ["logprobs", "entropies", "norms"]
        .map(|name| Buffer {
            name: name.to_string(),
            role: Role::Activations,
            dims: vec![capacity.pairs],
            dtype: Dtype::F32,
            count: 1,
            phase: None,
            shrink: STEP,
        })
        .into()
}

/// What only a backward needs.
fn scratch(shape: &ModelShape, capacity: &Capacity, act: Dtype) -> Vec<Buffer> {
    let rows = capacity.saved_rows;
    let (h, i) = (shape.hidden_size, shape.intermediate_size);
    let widest = capacity.s_width.into_iter().max().unwrap_or(0);
    let qk = shape.q_width() + shape.kv_width();
    let of = |name: &str, rows: usize, width: usize, dtype, shrink| Buffer {
        name: name.to_string(),
        role: Role::Update,
        dims: vec![rows, width],
        dtype,
        count: 1,
        phase: Some(Phase::Update),
        shrink,
    };
    vec![
        of("dh", rows, h, Dtype::F32, BATCH),
        of("dy", rows, h, act, BATCH),
        of("dx", rows, h, act, BATCH),
        of("d_act", rows, i, act, BATCH),
        of("d_gate_up", rows, 2 * i, act, BATCH),
        of("d_attended", rows, shape.q_width(), act, BATCH),
        of("d_qk", rows, qk, act, BATCH),
        of("d_qkv", rows, shape.qkv_width(), act, BATCH),
        of("ds", rows, widest, act, BATCH),
        of("u", capacity.grad_pairs, h, act, STEP),
        of("coefficients", capacity.grad_pairs, 1, Dtype::F32, STEP),
    ]
}

/// Name of the KV pages' buffers.
pub const KV_PAGES: &str = "KV pages";

/// Before the names of the noise floor's activations.
pub const EXACT: &str = "exact ";

/// Rows that the noise floor may compare.
pub fn noise_floor_rows(capacity: &Capacity) -> usize {
    capacity.rows.min(capacity.positions)
}

/// Everything that batches run in. Where buffers are `overlaid`, a forward that
/// saves nothing has activations of its own beside the KV pages, and an update
/// has that memory too.
pub fn buffers(
    shape: &ModelShape,
    capacity: &Capacity,
    act: Dtype,
    training: bool,
    overlaid: bool,
) -> Vec<Buffer> {
    let one = |rows| Capacity {
        rows,
        saved_rows: 0,
        ..*capacity
    };
    let [stacks, mut all] = activations(shape, capacity, act, act);
    if overlaid && capacity.saved_rows > 0 {
        let [live, _] = activations(shape, &one(capacity.rows), act, act);
        all.extend(renamed(live, LIVE, Phase::Forward));
        all.extend(renamed(stacks, "", Phase::Update));
    } else {
        all.extend(stacks);
    }
    all.extend(head_output(capacity));
    if training {
        all.extend(scratch(shape, capacity, act));
    }
    all.push(Buffer {
        name: KV_PAGES.to_string(),
        role: Role::Kv,
        dims: vec![capacity.pages, page_elements(shape)],
        dtype: act,
        count: shape.num_layers,
        phase: Some(Phase::Forward),
        shrink: PAGES,
    });
    if training && act != Dtype::F32 {
        let one = one(noise_floor_rows(capacity));
        let exact = activations(shape, &one, act, Dtype::F32).concat();
        all.extend(renamed(exact, EXACT, Phase::NoiseFloor).map(|b| Buffer {
            shrink: "data.max_prompt_length or rollout.max_completion_length",
            ..b
        }));
    }
    all
}
