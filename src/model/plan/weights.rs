//! The base model's rows of a plan, and those of adapters.

use std::path::Path;

use anyhow::Result;

use crate::device::memory::{Dtype, MemoryKind, Role};
use crate::model::adapter::AdapterLayout;
use crate::model::config::{Group, ModelShape};
use crate::model::plan::{Capacity, Entry, joined_stride};
use crate::model::weights::Checkpoint;
use crate::ops::cuda;
use crate::ops::linear::{Panels, WeightDtype};
use crate::ops::lora::packed_elements;

/// Element types of a checkpoint's weights, which the CPU keeps.
#[derive(Clone, Debug)]
pub struct WeightTypes {
    /// Whether a group is bf16 throughout, by layer.
    groups: Vec<[bool; 4]>,
    head: WeightDtype,
    embedding: WeightDtype,
}

impl WeightTypes {
    /// A checkpoint that is bf16 throughout.
    pub fn bf16(shape: &ModelShape) -> Self {
        WeightTypes {
            groups: vec![[true; 4]; shape.num_layers],
            head: WeightDtype::Bf16,
            embedding: WeightDtype::Bf16,
        }
    }

    /// From the files' headers. A tensor that is missing counts as bf16:
    /// loading names it.
    pub fn read(dir: &Path, shape: &ModelShape) -> Result<Self> {
        let checkpoint = Checkpoint::open(dir)?;
        let dtype = |name: &str| checkpoint.dtype(name).unwrap_or(WeightDtype::Bf16);
        let groups = (0..shape.num_layers)
            .map(|layer| {
                Group::ALL.map(|g| {
                    g.modules().iter().all(|m| {
                        let name = format!("model.layers.{layer}.{}.weight", m.path());
                        dtype(&name) == WeightDtype::Bf16
                    })
                })
            })
            .collect();
        let embedding = dtype("model.embed_tokens.weight");
        Ok(WeightTypes {
            groups,
            head: match shape.tie_word_embeddings {
                true => embedding,
                false => dtype("lm_head.weight"),
            },
            embedding,
        })
    }
}

const MODEL: &str = "model.path (a smaller model)";
const LORA: &str = "lora.r or lora.target_modules";

fn name_of(group: Group) -> &'static str {
    match group {
        Group::Qkv => "qkv weights",
        Group::O => "o weights",
        Group::GateUp => "gate_up weights",
        Group::Down => "down weights",
    }
}

