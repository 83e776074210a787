//! Guards that the engine computes what transformers and PEFT compute, on
//! cases made by those in float64 (`fixtures/parity/README.md`): forward,
//! ARCA's norms, losses, every gradient, AdamW and greedy continuations.
//!
//! Tolerances are those of the cases' README: 10 to 30 times what stock
//! transformers in f32 differs from the same float64 values.

use arca::config::{LossConfig, LossType};
use arca::device::cpu::Cpu;
use arca::device::{Device, Slice};
use arca::episode::AdapterId;
use arca::loss::{Advantage, Objective, SequenceTerms, StepNormalizers};
use arca::model::batch::{Batch, PageTable};
use arca::model::buffers::KvCache;
use arca::model::engine::Engine;
use arca::ops::adamw::{AdamW, AdamWStep};
use arca::ops::decode::PAGE;
use arca::ops::sample::SampleRequest;

use crate::common::{
    Case, HIDDEN, Packed, Packing, case_names, gradients, max_abs, pack, rel_l2, whole,
};

/// Fails with all of a case's errors at once, and prints what was measured.
struct Check {
    case: String,
    failures: Vec<String>,
}

impl Check {
    fn new(case: &Case) -> Check {
        Check {
            case: case.name.clone(),
            failures: Vec::new(),
        }
    }

    fn at_most(&mut self, what: &str, error: f64, tolerance: f64) {
        println!(
            "{:<54} {what:<28} {error:9.2e} (<= {tolerance:.0e})",
            self.case
        );
        if error.is_nan() || error > tolerance {
            self.failures
                .push(format!("{what}: {error:.3e} > {tolerance:.0e}"));
        }
    }

    fn done(self) {
        assert!(
            self.failures.is_empty(),
            "{}: {:#?}",
            self.case,
            self.failures
        );
    }
}

const ALL_ROWS: Packing = Packing {
    share: 1,
    base: true,
    training: false,
};

/// Logits and post-norm states of every row, adapted rows and their base
/// twins in one batch, unshared and shared prompts.
#[test]
fn logits_and_states() {
    for name in case_names() {
        let case = Case::load(&name);
        let (mut engine, id) = case.engine::<f32>();
        let mut check = Check::new(&case);
        for share in [1, case.group_size] {
            let packed = pack(&case.sequences, Some(id), Packing { share, ..ALL_ROWS });
            let (states, logits) = engine.logits(packed.batch.clone()).unwrap();
            for (what, rows) in [("lora", &packed.rows), ("base", &packed.base_rows)] {
                let (h, v) = (case.shape.hidden_size, case.shape.vocab_size);
                let (mut worst_logit, mut got, mut expected) = (0f64, Vec::new(), Vec::new());
                for (s, rows) in rows.iter().enumerate() {
                    for (t, &row) in rows.iter().enumerate() {
                        let row = row as usize;
                        let reference = case.at_position(&format!("{what}_logits"), s, t);
                        let error = max_abs(&logits[row * v..(row + 1) * v], reference);
                        worst_logit = worst_logit.max(error);
                        got.extend_from_slice(&states[row * h..(row + 1) * h]);
                        expected.extend_from_slice(case.at_position(
                            &format!("{what}_h_post"),
                            s,
                            t,
                        ));
                    }
                }
                check.at_most(&format!("{what} logits, share {share}"), worst_logit, 2e-4);
                check.at_most(&format!("{what} h_post"), rel_l2(&got, &expected), 2e-5);
            }
        }
        check.done();
    }
}

/// Log-probs and entropies at the case's temperature, and ARCA's norms after
/// and before the final norm, of adapted rows beside base rows.
#[test]
fn signals() {
    for name in case_names() {
        let case = Case::load(&name);
        let (mut engine, id) = case.engine::<f32>();
        let mut check = Check::new(&case);
        let share = case.group_size;
        let packed = pack(&case.sequences, Some(id), Packing { share, ..ALL_ROWS });
        for (hidden, norms) in HIDDEN {
            let out = engine
                .run_packed(
                    packed.batch.clone(),
                    case.temperature(),
                    false,
                    Some(hidden),
                )
                .unwrap();
            for (what, pairs) in [("lora", &packed.pairs), ("base", &packed.base_pairs)] {
                let (mut logprob, mut entropy) = (0f64, 0f64);
                for (s, pairs) in pairs.iter().enumerate() {
                    let pairs = pairs.clone();
                    let reference = case.at_completion(&format!("{what}_logps"), s);
                    logprob = logprob.max(max_abs(&out.logprobs[pairs.clone()], reference));
                    let reference = case.at_completion(&format!("{what}_entropy"), s);
                    entropy = entropy.max(max_abs(&out.entropies[pairs], reference));
                }
                check.at_most(&format!("{what} log-probs"), logprob, 1e-4);
                check.at_most(&format!("{what} entropies"), entropy, 1e-4);
            }
            let mut worst = 0f64;
            let mut residuals = out.residuals.iter();
            for (s, rows) in packed.rows.iter().enumerate() {
                for t in 0..rows.len() {
                    let got = *residuals.next().unwrap() as f64;
                    let reference = case.at_position(norms, s, t)[0] as f64;
                    worst = worst.max((got / reference - 1.0).abs());
                }
            }
            check.at_most(norms, worst, 2e-4);
        }
        check.done();
    }
}

