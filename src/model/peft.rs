//! Adapters on disk, in PEFT's format.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use crate::model::adapter::{AdapterLayout, LoraSettings, Target};
use crate::model::config::{ModelShape, Module};
use crate::model::weights::map_file;

/// Read an adapter folder for a model of this shape: its layout and all
/// parameters as f32 in the layout's order.
pub fn load(dir: &Path, shape: &ModelShape) -> Result<(AdapterLayout, Vec<f32>)> {
    let config_path = dir.join("adapter_config.json");
    let text = std::fs::read_to_string(&config_path)
        .with_context(|| format!("cannot read {}", config_path.display()))?;
    let config: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is no JSON", config_path.display()))?;
    let in_config = || format!("in {}", config_path.display());
    check_supported(&config).with_context(in_config)?;

    let r = config["r"]
        .as_u64()
        .filter(|&r| r > 0)
        .context("r is missing or no positive whole number")
        .with_context(in_config)? as usize;
    let alpha = number(&config, "lora_alpha").with_context(in_config)?;
    let use_rslora = config["use_rslora"].as_bool().unwrap_or(false);
    let dropout = config["lora_dropout"].as_f64().unwrap_or(0.0) as f32;

    let weights_path = dir.join("adapter_model.safetensors");
    ensure!(
        weights_path.exists(),
        "{} is missing (adapters saved as .bin are not supported)",
        weights_path.display()
    );
    let tensors = map_file(&weights_path)?;
    let in_weights = || format!("in {}", weights_path.display());

    let mut found: Vec<(usize, Module, [Option<usize>; 2])> = Vec::new();
    for (i, (name, _)) in tensors.iter().enumerate() {
        let (layer, module, which) = parse_name(name).with_context(in_weights)?;
        match found.iter_mut().find(|f| f.0 == layer && f.1 == module) {
            Some(f) => f.2[which] = Some(i),
            None => {
                let mut pair = [None; 2];
                pair[which] = Some(i);
                found.push((layer, module, pair));
            }
        }
    }
    found.sort_by_key(|f| (f.0, f.1));

    let wanted = TargetModules::new(&config).with_context(in_config)?;
    let mut targets = Vec::new();
    for &(layer, module, pair) in &found {
        let name = format!("model.layers.{layer}.{}", module.path());
        ensure!(
            wanted.matches(&name, layer),
            "{} has tensors for {name}, which target_modules of {} leaves out: PEFT would ignore them",
            weights_path.display(),
            config_path.display()
        );
        let [Some(a), Some(_)] = pair else {
            bail!(
                "{name} in {} has only one of lora_A and lora_B",
                weights_path.display()
            );
        };
        let rank = pattern(&config["rank_pattern"], &name)
            .with_context(in_config)?
            .map_or(r as f64, |x| x) as usize;
        let stored = tensors[a].1.1.first().copied().unwrap_or(0);
        ensure!(
            stored == rank,
            "{name}: lora_A in {} has rank {stored}, {} says {rank}",
            weights_path.display(),
            config_path.display()
        );
        let alpha = pattern(&config["alpha_pattern"], &name)
            .with_context(in_config)?
            .map_or(alpha, |x| x as f32);
        targets.push(Target {
            layer,
            module,
            r: rank,
            alpha,
        });
    }
    for layer in 0..shape.num_layers {
        for module in Module::ALL {
            let name = format!("model.layers.{layer}.{}", module.path());
            let present = found.iter().any(|f| f.0 == layer && f.1 == module);
            ensure!(
                present || !wanted.matches(&name, layer),
                "target_modules of {} names {name}, but {} has no tensors for it",
                config_path.display(),
                weights_path.display()
            );
        }
    }

    let settings = LoraSettings {
        r,
        alpha,
        dropout,
        use_rslora,
        targets,
    };
    let layout =
        AdapterLayout::new(shape, settings).with_context(|| format!("{}", dir.display()))?;
    let mut params = vec![0f32; layout.len()];
    for (name, offset, rows, cols) in layout.tensors() {
        let short = name.replace(".default.", ".");
        let (view, found) = tensors
            .iter()
            .find(|(n, _)| canonical(n) == short)
            .map(|(_, t)| t)
            .with_context(|| format!("{name} is missing in {}", weights_path.display()))?;
        ensure!(
            found[..] == [rows, cols],
            "{name} in {} has shape {found:?}, the model asks for [{rows}, {cols}]",
            weights_path.display()
        );
        params[offset..offset + rows * cols].copy_from_slice(&view.to_vec());
    }
    ensure!(
        params.iter().all(|x| x.is_finite()),
        "{} holds NaN or infinite values",
        weights_path.display()
    );
    Ok((layout, params))
}

