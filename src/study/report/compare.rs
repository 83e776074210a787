//! Differences between two arms on the same problems.

/// A paired difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Mean of a - b.
    pub mean: f64,
    /// Its standard error over pairs; `None` for one pair.
    pub error: Option<f64>,
    /// Two-sided exact sign test. For marks of 0 and 1 this is McNemar's exact
    /// test. `None` where the pairs are too few or not of problems.
    pub p: Option<f64>,
    /// Pairs.
    pub n: usize,
}

/// Means of a - b over pairs, with the sign test.
pub fn paired(a: &[f64], b: &[f64]) -> Option<Difference> {
    if a.len() != b.len() {
        return None;
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let estimate = super::estimate::Estimate::of(differences.iter().copied())?;
    let up = differences.iter().filter(|d| **d > 0.0).count();
    let down = differences.iter().filter(|d| **d < 0.0).count();
    Some(Difference {
        mean: estimate.mean,
        error: estimate.error,
        p: Some(sign_test(up, down)),
        n: estimate.n,
    })
}

/// Two-sided exact binomial test of `up` against `down` at even chances:
/// 2 P(X <= min) for X of Binomial(up + down, 1/2), at most 1.
pub fn sign_test(up: usize, down: usize) -> f64 {
    let n = up + down;
    // ln C(n, k) - n ln 2, built up term by term, so that n may be large.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for k in 0..=up.min(down) {
        sum += log_term.exp();
        log_term += ((n - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_test_by_hand() {
        assert_eq!(sign_test(0, 0), 1.0);
        assert_eq!(sign_test(1, 1), 1.0);
        // 2 (1 + 6) / 64.
        assert!((sign_test(5, 1) - 14.0 / 64.0).abs() < 1e-12);
        assert_eq!(sign_test(1, 5), sign_test(5, 1));
        let p = sign_test(3000, 2800);
        assert!(p > 0.008 && p < 0.01, "{p}");
    }

    #[test]
    fn pairs() {
        let d = paired(&[1.0, 1.0, 0.0], &[0.0, 1.0, 0.0]).unwrap();
        assert!((d.mean - 1.0 / 3.0).abs() < 1e-15);
        assert!((d.error.unwrap() - 1.0 / 3.0).abs() < 1e-15);
        assert_eq!((d.p, d.n), (Some(1.0), 3));
        assert_eq!(paired(&[1.0], &[]), None);
    }
}
