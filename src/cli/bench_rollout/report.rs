//! What a rollout bench found, as a table and as JSON.

use serde_json::{Value, json};

use super::{Timed, Workload};
use crate::cli::bench::measure::{Findings, Table, json_of, median, mib, with};
use crate::model::config::ModelShape;
use crate::profile::roof::Roof;

/// Slices of the time in the histogram of live rows.
const SLICES: usize = 20;

pub struct Report {
    pub(super) device: String,
    pub(super) workload: Workload,
    pub(super) lora_r: usize,
    pub(super) pages: usize,
    pub(super) page_bytes: usize,
    /// Bytes of the model's weights.
    pub(super) weights: f64,
    pub(super) adapter_parameters: usize,
    /// Bytes of a cached element.
    pub(super) element: usize,
    pub(super) roof: Roof,
    pub(super) shape: ModelShape,
    pub(super) soak: bool,
    /// The first warms up where there are others.
    pub(super) runs: Vec<Timed>,
}

impl Report {
    fn counted(&self) -> &[Timed] {
        match self.runs.len() {
            1 => &self.runs,
            _ => &self.runs[1..],
        }
    }

    /// The last run, whose forwards are all on record.
    fn last(&self) -> &Timed {
        &self.runs[self.runs.len() - 1]
    }

    fn tokens(&self) -> usize {
        self.workload.lengths.iter().sum()
    }

    fn prompt_tokens(&self) -> usize {
        self.workload.prompts.iter().map(Vec::len).sum()
    }

    /// Least seconds of the last run's forwards, at the measured rates.
    fn bound(&self) -> f64 {
        let steps = self.last().detail.stats.steps.iter();
        steps
            .map(|s| {
                s.bound(
                    &self.shape,
                    self.weights,
                    self.adapter_parameters,
                    self.element,
                    self.roof.flops,
                    self.roof.bytes,
                )
            })
            .sum()
    }

    /// Running samples in each of equal slices of the last run's time, on
    /// average.
    fn live_rows(&self) -> Vec<f64> {
        let steps = &self.last().detail.stats.steps;
        let total: f64 = steps.iter().map(|s| s.seconds).sum();
        let width = total / SLICES as f64;
        let mut slices = vec![0.0; SLICES];
        let mut start = 0.0;
        for s in steps {
            let end = start + s.seconds;
            let first = ((start / width) as usize).min(SLICES - 1);
            let last = ((end / width) as usize).min(SLICES - 1);
            for (i, slice) in slices.iter_mut().enumerate().take(last + 1).skip(first) {
                let (from, to) = (i as f64 * width, (i + 1) as f64 * width);
                *slice += s.live as f64 * (end.min(to) - start.max(from)).max(0.0) / width;
            }
            start = end;
        }
        slices
    }

    /// Seconds to the first token: median, 99 % and the longest.
    fn first_token(&self) -> [f64; 3] {
        let mut sorted = self.last().detail.stats.first_token_seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
            sorted.get(index).copied().unwrap_or(0.0)
        };
        [at(0.5), at(0.99), at(1.0)]
    }

    fn resident(&self) -> Option<[u64; 2]> {
        let first = self.counted().first()?.detail.resident?;
        Some([first, self.last().detail.resident?])
    }
}