/// Write an adapter folder that PEFT loads. `base` is the model's name or folder.
pub fn save(dir: &Path, layout: &AdapterLayout, params: &[f32], base: &str) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    save_tensors(&dir.join("adapter_model.safetensors"), layout, params)?;
    let path = dir.join("adapter_config.json");
    let text = serde_json::to_string_pretty(&config_json(layout, base))?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Write one value per parameter under PEFT's tensor names (an adapter, or
/// its gradients).
pub fn save_tensors(path: &Path, layout: &AdapterLayout, params: &[f32]) -> Result<()> {
    let named: Vec<(String, TensorView)> = layout
        .tensors()
        .into_iter()
        .map(|(name, offset, rows, cols)| {
            let bytes = bytemuck::cast_slice(&params[offset..offset + rows * cols]);
            Ok((name, TensorView::new(Dtype::F32, vec![rows, cols], bytes)?))
        })
        .collect::<Result<_>>()?;
    let meta = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(named, Some(meta), path)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn config_json(layout: &AdapterLayout, base: &str) -> Value {
    let s = layout.settings();
    let layers = layout.shape().num_layers;
    let modules: Vec<Module> = Module::ALL
        .into_iter()
        .filter(|m| s.targets.iter().any(|t| t.module == *m))
        .collect();
    // Short suffixes where every layer has the module, else full names.
    let everywhere = modules
        .iter()
        .all(|m| s.targets.iter().filter(|t| t.module == *m).count() == layers);
    let full = |t: &Target| format!("model.layers.{}.{}", t.layer, t.module.path());
    let target_modules: Vec<String> = if everywhere {
        modules.iter().map(|m| m.name().to_string()).collect()
    } else {
        s.targets.iter().map(full).collect()
    };
    let alpha = |x: f32| match x.fract() {
        0.0 => json!(x as i64),
        _ => json!(decimal(x)),
    };
    let mut ranks = Map::new();
    let mut alphas = Map::new();
    for t in &s.targets {
        if t.r != s.r {
            ranks.insert(full(t), json!(t.r));
        }
        if t.alpha != s.alpha {
            alphas.insert(full(t), alpha(t.alpha));
        }
    }
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": s.r,
        "lora_alpha": alpha(s.alpha),
        "lora_dropout": decimal(s.dropout),
        "target_modules": target_modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "use_rslora": s.use_rslora,
        "use_dora": false,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    })
}

/// The f64 that has the f32's shortest decimal form: 0.05, not 0.0500000007.
pub fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(x as f64)
}

fn number(config: &Value, key: &str) -> Result<f32> {
    config[key]
        .as_f64()
        .map(|x| x as f32)
        .with_context(|| format!("{key} is missing or no number"))
}

/// Refuse by name what would change the arithmetic.
fn check_supported(config: &Value) -> Result<()> {
    let kind = config["peft_type"].as_str().unwrap_or("(none)");
    ensure!(
        kind == "LORA",
        "peft_type is {kind:?}; only LORA is supported"
    );
    let off = |v: &Value| match v {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    };
    for key in [
        "use_dora",
        "modules_to_save",
        "fan_in_fan_out",
        "lora_bias",
        "layer_replication",
        "trainable_token_indices",
        "use_qalora",
        "use_bdlora",
        "alora_invocation_tokens",
        "target_parameters",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "velora_config",
    ] {
        ensure!(off(&config[key]), "{key} is set, which is not supported");
    }
    let bias = config["bias"].as_str().unwrap_or("none");
    ensure!(
        bias == "none",
        "bias is {bias:?}; only \"none\" is supported"
    );
    // These move part of the base weights into the adapter, and PEFT does so
    // again when it loads one.
    let init = config["init_lora_weights"].as_str().unwrap_or("");
    let moves = ["pissa", "corda", "olora", "loftq", "lora_ga"];
    ensure!(
        !moves.iter().any(|m| init.to_lowercase().starts_with(m)),
        "init_lora_weights is {init:?}, which changes the base weights; save the adapter converted to plain LoRA (path_initial_model_for_weight_conversion)"
    );
    Ok(())
}

