//! `arca init-model`: a randomly initialised checkpoint.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use half::bf16;
use serde_json::{Map, Value, json};

use super::Outcome;
use super::args::{InitModelArgs, WeightDtype};
use crate::device::Float;
use crate::model::config::{ModelShape, Module};
use crate::rng::{hash_bytes, mix, philox, split_key};

/// Files that make a model folder complete, copied where they are there.
const BESIDE: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
];

/// Runs the verb.
pub fn run(args: InitModelArgs) -> Result<Outcome> {
    let from = &args.config_from;
    let config_path = match from.is_dir() {
        true => from.join("config.json"),
        false => from.clone(),
    };
    let text = std::fs::read_to_string(&config_path)
        .with_context(|| format!("cannot read {}", config_path.display()))?;
    let json: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is no JSON", config_path.display()))?;
    let shape =
        ModelShape::from_json(&json).with_context(|| format!("in {}", config_path.display()))?;
    let weights = args.out.join("model.safetensors");
    ensure!(
        !weights.exists(),
        "{} exists already: checkpoints are not overwritten",
        weights.display()
    );
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}", args.out.display()))?;
    let std = json["initializer_range"].as_f64().unwrap_or(0.02) as f32;
    write(&weights, &shape, args.dtype, &mut |file, tensor, n| {
        normal_values(file, tensor, n, args.seed, args.dtype, std)
    })?;
    let out = args.out.join("config.json");
    std::fs::write(&out, text).with_context(|| format!("cannot write {}", out.display()))?;
    // The folder, or the one around it where several sizes share a tokenizer.
    let folder = config_path.parent().unwrap_or(Path::new("."));
    for name in BESIDE {
        for source in [folder.join(name), folder.join("..").join(name)] {
            if source.is_file() {
                // Not `fs::copy`, which would make copies of read-only files read-only.
                let to = args.out.join(name);
                let bytes = std::fs::read(&source)
                    .with_context(|| format!("cannot read {}", source.display()))?;
                std::fs::write(&to, bytes)
                    .with_context(|| format!("cannot write {}", to.display()))?;
                break;
            }
        }
    }
    Ok(Outcome::Done)
}

/// Names and shapes of all tensors of a checkpoint.
fn tensors(shape: &ModelShape) -> Vec<(String, Vec<usize>)> {
    let (h, v) = (shape.hidden_size, shape.vocab_size);
    let mut out = vec![("model.embed_tokens.weight".to_string(), vec![v, h])];
    for layer in 0..shape.num_layers {
        let name = |suffix: &str| format!("model.layers.{layer}.{suffix}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            out.push((name(&format!("{norm}.weight")), vec![h]));
        }
        for norm in ["q_norm", "k_norm"] {
            out.push((
                name(&format!("self_attn.{norm}.weight")),
                vec![shape.head_dim],
            ));
        }
        for m in Module::ALL {
            let (inputs, outputs) = m.features(shape);
            out.push((name(&format!("{}.weight", m.path())), vec![outputs, inputs]));
            if shape.attention_bias && m.path().starts_with("self_attn") {
                out.push((name(&format!("{}.bias", m.path())), vec![outputs]));
            }
        }
    }
    out.push(("model.norm.weight".to_string(), vec![h]));
    if !shape.tie_word_embeddings {
        out.push(("lm_head.weight".to_string(), vec![v, h]));
    }
    out
}