/// The case's loss in arca's terms.
fn objective(case: &Case) -> (LossConfig, usize) {
    let grpo = &case.json["grpo"];
    let optional = |key: &str| grpo[key].as_f64().map(|x| x as f32);
    let config = LossConfig {
        loss_type: match grpo["loss_type"].as_str().unwrap() {
            "grpo" => LossType::Grpo,
            "bnpo" => LossType::Bnpo,
            "dr_grpo" => LossType::DrGrpo,
            "dapo" => LossType::Dapo,
            "cispo" => LossType::Cispo,
            other => panic!("loss type {other}"),
        },
        beta: optional("beta").unwrap(),
        epsilon: optional("epsilon").unwrap(),
        epsilon_high: optional("epsilon_high"),
        delta: optional("delta"),
        bias_correction_kl: grpo["use_bias_correction_kl"].as_bool().unwrap(),
        ..LossConfig::default()
    };
    let length = grpo["max_completion_length"].as_u64().unwrap() as usize;
    (config, length)
}

/// Loss and coefficients of the step's sequences, given their log-probs.
fn loss(case: &Case, packed: &Packed, logprobs: &[f32]) -> (f64, Vec<f32>) {
    let (config, max_length) = objective(case);
    let objective = Objective::new(&config).unwrap();
    let tokens: Vec<usize> = case.sequences.iter().map(|s| s.completion.len()).collect();
    let normalizers = StepNormalizers::new(&tokens, &config, max_length).unwrap();
    let advantages = &case.reference("advantages").data;
    let (mut total, mut coefficients) = (0.0, vec![0f32; packed.batch.grad_pairs]);
    for (s, pairs) in packed.pairs.iter().enumerate() {
        let terms = SequenceTerms {
            logprobs: &logprobs[pairs.clone()],
            old_logprobs: Some(case.at_completion("old_logps", s)),
            reference_logprobs: Some(case.at_completion("ref_logps", s)),
            sampler_ratio: None,
            advantage: Advantage::Sequence(advantages[s]),
            masked: false,
        };
        let out = objective
            .sequence(&terms, normalizers.of(s).unwrap())
            .unwrap();
        total += out.loss;
        coefficients[pairs.clone()].copy_from_slice(&out.coefficients);
    }
    (total, coefficients)
}

/// The whole step as one batch, prompts shared, with base rows beside it:
/// (loss, gradients).
fn step(case: &Case, engine: &mut Engine<Cpu<f32>>, id: AdapterId) -> (f64, Vec<f32>) {
    let how = Packing {
        share: case.group_size,
        base: true,
        training: true,
    };
    let packed = pack(&case.sequences, Some(id), how);
    let mut value = 0.0;
    let (logprobs, grads) = gradients(engine, id, &packed.batch, case.temperature(), |lp| {
        loss(case, &packed, lp).1
    });
    value += loss(case, &packed, &logprobs).0;
    (value, grads)
}

/// Loss and every LoRA factor's gradient.
#[test]
fn loss_and_gradients() {
    for name in case_names() {
        let case = Case::load(&name);
        let (mut engine, id) = case.engine::<f32>();
        let mut check = Check::new(&case);
        let (value, grads) = step(&case, &mut engine, id);
        let expected = case.number("/expected/loss");
        let error = (value - expected).abs() / expected.abs().max(1.0);
        check.at_most("loss", error, 1e-4);
        let reference = case.per_parameter("grad");
        let (mut worst, mut which) = (0f64, String::new());
        for (name, offset, rows, cols) in case.layout.tensors() {
            let at = offset..offset + rows * cols;
            let error = rel_l2(&grads[at.clone()], &reference[at]);
            if error.is_nan() || error >= worst {
                (worst, which) = (error, name);
            }
        }
        println!("worst gradient: {which}");
        check.at_most("gradients, worst tensor", worst, 2e-4);
        check.at_most("gradients, all", rel_l2(&grads, &reference), 2e-4);
        let norm = grads
            .iter()
            .map(|g| *g as f64 * *g as f64)
            .sum::<f64>()
            .sqrt();
        let expected = case.number("/expected/grad_global_norm");
        check.at_most("gradient norm", (norm / expected - 1.0).abs(), 2e-4);
        check.done();
    }
}

