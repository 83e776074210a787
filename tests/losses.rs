//! Guards the arithmetic of the losses and of token credit: against numbers
//! printed by TRL 1.16.0 (fixtures/trl), and for every combination of options
//! against a plain restatement of its formulas, differentiated numerically.

use arca::config::{CreditConfig, LossConfig, LossType, RatioLevel, SamplerCorrection};
use arca::credit::{CreditAssigner, Spread, advantage_per_token, effective_token_ratio, gini};
use arca::episode::TokenSignals;
use arca::loss::{
    Advantage, Aggregation, LossStats, Normalizer, Objective, SequenceTerms, StepNormalizers,
    Surrogate, sampler_ratio,
};
use proptest::prelude::*;
use serde::Deserialize;

fn fixture<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    let path = crate::common::fixtures().join("trl").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

type Rows<T> = Vec<Vec<T>>;

#[derive(Deserialize)]
struct Golden {
    eps_low: f32,
    eps_high: f32,
    ga: usize,
    steps_per_generation: usize,
    num_items_in_batch: usize,
    max_completion_length: usize,
    mask: Rows<u8>,
    new: Rows<f32>,
    old: Rows<f32>,
    #[serde(rename = "ref")]
    reference: Rows<f32>,
    sampling: Rows<f32>,
    adv_seq: Vec<f32>,
    adv_tok: Rows<f32>,
    is_ratio_tok: Rows<f32>,
    cases: Vec<GoldenCase>,
}

