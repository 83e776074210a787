//! Guards that every option that trains, trains: a run of two steps to the end
//! with finite numbers, or a refusal that names the key.

use serde_json::Value;

use crate::run::{Bench, Run};

/// Metrics that every step of every run has, as finite numbers.
const ALWAYS: &[&str] = &[
    "train/loss",
    "train/grad_norm",
    "train/learning_rate",
    "train/num_tokens",
    "train/step_time",
    "train/reward",
    "train/reward_std",
    "train/frac_reward_zero_std",
    "train/rewards/math/mean",
    "train/rewards/math/std",
    "train/completions/mean_length",
    "train/completions/min_length",
    "train/completions/max_length",
    "train/completions/clipped_ratio",
    "train/completions/mean_terminated_length",
    "credit/scored_frac",
    "credit/residual_noise_floor",
    "perf/tokens_per_second",
    "perf/rollout_tokens_per_second",
    "perf/train_tokens_per_second",
    "perf/peak_bytes",
    "time/rollout",
    "time/reward",
    "time/score",
    "time/forward",
    "time/backward",
    "time/optimizer",
    "time/diagnostics",
];

/// What is measured where anything is scored.
const SCORED: &[&str] = &[
    "train/entropy",
    "train/sampling/sampling_logp_difference/mean",
    "train/sampling/sampling_logp_difference/max",
    "credit/gini",
    "credit/effective_token_ratio",
    "credit/max_weight",
    "credit/uniform_fallback_frac",
    "credit/alarm",
    "credit/top_token_entropy",
    "credit/position/decile_0",
    "credit/position/decile_9",
    "credit/position/first",
    "credit/position/last",
    "credit/class/digits",
    "credit/class/operators",
    "credit/class/words",
    "credit/class/box",
    "credit/class/other",
];

/// So that every step has a group to learn from, and every row is scored.
const INFORMATIVE: &[&str] = &["rollout.refill_zero_variance=5", "credit.probe_every=1"];

/// Trains with these settings and checks that all numbers are finite.
fn finite(bench: &Bench, name: &str, settings: &[&str]) -> Run {
    let run = bench.train(name, &[INFORMATIVE, settings].concat());
    let rows = run.metrics();
    assert_eq!(rows.len(), 2, "{settings:?}");
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row["step"], i + 1);
        for (key, value) in row {
            assert!(!value.is_null(), "{settings:?}: {key} is not finite");
        }
        for key in ALWAYS.iter().chain(SCORED) {
            assert!(row.contains_key(*key), "{settings:?}: no {key}");
        }
    }
    let norms = run.series("train/grad_norm");
    assert!(
        norms.iter().all(|&norm| norm > 0.0),
        "{settings:?}: {norms:?}"
    );
    // On the CPU in f32 sampler and trainer agree to the last bit.
    let apart = run.series("train/sampling/sampling_logp_difference/max");
    assert_eq!(apart, [0.0, 0.0], "{settings:?}");
    run
}

#[test]
fn every_credit_method_trains() {
    let bench = Bench::new();
    for method in arca::credit::METHODS {
        let name = method.name();
        let run = finite(&bench, name, &[&format!("credit.method={name}")]);
        let gini = run.series("credit/gini");
        let ratio = run.series("credit/effective_token_ratio");
        let fallback = run.series("credit/uniform_fallback_frac");
        // Weights are shares: of the deciles, and of the classes.
        for (step, row) in run.metrics().iter().enumerate() {
            for prefix in ["credit/position/decile_", "credit/class/"] {
                let parts = row.iter().filter(|(key, _)| key.starts_with(prefix));
                let sum: f64 = parts.map(|(_, value)| value.as_f64().unwrap()).sum();
                assert!((sum - 1.0).abs() < 1e-9, "{name}: {prefix} {sum}");
            }
            let told = row.keys().filter(|k| k.starts_with("credit/correlation/"));
            let told: Vec<&String> = told.collect();
            match name {
                "uniform" => assert!(told.is_empty() && row["credit/alarm"] == 0.0),
                "divergence" | "arca" | "k3" if step == 0 => assert!(told.is_empty()),
                _ => assert!(!told.is_empty(), "{name}"),
            }
        }
        match name {
            "uniform" => assert_eq!((gini, ratio), (vec![0.0; 2], vec![1.0; 2])),
            // With B = 0 the adapter changes nothing before the first step.
            "divergence" | "arca" | "k3" => {
                assert_eq!((gini[0], ratio[0], fallback[0]), (0.0, 1.0, 1.0));
                assert!(
                    gini[1] > 0.0 && ratio[1] < 1.0 && fallback[1] == 0.0,
                    "{name}"
                );
            }
            _ => assert!(gini[0] > 0.0 && ratio[0] < 1.0, "{name}"),
        }
        if name == "arca" {
            let residual = run.series("credit/residual_norm_mean");
            assert!(residual[0] == 0.0 && residual[1] > 0.0);
        }
    }
}