/// One AdamW step from zero moments and one from given ones, on arca's own
/// gradients.
#[test]
fn adamw() {
    for name in case_names() {
        let case = Case::load(&name);
        let (mut engine, id) = case.engine::<f32>();
        let mut check = Check::new(&case);
        let (_, grads) = step(&case, &mut engine, id);
        let zeros = vec![0f32; case.layout.len()];
        let (m0, v0) = (
            case.per_parameter("adamw_warm.m0"),
            case.per_parameter("adamw_warm.v0"),
        );
        let lr = case.number("/adamw/lr");
        for (kind, m, v) in [("fresh", &zeros, &zeros), ("warm", &m0, &v0)] {
            let constants = AdamWStep {
                learning_rate: lr,
                beta1: case.number("/adamw/beta1"),
                beta2: case.number("/adamw/beta2"),
                epsilon: case.number("/adamw/eps"),
                weight_decay: case.number("/adamw/weight_decay"),
                step: case.number(&format!("/adamw/{kind}_step_number")) as u64,
                clip: case.number("/adamw/clip_coef") as f32,
            };
            engine.set_params(id, &case.params).unwrap();
            update(&mut engine, id, &constants, &grads, m, v);
            let params = engine.params(id).unwrap();
            let expected = case.per_parameter(&format!("adamw_{kind}.param"));
            let mut worst = 0f64;
            for (_, offset, rows, cols) in case.layout.tensors() {
                let at = offset..offset + rows * cols;
                let top = grads[at.clone()].iter().fold(0f32, |m, g| m.max(g.abs()));
                for i in at {
                    // A fresh step is about the gradient's sign: where that is
                    // rounding, so is the step.
                    if kind == "warm" || grads[i].abs() > 1e-4 * top {
                        worst = worst.max((params[i] as f64 - expected[i] as f64).abs());
                    }
                }
            }
            let tolerance = if kind == "warm" { 2e-3 } else { 0.02 };
            check.at_most(&format!("AdamW {kind}"), worst, tolerance * lr);
        }
        check.done();
    }
}

fn update(
    engine: &mut Engine<Cpu<f32>>,
    id: AdapterId,
    constants: &AdamWStep,
    grads: &[f32],
    m: &[f32],
    v: &[f32],
) {
    engine
        .update_params(id, |device, ctx, params| {
            let load = |values: &[f32]| {
                let mut buf = device.alloc::<f32>(values.len())?;
                device.upload(ctx, whole::<f32>(&mut buf), values)?;
                anyhow::Ok(buf)
            };
            let (grads, mut m, mut v) = (load(grads)?, load(m)?, load(v)?);
            let len = grads.data.len();
            let slice = Slice {
                buf: &grads,
                start: 0,
                len,
            };
            let (m, v) = (whole::<f32>(&mut m), whole::<f32>(&mut v));
            device.adamw(ctx, constants, slice, whole::<f32>(params), m, v)
        })
        .unwrap();
}

/// Greedy continuations through KV pages: prefill, then one row at a time.
/// They may differ only where the two likeliest tokens are within 1e-3.
#[test]
fn greedy_continuations() {
    for name in case_names() {
        let case = Case::load(&name);
        let (mut engine, id) = case.engine::<f32>();
        for (kind, adapter) in [("base", None), ("lora", Some(id))] {
            let greedy = &case.json["greedy"][kind];
            let ids =
                |key: &str| -> Vec<u32> { serde_json::from_value(greedy[key].clone()).unwrap() };
            let margins: Vec<f64> =
                serde_json::from_value(greedy["top2_logit_margin"].clone()).unwrap();
            let (prompt, expected) = (ids("prompt"), ids("tokens"));
            let got = continuation(&mut engine, adapter, &prompt, expected.len());
            if let Some(at) = (0..got.len()).find(|&i| got[i] != expected[i]) {
                assert!(
                    margins[at] < 1e-3,
                    "{name} {kind}: {got:?}, not {expected:?}"
                );
            }
        }
    }
}

fn continuation(
    engine: &mut Engine<Cpu<f32>>,
    adapter: Option<AdapterId>,
    prompt: &[u32],
    tokens: usize,
) -> Vec<u32> {
    let shape = engine.shape().clone();
    let pages = (prompt.len() + tokens).div_ceil(PAGE);
    let mut cache = KvCache::new(&engine.device, &shape, pages).unwrap();
    let mut out: Vec<u32> = Vec::new();
    for i in 0..tokens {
        let mut batch = Batch::default();
        let new = if i == 0 { prompt } else { &out[i - 1..] };
        batch.push_segment(new, &[], adapter);
        let first = if i == 0 { 0 } else { prompt.len() + i - 1 };
        batch.positions = (first..first + new.len()).map(|p| p as u32).collect();
        batch.pages = vec![PageTable {
            own: (0..pages as u32).collect(),
            ..PageTable::default()
        }];
        let request = SampleRequest {
            row: new.len() as u32 - 1,
            key: 0,
            position: i as u32,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
        };
        let drawn = engine.run_paged(batch, &mut cache, &[request]).unwrap();
        assert!(!drawn[0].invalid);
        out.push(drawn[0].token);
    }
    out
}
