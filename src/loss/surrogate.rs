//! The policy term of one token as a function of ratio, advantage and
//! log-prob.

/// Which policy term; the formulas are in the [module](super).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Surrogate {
    /// PPO's clip, with TRL's optional upper bound `delta` (two-sided clip,
    /// arXiv 2505.07291). `low` = 1 - eps, `high` = 1 + eps_high.
    Clip {
        /// Smallest ratio the clip leaves alone.
        low: f64,
        /// Largest one.
        high: f64,
        /// Bound of the ratio where the clip does not apply (A < 0).
        delta: Option<f64>,
    },
    /// CISPO: the capped ratio is a detached weight of A log pi.
    Cap {
        /// Absolute: not an offset from 1.
        cap: f64,
    },
    /// SAPO: a soft gate; tau is `positive` where A > 0, else `negative`.
    Sigmoid {
        /// TRL's default is 1.
        positive: f64,
        /// TRL's default is 1.05.
        negative: f64,
    },
}

/// Value and partial derivatives at one token.
pub(super) struct Point {
    pub loss: f64,
    /// dL/dr.
    pub by_ratio: f64,
    /// dL/dlp with r held fixed.
    pub by_logprob: f64,
    pub clipped_low: bool,
    pub clipped_high: bool,
}

impl Surrogate {
    pub(super) fn at(&self, ratio: f64, advantage: f64, logprob: f64) -> Point {
        match *self {
            Surrogate::Clip { low, high, delta } => {
                let bound = delta.unwrap_or(f64::INFINITY);
                // A clamp passes gradient where it leaves its input as it is,
                // borders included, as torch.clamp does.
                let inside = |min: f64, max: f64| f64::from(min <= ratio && ratio <= max);
                let free = (ratio.min(bound), inside(f64::NEG_INFINITY, bound));
                let clipped = (ratio.clamp(low, high.max(low)), inside(low, high));
                // torch.min halves the gradient between equal arguments; in
                // the region both carry the same one, so nothing is lost.
                let slope = match (free.0 * advantage).total_cmp(&(clipped.0 * advantage)) {
                    std::cmp::Ordering::Less => free.1,
                    std::cmp::Ordering::Greater => clipped.1,
                    std::cmp::Ordering::Equal => (free.1 + clipped.1) / 2.0,
                };
                Point {
                    loss: -(free.0 * advantage).min(clipped.0 * advantage),
                    by_ratio: -slope * advantage,
                    by_logprob: 0.0,
                    // TRL counts on the ratio bounded by delta.
                    clipped_low: free.0 < low && advantage < 0.0,
                    clipped_high: free.0 > high && advantage > 0.0,
                }
            }
            Surrogate::Cap { cap } => {
                let weight = ratio.min(cap) * advantage;
                Point {
                    loss: -weight * logprob,
                    by_ratio: 0.0,
                    by_logprob: -weight,
                    clipped_low: false,
                    clipped_high: ratio > cap && advantage > 0.0,
                }
            }
            Surrogate::Sigmoid { positive, negative } => {
                let tau = if advantage > 0.0 { positive } else { negative };
                let gate = 1.0 / (1.0 + (-tau * (ratio - 1.0)).exp());
                Point {
                    loss: -gate * 4.0 / tau * advantage,
                    by_ratio: -4.0 * gate * (1.0 - gate) * advantage,
                    by_logprob: 0.0,
                    clipped_low: false,
                    clipped_high: false,
                }
            }
        }
    }
}
