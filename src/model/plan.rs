//! The memory plan: what a run will need, decided before step 0.
//!
//! Every buffer of the engine is allocated from a [`Plan`]; nothing grows in
//! the loop. Rollout, update and evaluation never run at the same time, so
//! they share one set of activations.

use crate::device::Float;
use crate::model::config::{Group, ModelShape};

/// The largest batches a run will make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Rows of one forward.
    pub rows: usize,
    /// Of these, rows that keep activations for a backward.
    pub saved_rows: usize,
    pub segments: usize,
    /// Head pairs of one forward.
    pub pairs: usize,
    /// Of these, pairs in the backward.
    pub grad_pairs: usize,
    /// Columns of s per group (widest resident adapter).
    pub s_width: [usize; 4],
    /// KV pages (of 16 positions).
    pub pages: usize,
    /// Longest context.
    pub positions: usize,
}

/// One line of the memory table.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Entry {
    pub what: String,
    /// Which phases use it.
    pub phases: &'static str,
    pub bytes: u64,
}

/// A buffer over all layers: `levels` of `[rows, width]`.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    pub levels: usize,
    pub width: usize,
}

/// All stacked activations by name, in forward order: the one list that
/// allocation and the memory table share.
pub fn stacks(shape: &ModelShape, s_width: [usize; 4]) -> Vec<(&'static str, Stack, StackType)> {
    use StackType::{Act, Residual, Statistic};
    let l = shape.num_layers;
    let (h, i) = (shape.hidden_size, shape.intermediate_size);
    let qk = shape.q_width() + shape.kv_width();
    let s = |g: Group| s_width[g as usize];
    let at = |levels, width| Stack { levels, width };
    vec![
        ("h_in", at(l + 1, h), Residual),
        ("xn1", at(l, h), Act),
        ("rstd1", at(l, 1), Statistic),
        ("s_qkv", at(l, s(Group::Qkv)), Act),
        ("qkv", at(l, shape.qkv_width()), Act),
        ("qk", at(l, qk), Act),
        ("attended", at(l, shape.q_width()), Act),
        ("lse", at(l, shape.num_heads), Statistic),
        ("s_o", at(l, s(Group::O)), Act),
        ("h_mid", at(l, h), Residual),
        ("xn2", at(l, h), Act),
        ("rstd2", at(l, 1), Statistic),
        ("s_gate_up", at(l, s(Group::GateUp)), Act),
        ("gate_up", at(l, 2 * i), Act),
        ("act", at(l, i), Act),
        ("s_down", at(l, s(Group::Down)), Act),
    ]
}

/// Element type of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackType {
    Residual,
    Act,
    Statistic,
}

impl Stack {
    /// Elements needed: every level keeps its saved rows, and the rows of a
    /// level that are not saved lie where the next level's will be written,
    /// because by then they are dead.
    pub fn elements(&self, capacity: &Capacity) -> usize {
        (self.levels.saturating_sub(1) * capacity.saved_rows + capacity.rows) * self.width
    }
}

/// The memory table of a run.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub entries: Vec<Entry>,
}

impl Plan {
    /// `weights` are the bytes of the loaded base model; `adapters` the
    /// trainable parameters per resident adapter, the first of which trains.
    pub fn new<A: Float>(
        shape: &ModelShape,
        capacity: &Capacity,
        weights: u64,
        adapters: &[usize],
        training: bool,
    ) -> Plan {
        let act = size_of::<A>() as u64;
        let mut plan = Plan::default();
        plan.add("base weights", "all", weights);
        for (i, &n) in adapters.iter().enumerate() {
            let n = 4 * n as u64;
            plan.add(&format!("adapter {i}: master"), "all", n);
            plan.add(&format!("adapter {i}: compute form"), "all", 4 * n);
            if training && i == 0 {
                plan.add("gradients", "update", n);
                plan.add("AdamW moments", "update", 2 * n);
            }
        }
        let mut activations = 0;
        for (_, stack, kind) in stacks(shape, capacity.s_width) {
            let size = match kind {
                StackType::Statistic => 4,
                _ => act,
            };
            activations += stack.elements(capacity) as u64 * size;
        }
        plan.add("activations", "all", activations);
        let rows = capacity.rows as u64;
        let h = shape.hidden_size as u64;
        plan.add("final states", "all", rows * (2 * h * act + 4));
        if training {
            let saved = capacity.saved_rows as u64;
            let wide = (shape.qkv_width()
                + shape.q_width() * 2
                + shape.kv_width()
                + 3 * shape.intermediate_size) as u64;
            plan.add(
                "backward scratch",
                "update",
                saved * ((wide + 2 * h) * act + 4 * h),
            );
            plan.add(
                "u of the head",
                "update",
                capacity.grad_pairs as u64 * h * act,
            );
        }
        let page = crate::ops::decode::page_elements(shape) as u64;
        plan.add(
            "KV pages",
            "rollout, eval",
            capacity.pages as u64 * page * act * shape.num_layers as u64,
        );
        let half = shape.head_dim as u64 / 2;
        plan.add("rotary table", "all", capacity.positions as u64 * half * 8);
        plan.add("logits of one chunk", "all", 64 << 20);
        plan
    }

    fn add(&mut self, what: &str, phases: &'static str, bytes: u64) {
        self.entries.push(Entry {
            what: what.to_string(),
            phases,
            bytes,
        });
    }

    pub fn total(&self) -> u64 {
        self.entries.iter().map(|e| e.bytes).sum()
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut out = format!("{:<28} {:<14} {:>12}\n", "what", "phases", "MiB");
        for e in &self.entries {
            let mib = e.bytes as f64 / (1 << 20) as f64;
            out += &format!("{:<28} {:<14} {mib:>12.1}\n", e.what, e.phases);
        }
        let mib = self.total() as f64 / (1 << 20) as f64;
        out + &format!("{:<28} {:<14} {mib:>12.1}\n", "total", "")
    }
}

/// Memory this machine could give now, in bytes, where the system tells.
pub fn available_memory() -> Option<u64> {
    proc_kib("/proc/meminfo", "MemAvailable:")
}

/// Most memory this process has held so far, in bytes, where the system tells.
pub fn peak_memory() -> Option<u64> {
    proc_kib("/proc/self/status", "VmHWM:")
}

fn proc_kib(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