/// A checkpoint for benches: `config` as config.json, and weights that repeat
/// the same few numbers, which takes no longer than writing the file.
pub(super) fn write_quickly(dir: &Path, config: &str, dtype: WeightDtype) -> Result<()> {
    let json: Value = serde_json::from_str(config).context("a shape's config.json")?;
    let shape = ModelShape::from_json(&json)?;
    let std = json["initializer_range"].as_f64().unwrap_or(0.02) as f32;
    let to_bytes = |x: f32| match dtype {
        WeightDtype::Bf16 => <bf16 as Float>::from_f32(x).to_le_bytes().to_vec(),
        WeightDtype::F32 => x.to_le_bytes().to_vec(),
    };
    let key = split_key(0);
    // A period that is no multiple of a row.
    let period: Vec<u8> = (0..65_521)
        .flat_map(|i| {
            let words = philox([i, 0, 0, 0], key);
            to_bytes(std * nearly_normal([words[0], words[1]]))
        })
        .collect();
    let ones: Vec<u8> = (0..shape.hidden_size.max(shape.head_dim))
        .flat_map(|_| to_bytes(1.0))
        .collect();
    write(
        &dir.join("model.safetensors"),
        &shape,
        dtype,
        &mut |file, tensor, n| {
            let mut bytes = n * to_bytes(0.0).len();
            if tensor.ends_with("norm.weight") {
                return file.write_all(&ones[..bytes]);
            }
            while bytes > 0 {
                let now = bytes.min(period.len());
                file.write_all(&period[..now])?;
                bytes -= now;
            }
            Ok(())
        },
    )?;
    let out = dir.join("config.json");
    std::fs::write(&out, config).with_context(|| format!("cannot write {}", out.display()))
}

/// Writes the values of a tensor, of which it is told name and number.
type Fill<'a> = dyn FnMut(&mut BufWriter<File>, &str, usize) -> io::Result<()> + 'a;

/// Stream the file out, tensor after tensor: it may be larger than memory.
fn write(path: &Path, shape: &ModelShape, dtype: WeightDtype, fill: &mut Fill) -> Result<()> {
    let (name, size) = match dtype {
        WeightDtype::Bf16 => ("BF16", 2),
        WeightDtype::F32 => ("F32", 4),
    };
    let list = tensors(shape);
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0;
    for (tensor, dims) in &list {
        let end = at + dims.iter().product::<usize>() * size;
        header.insert(
            tensor.clone(),
            json!({"dtype": name, "shape": dims, "data_offsets": [at, end]}),
        );
        at = end;
    }
    let mut header = Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let cannot = || format!("cannot write {}", path.display());
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).with_context(cannot)?);
    file.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| file.write_all(header.as_bytes()))
        .with_context(cannot)?;
    for (tensor, dims) in &list {
        fill(&mut file, tensor, dims.iter().product()).with_context(cannot)?;
    }
    file.flush().with_context(cannot)
}

/// Norms 1, biases 0, the rest nearly normal, keyed by seed and name.
fn normal_values(
    file: &mut BufWriter<File>,
    tensor: &str,
    n: usize,
    seed: u64,
    dtype: WeightDtype,
    std: f32,
) -> io::Result<()> {
    let norm = tensor.ends_with("norm.weight");
    let bias = tensor.ends_with(".bias");
    let key = split_key(mix(seed ^ hash_bytes(tensor.as_bytes())));
    for block in 0..n.div_ceil(2) {
        let words = philox([block as u32, (block >> 32) as u32, 0, 0], key);
        for half in 0..2.min(n - block * 2) {
            let x = match (norm, bias) {
                (true, _) => 1.0,
                (_, true) => 0.0,
                _ => std * nearly_normal([words[2 * half], words[2 * half + 1]]),
            };
            match dtype {
                WeightDtype::Bf16 => file.write_all(&<bf16 as Float>::from_f32(x).to_le_bytes())?,
                WeightDtype::F32 => file.write_all(&x.to_le_bytes())?,
            }
        }
    }
    Ok(())
}

/// Sum of four 16-bit uniforms, centred, unit variance (Irwin-Hall): close
/// enough to a normal for a random model.
fn nearly_normal(words: [u32; 2]) -> f32 {
    let sum: f32 = words
        .iter()
        .flat_map(|w| [w & 0xffff, w >> 16])
        .map(|u| (u as f32 + 0.5) / 65_536.0)
        .sum();
    (sum - 2.0) * 3f32.sqrt()
}
