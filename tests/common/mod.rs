//! What several test modules share: fixtures, parity cases and packing.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use arca::credit::HiddenChoice;
use arca::device::cpu::Cpu;
use arca::device::{Device, Float, SliceMut};
use arca::episode::AdapterId;
use arca::model::adapter::{AdapterLayout, LoraSettings};
use arca::model::batch::{Batch, Dropout, Pair, SegmentId};
use arca::model::config::{Group, ModelShape, Module};
use arca::model::engine::Engine;
use arca::model::peft;
use arca::model::plan::Capacity;
use arca::rng::Stream;

/// The checkout, found at run time, because the test binary may have been
/// carried to another machine: where it was built, or the working directory.
pub fn root() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    match built.join("tests/fixtures").exists() {
        true => built.to_path_buf(),
        false => std::env::current_dir().unwrap(),
    }
}

pub fn fixtures() -> PathBuf {
    root().join("tests/fixtures")
}

/// The `arca` binary: where it was built, or beside the carried test binary.
pub fn arca() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_arca"));
    match built.exists() {
        true => built.to_path_buf(),
        false => std::env::current_exe().unwrap().with_file_name("arca"),
    }
}

/// Names of the parity cases, sorted.
pub fn case_names() -> Vec<String> {
    let dir = fixtures().join("parity");
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let folder = entry.path().join("case.json").exists();
            folder.then(|| entry.file_name().into_string().unwrap())
        })
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no parity case in {}", dir.display());
    names
}

/// One completion and its prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    pub prompt: Vec<u32>,
    pub completion: Vec<u32>,
}

/// A tensor of a safetensors file, as f32.
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// One folder under `fixtures/parity`, see its README.md.
pub struct Case {
    pub name: String,
    pub dir: PathBuf,
    pub json: serde_json::Value,
    pub sequences: Vec<Sequence>,
    pub group_size: usize,
    pub shape: ModelShape,
    pub layout: AdapterLayout,
    pub params: Vec<f32>,
    reference: HashMap<String, Tensor>,
    /// Padded length of prompts in the reference.
    pub prompt_len: usize,
}

impl Case {
    pub fn load(name: &str) -> Case {
        let dir = fixtures().join("parity").join(name);
        let text = std::fs::read_to_string(dir.join("case.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let ids =
            |v: &serde_json::Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap() };
        let sequences = json["sequences"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| Sequence {
                prompt: ids(&s["prompt_ids"]),
                completion: ids(&s["completion_ids"]),
            })
            .collect();
        let shape = ModelShape::load(&dir.join("model")).unwrap();
        let (layout, params) = peft::load(&dir.join("adapter"), &shape).unwrap();
        Case {
            name: name.to_string(),
            group_size: json["group_size"].as_u64().unwrap() as usize,
            prompt_len: json["padded"]["P"].as_u64().unwrap() as usize,
            reference: read_f32(&dir.join("reference.safetensors")),
            dir,
            json,
            sequences,
            shape,
            layout,
            params,
        }
    }

    pub fn number(&self, path: &str) -> f64 {
        let value = self.json.pointer(path).and_then(|v| v.as_f64());
        value.unwrap_or_else(|| panic!("{}: no number at {path}", self.name))
    }

    pub fn temperature(&self) -> f32 {
        self.number("/grpo/temperature") as f32
    }

    pub fn reference(&self, name: &str) -> &Tensor {
        let tensor = self.reference.get(name);
        tensor.unwrap_or_else(|| panic!("{}: no reference {name}", self.name))
    }

    /// What lies at (sequence, position) of a `[B, T, ...]` or `[B, T]`
    /// reference, for position 0 = the first real prompt token.
    pub fn at_position(&self, name: &str, sequence: usize, position: usize) -> &[f32] {
        let t = self.reference(name);
        let width: usize = t.shape[2..].iter().product();
        let padding = self.prompt_len - self.sequences[sequence].prompt.len();
        let at = (sequence * t.shape[1] + padding + position) * width;
        &t.data[at..at + width]
    }

    /// The real tokens' values of a sequence in a `[B, C]` reference.
    pub fn at_completion(&self, name: &str, sequence: usize) -> &[f32] {
        let t = self.reference(name);
        let at = sequence * t.shape[1];
        &t.data[at..at + self.sequences[sequence].completion.len()]
    }

    /// One value per parameter, from the reference's `<prefix>.<module>.lora_A|B`.
    pub fn per_parameter(&self, prefix: &str) -> Vec<f32> {
        let mut out = vec![0f32; self.layout.len()];
        for (name, offset, rows, cols) in self.layout.tensors() {
            let module = name.trim_start_matches("base_model.model.");
            let t = self.reference(&format!("{prefix}.{}", module.trim_end_matches(".weight")));
            assert_eq!(t.shape, [rows, cols], "{name}");
            out[offset..offset + rows * cols].copy_from_slice(&t.data);
        }
        out
    }

    /// An engine with the case's model and adapter, with room for anything
    /// here.
    pub fn engine<A: Float>(&self) -> (Engine<Cpu<A>>, AdapterId) {
        let mut engine = engine::<A>(&self.dir.join("model"), &[&self.layout]);
        let id = engine
            .add_adapter(self.layout.clone(), &self.params)
            .unwrap();
        (engine, id)
    }
}

/// The f32 tensors of a file (others, such as ids, are passed over).
fn read_f32(path: &Path) -> HashMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .filter(|(_, t)| t.dtype() == safetensors::Dtype::F32)
        .map(|(name, t)| {
            let data = t
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect();
            let shape = t.shape().to_vec();
            (name.to_string(), Tensor { shape, data })
        })
        .collect()
}

