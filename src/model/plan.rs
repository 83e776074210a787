//! The memory plan: what a run will need, decided before step 0.
//!
//! Every buffer of the engine is allocated from a [`Plan`]; nothing grows in
//! the loop. Rollout, update and evaluation never run at the same time, so
//! they share one set of activations.

use crate::device::BatchCapacity;
use crate::model::adapter::AdapterLayout;
use crate::model::config::{Group, ModelShape, Module};

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

impl Capacity {
    /// Room of the batch descriptor.
    pub fn batch(&self) -> BatchCapacity {
        BatchCapacity {
            rows: self.rows,
            segments: self.segments,
            pairs: self.pairs,
            pages: self.pages,
        }
    }
}

/// What memory is for; a device may give each role one allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Weights,
    Adapters,
    Activations,
    Update,
    Pages,
    Scratch,
}

impl Role {
    pub const ALL: [Role; 6] = [
        Role::Weights,
        Role::Adapters,
        Role::Activations,
        Role::Update,
        Role::Pages,
        Role::Scratch,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Role::Weights => "weights",
            Role::Adapters => "adapters",
            Role::Activations => "activations",
            Role::Update => "update",
            Role::Pages => "pages",
            Role::Scratch => "scratch",
        }
    }

    /// When memory of this role is alive.
    pub fn phases(self) -> &'static str {
        match self {
            Role::Weights | Role::Adapters | Role::Activations | Role::Scratch => "all",
            Role::Update => "update",
            Role::Pages => "rollout, eval",
        }
    }

    /// What a user can change to need less of it.
    pub fn settings(self) -> &'static str {
        match self {
            Role::Weights => "a smaller model",
            Role::Adapters => "a smaller lora.r, or fewer lora.target_modules",
            Role::Activations | Role::Update => "a smaller train.tokens_per_batch",
            Role::Pages => {
                "a smaller rollout.max_completion_length, train.prompts_per_step or rollout.group_size"
            }
            Role::Scratch => "a smaller train.tokens_per_batch",
        }
    }
}

/// One line of the memory table: a buffer, or equal ones.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Entry {
    pub what: String,
    pub role: Role,
    /// How many of them.
    pub count: usize,
    pub shape: Vec<usize>,
    pub dtype: &'static str,
    /// Which phases use it.
    pub phases: &'static str,
    pub bytes: u64,
}

/// How a device lays memory out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Activations' type.
    pub act: &'static str,
    pub act_bytes: usize,
    /// Every buffer's size is a multiple of this.
    pub alignment: usize,
    /// One bf16 copy of each weight and of each adapter, scratch and batch
    /// descriptors in device memory; else the CPU's panels.
    pub device_memory: bool,
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

/// The scratch that any op of a stream may use, in the table.
pub const WORKSPACE: &str = "workspace of ops";

/// What the noise floor has room for: one prompt through a residual stream in
/// f32, held against the rounded one (`credit/residual_noise_floor`).
pub fn noise_capacity(capacity: &Capacity) -> Capacity {
    Capacity {
        rows: capacity.positions.min(capacity.rows),
        saved_rows: 0,
        ..*capacity
    }
}

impl Plan {
    /// `weight_bytes` is the size of the checkpoint's files, of which the CPU
    /// keeps panels; `adapters` are the resident ones, the first of which trains.
    pub fn new(
        shape: &ModelShape,
        capacity: &Capacity,
        form: Form,
        weight_bytes: u64,
        adapters: &[AdapterLayout],
        training: bool,
    ) -> Plan {
        let mut plan = Planner {
            form,
            entries: Vec::new(),
        };
        plan.weights(shape, capacity, weight_bytes, training);
        plan.adapters(shape, adapters, training);
        plan.activations(shape, capacity);
        if training {
            plan.update(shape, capacity);
        }
        let page = crate::ops::decode::page_elements(shape);
        plan.add(
            Role::Pages,
            "KV pages",
            shape.num_layers,
            &[capacity.pages, page],
            form.act,
        );
        plan.scratch(shape, capacity, adapters, training);
        let mut entries = plan.entries;
        entries.retain(|e| e.bytes > 0);
        Plan { entries }
    }

    pub fn total(&self) -> u64 {
        self.entries.iter().map(|e| e.bytes).sum()
    }

    pub fn of_role(&self, role: Role) -> u64 {
        let entries = self.entries.iter().filter(|e| e.role == role);
        entries.map(|e| e.bytes).sum()
    }