#[derive(Deserialize)]
struct GoldenCase {
    cfg: GoldenConfig,
    advantages: String,
    old: String,
    loss: f64,
    grad: Rows<f64>,
    metrics: std::collections::BTreeMap<String, f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GoldenConfig {
    loss_type: String,
    importance_sampling_level: RatioLevel,
    #[serde(default)]
    beta: f32,
    use_bias_correction_kl: Option<bool>,
    delta: Option<f32>,
    epsilon_high: Option<f32>,
    #[serde(default)]
    use_vllm: bool,
    #[serde(default)]
    vllm_importance_sampling_correction: bool,
}

/// SAPO at TRL's default temperatures.
const SAPO: Surrogate = Surrogate::Sigmoid {
    positive: 1.0,
    negative: 1.05,
};

/// The objective of a loss type by its TRL name.
fn objective(name: &str, mut config: LossConfig) -> Objective {
    config.loss_type = match name {
        "grpo" | "sapo" => LossType::Grpo,
        "bnpo" => LossType::Bnpo,
        "dr_grpo" => LossType::DrGrpo,
        "dapo" => LossType::Dapo,
        "cispo" => LossType::Cispo,
        other => panic!("loss type {other}"),
    };
    let mut objective = Objective::new(&config).unwrap();
    if name == "sapo" {
        objective.surrogate = SAPO;
    }
    objective
}

fn close(value: f64, expected: f64, bound: f64, what: &str) {
    let difference = (value - expected).abs();
    assert!(
        difference <= bound * expected.abs().max(1.0),
        "{what}: {value} but expected {expected} (off by {difference:e})"
    );
}

#[test]
fn trl_loss_gradient_and_metrics() {
    let g: Golden = fixture("grpo_golden.json");
    let lengths: Vec<usize> = g
        .mask
        .iter()
        .map(|m| m.iter().filter(|&&m| m == 1).count())
        .collect();
    let normalizer = Normalizer {
        sequences: lengths.len(),
        tokens: lengths.iter().sum(),
        generation_tokens: g.num_items_in_batch,
        max_completion_length: g.max_completion_length,
        gradient_accumulation: g.ga,
        steps_per_generation: g.steps_per_generation,
    };
    let mut worst = 0.0f64;
    for case in &g.cases {
        let cfg = &case.cfg;
        let what = format!("{cfg:?} {} old {}", case.advantages, case.old);
        let objective = objective(
            &cfg.loss_type,
            LossConfig {
                epsilon: g.eps_low,
                epsilon_high: Some(cfg.epsilon_high.unwrap_or(g.eps_high)),
                delta: cfg.delta,
                beta: cfg.beta,
                bias_correction_kl: cfg.use_bias_correction_kl.unwrap_or(true),
                importance_sampling_level: cfg.importance_sampling_level,
                ..LossConfig::default()
            },
        );
        let corrected = cfg.use_vllm && cfg.vllm_importance_sampling_correction;
        let mut loss = 0.0;
        let mut stats = LossStats::default();
        for (i, &n) in lengths.iter().enumerate() {
            let out = objective
                .sequence(
                    &SequenceTerms {
                        logprobs: &g.new[i][..n],
                        old_logprobs: (case.old == "given").then_some(&g.old[i][..n]),
                        reference_logprobs: Some(&g.reference[i][..n]),
                        sampler_ratio: corrected.then_some(&g.is_ratio_tok[i][..n]),
                        advantage: match case.advantages.as_str() {
                            "seq" => Advantage::Sequence(g.adv_seq[i]),
                            _ => Advantage::Token(&g.adv_tok[i][..n]),
                        },
                        masked: false,
                    },
                    &normalizer,
                )
                .unwrap();
            loss += out.loss;
            stats.merge(&out.stats);
            for (t, &expected) in case.grad[i].iter().enumerate() {
                let c = out.coefficients.get(t).map_or(0.0, |&c| f64::from(c));
                worst = worst.max((c - expected).abs());
                close(c, expected, 2e-6, &format!("{what}: gradient {i},{t}"));
            }
        }
        close(loss, case.loss, 2e-6, &format!("{what}: loss"));
        let metrics = stats.metrics();
        let get = |name: &str| metrics.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        for (name, &expected) in &case.metrics {
            let value = get(name).unwrap_or_else(|| panic!("{what}: no {name}"));
            close(value, expected, 1e-6, &format!("{what}: {name}"));
        }
        for name in ["kl", "clip_ratio/low_mean", "cispo_clip_ratio"] {
            let (ours, theirs) = (get(name).is_some(), case.metrics.contains_key(name));
            assert_eq!(ours, theirs, "{what}: {name} measured or not");
        }
    }
    assert_eq!(g.cases.len(), 124, "a fixture lost rows");
    println!("{} rows, worst gradient error {worst:e}", g.cases.len());
}

#[test]
fn trl_sampler_ratio() {
    let g: Golden = fixture("grpo_golden.json");
    let config = LossConfig {
        sampler_correction: SamplerCorrection::Truncate,
        ..LossConfig::default()
    };
    for (i, mask) in g.mask.iter().enumerate() {
        let ratio = sampler_ratio(&g.old[i], &g.sampling[i], &config).unwrap();
        for (t, (r, &m)) in ratio.unwrap().iter().zip(mask).enumerate() {
            if m == 1 {
                let expected = f64::from(g.is_ratio_tok[i][t]);
                close(f64::from(*r), expected, 1e-6, &format!("ratio {i},{t}"));
            }
        }
    }
}

#[derive(Deserialize)]
struct CreditGolden {
    mask: Rows<u8>,
    new: Rows<f32>,
    adv: Vec<f32>,
    cases: Vec<CreditCase>,
}

#[derive(Deserialize)]
struct CreditCase {
    score: String,
    p: f32,
    raw: Rows<f32>,
    weights: Rows<f64>,
    loss: f64,
    grad: Rows<f64>,
    gini: Vec<f64>,
    eff_ratio: Vec<f64>,
}

#[test]
fn trl_with_token_credit() {
    let g: CreditGolden = fixture("arca_golden.json");
    assert_eq!(g.cases.len(), 8, "a fixture lost rows");
    let lengths: Vec<usize> = g
        .mask
        .iter()
        .map(|m| m.iter().filter(|&&m| m == 1).count())
        .collect();
    let config = LossConfig::default();
    let objective = objective("grpo", config.clone());
    let normalizers = StepNormalizers::new(&lengths, &config, 16).unwrap();
    for case in &g.cases {
        let what = format!("{} exponent {}", case.score, case.p);
        let spread = Spread::new(case.p, 1e-8, 0.0).unwrap();
        let mut loss = 0.0;
        for (i, &n) in lengths.iter().enumerate() {
            let w = spread.weights(&case.raw[i][..n]).unwrap();
            assert_eq!(w.fallback, case.raw[i][..n].iter().all(|&a| a == 0.0));
            for (t, weight) in w.weights.iter().enumerate() {
                close(
                    *weight,
                    case.weights[i][t],
                    1e-9,
                    &format!("{what}: weight {i},{t}"),
                );
            }
            close(
                gini(&w.weights),
                case.gini[i],
                1e-8,
                &format!("{what}: gini {i}"),
            );
            let ratio = effective_token_ratio(&w.weights);
            close(
                ratio,
                case.eff_ratio[i],
                1e-7,
                &format!("{what}: ratio {i}"),
            );

            let advantages = advantage_per_token(g.adv[i], &w.weights);
            let terms = SequenceTerms {
                logprobs: &g.new[i][..n],
                old_logprobs: None,
                reference_logprobs: None,
                sampler_ratio: None,
                advantage: Advantage::Token(&advantages),
                masked: false,
            };
            let out = objective
                .sequence(&terms, normalizers.of(i).unwrap())
                .unwrap();
            loss += out.loss;
            for (t, &c) in out.coefficients.iter().enumerate() {
                let what = format!("{what}: gradient {i},{t}");
                close(f64::from(c), case.grad[i][t], 1e-6, &what);
                // The paper's weighted policy gradient: -A_i w_it / B.
                let plain = -f64::from(g.adv[i]) * w.weights[t] / lengths.len() as f64;
                close(f64::from(c), plain, 1e-7, &what);
            }
        }
        close(loss, case.loss, 1e-6, &format!("{what}: loss"));
    }
}

#[test]
fn uniform_credit_is_plain_grpo_bit_for_bit() {
    let g: Golden = fixture("grpo_golden.json");
    let assigner = CreditAssigner::new(&CreditConfig::default()).unwrap();
    let normalizer = Normalizer {
        sequences: 6,
        tokens: 54,
        generation_tokens: 54,
        max_completion_length: 16,
        gradient_accumulation: 1,
        steps_per_generation: 1,
    };
    let objective = objective("grpo", LossConfig::default());
    for i in 0..g.new.len() {
        let signals = TokenSignals {
            logprobs: g.new[i].clone(),
            ..TokenSignals::default()
        };
        let weights = assigner.weights(&signals, 0).unwrap().weights;
        let per_token = advantage_per_token(g.adv_seq[i], &weights);
        let run = |advantage| {
            let terms = SequenceTerms {
                logprobs: &g.new[i],
                old_logprobs: Some(&g.old[i]),
                reference_logprobs: None,
                sampler_ratio: None,
                advantage,
                masked: false,
            };
            objective.sequence(&terms, &normalizer).unwrap()
        };
        let plain = run(Advantage::Sequence(g.adv_seq[i]));
        assert_eq!(run(Advantage::Token(&per_token)), plain);
    }
}

/// A step with every option drawn at random.
#[derive(Clone, Debug)]
struct Step {
    loss: &'static str,
    level: RatioLevel,
    beta: f64,
    bias_correction: bool,
    delta: Option<f64>,
    per_token: bool,
    with_old: bool,
    with_sampler: bool,
    accumulation: usize,
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    new: Vec<f32>,
    old: Vec<f32>,
    reference: Vec<f32>,
    sampler: Vec<f32>,
    advantages: Vec<f32>,
    masked: bool,
}

const EPSILON: f64 = 0.25;
const EPSILON_HIGH: f64 = 0.375;
const CAP: f64 = 1.125;
const MAX_LENGTH: usize = 7;

impl Step {
    fn eps_high(&self) -> f64 {
        if self.loss == "cispo" {
            CAP
        } else {
            EPSILON_HIGH
        }
    }

