//! Qwen3's config.json, in the styles of transformers 4 and 5.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A dense Qwen3 model's sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    pub attention_bias: bool,
    pub tie_word_embeddings: bool,
    pub max_position_embeddings: usize,
    /// eos_token_id of config.json, if any.
    pub eos_ids: Vec<u32>,
}

/// One of the seven linear layers of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Module {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Module {
    pub const ALL: [Module; 7] = [
        Module::Q,
        Module::K,
        Module::V,
        Module::O,
        Module::Gate,
        Module::Up,
        Module::Down,
    ];

    /// PEFT's short name.
    pub fn name(self) -> &'static str {
        match self {
            Module::Q => "q_proj",
            Module::K => "k_proj",
            Module::V => "v_proj",
            Module::O => "o_proj",
            Module::Gate => "gate_proj",
            Module::Up => "up_proj",
            Module::Down => "down_proj",
        }
    }

    /// Name within a layer, as checkpoints have it.
    pub fn path(self) -> &'static str {
        match self {
            Module::Q => "self_attn.q_proj",
            Module::K => "self_attn.k_proj",
            Module::V => "self_attn.v_proj",
            Module::O => "self_attn.o_proj",
            Module::Gate => "mlp.gate_proj",
            Module::Up => "mlp.up_proj",
            Module::Down => "mlp.down_proj",
        }
    }

    pub fn group(self) -> Group {
        match self {
            Module::Q | Module::K | Module::V => Group::Qkv,
            Module::O => Group::O,
            Module::Gate | Module::Up => Group::GateUp,
            Module::Down => Group::Down,
        }
    }

    /// (in, out) features.
    pub fn features(self, shape: &ModelShape) -> (usize, usize) {
        let (h, i) = (shape.hidden_size, shape.intermediate_size);
        match self {
            Module::Q => (h, shape.q_width()),
            Module::K | Module::V => (h, shape.kv_width()),
            Module::O => (shape.q_width(), h),
            Module::Gate | Module::Up => (h, i),
            Module::Down => (i, h),
        }
    }
}

/// Linear layers that share their input and are one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Qkv = 0,
    O = 1,
    GateUp = 2,
    Down = 3,
}

impl Group {
    pub const ALL: [Group; 4] = [Group::Qkv, Group::O, Group::GateUp, Group::Down];

    pub fn modules(self) -> &'static [Module] {
        match self {
            Group::Qkv => &[Module::Q, Module::K, Module::V],
            Group::O => &[Module::O],
            Group::GateUp => &[Module::Gate, Module::Up],
            Group::Down => &[Module::Down],
        }
    }

    pub fn inputs(self, shape: &ModelShape) -> usize {
        self.modules()[0].features(shape).0
    }

    pub fn outputs(self, shape: &ModelShape) -> Vec<usize> {
        self.modules().iter().map(|m| m.features(shape).1).collect()
    }
}

impl ModelShape {
    pub fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    pub fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// Trunk parameters that every token is multiplied by (no embedding, no head).
    pub fn trunk_parameters(&self) -> usize {
        let per_layer: usize = Module::ALL
            .iter()
            .map(|m| {
                let (i, o) = m.features(self);
                i * o
            })
            .sum();
        per_layer * self.num_layers
    }

