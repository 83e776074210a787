//! Guards what is read from and written to model and adapter folders: both
//! styles of config.json, PEFT's choice of modules, ranks and alphas, round
//! trips, and that everything unsupported or broken is an error that names
//! itself.

use std::path::Path;

use arca::device::cpu::Cpu;
use arca::model::adapter::{AdapterLayout, LoraSettings, Target};
use arca::model::config::{ModelShape, Module};
use arca::model::engine::Engine;
use arca::model::peft;
use arca::model::plan::Capacity;
use serde_json::{Value, json};

use crate::common::{
    Case, Tensor, case_names, config_json, model_tensors, small_shape, write_f32, write_model,
};

/// The error's whole chain, as people see it.
fn message<T>(result: anyhow::Result<T>) -> String {
    match result {
        Ok(_) => panic!("no error"),
        Err(e) => format!("{e:#}"),
    }
}

fn assert_refused<T>(result: anyhow::Result<T>, words: &[&str]) {
    let text = message(result);
    for word in words {
        assert!(text.contains(word), "{text:?} does not name {word:?}");
    }
}

fn load(dir: &Path) -> anyhow::Result<Engine<Cpu<f32>>> {
    let capacity = Capacity {
        rows: 4,
        positions: 8,
        ..Capacity::default()
    };
    Engine::load(Cpu::<f32>::new(), dir, capacity, false)
}

mod config {
    use super::*;

    fn with(changes: Value) -> anyhow::Result<ModelShape> {
        let mut json = config_json(&small_shape(false));
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        ModelShape::from_json(&json)
    }

    /// Qwen3 as published (transformers 4) and as transformers 5 writes it.
    #[test]
    fn both_styles_are_read() {
        let v5 =
            with(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})).unwrap();
        assert_eq!(v5.rope_theta, 5e5);
        for scaling in [
            Value::Null,
            json!({"rope_type": "default"}),
            json!({"type": "default"}),
        ] {
            let v4 = with(json!({
                "rope_parameters": null,
                "rope_theta": 5e5,
                "rope_scaling": scaling,
                "torch_dtype": "bfloat16",
                "sliding_window": null,
                "use_sliding_window": false,
                "max_window_layers": 28,
            }))
            .unwrap();
            assert_eq!(v4, v5);
        }
        let ids = with(json!({"eos_token_id": [151645, 151643]}))
            .unwrap()
            .eos_ids;
        assert_eq!(ids, [151645, 151643]);
        // Absent keys mean what transformers' Qwen3Config says.
        let mut json = config_json(&small_shape(false));
        for key in [
            "head_dim",
            "tie_word_embeddings",
            "attention_bias",
            "rope_parameters",
        ] {
            json.as_object_mut().unwrap().remove(key);
        }
        let shape = ModelShape::from_json(&json).unwrap();
        assert_eq!((shape.head_dim, shape.rope_theta), (128, 1e4));
        assert!(!shape.tie_word_embeddings && !shape.attention_bias);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (changes, words) in [
            (json!({"model_type": "llama"}), &["model_type", "llama"][..]),
            (json!({"model_type": "qwen3_moe"}), &["qwen3_moe"]),
            (json!({"model_type": null}), &["model_type"]),
            (
                json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}),
                &["rope_scaling", "yarn"],
            ),
            (
                json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
                &["rope_scaling", "linear"],
            ),
            (
                json!({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}}),
                &["rope_parameters", "yarn"],
            ),
            (
                json!({"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}}}),
                &["rope_parameters", "layer type"],
            ),
            (json!({"rope_scaling": "yarn"}), &["rope_scaling"]),
            (
                json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
                &["partial_rotary_factor"],
            ),
            (
                json!({"partial_rotary_factor": 0.5}),
                &["partial_rotary_factor"],
            ),
            (
                json!({"use_sliding_window": true, "sliding_window": 4096}),
                &["sliding"],
            ),
            (
                json!({"layer_types": ["full_attention", "sliding_attention"]}),
                &["layer_types[1]", "sliding_attention"],
            ),
            (json!({"num_experts": 128}), &["num_experts"]),
            (
                json!({"moe_intermediate_size": 64}),
                &["moe_intermediate_size"],
            ),
            (json!({"hidden_act": "gelu"}), &["hidden_act", "gelu"]),
            (
                json!({"quantization_config": {"bits": 4}}),
                &["quantization_config"],
            ),
            (json!({"hidden_size": null}), &["hidden_size"]),
            (json!({"hidden_size": -4}), &["hidden_size"]),
            (json!({"hidden_size": "40"}), &["hidden_size"]),
            (json!({"vocab_size": 0}), &["vocab_size"]),
            (json!({"num_hidden_layers": 1.5}), &["num_hidden_layers"]),
            (json!({"num_key_value_heads": 3}), &["num_key_value_heads"]),
            (json!({"head_dim": 13}), &["head_dim"]),
            (
                json!({"rope_parameters": {"rope_theta": -1.0}}),
                &["rope_theta"],
            ),
        ] {
            assert_refused(with(changes), words);
        }
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_refused(ModelShape::load(dir.path()), &["config.json"]);
        std::fs::write(dir.path().join("config.json"), "{\"model_type\": ").unwrap();
        assert_refused(ModelShape::load(dir.path()), &["config.json", "JSON"]);
        std::fs::write(dir.path().join("config.json"), "[]").unwrap();
        assert_refused(ModelShape::load(dir.path()), &["config.json", "model_type"]);
    }
}