/// A training engine for batches of up to 1024 rows with these adapters.
pub fn engine<A: Float>(model: &Path, adapters: &[&AdapterLayout]) -> Engine<Cpu<A>> {
    let mut s_width = [0; 4];
    for g in Group::ALL {
        let widest = adapters.iter().map(|l| l.s_width(g)).max();
        s_width[g as usize] = widest.unwrap_or(0);
    }
    let capacity = Capacity {
        rows: 1024,
        saved_rows: 1024,
        segments: 128,
        pairs: 1024,
        grad_pairs: 1024,
        s_width,
        pages: 64,
        sequences: 0,
        positions: 128,
        recompute: false,
    };
    Engine::load(Cpu::<A>::new(), model, capacity, true).unwrap()
}

/// How sequences become rows.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    /// One prompt segment per group of this many sequences; 1 = no sharing.
    pub share: usize,
    /// Base-model twins of all rows, after the adapted ones.
    pub base: bool,
    /// Adapted rows keep their activations.
    pub training: bool,
}

/// A packed step and where its sequences' numbers are.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    pub batch: Batch,
    /// Per sequence: the batch row of each position (prompt, then completion).
    pub rows: Vec<Vec<u32>>,
    pub base_rows: Vec<Vec<u32>>,
    /// Per sequence: its log-probs among the pairs.
    pub pairs: Vec<Range<usize>>,
    pub base_pairs: Vec<Range<usize>>,
}

/// Pack whole sequences (the last token's row too) under one adapter.
pub fn pack(sequences: &[Sequence], adapter: Option<AdapterId>, how: Packing) -> Packed {
    let mut out = Packed::default();
    let (rows, pairs) = push(&mut out.batch, sequences, adapter, how.share);
    (out.rows, out.pairs) = (rows, pairs);
    if how.training {
        out.batch.saved_rows = out.batch.rows();
        out.batch.grad_pairs = out.batch.pairs.len();
    }
    if how.base {
        let (rows, pairs) = push(&mut out.batch, sequences, None, how.share);
        (out.base_rows, out.base_pairs) = (rows, pairs);
        for (on, off) in out.rows.iter().zip(&out.base_rows) {
            out.batch
                .residual_pairs
                .extend(on.iter().copied().zip(off.iter().copied()));
        }
    }
    out
}

type Places = (Vec<Vec<u32>>, Vec<Range<usize>>);

/// Append sequences to a batch: rows and pairs of each.
pub fn push(
    batch: &mut Batch,
    sequences: &[Sequence],
    adapter: Option<AdapterId>,
    share: usize,
) -> Places {
    let (mut rows, mut pairs) = (Vec::new(), Vec::new());
    let mut prompt: Option<(SegmentId, &[u32])> = None;
    for (i, sequence) in sequences.iter().enumerate() {
        let shared = prompt.filter(|(_, ids)| i % share != 0 && *ids == sequence.prompt);
        let id = match shared {
            Some((id, _)) => id,
            None => batch.push_segment(&sequence.prompt, &[], adapter),
        };
        prompt = Some((id, &sequence.prompt));
        let own = batch.push_segment(&sequence.completion, &[id], adapter);
        let all: Vec<u32> = batch.context_rows(own).map(|r| r as u32).collect();
        let first = batch.pairs.len();
        let predicting = &all[sequence.prompt.len() - 1..];
        batch.pairs.extend(
            predicting
                .iter()
                .zip(&sequence.completion)
                .map(|(&row, &target)| Pair { row, target }),
        );
        pairs.push(first..batch.pairs.len());
        rows.push(all);
    }
    (rows, pairs)
}

