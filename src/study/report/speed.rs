//! Speed and memory by group.

use super::estimate::Estimate;
use super::group::Group;
use super::load::Run;

/// Means over a group's runs; `None` where not measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Speed {
    /// Seconds per step.
    pub step: Option<f64>,
    /// Completion tokens per second: all, in rollouts, in updates.
    pub tokens_per_second: [Option<f64>; 3],
    /// The highest peak memory in bytes.
    pub peak_bytes: Option<f64>,
    /// Completion tokens of a run.
    pub tokens: Option<f64>,
    /// Seconds of training of a run.
    pub seconds: Option<f64>,
}

/// The speed of one group.
pub fn speed(group: &Group, runs: &[Run]) -> Speed {
    let members = || group.runs.iter().map(|&i| &runs[i]);
    let mean = |of: &dyn Fn(&Run) -> Option<f64>| {
        Estimate::of(members().filter_map(of)).map(|estimate| estimate.mean)
    };
    let peak = |run: &Run| {
        let logged = run.series.points("perf/peak_bytes").map(|p| p.1);
        run.outcome
            .peak_bytes
            .into_iter()
            .chain(logged)
            .reduce(f64::max)
    };
    Speed {
        step: mean(&|r| r.series.mean("train/step_time")),
        tokens_per_second: [
            "perf/tokens_per_second",
            "perf/rollout_tokens_per_second",
            "perf/train_tokens_per_second",
        ]
        .map(|key| mean(&|r| r.series.mean(key))),
        peak_bytes: members().filter_map(peak).reduce(f64::max),
        tokens: mean(&|r| r.outcome.tokens.or(r.series.last("train/num_tokens"))),
        seconds: mean(&|r| {
            let total = r.series.running_total("train/step_time");
            r.outcome.seconds.or(total.last().map(|p| p.1))
        }),
    }
}