    fn objective(&self) -> Objective {
        objective(
            self.loss,
            LossConfig {
                epsilon: EPSILON as f32,
                epsilon_high: Some(self.eps_high() as f32),
                delta: self.delta.map(|d| d as f32),
                beta: self.beta as f32,
                bias_correction_kl: self.bias_correction,
                importance_sampling_level: self.level,
                ..LossConfig::default()
            },
        )
    }

    fn advantage<'a>(&self, row: &'a Row) -> Advantage<'a> {
        if self.per_token {
            Advantage::Token(&row.advantages)
        } else {
            Advantage::Sequence(row.advantages[0])
        }
    }

    fn normalizers(&self) -> StepNormalizers {
        let tokens: Vec<usize> = self
            .rows
            .iter()
            .map(|r| if r.masked { 0 } else { r.new.len() })
            .collect();
        let config = LossConfig {
            gradient_accumulation: self.accumulation,
            ..LossConfig::default()
        };
        StepNormalizers::new(&tokens, &config, MAX_LENGTH).unwrap()
    }

    /// One forward of `rows` as the engine would see them.
    fn evaluate(&self, i: usize) -> arca::loss::SequenceLoss {
        let row = &self.rows[i];
        let terms = SequenceTerms {
            logprobs: &row.new,
            old_logprobs: self.with_old.then_some(&row.old),
            reference_logprobs: Some(&row.reference),
            sampler_ratio: self.with_sampler.then_some(&row.sampler),
            advantage: self.advantage(row),
            masked: row.masked,
        };
        let normalizers = self.normalizers();
        let normalizer = normalizers.of(i).unwrap();
        self.objective().sequence(&terms, normalizer).unwrap()
    }

    fn old(&self, i: usize) -> Vec<f64> {
        let row = &self.rows[i];
        wide(if self.with_old { &row.old } else { &row.new })
    }

    fn log_weights(&self, i: usize, new: &[f64]) -> Vec<f64> {
        let difference: Vec<f64> = new.iter().zip(self.old(i)).map(|(n, o)| n - o).collect();
        match self.level {
            RatioLevel::Token => difference,
            RatioLevel::Sequence => {
                vec![difference.iter().sum::<f64>() / new.len() as f64; new.len()]
            }
        }
    }

    /// TRL's `_compute_loss`, restated over whole rows: the total loss of the
    /// step with `new` in place of the current log-probs, everything detached
    /// held at the rows' own values.
    fn total_loss(&self, new: &[Vec<f64>]) -> f64 {
        let mut per_token = Vec::new();
        for (i, row) in self.rows.iter().enumerate() {
            let held = self.log_weights(i, &wide(&row.new));
            let moving = self.log_weights(i, &new[i]);
            let losses: Vec<f64> = (0..row.new.len())
                .map(|t| {
                    let r = moving[t].exp();
                    let a = f64::from(row.advantages[if self.per_token { t } else { 0 }]);
                    let mut l = match self.loss {
                        "cispo" => -held[t].exp().min(CAP) * a * new[i][t],
                        "sapo" => {
                            let tau = if a > 0.0 { 1.0 } else { 1.05 };
                            -4.0 / tau / (1.0 + (-tau * (r - 1.0)).exp()) * a
                        }
                        _ => {
                            let bounded = self.delta.map_or(r, |d| r.min(d));
                            let clipped = r.clamp(1.0 - EPSILON, 1.0 + EPSILON_HIGH);
                            -(bounded * a).min(clipped * a)
                        }
                    };
                    if self.with_sampler {
                        l *= f64::from(row.sampler[t]);
                    }
                    let d = f64::from(row.reference[t]) - new[i][t];
                    let mut kl = d.exp() - d - 1.0;
                    if self.bias_correction {
                        kl *= r;
                    }
                    l + self.beta * kl
                })
                .collect();
            per_token.push(if row.masked { Vec::new() } else { losses });
        }
        let count = |rows: &[Vec<f64>]| rows.iter().map(Vec::len).sum::<usize>().max(1) as f64;
        let sum = |rows: &[Vec<f64>]| rows.iter().flatten().sum::<f64>();
        let ga = self.accumulation as f64;
        per_token
            .chunks(self.rows.len() / self.accumulation)
            .map(|micro| match self.loss {
                "grpo" | "sapo" => {
                    let means = micro
                        .iter()
                        .map(|r| r.iter().sum::<f64>() / r.len().max(1) as f64);
                    means.sum::<f64>() / micro.len() as f64 / ga
                }
                "bnpo" => sum(micro) / count(micro) / ga,
                "dr_grpo" => sum(micro) / (micro.len() * MAX_LENGTH) as f64 / ga,
                _ => sum(micro) / count(&per_token),
            })
            .sum()
    }

    /// Where the loss has corners no difference quotient can be trusted.
    fn near_a_corner(&self) -> bool {
        let corners = [
            Some(1.0 - EPSILON),
            Some(1.0 + self.eps_high()),
            Some(CAP),
            self.delta,
        ];
        self.rows.iter().enumerate().any(|(i, row)| {
            self.log_weights(i, &wide(&row.new))
                .iter()
                .any(|w| corners.iter().flatten().any(|c| (w.exp() - c).abs() < 1e-3))
        })
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn row() -> impl Strategy<Value = Row> {
    let token = (
        -4.0f32..-0.01,
        -0.7f32..0.7,
        -0.7f32..0.7,
        0.0f32..2.0,
        -2.0f32..2.0,
    );
    (prop::collection::vec(token, 1..MAX_LENGTH), 0..5).prop_map(|(tokens, masked)| Row {
        new: tokens.iter().map(|t| t.0).collect(),
        old: tokens.iter().map(|t| t.0 + t.1).collect(),
        reference: tokens.iter().map(|t| t.0 + t.2).collect(),
        sampler: tokens.iter().map(|t| t.3).collect(),
        advantages: tokens.iter().map(|t| t.4).collect(),
        masked: masked == 0,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let loss = prop::sample::select(vec!["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"]);
    let level = prop::sample::select(vec![RatioLevel::Token, RatioLevel::Sequence]);
    let numbers = (
        prop::sample::select(vec![0.0, 0.0625, 0.5]),
        prop::sample::select(vec![None, Some(1.0625), Some(1.5)]),
        prop::sample::select(vec![1usize, 2, 3, 6]),
    );
    let switches = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let rows = prop::collection::vec(row(), 6);
    (loss, level, numbers, switches, rows).prop_map(|(loss, level, numbers, switches, rows)| Step {
        loss,
        level,
        beta: numbers.0,
        delta: numbers.1,
        accumulation: numbers.2,
        bias_correction: switches.0,
        per_token: switches.1,
        with_old: switches.2,
        with_sampler: switches.3,
        rows,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn coefficients_are_the_derivative_of_the_whole_loss(step in step()) {
        let new: Vec<Vec<f64>> = step.rows.iter().map(|r| wide(&r.new)).collect();
        let parts: Vec<_> = (0..step.rows.len()).map(|i| step.evaluate(i)).collect();
        let loss: f64 = parts.iter().map(|p| p.loss).sum();
        let expected = step.total_loss(&new);
        prop_assert!((loss - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{} {}", loss, expected);

        prop_assume!(!step.near_a_corner());
        const H: f64 = 1e-5;
        for (i, part) in parts.iter().enumerate() {
            prop_assert_eq!(part.coefficients.len(), new[i].len());
            for (t, &c) in part.coefficients.iter().enumerate() {
                let shifted = |h: f64| {
                    let mut new = new.clone();
                    new[i][t] += h;
                    step.total_loss(&new)
                };
                let slope = (shifted(H) - shifted(-H)) / (2.0 * H);
                prop_assert!(
                    (f64::from(c) - slope).abs() < 1e-6 * (1.0 + slope.abs()),
                    "row {} token {}: {} but slope {}", i, t, c, slope
                );
            }
        }
    }

    /// What a step reports does not depend on how its sequences were grouped.
    #[test]
    fn statistics_merge(step in step(), cut in 0usize..=6) {
        let parts: Vec<_> = (0..step.rows.len()).map(|i| step.evaluate(i).stats).collect();
        let merged = |range: std::ops::Range<usize>| {
            let mut total = LossStats::default();
            parts[range].iter().for_each(|p| total.merge(p));
            total
        };
        let whole = merged(0..6);
        let mut split = merged(0..cut);
        split.merge(&merged(cut..6));
        let (whole, split) = (whole.metrics(), split.metrics());
        prop_assert_eq!(whole.len(), split.len());
        for ((name, a), (_, b)) in whole.iter().zip(&split) {
            prop_assert!((a - b).abs() <= 1e-12 * (1.0 + a.abs()), "{}: {} {}", name, a, b);
        }
    }
}

#[test]
fn loss_types_divide_as_trl_does() {
    let aggregation = |name| objective(name, LossConfig::default()).aggregation;
    assert_eq!(aggregation("grpo"), Aggregation::SequenceMean);
    assert_eq!(aggregation("bnpo"), Aggregation::TokenMean);
    assert_eq!(aggregation("dr_grpo"), Aggregation::FixedLength);
    assert_eq!(aggregation("dapo"), Aggregation::GenerationTokens);
    assert_eq!(aggregation("cispo"), Aggregation::GenerationTokens);
}