/// Give every row the dropout key of (its sequence or shared prompt).
pub fn with_dropout(packed: &mut Packed, p: f32, key: impl Fn(usize, usize) -> u64) {
    let mut row_keys = vec![0; packed.batch.rows()];
    for (s, rows) in packed.rows.iter().chain(&packed.base_rows).enumerate() {
        for (position, &row) in rows.iter().enumerate() {
            row_keys[row as usize] = key(s, position);
        }
    }
    packed.batch.dropout = Some(Dropout { p, row_keys });
}

/// Log-probs of a packed step, forward only.
pub fn logprobs<A: Float>(
    engine: &mut Engine<Cpu<A>>,
    batch: &Batch,
    temperature: f32,
) -> Vec<f32> {
    let out = engine.run_packed(batch.clone(), temperature, false, None);
    out.unwrap().logprobs
}

/// Gradient of sum(coefficient * log-prob) over a step that is run as one
/// batch, with the log-probs.
pub fn gradients<A: Float>(
    engine: &mut Engine<Cpu<A>>,
    adapter: AdapterId,
    batch: &Batch,
    temperature: f32,
    coefficients: impl Fn(&[f32]) -> Vec<f32>,
) -> (Vec<f32>, Vec<f32>) {
    let mut grads = engine
        .device
        .alloc::<f32>(engine.adapter(adapter).layout.len())
        .unwrap();
    let logprobs = accumulate(
        engine,
        adapter,
        batch,
        temperature,
        coefficients,
        &mut grads,
    );
    (logprobs, grads.data)
}

/// The same, added to what `grads` holds.
pub fn accumulate<A: Float>(
    engine: &mut Engine<Cpu<A>>,
    adapter: AdapterId,
    batch: &Batch,
    temperature: f32,
    coefficients: impl Fn(&[f32]) -> Vec<f32>,
    grads: &mut <Cpu<A> as Device>::Buf<f32>,
) -> Vec<f32> {
    let out = engine
        .run_packed(batch.clone(), temperature, true, None)
        .unwrap();
    let c = coefficients(&out.logprobs);
    engine.backward(adapter, &c, grads).unwrap();
    out.logprobs
}

/// All of a buffer, writable.
pub fn whole<A: Float>(buf: &mut <Cpu<A> as Device>::Buf<f32>) -> SliceMut<'_, Cpu<A>, f32> {
    let len = buf.data.len();
    SliceMut { buf, start: 0, len }
}

/// Largest absolute difference.
pub fn max_abs(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference = |(x, y): (&f32, &f32)| (*x as f64 - *y as f64).abs();
    // NaN must not pass for small.
    a.iter()
        .zip(b)
        .map(difference)
        .fold(0.0, |m, d| if d <= m { m } else { d })
}

/// ||a - b|| / ||b||.
pub fn rel_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a
        .iter()
        .zip(b)
        .map(|(x, y)| square(*x as f64 - *y as f64))
        .sum();
    let size: f64 = b.iter().map(|y| square(*y as f64)).sum();
    (difference / size.max(f64::MIN_POSITIVE)).sqrt()
}

/// Both states of ARCA's norm.
pub const HIDDEN: [(HiddenChoice, &str); 2] = [
    (HiddenChoice::PostNorm, "arca_norm_post"),
    (HiddenChoice::PreNorm, "arca_norm_pre"),
];

/// config.json of a small model in transformers 5's style.
pub fn config_json(shape: &ModelShape) -> serde_json::Value {
    serde_json::json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "attention_bias": shape.attention_bias,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "max_position_embeddings": shape.max_position_embeddings,
        "eos_token_id": 1,
    })
}

/// Names and shapes of a checkpoint's tensors.
pub fn model_tensors(shape: &ModelShape) -> Vec<(String, Vec<usize>)> {
    let (h, hd) = (shape.hidden_size, shape.head_dim);
    let mut out = vec![(
        "model.embed_tokens.weight".to_string(),
        vec![shape.vocab_size, h],
    )];
    for layer in 0..shape.num_layers {
        let name = |suffix: &str| format!("model.layers.{layer}.{suffix}");
        for m in Module::ALL {
            let (inputs, outputs) = m.features(shape);
            out.push((name(&format!("{}.weight", m.path())), vec![outputs, inputs]));
            if shape.attention_bias && m.path().starts_with("self_attn") {
                out.push((name(&format!("{}.bias", m.path())), vec![outputs]));
            }
        }
        for (norm, n) in [
            ("input_layernorm.weight", h),
            ("post_attention_layernorm.weight", h),
            ("self_attn.q_norm.weight", hd),
            ("self_attn.k_norm.weight", hd),
        ] {
            out.push((name(norm), vec![n]));
        }
    }
    out.push(("model.norm.weight".to_string(), vec![h]));
    if !shape.tie_word_embeddings {
        out.push(("lm_head.weight".to_string(), vec![shape.vocab_size, h]));
    }
    out
}