mod weights {
    use super::*;

    /// A small model cut into two shards, all layers in the first.
    fn write_shards(dir: &Path, shape: &ModelShape) {
        write_model(dir, shape, 1);
        std::fs::remove_file(dir.join("model.safetensors")).unwrap();
        let (mut map, mut shards) = (serde_json::Map::new(), [Vec::new(), Vec::new()]);
        for (name, shape) in model_tensors(shape) {
            let n = shape.iter().product();
            let which = usize::from(!name.contains("layers"));
            map.insert(name.clone(), json!(format!("model-{which}.safetensors")));
            let data = vec![0.1; n];
            shards[which].push((name, Tensor { shape, data }));
        }
        for (which, tensors) in shards.iter().enumerate() {
            write_f32(&dir.join(format!("model-{which}.safetensors")), tensors);
        }
        let index = json!({"metadata": {}, "weight_map": map});
        std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    #[test]
    fn shards_load_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        write_shards(dir.path(), &small_shape(true));
        load(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("model-1.safetensors")).unwrap();
        assert_refused(load(dir.path()), &["model-1.safetensors"]);
    }

    #[test]
    fn a_broken_index_is_named() {
        let dir = tempfile::tempdir().unwrap();
        write_shards(dir.path(), &small_shape(true));
        let index = dir.path().join("model.safetensors.index.json");
        let text = std::fs::read_to_string(&index).unwrap();
        let mut json: Value = serde_json::from_str(&text).unwrap();
        json["weight_map"]["lm_head.weight"] = json!("model-0.safetensors");
        json["weight_map"]["no.such.tensor"] = json!("model-0.safetensors");
        std::fs::write(&index, json.to_string()).unwrap();
        assert_refused(load(dir.path()), &["no.such.tensor"]);
        std::fs::write(&index, "{}").unwrap();
        assert_refused(load(dir.path()), &["weight_map"]);
        std::fs::write(&index, "{").unwrap();
        assert_refused(load(dir.path()), &["index.json", "JSON"]);
    }

