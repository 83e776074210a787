//! Differences between two arms on the same problems.

use super::estimate::Estimate;
use crate::study::statistics::paired_bootstrap;

/// Seed of the bootstrap: reports of the same runs say the same.
const SEED: u64 = 0;

/// A paired difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Mean of a - b.
    pub mean: f64,
    /// Its standard error over pairs; `None` for one pair.
    pub error: Option<f64>,
    /// Two-sided, by the paired bootstrap. `None` where the pairs are too few or
    /// not of problems.
    pub p: Option<f64>,
    /// Pairs.
    pub n: usize,
}

/// Means of a - b over pairs.
pub fn paired(a: &[f64], b: &[f64]) -> Option<Difference> {
    if a.len() != b.len() {
        return None;
    }
    let estimate = Estimate::of(a.iter().zip(b).map(|(a, b)| a - b))?;
    Some(Difference {
        mean: estimate.mean,
        error: estimate.error,
        p: paired_bootstrap(a, b, SEED).map(|d| d.p_value),
        n: estimate.n,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs() {
        let d = paired(&[1.0, 1.0, 0.0], &[0.0, 1.0, 0.0]).unwrap();
        assert!((d.mean - 1.0 / 3.0).abs() < 1e-15);
        assert!((d.error.unwrap() - 1.0 / 3.0).abs() < 1e-15);
        assert_eq!(d.n, 3);
        assert_eq!(
            d.p,
            paired_bootstrap(&[1.0, 0.0, 0.0], &[0.0; 3], 0).map(|d| d.p_value)
        );
        assert_eq!(paired(&[1.0], &[]), None);
    }
}
