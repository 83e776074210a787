//! When credit has stopped telling tokens apart, or tells too few: the two
//! degenerate ends of arXiv 2606.00257, with thresholds of our own.
//!
//! | alarm | Gini | effective-token ratio |
//! |---|---|---|
//! | collapsed to uniform | < 0.05 | > 0.95 |
//! | spuriously sparse | > 0.90 | < 0.10 |
//!
//! Both conditions must hold, on the step's means. In the paper's table
//! surprisal (.941, .052), entropy reduction (.920, .073) and divergence (.939,
//! .055) are sparse by this measure and ARCA (.353 to .490, .334 to .467) is
//! neither. A completion of n tokens has at most Gini (n - 1) / n and at least
//! ratio 1 / n: with fewer than 11 tokens nothing can be called sparse.

use super::Concentration;

/// Where an end begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    pub gini: f64,
    pub effective_token_ratio: f64,
}

/// Collapsed to uniform: a smaller Gini coefficient and a larger ratio.
pub const COLLAPSED: Bounds = Bounds {
    gini: 0.05,
    effective_token_ratio: 0.95,
};
/// Spuriously sparse: a larger Gini coefficient and a smaller ratio.
pub const SPARSE: Bounds = Bounds {
    gini: 0.90,
    effective_token_ratio: 0.10,
};
/// Residuals below so many times their noise floor are mostly rounding.
const NOISE: f64 = 3.0;
/// Steps in a row before a warning: at the first step the adapter's B is 0 and
/// what compares adapter and base is uniform by construction.
pub const PATIENCE: usize = 3;

/// What is wrong with a step's weights. Its number is `credit/alarm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    None = 0,
    Uniform = 1,
    Sparse = 2,
}

/// The alarm of a step's mean concentration. Not for the uniform method, whose
/// weights are meant to be equal.
pub fn alarm(mean: &Concentration) -> Alarm {
    let (gini, ratio) = (mean.gini, mean.effective_token_ratio);
    if gini < COLLAPSED.gini && ratio > COLLAPSED.effective_token_ratio {
        Alarm::Uniform
    } else if gini > SPARSE.gini && ratio < SPARSE.effective_token_ratio {
        Alarm::Sparse
    } else {
        Alarm::None
    }
}

/// Turns conditions that last into one warning each.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    uniform: Streak,
    sparse: Streak,
    noise: Streak,
}

/// Steps in a row.
#[derive(Clone, Copy, Debug, Default)]
struct Streak {
    steps: usize,
    told: bool,
}

impl Streak {
    /// True once, when the condition has held for [`PATIENCE`] steps.
    fn lasts(&mut self, holds: bool) -> bool {
        self.steps = if holds { self.steps + 1 } else { 0 };
        let now = self.steps >= PATIENCE && !self.told;
        self.told |= now;
        now
    }
}

impl Watch {
    /// A step's alarm; the warning it calls for, if any.
    pub fn weights(&mut self, method: &str, alarm: Alarm, mean: &Concentration) -> Option<String> {
        let numbers = format!(
            "Gini {:.3}, effective tokens {:.3} of the completion, {PATIENCE} steps in a row",
            mean.gini, mean.effective_token_ratio
        );
        if self.uniform.lasts(alarm == Alarm::Uniform) {
            return Some(format!(
                "credit by {method} has collapsed to uniform ({numbers}): it is plain GRPO now; raise \
                 credit.exponent or choose another method"
            ));
        }
        if self.sparse.lasts(alarm == Alarm::Sparse) {
            return Some(format!(
                "credit by {method} is spuriously sparse ({numbers}): a few tokens carry the whole gradient; lower \
                 credit.exponent, raise credit.mix or choose another method"
            ));
        }
        None
    }

    /// A step's mean residual norm and its noise floor (0: none).
    pub fn residual(&mut self, mean: f64, floor: f64) -> Option<String> {
        self.noise
            .lasts(floor > 0.0 && mean < NOISE * floor)
            .then(|| {
                format!(
                    "the adapter's residual is {:.2} times its noise floor ({mean:.3e} against {floor:.3e}), \
                     {PATIENCE} steps in a row: below {NOISE} most of what ARCA weighs is rounding",
                    mean / floor
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(gini: f64, effective_token_ratio: f64) -> Concentration {
        Concentration {
            gini,
            effective_token_ratio,
            max_weight: 0.0,
        }
    }

    /// The rows of the paper's table.
    #[test]
    fn the_papers_methods() {
        for (gini, ratio, expected) in [
            (0.0, 1.0, Alarm::Uniform),
            (0.941, 0.052, Alarm::Sparse),
            (0.920, 0.073, Alarm::Sparse),
            (0.939, 0.055, Alarm::Sparse),
            (0.353, 0.467, Alarm::None),
            (0.388, 0.460, Alarm::None),
            (0.490, 0.334, Alarm::None),
        ] {
            assert_eq!(alarm(&at(gini, ratio)), expected, "{gini} {ratio}");
        }
    }

    #[test]
    fn warns_once_and_only_of_what_lasts() {
        let mut watch = Watch::default();
        let (flat, fine) = (at(0.01, 0.99), at(0.4, 0.5));
        let mut told = |alarm, mean: &Concentration| watch.weights("arca", alarm, mean).is_some();
        assert!(!told(Alarm::Uniform, &flat) && !told(Alarm::Uniform, &flat));
        assert!(!told(Alarm::None, &fine));
        assert!(!told(Alarm::Uniform, &flat) && !told(Alarm::Uniform, &flat));
        assert!(told(Alarm::Uniform, &flat));
        assert!(!told(Alarm::Uniform, &flat));
        for last in [false, false, true, false] {
            assert_eq!(told(Alarm::Sparse, &flat), last);
        }
        // The floor is 0 in f32: nothing to be near.
        for _ in 0..5 {
            assert!(watch.residual(0.0, 0.0).is_none());
        }
        let near: Vec<bool> = (0..4).map(|_| watch.residual(2.9, 1.0).is_some()).collect();
        assert_eq!(near, [false, false, true, false]);
        assert!(Watch::default().residual(3.1, 1.0).is_none());
    }
}