    #[test]
    fn missing_and_misshapen_tensors_are_named() {
        let shape = small_shape(true);
        for victim in [
            "lm_head.weight",
            "model.embed_tokens.weight",
            "model.norm.weight",
            "model.layers.1.self_attn.q_norm.weight",
            "model.layers.0.self_attn.o_proj.bias",
            "model.layers.1.mlp.down_proj.weight",
        ] {
            for misshapen in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                write_model(dir.path(), &shape, 1);
                let tensors: Vec<(String, Tensor)> = model_tensors(&shape)
                    .into_iter()
                    .filter(|(name, _)| misshapen || name != victim)
                    .map(|(name, mut shape)| {
                        if name == victim {
                            shape[0] += 1;
                        }
                        let data = vec![0.1; shape.iter().product()];
                        (name, Tensor { shape, data })
                    })
                    .collect();
                write_f32(&dir.path().join("model.safetensors"), &tensors);
                let word = if misshapen { "shape" } else { "missing" };
                assert_refused(load(dir.path()), &[victim, word]);
            }
        }
    }

    /// Cut anywhere, a file is refused by name: no panic, no garbage.
    #[test]
    fn a_truncated_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), &small_shape(false), 1);
        let path = dir.path().join("model.safetensors");
        let whole = std::fs::read(&path).unwrap();
        for keep in [0, 4, 8, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..keep]).unwrap();
            assert_refused(load(dir.path()), &["model.safetensors"]);
        }
        std::fs::remove_file(&path).unwrap();
        assert_refused(load(dir.path()), &["model.safetensors"]);
    }

    #[test]
    fn other_element_types_are_named() {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), &small_shape(false), 1);
        let bytes = [0u8; 8];
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![1], &bytes);
        let path = dir.path().join("model.safetensors");
        safetensors::serialize_to_file([("x.y", view.unwrap())], None, &path).unwrap();
        assert_refused(load(dir.path()), &["x.y", "I64"]);
    }

    #[test]
    fn contexts_beyond_the_model_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), &small_shape(false), 1);
        let capacity = Capacity {
            rows: 4,
            positions: 257,
            ..Capacity::default()
        };
        let engine = Engine::load(Cpu::<f32>::new(), dir.path(), capacity, false);
        assert_refused(engine, &["257", "max_position_embeddings", "256"]);
    }
}

mod adapters {
    use super::*;

    /// All of an adapter but the scale of each factor is a copy: bit for bit.
    fn assert_same(a: &(AdapterLayout, Vec<f32>), b: &(AdapterLayout, Vec<f32>)) {
        assert_eq!(a.0.settings(), b.0.settings());
        assert_eq!(
            a.0.factors().collect::<Vec<_>>(),
            b.0.factors().collect::<Vec<_>>()
        );
        assert_eq!(a.1, b.1);
    }

    /// PEFT's folders (patterns, full names, regular expressions, bf16) read,
    /// written and read again.
    #[test]
    fn round_trip_of_pefts_own() {
        for name in case_names() {
            let case = Case::load(&name);
            let dir = tempfile::tempdir().unwrap();
            peft::save(dir.path(), &case.layout, &case.params, "base").unwrap();
            let again = peft::load(dir.path(), &case.shape).unwrap();
            assert_same(&(case.layout, case.params), &again);
        }
    }

    /// Ranks and alphas that differ by module, on some modules of some layers.
    fn ragged(shape: &ModelShape) -> LoraSettings {
        let target = |layer, module, r, alpha| Target {
            layer,
            module,
            r,
            alpha,
        };
        LoraSettings {
            r: 4,
            alpha: 8.0,
            dropout: 0.05,
            use_rslora: true,
            targets: vec![
                target(0, Module::Q, 4, 8.0),
                target(0, Module::Down, 17, 0.3),
                target(shape.num_layers - 1, Module::V, 1, 8.0),
                target(shape.num_layers - 1, Module::Gate, 4, 2.5),
            ],
        }
    }