/// Weights that say nothing are said to, once, and by the report; not where
/// they are meant to be equal.
#[test]
fn degenerate_credit_is_told() {
    let bench = Bench::new();
    let told = |name: &str, settings: &[&str]| {
        let four = ["train.steps=4", "credit.probe_every=1"];
        let output = bench.command(name, &[&four, settings].concat()).output();
        let output = output.unwrap();
        crate::run::expect(&output, 0, name);
        let warnings = String::from_utf8(output.stderr).unwrap();
        let report = String::from_utf8(output.stdout).unwrap();
        let counted = report.contains("credit alarm: collapsed to uniform in 4 of 4 steps");
        let times = warnings.matches("has collapsed to uniform").count();
        (bench.run(name).series("credit/alarm"), times, counted)
    };
    let collapsed = told("mixed", &["credit.method=surprisal", "credit.mix=1"]);
    assert_eq!(collapsed, (vec![1.0; 4], 1, true));
    assert_eq!(told("uniform", &[]), (vec![0.0; 4], 0, false));
    let sharp = told("sharp", &["credit.method=surprisal"]);
    assert!(sharp.1 == 0 && !sharp.2, "{sharp:?}");
}

/// A scoring pass and later iterations pack other rows than the first forward:
/// all of them fit what was planned for small batches, and the split changes
/// nothing.
#[test]
fn small_batches_fit_their_plan() {
    let bench = Bench::new();
    for (i, settings) in [
        &["credit.method=delta"][..],
        &["credit.method=contrast"],
        &["credit.method=entropy_quantile_batch"],
        &["credit.method=arca", "lora.dropout=0.1"],
        &["credit.method=k3"],
    ]
    .into_iter()
    .enumerate()
    {
        let more = ["loss.inner_iterations=2", "train.prompts_per_step=4"];
        let settings = [settings, &more].concat();
        let large = finite(&bench, &format!("large{i}"), &settings);
        let cut = [&settings[..], &["train.tokens_per_batch=40"]].concat();
        let small = finite(&bench, &format!("small{i}"), &cut);
        for key in ["train/loss", "credit/gini"] {
            let (a, b) = (large.series(key)[0], small.series(key)[0]);
            assert!((a - b).abs() < 1e-4, "{settings:?}: {key} {a} and {b}");
        }
    }
}

#[test]
fn token_traces_are_as_long_as_the_completion() {
    let bench = Bench::new();
    let settings = [
        "log.token_traces=true",
        "credit.method=arca",
        "loss.beta=0.1",
    ];
    let run = finite(&bench, "run", &settings);
    for step in 1..=2 {
        let rows = run.completions(step);
        assert_eq!(rows.len(), 8);
        for row in rows {
            let numbers = |key: &str| -> Vec<f64> {
                let array = row[key].as_array().unwrap_or_else(|| panic!("no {key}"));
                array.iter().map(|x| x.as_f64().unwrap()).collect()
            };
            let n = row["tokens"].as_u64().unwrap() as usize;
            assert!(n > 0 && !numbers("prompt_ids").is_empty());
            for key in [
                "completion_ids",
                "logprobs",
                "entropies",
                "reference_logprobs",
                "residuals",
                "weights",
            ] {
                assert_eq!(numbers(key).len(), n, "{key}");
            }
            assert!(numbers("logprobs").iter().all(|&x| x <= 0.0));
            assert!(numbers("entropies").iter().all(|&x| x >= 0.0));
            let weights = numbers("weights");
            let sum: f64 = weights.iter().sum();
            assert!((sum - 1.0).abs() < 1e-6, "weights sum to {sum}");
            assert!(weights.iter().all(|&w| w >= 0.0));
            if step == 1 {
                assert_eq!(numbers("logprobs"), numbers("reference_logprobs"));
                assert!(numbers("residuals").iter().all(|&x| x == 0.0));
            } else {
                assert!(numbers("residuals").iter().any(|&x| x > 0.0));
            }
        }
    }
}

