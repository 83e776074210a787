//! A checkpoint folder in Hugging Face layout, memory-mapped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::ops::linear::{WeightDtype, WeightView};

/// A model folder: `spec` itself if it is one, else a hub id looked up in the
/// local Hugging Face cache (HF_HUB_CACHE, HF_HOME). Nothing is downloaded.
pub fn resolve_model(spec: &str) -> Result<PathBuf> {
    let path = Path::new(spec);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    ensure!(
        !path.exists(),
        "{spec} is no folder: give the folder that holds config.json"
    );
    let looks_like_id =
        spec.split('/').count() <= 2 && !spec.is_empty() && !spec.starts_with(['.', '/', '~']);
    ensure!(looks_like_id, "model folder {spec} does not exist");
    let cache = hub_cache();
    let repo = hf_hub::Cache::new(cache.clone()).model(spec.to_string());
    let config = repo.get("config.json").with_context(|| {
        format!(
            "{spec} is neither a folder nor in the Hugging Face cache at {} (fetch it there first, or give a folder)",
            cache.display()
        )
    })?;
    Ok(config.parent().unwrap_or(&config).to_path_buf())
}

fn hub_cache() -> PathBuf {
    let var = |name| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = var("HF_HUB_CACHE") {
        return dir;
    }
    var("HF_HOME")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("huggingface")))
        .or_else(|| var("HOME").map(|d| d.join(".cache/huggingface")))
        .unwrap_or_default()
        .join("hub")
}

/// A tensor's name, where it lies, and its shape.
pub type NamedTensor = (String, (WeightView, Vec<usize>));

/// All tensors of a checkpoint, by name.
pub struct Checkpoint {
    dir: PathBuf,
    tensors: HashMap<String, (WeightView, Vec<usize>)>,
}

impl Checkpoint {
    /// One `model.safetensors`, or shards named by `model.safetensors.index.json`.
    pub fn open(dir: &Path) -> Result<Self> {
        let index = dir.join("model.safetensors.index.json");
        let mut tensors = HashMap::new();
        if index.exists() {
            let text = std::fs::read_to_string(&index)
                .with_context(|| format!("cannot read {}", index.display()))?;
            let json: Value = serde_json::from_str(&text)
                .with_context(|| format!("{} is no JSON", index.display()))?;
            let map = json["weight_map"]
                .as_object()
                .with_context(|| format!("{} has no weight_map", index.display()))?;
            let mut shards: Vec<&str> = map.values().filter_map(Value::as_str).collect();
            shards.sort_unstable();
            shards.dedup();
            for shard in shards {
                tensors.extend(map_file(&dir.join(shard))?);
            }
            for name in map.keys() {
                ensure!(
                    tensors.contains_key(name),
                    "tensor {name} is in {} but in none of its shards",
                    index.display()
                );
            }
        } else {
            let single = dir.join("model.safetensors");
            ensure!(
                single.exists(),
                "{} holds neither model.safetensors nor model.safetensors.index.json",
                dir.display()
            );
            tensors.extend(map_file(&single)?);
        }
        Ok(Checkpoint {
            dir: dir.to_path_buf(),
            tensors,
        })
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor's element type, where the tensor is there.
    pub fn dtype(&self, name: &str) -> Option<WeightDtype> {
        Some(self.tensors.get(name)?.0.dtype)
    }

    /// A matrix `[rows, cols]`, checked.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<WeightView> {
        self.tensor(name, &[rows, cols])
    }

    /// A vector `[n]` as f32, checked.
    pub fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>> {
        Ok(self.tensor(name, &[n])?.to_vec())
    }

    fn tensor(&self, name: &str, expected: &[usize]) -> Result<WeightView> {
        let (view, shape) = self
            .tensors
            .get(name)
            .with_context(|| format!("tensor {name} is missing in {}", self.dir.display()))?;
        ensure!(
            shape == expected,
            "tensor {name} in {} has shape {shape:?}, config.json asks for {expected:?}",
            self.dir.display()
        );
        Ok(view.clone())
    }
}

/// Map a safetensors file. A tensor of another type than f32, bf16 and f16 is
/// an error.
pub fn map_file(path: &Path) -> Result<Vec<NamedTensor>> {
    let file =
        std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    // SAFETY: the map is read-only; a file that someone truncates meanwhile
    // faults, as with every memory-mapped checkpoint.
    let map = Arc::new(
        unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {}", path.display()))?,
    );
    let parsed = SafeTensors::deserialize(&map)
        .with_context(|| format!("{} is no valid safetensors file", path.display()))?;
    let base = map.as_ptr() as usize;
    let mut out = Vec::new();
    for (name, tensor) in parsed.iter() {
        let dtype = match tensor.dtype() {
            Dtype::F32 => WeightDtype::F32,
            Dtype::BF16 => WeightDtype::Bf16,
            Dtype::F16 => WeightDtype::F16,
            other => bail!(
                "tensor {name} in {} is {other:?}; f32, bf16 and f16 are supported",
                path.display()
            ),
        };
        let shape = tensor.shape().to_vec();
        let start = tensor.data().as_ptr() as usize - base;
        let cols = shape.last().copied().unwrap_or(1);
        let elements: usize = shape.iter().product();
        let view = WeightView {
            map: map.clone(),
            bytes: start..start + tensor.data().len(),
            dtype,
            rows: elements.checked_div(cols).unwrap_or(0),
            cols,
        };
        out.push((name.to_string(), (view, shape)));
    }
    Ok(out)
}
