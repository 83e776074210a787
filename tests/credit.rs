//! Guards that token credit is a completion's own: through the update's own
//! path every method's weights are the same bits in any order of groups, with
//! any neighbours and under any physical split; and that the signals behind
//! them are what they are said to be. Then the verbs, with every method.

use std::collections::BTreeMap;
use std::process::Command;

use arca::config::{CreditConfig, LossConfig, OptimizerConfig};
use arca::credit::{Credit, CreditAssigner, METHODS, Scope, ranks};
use arca::device::cpu::Cpu;
use arca::episode::{AdapterId, TokenSignals};
use arca::loss::Objective;
use arca::model::adapter::AdapterLayout;
use arca::model::config::Module;
use arca::model::engine::Engine;
use arca::train::optimizer::Optimizer;
use arca::train::update::{SequenceState, TrainGroup, TrainSequence, UpdateStats, Updater};
use serde_json::{Value, json};

use crate::common::{
    Packing, Sequence, SmallModel, arca, engine, logprobs, pack, random_groups, rel_l2, small_shape,
};
use crate::run::Bench;

const TEMPERATURE: f32 = 0.9;
const CONTRAST: [u32; 5] = [3, 1, 4, 1, 5];
const LENGTHS: [(usize, &[usize]); 4] = [
    (7, &[5, 1, 9]),
    (16, &[3, 17]),
    (1, &[4, 6, 2, 8]),
    (33, &[16, 31]),
];

struct Setup {
    _model: SmallModel,
    engine: Engine<Cpu<f32>>,
    layout: AdapterLayout,
    adapter: AdapterId,
    groups: Vec<Vec<Sequence>>,
}

/// What one update found out, by (group, completion).
struct Outcome {
    states: BTreeMap<(usize, usize), SequenceState>,
    gradients: Vec<f32>,
    stats: UpdateStats,
}

impl Setup {
    fn new() -> Setup {
        let model = SmallModel::new(small_shape(true), 11);
        let (layout, params) = model.adapter(&Module::ALL, 5, 1);
        let mut engine = engine::<f32>(model.path(), &[&layout]);
        Setup {
            adapter: engine.add_adapter(layout.clone(), &params).unwrap(),
            groups: random_groups(model.shape.vocab_size, 5, &LENGTHS),
            layout,
            engine,
            _model: model,
        }
    }

    /// The first gradient of an update on these groups, in this order.
    fn update(&mut self, method: &str, order: &[usize], max_rows: usize, dropout: f32) -> Outcome {
        let credit = CreditConfig {
            method: method.into(),
            ..CreditConfig::default()
        };
        let loss = LossConfig::default();
        let updater = Updater {
            objective: Objective::new(&loss).unwrap(),
            credit: CreditAssigner::new(&credit).unwrap(),
            loss,
            adapter: self.adapter,
            reference: None,
            temperature: TEMPERATURE,
            contrast: CONTRAST.to_vec(),
            max_completion_length: 64,
            policy_rows: max_rows,
            dropout,
            skip_zero_advantage: true,
        };
        let device = &self.engine.device;
        let mut optimizer =
            Optimizer::new(device, &self.layout, &OptimizerConfig::default()).unwrap();
        optimizer.zero_grads(&self.engine).unwrap();
        let groups: Vec<TrainGroup> = order
            .iter()
            .map(|&g| TrainGroup {
                prompt: &self.groups[g][0].prompt,
                key: g as u64,
                sequences: self.groups[g]
                    .iter()
                    .enumerate()
                    .map(|(i, s)| TrainSequence {
                        completion: &s.completion,
                        advantage: [1.25, -0.75, 0.5, -1.0][i],
                        ..TrainSequence::default()
                    })
                    .collect(),
            })
            .collect();
        let names: Vec<(usize, usize)> = order
            .iter()
            .flat_map(|&g| (0..self.groups[g].len()).map(move |i| (g, i)))
            .collect();
        let mut states = vec![SequenceState::default(); names.len()];
        let stats = updater
            .gradients(
                &mut self.engine,
                &mut optimizer,
                &groups,
                0,
                0,
                false,
                &mut states,
            )
            .unwrap();
        Outcome {
            gradients: optimizer.download_grads(&self.engine).unwrap(),
            states: names.into_iter().zip(states).collect(),
            stats,
        }
    }
}