/// Write a model folder with random weights of a healthy size.
pub fn write_model(dir: &Path, shape: &ModelShape, seed: u64) {
    write_model_of(dir, shape, seed, |x| x);
}

/// The same with every weight through `round`.
fn write_model_of(dir: &Path, shape: &ModelShape, seed: u64, round: fn(f32) -> f32) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config_json(shape).to_string()).unwrap();
    let tensors: Vec<(String, Vec<usize>)> = model_tensors(shape);
    let mut stream = Stream::new(seed);
    let data: Vec<(String, Tensor)> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let n: usize = shape.iter().product();
            let (middle, size) = match shape.len() {
                1 if name.ends_with("bias") => (0.0, 0.2),
                1 => (1.0, 0.3),
                // Variance 1 / inputs keeps activations near 1.
                _ if name.contains("layers") => (0.0, (3.0 / shape[1] as f32).sqrt()),
                _ => (0.0, 0.5),
            };
            let data = (0..n)
                .map(|_| round(middle + size * (2.0 * stream.unit() - 1.0)))
                .collect();
            (name, Tensor { shape, data })
        })
        .collect();
    write_f32(&dir.join("model.safetensors"), &data);
}

/// Write f32 tensors.
pub fn write_f32(path: &Path, tensors: &[(String, Tensor)]) {
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, t)| {
            let bytes = bytemuck::cast_slice(&t.data);
            let view = safetensors::tensor::TensorView::new(
                safetensors::Dtype::F32,
                t.shape.clone(),
                bytes,
            );
            (name.clone(), view.unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The smallest model with everything in it; `odd` widths fill no panel.
pub fn small_shape(odd: bool) -> ModelShape {
    ModelShape {
        vocab_size: 61,
        hidden_size: if odd { 40 } else { 32 },
        intermediate_size: if odd { 52 } else { 48 },
        num_layers: 2,
        num_heads: if odd { 5 } else { 4 },
        num_kv_heads: if odd { 1 } else { 2 },
        head_dim: if odd { 12 } else { 16 },
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        attention_bias: odd,
        tie_word_embeddings: !odd,
        max_position_embeddings: 256,
        eos_ids: vec![1],
    }
}

/// A model folder that lives as long as this value.
pub struct SmallModel {
    dir: tempfile::TempDir,
    pub shape: ModelShape,
}

impl SmallModel {
    pub fn new(shape: ModelShape, seed: u64) -> SmallModel {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), &shape, seed);
        SmallModel { dir, shape }
    }

    /// With weights that bf16 holds exactly.
    pub fn in_bf16(shape: ModelShape, seed: u64) -> SmallModel {
        let dir = tempfile::tempdir().unwrap();
        let round = |x| Float::to_f32(<half::bf16 as Float>::from_f32(x));
        write_model_of(dir.path(), &shape, seed, round);
        SmallModel { dir, shape }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A layout of rank r on some modules, and parameters that matter.
    pub fn adapter(&self, modules: &[Module], r: usize, seed: u64) -> (AdapterLayout, Vec<f32>) {
        let settings = LoraSettings::uniform(&self.shape, modules, r, 2.0 * r as f32, 0.0, false);
        let layout = AdapterLayout::new(&self.shape, settings).unwrap();
        let mut params = layout.initial(seed);
        let mut stream = Stream::new(seed);
        for (_, _, f) in layout.factors() {
            for b in &mut params[f.b..f.b + f.outputs * f.r] {
                *b = (2.0 * stream.unit() - 1.0) * 0.3 / (f.r as f32).sqrt();
            }
        }
        (layout, params)
    }
}

/// Random sequences: groups of one prompt and several completions, by length.
pub fn random_groups(vocab: usize, seed: u64, lengths: &[(usize, &[usize])]) -> Vec<Vec<Sequence>> {
    let mut stream = Stream::new(seed);
    let mut ids = |n: usize| -> Vec<u32> { (0..n).map(|_| stream.below(vocab as u32)).collect() };
    lengths
        .iter()
        .map(|&(p, completions)| {
            let prompt = ids(p);
            completions
                .iter()
                .map(|&n| Sequence {
                    prompt: prompt.clone(),
                    completion: ids(n),
                })
                .collect()
        })
        .collect()
}