#[test]
fn every_loss_trains() {
    let bench = Bench::new();
    for (loss, more) in [
        ("grpo", ""),
        ("bnpo", ""),
        ("dr_grpo", ""),
        ("dapo", ""),
        ("cispo", "loss.epsilon_high=5"),
    ] {
        let kind = format!("loss.type={loss}");
        let mut settings = vec![kind.as_str(), "loss.inner_iterations=2"];
        settings.extend((!more.is_empty()).then_some(more));
        finite(&bench, loss, &settings);
    }
}

#[test]
fn every_option_trains() {
    let bench = Bench::new();
    for (name, settings) in [
        ("kl", &["loss.beta=0.1"][..]),
        ("iterations", &["loss.inner_iterations=2"]),
        (
            "accumulation",
            &["loss.gradient_accumulation=2", "loss.type=dapo"],
        ),
        ("dropout", &["lora.dropout=0.1", "credit.method=arca"]),
        (
            "refill",
            &["rollout.refill_zero_variance=1", "train.prompts_per_step=4"],
        ),
        (
            "masked",
            &[
                "rollout.mask_truncated=true",
                "rollout.max_completion_length=12",
            ],
        ),
        (
            "sequence",
            &[
                "loss.importance_sampling_level=sequence",
                "loss.inner_iterations=2",
            ],
        ),
        ("correction", &["loss.sampler_correction=truncate"]),
        ("mask", &["loss.sampler_correction=mask", "loss.delta=2"]),
        (
            "advantage",
            &["advantage.scale=batch", "advantage.baseline=leave_one_out"],
        ),
        ("unscaled", &["advantage.scale=none", "advantage.ddof=0"]),
        (
            "lora",
            &[
                "lora.use_rslora=true",
                "lora.r=3",
                "lora.target_modules=[\"q_proj\", \"down_proj\"]",
            ],
        ),
        (
            "hidden",
            &[
                "credit.method=arca",
                "credit.hidden=layer:0",
                "credit.exponent=2",
            ],
        ),
        (
            "mixed",
            &[
                "credit.method=arca",
                "credit.hidden=pre-norm",
                "credit.mix=0.5",
                "credit.warmup_steps=1",
            ],
        ),
        (
            "truncated",
            &[
                "rollout.top_p=0.9",
                "rollout.top_k=20",
                "rollout.allow_truncated_sampling=true",
            ],
        ),
        (
            "optimizer",
            &[
                "optimizer.schedule=cosine",
                "optimizer.warmup_steps=1",
                "optimizer.weight_decay=0.1",
                "optimizer.max_grad_norm=0",
            ],
        ),
        (
            "stop",
            &["rollout.stop=[\"}\"]", "reward.functions=[\"math\"]"],
        ),
    ] {
        let run = finite(&bench, name, settings);
        match name {
            "kl" => {
                let kl = run.series("train/kl");
                assert!(kl[0] == 0.0 && kl[1] > 0.0, "{kl:?}");
            }
            "iterations" => {
                let far = run.series("train/ratio/max");
                assert!(far.iter().all(|&r| r > 1.0), "{far:?}");
            }
            "masked" => {
                let cut = run.series("train/completions/clipped_ratio");
                assert!(
                    cut[0] > 0.0 && cut[0] < 1.0,
                    "{cut:?}: nothing to tell apart"
                );
            }
            "dropout" => assert!(run.series("time/score")[0] > 0.0),
            "optimizer" => assert_eq!(run.series("train/learning_rate")[0], 0.0),
            _ => {}
        }
    }
}

/// A step in bf16 takes the same way; its sampler and trainer round alike.
#[test]
fn bf16_activations_train() {
    let bench = Bench::new();
    let settings = ["model.compute_dtype=bf16", "credit.method=arca"];
    let run = bench.train("bf16", &settings);
    assert_eq!(run.metrics().len(), 2);
    for row in run.metrics() {
        assert!(row.values().all(|v| !v.is_null()), "{row:?}");
    }
    assert!(run.series("credit/residual_noise_floor")[0] > 0.0);
}