    /// Read and check `config.json` in a model folder.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let json: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is no JSON", path.display()))?;
        Self::from_json(&json).with_context(|| format!("in {}", path.display()))
    }

    /// Check what is supported and refuse the rest by name.
    pub fn from_json(json: &Value) -> Result<Self> {
        let model_type = json["model_type"].as_str().unwrap_or("(none)");
        ensure!(
            model_type == "qwen3",
            "model_type is {model_type:?}; only dense \"qwen3\" is supported"
        );
        for key in ["num_experts", "num_local_experts", "moe_intermediate_size"] {
            ensure!(
                json[key].is_null(),
                "{key} is set: mixture-of-experts models are not supported"
            );
        }
        ensure!(
            !json["use_sliding_window"].as_bool().unwrap_or(false),
            "use_sliding_window is true: sliding-window attention is not supported"
        );
        if let Some(types) = json["layer_types"].as_array() {
            for (i, t) in types.iter().enumerate() {
                ensure!(
                    t == "full_attention",
                    "layer_types[{i}] is {t}: only full_attention is supported"
                );
            }
        }
        let act = json["hidden_act"].as_str().unwrap_or("silu");
        ensure!(
            act == "silu",
            "hidden_act is {act:?}; only \"silu\" is supported"
        );
        ensure!(
            json["quantization_config"].is_null(),
            "quantization_config is set: quantised checkpoints are not supported"
        );

        // transformers 5 keeps the rotary settings in rope_parameters;
        // transformers 4 has rope_theta and rope_scaling at the top.
        let rope = &json["rope_parameters"];
        for (place, scaling) in [
            ("rope_parameters", rope),
            ("rope_scaling", &json["rope_scaling"]),
        ] {
            if let Some(map) = scaling.as_object() {
                ensure!(
                    !map.values().any(Value::is_object),
                    "{place} differs by layer type, which is not supported"
                );
                let kind = map
                    .get("rope_type")
                    .or_else(|| map.get("type"))
                    .and_then(Value::as_str)
                    .unwrap_or("default");
                ensure!(
                    kind == "default",
                    "{place}.rope_type is {kind:?}: rope scaling is not supported"
                );
                ensure!(
                    map.get("partial_rotary_factor")
                        .is_none_or(|f| f.is_null() || f.as_f64() == Some(1.0)),
                    "{place}.partial_rotary_factor is not supported"
                );
            } else if !scaling.is_null() {
                bail!("{place} is {scaling}: an object or null is expected");
            }
        }
        ensure!(
            json["partial_rotary_factor"].is_null() || json["partial_rotary_factor"] == 1.0,
            "partial_rotary_factor is not supported"
        );
        let rope_theta = json["rope_scaling"]["rope_theta"]
            .as_f64()
            .or_else(|| rope["rope_theta"].as_f64())
            .or_else(|| json["rope_theta"].as_f64())
            .unwrap_or(10_000.0);
        ensure!(
            rope_theta.is_finite() && rope_theta > 0.0,
            "rope_theta must be positive"
        );

        let required = |key: &str| -> Result<usize> {
            let n = json[key]
                .as_u64()
                .with_context(|| format!("{key} is missing or no whole number"))?;
            ensure!(n > 0 && n < 1 << 32, "{key} is {n}: out of range");
            Ok(n as usize)
        };
        let optional = |key: &str, default: usize| -> Result<usize> {
            if json[key].is_null() {
                Ok(default)
            } else {
                required(key)
            }
        };
        let hidden_size = required("hidden_size")?;
        let num_heads = required("num_attention_heads")?;
        // Defaults are those of transformers' Qwen3Config.
        let num_kv_heads = match json.get("num_key_value_heads") {
            Some(Value::Null) => num_heads,
            _ => optional("num_key_value_heads", 32)?,
        };
        ensure!(
            num_heads.is_multiple_of(num_kv_heads),
            "num_attention_heads ({num_heads}) is no multiple of num_key_value_heads ({num_kv_heads})"
        );
        let head_dim = optional("head_dim", 128)?;
        ensure!(
            head_dim.is_multiple_of(2),
            "head_dim is {head_dim}: rotary embedding needs an even number"
        );
        let shape = ModelShape {
            vocab_size: required("vocab_size")?,
            hidden_size,
            intermediate_size: required("intermediate_size")?,
            num_layers: required("num_hidden_layers")?,
            num_heads,
            num_kv_heads,
            head_dim,
            rms_norm_eps: json["rms_norm_eps"].as_f64().unwrap_or(1e-6) as f32,
            rope_theta,
            attention_bias: json["attention_bias"].as_bool().unwrap_or(false),
            tie_word_embeddings: json["tie_word_embeddings"].as_bool().unwrap_or(false),
            max_position_embeddings: optional("max_position_embeddings", 32_768)?,
            eos_ids: ids(&json["eos_token_id"]),
        };
        Ok(shape)
    }
}

/// An id, or a list of ids, or nothing.
fn ids(value: &Value) -> Vec<u32> {
    match value {
        Value::Array(list) => list
            .iter()
            .filter_map(Value::as_u64)
            .map(|x| x as u32)
            .collect(),
        other => other.as_u64().map(|x| x as u32).into_iter().collect(),
    }
}