    /// The largest entries, with what makes each smaller: for "would not fit".
    pub fn blame(&self) -> String {
        let mut largest: Vec<&Entry> = self.entries.iter().collect();
        largest.sort_by_key(|e| std::cmp::Reverse(e.bytes));
        largest
            .iter()
            .take(4)
            .map(|e| {
                format!(
                    "  {}: {} MiB; less with {}\n",
                    e.what,
                    e.bytes >> 20,
                    e.role.settings()
                )
            })
            .collect()
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        let mut out = format!(
            "{:<28} {:<26} {:<5} {:<14} {:>10}\n",
            "what", "shape", "dtype", "phases", "MiB"
        );
        for role in Role::ALL {
            let bytes = self.of_role(role);
            if bytes == 0 {
                continue;
            }
            for e in self.entries.iter().filter(|e| e.role == role) {
                let dims: Vec<String> = e.shape.iter().map(|d| d.to_string()).collect();
                let times = if e.count > 1 {
                    format!("{} x ", e.count)
                } else {
                    String::new()
                };
                out += &format!(
                    "{:<28} {:<26} {:<5} {:<14} {:>10.1}\n",
                    e.what,
                    format!("{times}[{}]", dims.join(", ")),
                    e.dtype,
                    e.phases,
                    mib(e.bytes)
                );
            }
            out += &format!(
                "{:<76} {:>10.1}\n",
                format!("= {}", role.name()),
                mib(bytes)
            );
        }
        out + &format!("{:<76} {:>10.1}\n", "total", mib(self.total()))
    }
}

/// Bytes of an element by type name.
fn size_of_dtype(dtype: &str) -> usize {
    match dtype {
        "bf16" => 2,
        _ => 4,
    }
}

struct Planner {
    form: Form,
    entries: Vec<Entry>,
}

impl Planner {
    /// `count` buffers of one shape.
    fn add(&mut self, role: Role, what: &str, count: usize, shape: &[usize], dtype: &'static str) {
        let one = shape.iter().product::<usize>() * size_of_dtype(dtype);
        let bytes = (count * one.next_multiple_of(self.form.alignment)) as u64;
        self.entries.push(Entry {
            what: what.to_string(),
            role,
            count,
            shape: shape.to_vec(),
            dtype,
            phases: role.phases(),
            bytes,
        });
    }

    /// Bytes of which no single shape is known.
    fn add_bytes(&mut self, role: Role, what: &str, bytes: u64, dtype: &'static str) {
        self.entries.push(Entry {
            what: what.to_string(),
            role,
            count: 1,
            shape: vec![bytes as usize / size_of_dtype(dtype)],
            dtype,
            phases: role.phases(),
            bytes,
        });
    }

    fn weights(&mut self, shape: &ModelShape, capacity: &Capacity, files: u64, training: bool) {
        let l = shape.num_layers;
        let h = shape.hidden_size;
        if self.form.device_memory {
            let vocab = shape.vocab_size.next_multiple_of(8);
            self.add(Role::Weights, "embedding", 1, &[vocab, h], "bf16");
            if !shape.tie_word_embeddings {
                self.add(Role::Weights, "LM head", 1, &[vocab, h], "bf16");
            }
            for group in Group::ALL {
                let outputs: usize = group.outputs(shape).iter().sum();
                let name = format!("weights of {}", group.name());
                self.add(
                    Role::Weights,
                    &name,
                    l,
                    &[outputs, group.inputs(shape)],
                    "bf16",
                );
                if shape.attention_bias && matches!(group, Group::Qkv | Group::O) {
                    self.add(
                        Role::Weights,
                        &format!("bias of {}", group.name()),
                        l,
                        &[outputs],
                        "bf16",
                    );
                }
            }
        } else {
            // Panels for the forward, and for the transposed product.
            let copies = if training { 2 } else { 1 };
            self.add_bytes(
                Role::Weights,
                "base weights in panels",
                files * copies,
                "bf16",
            );
        }
        self.add(Role::Weights, "norms", 2 * l + 1, &[h], "f32");
        self.add(
            Role::Weights,
            "q and k norms",
            2 * l,
            &[shape.head_dim],
            "f32",
        );
        let half = shape.head_dim / 2;
        self.add(
            Role::Weights,
            "rotary tables",
            2,
            &[capacity.positions, half],
            "f32",
        );
    }