fn same_weights(method: &dyn Credit, a: &Outcome, b: &Outcome, what: &str) {
    for (name, state) in &b.states {
        let (a, b) = (&a.states[name].weights, &state.weights);
        assert_eq!(a, b, "{}: {what}: completion {name:?}", method.name());
    }
}

#[test]
fn weights_do_not_depend_on_the_batch() {
    let mut s = Setup::new();
    for &method in METHODS {
        let name = method.name();
        let whole = s.update(name, &[0, 1, 2, 3], 1024, 0.0);
        for (of, state) in &whole.states {
            let w = &state.weights.weights;
            assert_eq!(w.len(), s.groups[of.0][of.1].completion.len());
            assert!((w.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{name} {of:?}");
        }
        let flat = |state: &SequenceState| {
            let w = &state.weights.weights;
            w.iter().all(|x| *x == 1.0 / w.len() as f64)
        };
        let uniform = whole.states.values().filter(|s| flat(s)).count();
        match name {
            "uniform" => assert_eq!(uniform, whole.states.len()),
            // One completion is one token long.
            _ => assert!(uniform <= whole.states.len() / 2, "{name}: {uniform}"),
        }
        let turned = s.update(name, &[3, 1, 0, 2], 1024, 0.0);
        same_weights(method, &whole, &turned, "order");
        if method.scope() != Scope::Batch {
            for g in 0..4 {
                let alone = s.update(name, &[g], 1024, 0.0);
                same_weights(method, &whole, &alone, "alone");
            }
        }
        // Cut between groups, within groups, every completion for itself.
        for max_rows in [300, 130, 60, 10] {
            let split = s.update(name, &[0, 1, 2, 3], max_rows, 0.0);
            same_weights(method, &whole, &split, &format!("{max_rows} rows"));
            let error = rel_l2(&split.gradients, &whole.gradients);
            assert!(error <= 1e-6, "{name}, {max_rows} rows: {error}");
        }
        // Dropout is in the gradient and never in a signal.
        let dropped = s.update(name, &[0, 1, 2, 3], 1024, 0.5);
        same_weights(method, &whole, &dropped, "dropout");
        assert_ne!(dropped.gradients, whole.gradients);
    }
}

/// A second forward is paid for only where weights need what lies in another
/// batch.
#[test]
fn scoring_passes() {
    let mut s = Setup::new();
    let mut scored = |method: &str, max_rows| {
        let out = s.update(method, &[0, 1, 2, 3], max_rows, 0.0);
        !out.stats.score.is_zero()
    };
    assert!(!scored("arca", 1024) && !scored("arca", 10));
    assert!(!scored("contrast", 1024) && !scored("contrast", 10));
    assert!(!scored("delta", 1024) && scored("delta", 10));
    assert!(scored("entropy_quantile_batch", 1024));
}

/// The contrast signal is the completion's log-probs with the contrast prompt
/// before it, and its weights are ranks of what that tells.
#[test]
fn contrast_is_scored_under_the_other_prompt() {
    let mut s = Setup::new();
    for max_rows in [1024, 60] {
        let out = s.update("contrast", &[0, 1, 2, 3], max_rows, 0.0);
        for ((g, i), state) in out.states {
            let sequence = Sequence {
                prompt: CONTRAST.to_vec(),
                completion: s.groups[g][i].completion.clone(),
            };
            let how = Packing {
                share: 1,
                base: false,
                training: false,
            };
            let packed = pack(&[sequence], Some(s.adapter), how);
            let expected = logprobs(&mut s.engine, &packed.batch, TEMPERATURE);
            assert_eq!(state.signals.contrast_logprobs, expected);
            let d = |t: usize| f64::from(expected[t]) - f64::from(state.old[t]);
            let k3: Vec<f64> = (0..expected.len())
                .map(|t| d(t).exp() - d(t) - 1.0)
                .collect();
            assert_eq!(ranks(&k3), ranks(&state.weights.weights));
        }
    }
}

/// (1 - p) ||h|| with the states that the head saw, which are dropped after.
#[test]
fn states_are_those_that_predict() {
    let mut s = Setup::new();
    let out = s.update("gradient_norm", &[0, 1, 2, 3], 130, 0.0);
    let width = s.engine.shape().hidden_size;
    for ((g, i), state) in out.states {
        assert!(state.signals.states.is_empty());
        let sequence = s.groups[g][i].clone();
        let first = sequence.prompt.len() - 1;
        let how = Packing {
            share: 1,
            base: false,
            training: false,
        };
        let packed = pack(&[sequence], Some(s.adapter), how);
        let (states, _) = s.engine.logits(packed.batch).unwrap();
        let scores: Vec<f64> = state
            .old
            .iter()
            .enumerate()
            .map(|(t, lp)| {
                let h = &states[(first + t) * width..][..width];
                let norm = h.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                (1.0 - f64::from(*lp).exp()) * norm
            })
            .collect();
        let total: f64 = scores.iter().sum();
        for (w, a) in state.weights.weights.iter().zip(&scores) {
            assert!((w - a / total).abs() < 1e-6, "{w} {}", a / total);
        }
    }
}

/// Both entropy masks by hand, from the entropies that the update reports.
#[test]
fn entropy_masks_by_hand() {
    let mut s = Setup::new();
    let kept = |state: &SequenceState, least: f32| {
        let mask: Vec<bool> = state
            .signals
            .entropies
            .iter()
            .map(|h| *h >= least)
            .collect();
        let n = mask.iter().filter(|kept| **kept).count().max(1) as f64;
        let none = mask.iter().all(|kept| !kept);
        for (w, kept) in state.weights.weights.iter().zip(mask) {
            let expected = match (none, kept) {
                (true, _) => 1.0 / state.old.len() as f64,
                (false, true) => 1.0 / n,
                (false, false) => 0.0,
            };
            assert!((w - expected).abs() < 1e-6);
        }
        assert_eq!(state.weights.fallback, none);
    };
    let least = |mut all: Vec<f32>| {
        all.sort_by(|a, b| b.total_cmp(a));
        all[all.len().div_ceil(5) - 1]
    };
    let own = s.update("entropy_quantile", &[0, 1, 2, 3], 1024, 0.0);
    for state in own.states.values() {
        kept(state, least(state.signals.entropies.clone()));
    }
    let batch = s.update("entropy_quantile_batch", &[0, 1, 2, 3], 1024, 0.0);
    let all = |s: &SequenceState| s.signals.entropies.clone();
    let threshold = least(batch.states.values().flat_map(all).collect());
    for state in batch.states.values() {
        kept(state, threshold);
    }
}

/// Signals of no use are not computed.
#[test]
fn nothing_is_computed_that_no_method_asks_for() {
    let mut s = Setup::new();
    for &method in METHODS {
        let needs = method.needs();
        let out = s.update(method.name(), &[0, 1], 1024, 0.0);
        for state in out.states.values() {
            let TokenSignals {
                reference_logprobs,
                residuals,
                contrast_logprobs,
                ..
            } = &state.signals;
            assert_eq!(!reference_logprobs.is_empty(), needs.reference);
            assert_eq!(!residuals.is_empty(), needs.residuals);
            assert_eq!(!contrast_logprobs.is_empty(), needs.extra_segments);
        }
    }
}

fn run(bench: &Bench, args: &[&str]) -> String {
    let done = Command::new(arca())
        .args(args)
        .current_dir(bench.path())
        .env("NO_COLOR", "1")
        .env("COLUMNS", "80")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{args:?}: {error}");
    String::from_utf8(done.stdout).unwrap()
}

/// Two completions of one problem, one of them right.
fn rows(bench: &Bench) {
    let row = |completion: &str, reward: f32| {
        json!({
            "group": "a",
            "prompt": "Problem: Compute 36 - 32.\n",
            "completion": completion,
            "reward": reward,
        })
    };
    let rows = [
        row("36-32=6-2=4. The answer is \\boxed{4}.", 1.0),
        row("36-32=14. The answer is \\boxed{14}.", 0.0),
    ];
    let text: String = rows.iter().map(|r| format!("{r}\n")).collect();
    std::fs::write(bench.path().join("rows.jsonl"), text).unwrap();
}

#[test]
fn inspect_shows_all_methods_side_by_side() {
    let bench = Bench::new();
    bench.train("r", &["optimizer.learning_rate=0.01"]);
    rows(&bench);
    let all = [
        "inspect",
        "--adapter",
        "r/adapter",
        "--input",
        "rows.jsonl",
        "--method",
        "all",
    ];
    let jsonl = run(&bench, &[&all[..], &["--json", "-"]].concat());
    let values: Vec<Value> = jsonl
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(values.len(), 2);
    for (value, reward) in values.iter().zip([1.0, 0.0]) {
        let n = value["completion_ids"].as_array().unwrap().len();
        let tokens: Vec<&str> = value["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t.as_str().unwrap())
            .collect();
        assert_eq!(tokens.concat(), value["text"].as_str().unwrap());
        assert_eq!(value["reward"], reward);
        for key in [
            "logprobs",
            "entropies",
            "reference_logprobs",
            "residuals",
            "contrast_logprobs",
        ] {
            assert_eq!(value[key].as_array().unwrap().len(), n, "{key}");
        }
        let names: Vec<&String> = value["weights"].as_object().unwrap().keys().collect();
        let expected: Vec<&str> = METHODS.iter().map(|m| m.name()).collect();
        assert_eq!(names, expected);
        for name in expected {
            let weights = value["weights"][name].as_array().unwrap();
            let sum: f64 = weights.iter().map(|w| w.as_f64().unwrap()).sum();
            assert!(weights.len() == n && (sum - 1.0).abs() < 1e-6, "{name}");
        }
        // The two sides are told apart, although rewards are all that is given.
        assert_ne!(value["weights"]["delta"], value["weights"]["uniform"]);
    }
    // One method alone says what it says among others.
    let one = run(
        &bench,
        &[
            "inspect",
            "--adapter",
            "r/adapter",
            "--input",
            "rows.jsonl",
            "--method",
            "delta",
            "--json",
            "-",
        ],
    );
    let one: Value = serde_json::from_str(one.lines().next().unwrap()).unwrap();
    assert_eq!(one["weights"]["delta"], values[0]["weights"]["delta"]);

    // Another contrast prompt ranks the tokens otherwise, and touches nothing else.
    let other = [
        "--set",
        "credit.contrast_prompt=Compute 36 - 22.",
        "--json",
        "-",
    ];
    let other = run(&bench, &[&all[..], &other].concat());
    let other: Value = serde_json::from_str(other.lines().next().unwrap()).unwrap();
    assert_ne!(
        other["weights"]["contrast"],
        values[0]["weights"]["contrast"]
    );
    assert_eq!(other["weights"]["arca"], values[0]["weights"]["arca"]);

    let text = run(&bench, &[&all[..], &["--table"]].concat());
    assert!(!text.contains('\x1b') && text.contains("rows.jsonl:2"));
    let bands = text.lines().filter(|l| l.starts_with("arca ")).count();
    assert!(bands >= 4, "a caption and a band per row:\n{text}");
    run(&bench, &[&all[..], &["--html", "out.html"]].concat());
    let html = std::fs::read_to_string(bench.path().join("out.html")).unwrap();
    assert_eq!(html.matches("<section>").count(), 2 * METHODS.len());
    assert!(!html.contains("http"));
}

#[test]
fn replay_takes_every_method() {
    let bench = Bench::new();
    bench.train("r", &["optimizer.learning_rate=0.01"]);
    rows(&bench);
    // Replay wants ids: those that inspect reports.
    let jsonl = run(
        &bench,
        &[
            "inspect",
            "--adapter",
            "r/adapter",
            "--input",
            "rows.jsonl",
            "--json",
            "-",
        ],
    );
    let episodes: String = jsonl
        .lines()
        .map(|l| {
            let mut row: Value = serde_json::from_str(l).unwrap();
            row["group"] = json!("a");
            for key in ["logprobs", "reference_logprobs"] {
                row.as_object_mut().unwrap().remove(key);
            }
            format!("{row}\n")
        })
        .collect();
    std::fs::write(bench.path().join("episodes.jsonl"), episodes).unwrap();
    let mut norms = BTreeMap::new();
    for method in METHODS {
        let (name, set) = (method.name(), format!("credit.method={}", method.name()));
        let stats = run(
            &bench,
            &[
                "replay",
                "--adapter",
                "r/adapter",
                "--episodes",
                "episodes.jsonl",
                "--out",
                name,
                "--set",
                &set,
            ],
        );
        let stats: Value = serde_json::from_str(&stats).unwrap();
        let norm = stats["grad_norm"].as_f64().unwrap();
        assert!(norm > 0.0, "{name}: {stats}");
        norms.insert(name, norm);
        assert!(
            bench
                .path()
                .join(name)
                .join("gradients.safetensors")
                .exists()
        );
    }
    assert_ne!(norms["delta"], norms["uniform"]);
    assert_ne!(norms["contrast"], norms["uniform"]);
}