    #[test]
    fn round_trip_of_a_ragged_one() {
        let mut shape = small_shape(true);
        shape.num_layers = 12;
        let layout = AdapterLayout::new(&shape, ragged(&shape)).unwrap();
        let params = layout.initial(3);
        let dir = tempfile::tempdir().unwrap();
        peft::save(dir.path(), &layout, &params, "org/base").unwrap();
        assert_same(&(layout, params), &peft::load(dir.path(), &shape).unwrap());

        let text = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["lora_dropout"], json!(0.05));
        let down = "model.layers.0.mlp.down_proj";
        assert_eq!(json["rank_pattern"][down], json!(17));
        assert_eq!(json["alpha_pattern"][down], json!(0.3));
        assert_eq!(json["base_model_name_or_path"], "org/base");
    }

    /// A saved plain adapter and a way to change its config.
    struct Saved {
        dir: tempfile::TempDir,
        shape: ModelShape,
        layout: AdapterLayout,
        params: Vec<f32>,
    }

    impl Saved {
        fn new(modules: &[Module]) -> Saved {
            let shape = small_shape(false);
            let settings = LoraSettings::uniform(&shape, modules, 4, 8.0, 0.0, false);
            let layout = AdapterLayout::new(&shape, settings).unwrap();
            let params = layout.initial(5);
            let dir = tempfile::tempdir().unwrap();
            peft::save(dir.path(), &layout, &params, "base").unwrap();
            Saved {
                dir,
                shape,
                layout,
                params,
            }
        }

        fn with(&self, changes: Value) -> anyhow::Result<(AdapterLayout, Vec<f32>)> {
            peft::save(self.dir.path(), &self.layout, &self.params, "base").unwrap();
            let path = self.dir.path().join("adapter_config.json");
            let text = std::fs::read_to_string(&path).unwrap();
            let mut json: Value = serde_json::from_str(&text).unwrap();
            for (key, value) in changes.as_object().unwrap() {
                json[key] = value.clone();
            }
            std::fs::write(&path, json.to_string()).unwrap();
            peft::load(self.dir.path(), &self.shape)
        }

        /// The tensors changed by `f`, the config as saved.
        fn with_tensors(
            &self,
            f: impl FnOnce(&mut Vec<(String, Tensor)>),
        ) -> anyhow::Result<(AdapterLayout, Vec<f32>)> {
            let mut tensors: Vec<(String, Tensor)> = self
                .layout
                .tensors()
                .into_iter()
                .map(|(name, offset, rows, cols)| {
                    let data = self.params[offset..offset + rows * cols].to_vec();
                    let shape = vec![rows, cols];
                    (name, Tensor { shape, data })
                })
                .collect();
            f(&mut tensors);
            write_f32(&self.dir.path().join("adapter_model.safetensors"), &tensors);
            peft::load(self.dir.path(), &self.shape)
        }
    }

    #[test]
    fn what_would_change_the_arithmetic_is_refused_by_name() {
        let saved = Saved::new(&Module::ALL);
        for (changes, words) in [
            (json!({"peft_type": "LOHA"}), &["peft_type", "LOHA"][..]),
            (json!({"peft_type": null}), &["peft_type"]),
            (json!({"use_dora": true}), &["use_dora"]),
            (
                json!({"modules_to_save": ["lm_head"]}),
                &["modules_to_save"],
            ),
            (json!({"fan_in_fan_out": true}), &["fan_in_fan_out"]),
            (json!({"lora_bias": true}), &["lora_bias"]),
            (json!({"bias": "lora_only"}), &["bias", "lora_only"]),
            (
                json!({"layer_replication": [[0, 2]]}),
                &["layer_replication"],
            ),
            (
                json!({"trainable_token_indices": [1]}),
                &["trainable_token_indices"],
            ),
            (json!({"use_qalora": true}), &["use_qalora"]),
            (json!({"use_bdlora": {"nblocks": 2}}), &["use_bdlora"]),
            (
                json!({"alora_invocation_tokens": [1, 2]}),
                &["alora_invocation_tokens"],
            ),
            (json!({"target_parameters": ["x"]}), &["target_parameters"]),
            (json!({"arrow_config": {"top_k": 3}}), &["arrow_config"]),
            (json!({"kasa_config": {"beta": 1}}), &["kasa_config"]),
            (
                json!({"monteclora_config": {"num_samples": 3}}),
                &["monteclora_config"],
            ),
            (json!({"velora_config": {"scale": 1}}), &["velora_config"]),
            (
                json!({"init_lora_weights": "pissa"}),
                &["init_lora_weights", "pissa"],
            ),
            (
                json!({"init_lora_weights": "pissa_niter_4"}),
                &["init_lora_weights", "pissa_niter_4"],
            ),
            (
                json!({"init_lora_weights": "OLoRA"}),
                &["init_lora_weights"],
            ),
            (
                json!({"init_lora_weights": "loftq"}),
                &["init_lora_weights"],
            ),
            (
                json!({"layers_pattern": "blocks"}),
                &["layers_pattern", "blocks"],
            ),
            (json!({"r": null}), &["r is missing"]),
            (json!({"r": 0}), &["r is missing or no positive"]),
            (json!({"r": 8}), &["rank 4", "says 8"]),
            (json!({"lora_alpha": null}), &["lora_alpha"]),
            (json!({"target_modules": null}), &["target_modules"]),
            (
                json!({"target_modules": "(q_proj"}),
                &["target_modules", "regular expression"],
            ),
            (
                json!({"rank_pattern": {"q_proj": 2}}),
                &["q_proj", "rank 4", "says 2"],
            ),
            (
                json!({"rank_pattern": {"(q": 2}}),
                &["(q", "regular expression"],
            ),
            (
                json!({"rank_pattern": {"q_proj": "two"}}),
                &["q_proj", "number"],
            ),
        ] {
            assert_refused(saved.with(changes), words);
        }
    }

    /// What PEFT writes where a feature is off is no reason to refuse.
    #[test]
    fn features_that_are_off_are_accepted() {
        let saved = Saved::new(&Module::ALL);
        for changes in [
            json!({"init_lora_weights": "gaussian", "loftq_config": {}, "megatron_config": null}),
            json!({"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}),
            json!({"layers_to_transform": [], "layers_pattern": [], "exclude_modules": []}),
            json!({"layers_to_transform": [0, 1], "layers_pattern": "layers"}),
            json!({"target_modules": "all-linear", "use_bdlora": null, "modules_to_save": []}),
            json!({"some_future_key": 3}),
        ] {
            let loaded = saved.with(changes).unwrap();
            assert_eq!(loaded.1, saved.params);
        }
    }

    /// PEFT's rule: the first key that matches the end of the module's name.
    #[test]
    fn alpha_patterns_follow_peft() {
        let saved = Saved::new(&Module::ALL);
        let (layout, _) = saved
            .with(json!({"alpha_pattern": {
                "layers.0.self_attn.q_proj": 1,
                "q_proj": 2.5,
                r"model\.layers\.\d+\.mlp\.up_proj": 3,
                "proj": 100,
            }}))
            .unwrap();
        let scale = |layer, m| layout.factor(layer, m).unwrap().scale;
        assert_eq!(scale(0, Module::Q), 0.25);
        assert_eq!(scale(1, Module::Q), 0.625);
        assert_eq!(scale(1, Module::Up), 0.75);
        // "proj" alone is no whole part of a dotted name.
        assert_eq!(scale(1, Module::Down), 2.0);
    }

    /// Tensors that the config does not choose would be ignored by PEFT, and
    /// chosen modules without tensors would keep random ones: both are errors.
    #[test]
    fn the_choice_of_modules_must_be_what_the_file_holds() {
        let saved = Saved::new(&[Module::Q, Module::V]);
        for changes in [
            json!({"target_modules": ["q_proj"]}),
            json!({"target_modules": "model\\.layers\\.0\\..*"}),
            json!({"layers_to_transform": [0]}),
            json!({"layers_to_transform": 1}),
            json!({"exclude_modules": ["v_proj"]}),
            json!({"exclude_modules": ".*layers\\.1.*"}),
        ] {
            assert_refused(saved.with(changes), &["target_modules", "ignore"]);
        }
        for changes in [
            json!({"target_modules": ["q_proj", "v_proj", "o_proj"]}),
            json!({"target_modules": "all-linear"}),
            json!({"target_modules": ".*_proj"}),
        ] {
            assert_refused(saved.with(changes), &["target_modules", "no tensors"]);
        }
        let excluded =
            json!({"target_modules": ".*_proj", "exclude_modules": ".*(mlp|[ok]_proj).*"});
        saved.with(excluded).unwrap();
    }

    #[test]
    fn broken_tensors_are_named() {
        let saved = Saved::new(&Module::ALL);
        let name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight";
        let find = |t: &mut Vec<(String, Tensor)>| t.iter().position(|(n, _)| n == name).unwrap();

        let missing = saved.with_tensors(|t| {
            t.retain(|(n, _)| n != name);
        });
        assert_refused(
            missing,
            &["layers.1.mlp.up_proj", "only one of lora_A and lora_B"],
        );

        let misshapen = saved.with_tensors(|t| {
            let i = find(t);
            t[i].1.shape.reverse();
        });
        assert_refused(misshapen, &[name, "shape"]);

        let renamed = saved.with_tensors(|t| {
            let i = find(t);
            t[i].0 = name.replace("base_model.model.model", "model");
        });
        assert_refused(
            renamed,
            &["model.layers.1.mlp.up_proj.lora_B.weight", "no LoRA factor"],
        );

        let beyond = saved.with_tensors(|t| {
            for (n, _) in t.iter_mut() {
                *n = n.replace("layers.1.", "layers.7.");
            }
        });
        assert_refused(beyond, &["layer"]);

        let poisoned = saved.with_tensors(|t| {
            let i = find(t);
            t[i].1.data[3] = f32::NAN;
        });
        assert_refused(poisoned, &["NaN"]);

        let embedding = saved.with_tensors(|t| {
            let name = "base_model.model.model.embed_tokens.lora_embedding_A".to_string();
            let (shape, data) = (vec![1], vec![0.0]);
            t.push((name, Tensor { shape, data }));
        });
        assert_refused(embedding, &["lora_embedding_A"]);
        assert!(saved.with_tensors(|_| ()).is_ok());
    }

    #[test]
    fn missing_and_truncated_files_are_named() {
        let saved = Saved::new(&Module::ALL);
        let again = || peft::load(saved.dir.path(), &saved.shape);
        let weights = saved.dir.path().join("adapter_model.safetensors");
        let whole = std::fs::read(&weights).unwrap();
        for keep in [0, 5, 200, whole.len() - 1] {
            std::fs::write(&weights, &whole[..keep]).unwrap();
            assert_refused(again(), &["adapter_model.safetensors"]);
        }
        std::fs::remove_file(&weights).unwrap();
        assert_refused(again(), &["adapter_model.safetensors", ".bin"]);
        let config = saved.dir.path().join("adapter_config.json");
        std::fs::write(&config, "{").unwrap();
        assert_refused(again(), &["adapter_config.json", "JSON"]);
        std::fs::remove_file(&config).unwrap();
        assert_refused(again(), &["adapter_config.json"]);
    }

    /// The paper's three ranks on Qwen3-1.7B have its numbers of parameters.
    #[test]
    fn parameter_counts_are_the_papers() {
        let shape = ModelShape {
            vocab_size: 151_936,
            hidden_size: 2048,
            intermediate_size: 6144,
            num_layers: 28,
            num_heads: 16,
            num_kv_heads: 8,
            head_dim: 128,
            ..small_shape(false)
        };
        for (r, count) in [(64, 69_730_304), (16, 17_432_576), (4, 4_358_144)] {
            let alpha = 2.0 * r as f32;
            let settings = LoraSettings::uniform(&shape, &Module::ALL, r, alpha, 0.05, false);
            assert_eq!(AdapterLayout::new(&shape, settings).unwrap().len(), count);
        }
    }
}
