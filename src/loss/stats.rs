//! What the loss saw: mergeable counts under TRL's metric names.

/// Sum, count and extremes of a stream of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tally {
    /// Of the values.
    pub sum: f64,
    /// How many.
    pub count: u64,
    /// +inf when empty.
    pub min: f64,
    /// -inf when empty.
    pub max: f64,
}

impl Default for Tally {
    fn default() -> Self {
        Tally {
            sum: 0.0,
            count: 0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
        }
    }
}

impl Tally {
    /// Counts `value` `times` times.
    pub fn add(&mut self, value: f64, times: u64) {
        if times == 0 {
            return;
        }
        self.sum += value * times as f64;
        self.count += times;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// As if the other's values had been added here.
    pub fn merge(&mut self, other: &Tally) {
        self.sum += other.sum;
        self.count += other.count;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// `None` when nothing was counted.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// Statistics of any set of sequences; those of a step are the merge of its
/// sequences', in any order.
///
/// TRL averages each metric over micro-steps; here all tokens of the step are
/// pooled, so that the physical split cannot show.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossStats {
    /// Per-token KL as it enters the loss (with the ratio under bias
    /// correction), before beta. Empty when beta = 0.
    pub kl: Tally,
    /// r < 1 - eps and A < 0, as 0 or 1. One value per token, or one per
    /// sequence where ratio and advantage are both per sequence.
    pub low: Tally,
    /// r > 1 + eps_high and A > 0, likewise.
    pub high: Tally,
    /// Either of the two, likewise.
    pub region: Tally,
    /// Each sequence's own share of low-clipped tokens.
    pub low_by_sequence: Tally,
    /// Each sequence's own share of high-clipped tokens.
    pub high_by_sequence: Tally,
    /// cispo: r > cap and A > 0, as 0 or 1.
    pub capped: Tally,
    /// pi / pi_old, per token or per sequence as the level says.
    pub ratio: Tally,
    /// The sampler correction's factors, after the cap.
    pub sampler_ratio: Tally,
}

impl LossStats {
    /// As if the other's sequences had been counted here.
    pub fn merge(&mut self, other: &LossStats) {
        self.kl.merge(&other.kl);
        self.low.merge(&other.low);
        self.high.merge(&other.high);
        self.region.merge(&other.region);
        self.low_by_sequence.merge(&other.low_by_sequence);
        self.high_by_sequence.merge(&other.high_by_sequence);
        self.capped.merge(&other.capped);
        self.ratio.merge(&other.ratio);
        self.sampler_ratio.merge(&other.sampler_ratio);
    }

    /// (name, value) under TRL's names; what was not measured is absent.
    pub fn metrics(&self) -> Vec<(&'static str, f64)> {
        let some = |tally: &Tally, value: f64| (tally.count > 0).then_some(value);
        [
            ("kl", self.kl.mean()),
            ("clip_ratio/low_mean", self.low.mean()),
            (
                "clip_ratio/low_min",
                some(&self.low_by_sequence, self.low_by_sequence.min),
            ),
            ("clip_ratio/high_mean", self.high.mean()),
            (
                "clip_ratio/high_max",
                some(&self.high_by_sequence, self.high_by_sequence.max),
            ),
            ("clip_ratio/region_mean", self.region.mean()),
            ("cispo_clip_ratio", self.capped.mean()),
            ("ratio/mean", self.ratio.mean()),
            ("ratio/min", some(&self.ratio, self.ratio.min)),
            ("ratio/max", some(&self.ratio, self.ratio.max)),
            (
                "sampling/importance_sampling_ratio/mean",
                self.sampler_ratio.mean(),
            ),
            (
                "sampling/importance_sampling_ratio/min",
                some(&self.sampler_ratio, self.sampler_ratio.min),
            ),
            (
                "sampling/importance_sampling_ratio/max",
                some(&self.sampler_ratio, self.sampler_ratio.max),
            ),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_is_adding() {
        let values = [0.5, -1.0, 2.0, 0.25];
        let mut whole = Tally::default();
        let (mut left, mut right) = (Tally::default(), Tally::default());
        for (i, &v) in values.iter().enumerate() {
            whole.add(v, 1);
            if i < 1 { &mut left } else { &mut right }.add(v, 1);
        }
        left.merge(&right);
        assert_eq!(left, whole);
        assert_eq!(whole.mean(), Some(1.75 / 4.0));
        assert_eq!((whole.min, whole.max), (-1.0, 2.0));
    }

    #[test]
    fn nothing_measured_is_absent() {
        assert!(LossStats::default().metrics().is_empty());
        let mut empty = Tally::default();
        empty.add(1.0, 0);
        assert_eq!(empty, Tally::default());
    }
}