/// A saved adapter can be what a run starts from, and what it is compared with.
#[test]
fn saved_adapters_are_read_back() {
    let bench = Bench::new();
    let first = bench.train("first", &["lora.r=4", "lora.alpha=8"]);
    let adapter = first.root.join("adapter");
    let (init, reference) = (
        format!("lora.init_from={}", adapter.display()),
        format!("reference.adapter={}", adapter.display()),
    );

    // Against the base model, an adapter that has learnt is something else from
    // the start; against itself it is not.
    let base = finite(
        &bench,
        "base",
        &[&init, "credit.method=arca", "loss.beta=0.1"],
    );
    assert!(base.series("credit/residual_norm_mean")[0] > 0.0);
    assert!(base.series("train/kl")[0] > 0.0);
    let both = [
        init.as_str(),
        &reference,
        "credit.method=arca",
        "loss.beta=0.1",
    ];
    let own = finite(&bench, "own", &both);
    assert_eq!(own.series("credit/residual_norm_mean")[0], 0.0);
    assert_eq!(own.series("train/kl")[0], 0.0);
    assert!(own.series("credit/residual_norm_mean")[1] > 0.0);
    assert!(own.series("train/kl")[1] > 0.0);

    let config: Value = serde_json::from_slice(&own.bytes("adapter/adapter_config.json")).unwrap();
    assert_eq!(
        (config["r"].as_u64(), config["lora_alpha"].as_f64()),
        (Some(4), Some(8.0))
    );
    // A fresh adapter of another rank beside the reference.
    finite(&bench, "fresh", &[&reference, "credit.method=divergence"]);
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_written() {
    let bench = Bench::new();
    let rows = [
        r#"{"problem": "Compute 1 + 1.", "answer": "2"}"#,
        r#"{"problem": "Compute 1 + 2.", "answer": "3""#,
    ];
    std::fs::write(bench.path().join("bad.jsonl"), rows.join("\n")).unwrap();
    for (code, setting, says) in [
        (1, "data.train=missing.jsonl", "missing.jsonl"),
        (1, "data.train=bad.jsonl", "row 2"),
        (1, "lora.init_from=nowhere", "lora.init_from"),
        (1, "reference.adapter=nowhere", "reference.adapter"),
        (1, "data.max_prompt_length=3", "data.max_prompt_length"),
        (2, "reward.functions=[\"maths\"]", "math"),
        (2, "credit.method=acra", "arca"),
        (2, "credit.hidden=layer:99", "layers are 0 to 5"),
        (2, "train.device=gpu", "emulator"),
        (
            2,
            "loss.gradient_accumulation=3",
            "loss.gradient_accumulation",
        ),
        (2, "rollout.group_size=1", "rollout.group_size"),
    ] {
        let message = bench.refused(code, &[setting]);
        assert!(message.contains(says), "{setting}: {message}");
    }
}

/// A program of the user's judges beside the built-in reward.
#[cfg(unix)]
#[test]
fn an_external_reward_takes_part() {
    let bench = Bench::new();
    let script = r#"while read row; do echo '{"reward": 0.25}'; done"#;
    let command = format!("reward.command=['sh', '-c', '''{script}''']");
    let run = finite(&bench, "run", &[&command, "reward.weights=[1.0, 2.0]"]);
    assert_eq!(run.series("train/rewards/external/mean"), [0.25, 0.25]);
    assert_eq!(run.series("train/rewards/timed_out"), [0.0, 0.0]);
    let math = run.series("train/rewards/math/mean");
    for (total, math) in run.series("train/reward").iter().zip(math) {
        assert!((total - math - 0.5).abs() < 1e-6);
    }
}

/// Problems from a file of the user's, and several rewards.
#[test]
fn own_problems_and_several_rewards() {
    let bench = Bench::new();
    let rows: String = (1..=9)
        .map(|n| {
            format!(
                "{{\"question\": \"Compute {n} + 1.\", \"answer\": \"{}\"}}\n",
                n + 1
            )
        })
        .collect();
    std::fs::write(bench.path().join("own.jsonl"), rows).unwrap();
    let settings = [
        "data.train=own.jsonl",
        "data.eval=own.jsonl",
        "reward.functions=[\"math\", \"format\"]",
        "reward.weights=[1.0, 0.5]",
    ];
    let run = finite(&bench, "own", &settings);
    for (step, total) in run.series("train/reward").iter().enumerate() {
        let part = |name: &str| run.series(&format!("train/rewards/{name}/mean"))[step];
        assert!((total - part("math") - 0.5 * part("format")).abs() < 1e-6);
    }
}
