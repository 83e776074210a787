//! The list of buffers that batches run in: what is planned is what is
//! allocated, by name.

use crate::device::memory::{Dtype, MemoryKind, Role};
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
    /// Columns of another buffer's rows, rather than memory of its own.
    pub within: Option<Within>,
}

/// Where a buffer lies that is the last columns of another one, which comes
/// before it in the list.
#[derive(Clone, Debug)]
pub struct Within {
    pub name: String,
    pub column: usize,
}

impl Buffer {
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Elements from its own first one to the end of its memory.
    pub fn reach(&self) -> usize {
        let column = self.within.as_ref().map_or(0, |w| w.column);
        self.elements().saturating_sub(column)
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

/// Elements that rows with room behind them are rounded up to: whole lines of
/// 128 bytes in bf16.
const ROW: usize = 64;

/// Elements from row to row of an operand of a product that is `width` wide and
/// has room for `s` columns of LoRA behind it.
pub fn joined_stride(width: usize, s: usize) -> usize {
    match s {
        0 => width,
        _ => (width + s).next_multiple_of(ROW),
    }
}

/// An operand of a product with what LoRA multiplies beside it, each
/// `[rows, width]`. Where a device `joins` them, the second lies behind the
/// first one's rows, so that base and LoRA are one product.
fn with_lora(operand: Buffer, lora: Buffer, joins: bool) -> [Buffer; 2] {
    let (width, s) = (operand.dims[1], lora.dims[1]);
    if !joins || s == 0 {
        return [operand, lora];
    }
    let dims = vec![operand.dims[0], joined_stride(width, s)];
    let within = Some(Within {
        name: operand.name.clone(),
        column: width,
    });
    let lora = Buffer {
        dims: dims.clone(),
        within,
        ..lora
    };
    [Buffer { dims, ..operand }, lora]
}

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
    joins: bool,
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
        within: None,
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
    let product = |x: &str, width: usize, s_name: &str, group: Group| {
        let operand = stack(x, l, width, act);
        with_lora(operand, stack(s_name, l, s(group), act), joins)
    };
    let [xn1, s_qkv] = product("xn1", h, "s_qkv", Group::Qkv);
    let [attended, s_o] = product("attended", shape.q_width(), "s_o", Group::O);
    let [xn2, s_gate_up] = product("xn2", h, "s_gate_up", Group::GateUp);
    let [inner, s_down] = product("act", i, "s_down", Group::Down);
    let stacks = vec![
        // The residual stream entering each layer, and the final one.
        stack(STREAM, l + 1, h, residual),
        xn1,
        stack("rstd1", l, 1, statistic),
        s_qkv,
        stack("qkv", l, shape.qkv_width(), act),
        stack("qk", l, shape.q_width() + shape.kv_width(), act),
        attended,
        stack("lse", l, shape.num_heads, statistic),
        s_o,
        stack("h_mid", l, h, residual),
        xn2,
        stack("rstd2", l, 1, statistic),
        s_gate_up,
        stack("gate_up", l, 2 * i, act),
        inner,
        s_down,
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
        within: b.within.map(|w| Within {
            name: format!("{prefix}{}", w.name),
            ..w
        }),
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
            within: None,
        })
        .into()
}

/// What only a backward needs.
fn scratch(shape: &ModelShape, capacity: &Capacity, act: Dtype, joins: bool) -> Vec<Buffer> {
    let rows = capacity.saved_rows;
    let (h, i) = (shape.hidden_size, shape.intermediate_size);
    let s = |g: Group| capacity.s_width[g as usize];
    let qk = shape.q_width() + shape.kv_width();
    let of = |name: &str, rows: usize, width: usize, dtype, shrink| Buffer {
        name: name.to_string(),
        role: Role::Update,
        dims: vec![rows, width],
        dtype,
        count: 1,
        phase: Some(Phase::Update),
        shrink,
        within: None,
    };
    let product = |dy: &str, width: usize, ds: &str, s: usize| {
        let operand = of(dy, rows, width, act, BATCH);
        with_lora(operand, of(ds, rows, s, act, BATCH), joins)
    };
    // The outputs of two groups are of this width.
    let s_hidden = s(Group::O).max(s(Group::Down));
    let [dy, ds_hidden] = product("dy", h, "ds_hidden", s_hidden);
    let [d_gate_up, ds_gate_up] = product("d_gate_up", 2 * i, "ds_gate_up", s(Group::GateUp));
    let [d_qkv, ds_qkv] = product("d_qkv", shape.qkv_width(), "ds_qkv", s(Group::Qkv));
    vec![
        of("dh", rows, h, Dtype::F32, BATCH),
        dy,
        ds_hidden,
        of("dx", rows, h, act, BATCH),
        of("d_act", rows, i, act, BATCH),
        d_gate_up,
        ds_gate_up,
        of("d_attended", rows, shape.q_width(), act, BATCH),
        of("d_qk", rows, qk, act, BATCH),
        d_qkv,
        ds_qkv,
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

/// Everything that batches run in. Where a device overlays buffers, a forward that
/// saves nothing has activations of its own beside the KV pages, and an update
/// has that memory too.
pub fn buffers(
    shape: &ModelShape,
    capacity: &Capacity,
    kind: MemoryKind,
    training: bool,
) -> Vec<Buffer> {
    let (act, joins, overlaid) = (kind.act(), kind.joins_lora(), kind.overlays());
    let one = |rows| Capacity {
        rows,
        saved_rows: 0,
        ..*capacity
    };
    let [stacks, mut all] = activations(shape, capacity, act, act, joins);
    if overlaid && capacity.saved_rows > 0 {
        let [live, _] = activations(shape, &one(capacity.rows), act, act, joins);
        all.extend(renamed(live, LIVE, Phase::Forward));
        all.extend(renamed(stacks, "", Phase::Update));
    } else {
        all.extend(stacks);
    }
    all.extend(head_output(capacity));
    if training {
        all.extend(scratch(shape, capacity, act, joins));
    }
    all.push(Buffer {
        name: KV_PAGES.to_string(),
        role: Role::Kv,
        dims: vec![capacity.pages, page_elements(shape)],
        dtype: act,
        count: shape.num_layers,
        phase: Some(Phase::Forward),
        shrink: PAGES,
        within: None,
    });
    if training && act != Dtype::F32 {
        let one = one(noise_floor_rows(capacity));
        let exact = activations(shape, &one, act, Dtype::F32, joins).concat();
        all.extend(renamed(exact, EXACT, Phase::NoiseFloor).map(|b| Buffer {
            shrink: "data.max_prompt_length or rollout.max_completion_length",
            ..b
        }));
    }
    all
}