/// PEFT's choice of modules.
struct TargetModules {
    include: Names,
    exclude: Names,
    /// Applies to suffixes, not to full names.
    layers: Option<Vec<u64>>,
}

enum Names {
    List(Vec<String>),
    Pattern(Regex),
    All,
}

impl TargetModules {
    fn new(config: &Value) -> Result<Self> {
        let layers = match &config["layers_to_transform"] {
            Value::Null => None,
            Value::Array(list) if list.is_empty() => None,
            Value::Array(list) => Some(list.iter().filter_map(Value::as_u64).collect()),
            one => Some(one.as_u64().into_iter().collect()),
        };
        let place = &config["layers_pattern"];
        ensure!(
            place.is_null()
                || place == "layers"
                || place
                    .as_array()
                    .is_some_and(|l| l.iter().all(|p| p == "layers")),
            "layers_pattern is {place}; only \"layers\" fits this model"
        );
        Ok(TargetModules {
            include: Names::new(config, "target_modules")?,
            exclude: match &config["exclude_modules"] {
                Value::Null => Names::List(Vec::new()),
                Value::String(s) if s.is_empty() => Names::List(Vec::new()),
                _ => Names::new(config, "exclude_modules")?,
            },
            layers,
        })
    }

    fn matches(&self, name: &str, layer: usize) -> bool {
        if self.exclude.matches(name) {
            return false;
        }
        let named = matches!(&self.include, Names::List(list) if list.iter().any(|t| t == name));
        let layer = layer as u64;
        named
            || self.include.matches(name) && self.layers.as_ref().is_none_or(|l| l.contains(&layer))
    }
}

impl Names {
    fn new(config: &Value, key: &str) -> Result<Self> {
        match &config[key] {
            Value::Array(list) => Ok(Names::List(
                list.iter()
                    .filter_map(|v| v.as_str().map(String::from))
                    .collect(),
            )),
            Value::String(s) if s == "all-linear" => Ok(Names::All),
            Value::String(s) => Ok(Names::Pattern(
                Regex::new(&format!("^(?:{s})$"))
                    .with_context(|| format!("{key} {s:?} is no usable regular expression"))?,
            )),
            other => bail!("{key} is {other}: a list or a string is expected"),
        }
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Names::All => true,
            Names::Pattern(regex) => regex.is_match(name),
            Names::List(list) => list
                .iter()
                .any(|t| name == t || name.ends_with(&format!(".{t}"))),
        }
    }
}

/// PEFT's lookup in rank_pattern / alpha_pattern: the first key that matches
/// `(.*\.)?(key)$` from the start of the module's name.
fn pattern(map: &Value, name: &str) -> Result<Option<f64>> {
    let Some(map) = map.as_object() else {
        return Ok(None);
    };
    for (key, value) in map {
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"))
            .with_context(|| format!("pattern key {key:?} is no regular expression"))?;
        if regex.is_match(name) {
            return Ok(Some(value.as_f64().with_context(|| {
                format!("pattern value of {key:?} is no number")
            })?));
        }
    }
    Ok(None)
}

fn canonical(name: &str) -> String {
    name.replace(".lora_A.default.", ".lora_A.")
        .replace(".lora_B.default.", ".lora_B.")
}

/// Layer, module and 0 for A or 1 for B.
fn parse_name(name: &str) -> Result<(usize, Module, usize)> {
    let canonical = canonical(name);
    let parsed = (|| {
        let rest = canonical.strip_prefix("base_model.model.model.layers.")?;
        let (layer, rest) = rest.split_once('.')?;
        let module = Module::ALL
            .into_iter()
            .find(|m| rest.starts_with(&format!("{}.", m.path())))?;
        let which = match &rest[module.path().len()..] {
            ".lora_A.weight" => 0,
            ".lora_B.weight" => 1,
            _ => return None,
        };
        Some((layer.parse().ok()?, module, which))
    })();
    parsed.with_context(|| {
        format!("tensor {name} is no LoRA factor of a Qwen3 linear layer (expected base_model.model.model.layers.N.<module>.lora_A|B.weight)")
    })
}