    fn adapters(&mut self, shape: &ModelShape, adapters: &[AdapterLayout], training: bool) {
        for (i, layout) in adapters.iter().enumerate() {
            self.add(
                Role::Adapters,
                &format!("adapter {i}: master"),
                1,
                &[layout.len()],
                "f32",
            );
            let name = format!("adapter {i}: compute form");
            if self.form.device_memory {
                let padded = layout
                    .factors()
                    .map(|(_, _, f)| f.r.next_multiple_of(16) * (f.inputs + f.outputs));
                self.add(Role::Adapters, &name, 1, &[padded.sum()], "bf16");
                let words = layout.factors().count() * crate::ops::cuda::SOURCE_WORDS;
                self.add(
                    Role::Adapters,
                    &format!("adapter {i}: map"),
                    1,
                    &[words],
                    "u32",
                );
            } else {
                self.add(Role::Adapters, &name, 4, &[layout.len()], "f32");
            }
            if training && i == 0 {
                self.add(Role::Adapters, "gradients", 1, &[layout.len()], "f32");
                self.add(Role::Adapters, "AdamW moments", 2, &[layout.len()], "f32");
            }
        }
        if self.form.device_memory && !adapters.is_empty() {
            let places = shape.num_layers * Module::ALL.len() * adapters.len();
            self.add(
                Role::Adapters,
                "factor table",
                1,
                &[places, crate::ops::cuda::FACTOR_WORDS],
                "u32",
            );
        }
    }

    fn activations(&mut self, shape: &ModelShape, capacity: &Capacity) {
        let act = self.form.act;
        self.stacks(shape, capacity, act);
        if act != "f32" {
            // Few rows in many buffers: one line.
            let first = self.entries.len();
            self.stacks(shape, &noise_capacity(capacity), "f32");
            let bytes = self.entries.drain(first..).map(|e| e.bytes).sum();
            self.add_bytes(Role::Activations, "noise floor's activations", bytes, act);
        }
        self.add(
            Role::Activations,
            "log-probs, entropies, norms",
            3,
            &[capacity.pairs],
            "f32",
        );
    }

    fn stacks(&mut self, shape: &ModelShape, capacity: &Capacity, residual: &'static str) {
        let act = self.form.act;
        for (name, stack, kind) in stacks(shape, capacity.s_width) {
            let dtype = match kind {
                StackType::Statistic => "f32",
                StackType::Residual => residual,
                StackType::Act => act,
            };
            let rows = stack.elements(capacity) / stack.width.max(1);
            self.add(Role::Activations, name, 1, &[rows, stack.width], dtype);
        }
        let (rows, h) = (capacity.rows, shape.hidden_size);
        self.add(Role::Activations, "y, final states", 2, &[rows, h], act);
        self.add(Role::Activations, "final rstd", 1, &[rows], "f32");
    }

    /// What [`crate::model::buffers::Scratch`] allocates.
    fn update(&mut self, shape: &ModelShape, capacity: &Capacity) {
        let (rows, act) = (capacity.saved_rows, self.form.act);
        let (h, i) = (shape.hidden_size, shape.intermediate_size);
        let widest = capacity.s_width.into_iter().max().unwrap_or(0);
        self.add(Role::Update, "dh", 1, &[rows, h], "f32");
        for (name, width) in [
            ("dy", h),
            ("dx", h),
            ("d_act", i),
            ("d_gate_up", 2 * i),
            ("d_attended", shape.q_width()),
            ("d_qk", shape.q_width() + shape.kv_width()),
            ("d_qkv", shape.qkv_width()),
            ("ds", widest),
        ] {
            self.add(Role::Update, name, 1, &[rows, width], act);
        }
        self.add(
            Role::Update,
            "u of the head",
            1,
            &[capacity.grad_pairs, h],
            act,
        );
        self.add(
            Role::Update,
            "coefficients",
            1,
            &[capacity.grad_pairs],
            "f32",
        );
    }

    fn scratch(
        &mut self,
        shape: &ModelShape,
        capacity: &Capacity,
        adapters: &[AdapterLayout],
        training: bool,
    ) {
        if !self.form.device_memory {
            return self.add_bytes(Role::Scratch, "logits of one chunk", 64 << 20, "f32");
        }
        let longest = adapters.iter().map(|a| a.len()).max().unwrap_or(0);
        let bytes = crate::ops::cuda::workspace_bytes(shape, capacity, training, longest);
        self.add(Role::Scratch, WORKSPACE, 1, &[bytes / 4], "u32");
        self.add(
            Role::Scratch,
            "workspace of cuBLASLt",
            1,
            &[crate::device::cuda::PRODUCT_WORKSPACE / 4],
            "u32",
        );
        let words = crate::device::cuda::batch::words_for(&capacity.batch());
        self.add(Role::Scratch, "batch descriptor", 1, &[words], "u32");
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