impl Findings for Report {
    fn table(&self) -> String {
        let (counted, last) = (self.counted(), self.last());
        let (median, stats) = (median(counted), &last.detail.stats);
        let mut table = Table::default();
        let rate = |tokens: usize| tokens as f64 / median.seconds;
        table.row("kind", format!("rollout ({})", self.workload.name));
        table.row("device", &self.device);
        table.row(
            "workload",
            format!("{}, LoRA r {}", self.workload.what, self.lora_r),
        );
        table.seconds(counted);
        table.row(
            "tokens/s",
            format!(
                "{:.1} ({} new tokens; {:.1} with the prompts' {})",
                rate(self.tokens()),
                self.tokens(),
                rate(self.tokens() + self.prompt_tokens()),
                self.prompt_tokens()
            ),
        );
        let [p50, p99, most] = self.first_token();
        table.row(
            "first token",
            format!("{p50:.4} s in the median, {p99:.4} s for 99 %, {most:.4} s at most"),
        );
        let live = self.live_rows();
        let mean = live.iter().sum::<f64>() / SLICES as f64;
        table.row(
            "live rows",
            format!(
                "{} (each column 5 % of the time; mean {mean:.1})",
                bars(&live)
            ),
        );
        table.row("", numbers(&live));
        let bound = self.bound();
        table.row(
            "bound",
            format!(
                "{bound:.4} s, of which {:.1} % was reached: sum over forwards of max(FLOPs / {:.3} TFLOP/s, \
                 bytes / {:.1} GB/s), both measured",
                100.0 * bound / last.seconds,
                self.roof.flops / 1e12,
                self.roof.bytes / 1e9
            ),
        );
        table.row(
            "KV pages",
            format!(
                "{} of {} at most ({:.1} of {:.1} MiB); {} copied, stepped back {} times",
                stats.peak_pages(),
                self.pages,
                mib((stats.peak_pages() * self.page_bytes) as f64),
                mib((self.pages * self.page_bytes) as f64),
                stats.copied_pages,
                stats.preemptions
            ),
        );
        table.row(
            "prefill",
            format!(
                "{} rows, {:.2} GFLOP; {} rows were found in pages, {} were computed again",
                stats.prefill_rows,
                stats.prefill_flops(&self.shape) / 1e9,
                stats.reused_rows,
                stats.recomputed_rows
            ),
        );
        table.row(
            "forwards",
            format!("{} ({} decode rows)", stats.steps.len(), stats.decode_rows),
        );
        if let (true, Some([first, last])) = (self.soak, self.resident()) {
            table.row(
                "resident MiB",
                format!(
                    "{:.1} after the first counted run, {:.1} after {} more",
                    mib(first as f64),
                    mib(last as f64),
                    counted.len() - 1
                ),
            );
        }
        table.resources(counted);
        table.text()
    }

    fn json(&self) -> Value {
        let (median, last) = (median(self.counted()), self.last());
        let stats = &last.detail.stats;
        let (w, bound) = (&self.workload, self.bound());
        let [p50, p99, most] = self.first_token();
        let more = json!({
            "kind": "rollout",
            "workload": w.name,
            "device": self.device,
            "total_tokens_per_second": (self.tokens() + self.prompt_tokens()) as f64 / median.seconds,
            "resident_bytes": self.resident(),
            "prompt_tokens": self.prompt_tokens(),
            "prompts": w.prompts.len(),
            "group_size": w.group_size,
            "prompt_lengths": w.prompts.iter().map(Vec::len).collect::<Vec<_>>(),
            "lengths": w.lengths,
            "first_token_seconds": { "p50": p50, "p99": p99, "max": most },
            "live_rows": self.live_rows(),
            "bound_seconds": bound,
            "share_of_bound": bound / last.seconds,
            "roof": { "flops_per_second": self.roof.flops, "bytes_per_second": self.roof.bytes },
            "kv": {
                "pages": self.pages,
                "peak_pages": stats.peak_pages(),
                "page_bytes": self.page_bytes,
                "copied_pages": stats.copied_pages,
                "preemptions": stats.preemptions,
            },
            "prefill": {
                "rows": stats.prefill_rows,
                "flops": stats.prefill_flops(&self.shape),
                "reused_rows": stats.reused_rows,
                "recomputed_rows": stats.recomputed_rows,
            },
            "decode_rows": stats.decode_rows,
            "forwards": stats.steps.len(),
        });
        with(json_of(self.counted(), self.tokens()), more)
    }
}

/// A column for each value.
fn bars(values: &[f64]) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let bar = |v: &f64| BARS[(v / most * 8.0).ceil() as usize];
    values.iter().map(bar).collect()
}

/// Every fourth value.
fn numbers(values: &[f64]) -> String {
    let shown: Vec<String> = values
        .iter()
        .step_by(4)
        .map(|v| format!("{v:.0}"))
        .collect();
    format!("{} .. at the start of every fourth", shown.join(", "))
}