/// The frozen model.
pub fn weights(
    kind: MemoryKind,
    types: &WeightTypes,
    shape: &ModelShape,
    capacity: &Capacity,
    training: bool,
) -> Vec<Entry> {
    let mut out = Vec::new();
    let entry = |what: &str, count: usize, dims: &[usize], dtype: Dtype, elements: usize| {
        let mut shape = vec![count];
        shape.extend(dims);
        Entry {
            shape: if count == 1 { dims.to_vec() } else { shape },
            bytes: (count * (elements * dtype.size()).next_multiple_of(kind.alignment())) as u64,
            ..Entry::new(what, Role::Weights, dtype, MODEL)
        }
    };
    let (l, h, v) = (shape.num_layers, shape.hidden_size, shape.vocab_size);
    let packed = |bf16: bool| if bf16 { Dtype::Bf16 } else { Dtype::F32 };
    match kind {
        MemoryKind::Cuda => {
            let elements = cuda::matrix_elements(v, h, 0);
            if shape.tie_word_embeddings {
                out.push(entry("embedding = head", 1, &[v, h], Dtype::Bf16, elements));
            } else {
                out.push(entry("embedding", 1, &[v, h], Dtype::Bf16, elements));
                out.push(entry("head", 1, &[v, h], Dtype::Bf16, elements));
            }
        }
        MemoryKind::Cpu { .. } => {
            let dtype = match types.embedding {
                WeightDtype::F32 => Dtype::F32,
                WeightDtype::Bf16 => Dtype::Bf16,
                WeightDtype::F16 => Dtype::F16,
            };
            out.push(Entry {
                role: Role::Mapped,
                ..entry("embedding", 1, &[v, h], dtype, v * h)
            });
            let dtype = packed(types.head == WeightDtype::Bf16);
            let elements = Panels::forward_elements(h, &[v]);
            out.push(entry("head", 1, &[v, h], dtype, elements));
            if training {
                let elements = Panels::backward_elements(h, &[v]);
                out.push(entry("head, transposed", 1, &[h, v], dtype, elements));
            }
        }
    }
    for group in Group::ALL {
        let (inputs, parts) = (group.inputs(shape), group.outputs(shape));
        let outputs: usize = parts.iter().sum();
        let name = name_of(group);
        match kind {
            MemoryKind::Cuda => {
                let lora = capacity.s_width[group as usize];
                let elements = cuda::matrix_elements(outputs, inputs, lora);
                // With the room for LoRA's factors beside the weight.
                let dims = [outputs + lora, joined_stride(inputs, lora)];
                out.push(entry(name, l, &dims, Dtype::Bf16, elements));
                let biased = matches!(group, Group::Qkv | Group::O);
                if shape.attention_bias && biased {
                    let what = format!("{name}: bias");
                    out.push(entry(&what, l, &[outputs], Dtype::Bf16, outputs));
                }
            }
            MemoryKind::Cpu { .. } => {
                for bf16 in [true, false] {
                    let of = |t: &&[bool; 4]| t[group as usize] == bf16;
                    let count = types.groups.iter().filter(of).count();
                    if count == 0 {
                        continue;
                    }
                    let dtype = packed(bf16);
                    let elements = Panels::forward_elements(inputs, &parts);
                    out.push(entry(name, count, &[outputs, inputs], dtype, elements));
                    if training {
                        let elements = Panels::backward_elements(inputs, &parts);
                        let what = format!("{name}, transposed");
                        out.push(entry(&what, count, &[inputs, outputs], dtype, elements));
                    }
                }
            }
        }
    }
    out.push(entry("norm weights", 2 * l + 1, &[h], Dtype::F32, h));
    let d = shape.head_dim;
    out.push(entry("norm weights of q and k", 2 * l, &[d], Dtype::F32, d));
    let positions = capacity.positions;
    out.push(Entry {
        shrink: "data.max_prompt_length or rollout.max_completion_length",
        ..entry(
            "rotary table",
            2,
            &[positions, d / 2],
            Dtype::F32,
            positions * d / 2,
        )
    });
    out
}

/// Resident adapters, of which the first `trained` train.
pub fn adapters(
    kind: MemoryKind,
    shape: &ModelShape,
    layouts: &[AdapterLayout],
    trained: usize,
) -> Vec<Entry> {
    let mut out = Vec::new();
    let mut add = |what: String, phases: &'static str, dims: Vec<usize>, dtype: Dtype| {
        // One buffer each, or as many as the first dimension says.
        let (count, elements) = match dims[..] {
            [n] => (1, n),
            [count, n] => (count, n),
            _ => (1, dims.iter().product()),
        };
        out.push(Entry {
            phases,
            bytes: (count * (elements * dtype.size()).next_multiple_of(kind.alignment())) as u64,
            shape: dims,
            ..Entry::new(&what, Role::Adapters, dtype, LORA)
        });
    };
    for (i, layout) in layouts.iter().enumerate() {
        let n = layout.len();
        add(format!("adapter {i}: master"), "all", vec![n], Dtype::F32);
        let compute = format!("adapter {i}: compute form");
        match kind {
            MemoryKind::Cpu { .. } => {
                let packed = layout.factors().map(|(_, _, f)| packed_elements(f)).sum();
                add(compute, "all", vec![packed], Dtype::F32);
            }
            MemoryKind::Cuda => {
                let elements = cuda::compute_elements(layout);
                add(compute, "all", vec![elements], Dtype::Bf16);
                add(
                    format!("adapter {i}: map"),
                    "all",
                    vec![cuda::source_words(layout)],
                    Dtype::U32,
                );
                // Made anew with each adapter.
                add(
                    format!("factors of {} adapters", i + 1),
                    "all",
                    vec![cuda::table_words(shape, i + 1)],
                    Dtype::U32,
                );
            }
        }
        if i < trained {
            let of = match trained {
                1 => String::new(),
                _ => format!("adapter {i}: "),
            };
            add(
                format!("{of}AdamW moments"),
                "update",
                vec![2, n],
                Dtype::F32,
            );
        }
    }
    // They are updated one after another, and share it.
    if let Some(longest) = layouts[..trained.min(layouts.len())]
        .iter()
        .map(AdapterLayout::len)
        .max()
    {
        add("gradients".to_string(), "update", vec![longest], Dtype::F32);
    }
    out
}
