//! What a step's metrics are made of, under the names researchers know.

use std::time::Instant;

use serde_json::{Value, json};

use crate::config::Config;
use crate::credit::{Alarm, Concentration, CreditAssigner, Placement, TokenClasses, Watch, alarm};
use crate::episode::{Episode, FinishReason, Group};
use crate::train::metrics::Metrics;
use crate::train::step::Sampled;
use crate::train::update::{SequenceState, UpdateStats};

/// Completion tokens of a step.
pub fn completion_tokens(groups: &[Group]) -> usize {
    groups
        .iter()
        .flat_map(|g| &g.episodes)
        .map(|e| e.completion_ids.len())
        .sum()
}

/// Per-token arrays of one completion, for `log.token_traces`.
pub fn trace(row: &mut Value, e: &Episode, state: &SequenceState) {
    row["prompt_ids"] = json!(e.prompt_ids);
    row["completion_ids"] = json!(e.completion_ids);
    row["logprobs"] = json!(e.logprobs);
    row["entropies"] = json!(state.signals.entropies);
    row["reference_logprobs"] = json!(state.signals.reference_logprobs);
    row["residuals"] = json!(state.signals.residuals);
    if !state.signals.contrast_logprobs.is_empty() {
        row["contrast_logprobs"] = json!(state.signals.contrast_logprobs);
    }
    row["weights"] = json!(state.weights.weights);
}

/// Where a step's credit lies, and whether it degenerates.
pub struct CreditReport {
    classes: TokenClasses,
    watch: Watch,
    /// Of the residual; 0: none.
    pub noise_floor: f64,
}

impl CreditReport {
    /// Nothing seen yet, and no noise floor.
    pub fn new(classes: TokenClasses) -> Self {
        CreditReport {
            classes,
            watch: Watch::default(),
            noise_floor: 0.0,
        }
    }

    /// The step's metrics, from scored sequences; what there is to warn of.
    pub fn step(
        &mut self,
        m: &mut Metrics,
        credit: &CreditAssigner,
        step: usize,
        groups: &[Group],
        states: &[SequenceState],
    ) -> Vec<String> {
        let start = Instant::now();
        let mut placement = Placement::default();
        let episodes = groups.iter().flat_map(|g| &g.episodes);
        for (e, state) in episodes.zip(states) {
            if !state.weights.weights.is_empty() {
                let classes = self.classes.of(&e.completion_ids);
                placement.add(credit, &state.weights, &state.signals, &classes);
            }
        }
        m.extend(placement.metrics());
        let mut warnings = Vec::new();
        let method = credit.method().name();
        if let (Some(gini), Some(effective_token_ratio), Some(max_weight)) = (
            m.get("credit/gini"),
            m.get("credit/effective_token_ratio"),
            m.get("credit/max_weight"),
        ) {
            let mean = Concentration {
                gini,
                effective_token_ratio,
                max_weight,
            };
            let meant = method == "uniform" || credit.warming_up(step);
            let raised = if meant { Alarm::None } else { alarm(&mean) };
            m.set("credit/alarm", f64::from(raised as u8));
            warnings.extend(self.watch.weights(method, raised, &mean));
        }
        m.set("credit/residual_noise_floor", self.noise_floor);
        if let Some(residual) = m.get("credit/residual_norm_mean")
            && self.noise_floor > 0.0
        {
            m.set("credit/residual_to_noise", residual / self.noise_floor);
            warnings.extend(self.watch.residual(residual, self.noise_floor));
        }
        m.set("time/diagnostics", start.elapsed().as_secs_f64());
        warnings
    }
}

/// Rewards and lengths of a step.
pub fn rollout_metrics(m: &mut Metrics, sampled: &Sampled, names: &[&str], config: &Config) {
    let episodes: Vec<_> = sampled.groups.iter().flat_map(|g| &g.episodes).collect();
    let of = |f: &dyn Fn(&&Episode) -> f64| -> Vec<f64> { episodes.iter().map(f).collect() };
    let (mean, std) = mean_std(&of(&|e| f64::from(e.reward)));
    m.set("train/reward", mean);
    m.set("train/reward_std", std);
    let flat = sampled.groups.iter().filter(|g| g.zero_variance()).count();
    m.set(
        "train/frac_reward_zero_std",
        flat as f64 / sampled.groups.len().max(1) as f64,
    );
    for (i, name) in names.iter().enumerate() {
        let (mean, std) = mean_std(&of(&|e| f64::from(e.rewards[i])));
        m.set(format!("train/rewards/{name}/mean"), mean);
        m.set(format!("train/rewards/{name}/std"), std);
    }
    let all = of(&|e| e.completion_ids.len() as f64);
    let ended: Vec<f64> = episodes
        .iter()
        .filter(|e| e.finish == FinishReason::Stop)
        .map(|e| e.completion_ids.len() as f64)
        .collect();
    for (what, lengths) in [("", &all), ("terminated_", &ended)] {
        // TRL reports 0 where no completion ended by itself.
        let fold = |f: fn(f64, f64) -> f64| lengths.iter().copied().reduce(f).unwrap_or(0.0);
        m.set(
            format!("train/completions/mean_{what}length"),
            mean_std(lengths).0,
        );
        m.set(
            format!("train/completions/min_{what}length"),
            fold(f64::min),
        );
        m.set(
            format!("train/completions/max_{what}length"),
            fold(f64::max),
        );
    }
    let cut = episodes.len() - ended.len();
    m.set(
        "train/completions/clipped_ratio",
        cut as f64 / episodes.len().max(1) as f64,
    );
    m.set("time/rollout", sampled.rollout.as_secs_f64());
    m.set("time/reward", sampled.reward.as_secs_f64());
    m.set("time/reward_work", sampled.reward_work.as_secs_f64());
    m.set(
        "perf/rollout_tokens_per_second",
        sampled.tokens as f64 / sampled.rollout.as_secs_f64().max(1e-9),
    );
    if !config.reward.command.is_empty() {
        m.set("train/rewards/timed_out", sampled.timed_out as f64);
    }
}

/// What the first iteration found out.
pub fn update_metrics(m: &mut Metrics, stats: &UpdateStats) {
    for (name, value) in stats.diagnostics.metrics() {
        m.set(name, value);
    }
    m.set(
        "credit/scored_frac",
        stats.scored_sequences as f64 / stats.sequences.max(1) as f64,
    );
    if let Some(entropy) = stats.entropy.mean() {
        m.set("train/entropy", entropy);
    }
    if let Some(mean) = stats.logprob_difference.mean() {
        m.set("train/sampling/sampling_logp_difference/mean", mean);
        m.set(
            "train/sampling/sampling_logp_difference/max",
            stats.logprob_difference.max,
        );
    }
}

/// Mean and unbiased standard deviation.
fn mean_std(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mean = values.iter().sum::<f64>() / n;
    let sum: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (
        mean,
        if n > 1.0 {
            (sum / (n - 1.0)).sqrt()
        } else {
            0.0
        },
    )
}
