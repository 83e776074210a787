//! What may be concluded from right and wrong answers.
//!
//! The problems are the sample: every number here is a mean over problems, and
//! its standard error is taken over problems, so that several completions of
//! one problem count as one observation (clustered errors; Miller 2024,
//! arXiv 2411.00640). Two models are compared on the same problems, in pairs.

use crate::rng::Stream;

/// Mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    // A sum of nothing would be -0.
    values.iter().fold(0.0, |sum, x| sum + x) / values.len().max(1) as f64
}

/// Unbiased standard deviation; 0 of fewer than two values.
pub fn standard_deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if n < 2.0 {
        return 0.0;
    }
    let m = mean(values);
    (values.iter().map(|x| (x - m).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
}

/// Standard error of the mean; 0 of fewer than two values.
pub fn standard_error(values: &[f64]) -> f64 {
    standard_deviation(values) / (values.len().max(1) as f64).sqrt()
}

/// Chance that at least one of `k` samples is right, estimated without bias
/// from `correct` right ones of `n` drawn (Chen et al. 2021, arXiv 2107.03374):
/// 1 - C(n - c, k) / C(n, k). `k` is at most `n`.
pub fn pass_at_k(n: usize, correct: usize, k: usize) -> f64 {
    if n - correct.min(n) < k {
        return 1.0;
    }
    let missed: f64 = (n - correct + 1..=n)
        .map(|i| 1.0 - k as f64 / i as f64)
        .product();
    1.0 - missed
}

/// The k that pass@k is given for: powers of two up to `n`, and `n`.
pub fn ks(n: usize) -> Vec<usize> {
    let mut ks: Vec<usize> = std::iter::successors(Some(1), |k| Some(k * 2))
        .take_while(|&k| k < n)
        .collect();
    ks.extend((n > 0).then_some(n));
    ks
}

/// A mean difference a - b over the same problems.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    pub mean: f64,
    /// Of `mean`, over problems.
    pub standard_error: f64,
    /// The middle 95 % of the bootstrap's means.
    pub interval: [f64; 2],
    /// Two-sided: how often resampled means lie as far from `mean` as 0 does.
    pub p_value: f64,
}

/// Means that the bootstrap draws.
pub const RESAMPLES: usize = 10_000;

/// Paired bootstrap (Efron & Tibshirani 1993, ch. 16.4): problems are drawn
/// with replacement, [`RESAMPLES`] times, with random numbers of `seed`. The
/// p-value counts the observed mean itself among the resampled ones, so that it
/// is never 0.
///
/// `None` where there are no problems; `a` and `b` are in the same order.
pub fn paired_bootstrap(a: &[f64], b: &[f64], seed: u64) -> Option<Difference> {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let n = u32::try_from(differences.len()).ok().filter(|&n| n > 0)?;
    let observed = mean(&differences);
    let mut random = Stream::new(seed);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let sum: f64 = (0..n).map(|_| differences[random.below(n) as usize]).sum();
            sum / f64::from(n)
        })
        .collect();
    means.sort_by(f64::total_cmp);
    // Sums in another order may differ in their last bits.
    let far = observed.abs() - 1e-12;
    let as_far = means.iter().filter(|m| (*m - observed).abs() >= far);
    let at = |share: f64| means[(share * (RESAMPLES - 1) as f64).round() as usize];
    Some(Difference {
        mean: observed,
        standard_error: standard_error(&differences),
        interval: [at(0.025), at(0.975)],
        p_value: (1 + as_far.count()) as f64 / (1 + RESAMPLES) as f64,
    })
}

/// Exact two-sided McNemar test (McNemar 1947): of the problems that one of
/// two models solves and the other does not, is each as often the solver? The
/// p-value is the binomial's, and 1 where the two never differ.
pub fn mcnemar(a: &[bool], b: &[bool]) -> f64 {
    let only = |x: &[bool], y: &[bool]| x.iter().zip(y).filter(|(x, y)| **x && !**y).count();
    let (wins, losses) = (only(a, b), only(b, a));
    let n = wins + losses;
    // ln C(n, i) - n ln 2, from i = 0 upwards.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for i in 0..=wins.min(losses) {
        tail += log_term.exp();
        log_term += ((n - i) as f64).ln() - ((i + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_at_k_by_hand() {
        // Of 4 samples 1 right: k = 2 misses it in C(3,2) / C(4,2) = 3/6 cases.
        assert!((pass_at_k(4, 1, 2) - 0.5).abs() < 1e-15);
        assert!((pass_at_k(4, 1, 1) - 0.25).abs() < 1e-15);
        assert_eq!(pass_at_k(4, 0, 4), 0.0);
        assert_eq!(pass_at_k(4, 1, 4), 1.0);
        assert_eq!(pass_at_k(4, 4, 1), 1.0);
        assert_eq!(pass_at_k(0, 0, 1), 1.0);
        // 1 - C(190, 10) / C(200, 10), by Python's fractions.
        assert!((pass_at_k(200, 10, 10) - 0.408_547_866_081_417_1).abs() < 1e-12);
    }

    /// Against its definition: the mean over all subsets of k samples.
    #[test]
    fn pass_at_k_is_the_mean_over_subsets() {
        for n in 1..9usize {
            for correct in 0..=n {
                for k in 1..=n {
                    let subsets = (0u32..1 << n).filter(|s| s.count_ones() as usize == k);
                    let (mut all, mut passed) = (0, 0);
                    for s in subsets {
                        all += 1;
                        passed += u32::from(s & ((1 << correct) - 1) != 0);
                    }
                    let expected = f64::from(passed) / f64::from(all);
                    assert!((pass_at_k(n, correct, k) - expected).abs() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn the_ks_end_with_all() {
        assert_eq!(ks(1), [1]);
        assert_eq!(ks(4), [1, 2, 4]);
        assert_eq!(ks(6), [1, 2, 4, 6]);
        assert!(ks(0).is_empty());
    }

    /// Problem means .75, .25, 1, 0: sd sqrt(.625 / 3), / sqrt 4.
    #[test]
    fn standard_errors_are_over_problems() {
        let means = [0.75, 0.25, 1.0, 0.0];
        assert!((standard_error(&means) - (0.625f64 / 3.0).sqrt() / 2.0).abs() < 1e-15);
        assert_eq!(standard_error(&[1.0]), 0.0);
        assert_eq!(mean(&[]), 0.0);
    }

    fn outcomes(wins: usize, losses: usize, ties: usize) -> (Vec<bool>, Vec<bool>) {
        let a = [vec![true; wins], vec![false; losses], vec![true; ties]].concat();
        let b = [vec![false; wins], vec![true; losses], vec![true; ties]].concat();
        (a, b)
    }

    /// min(1, 2 sum_(i <= min) C(n, i) / 2^n), by Python's fractions: what
    /// `scipy.stats.binomtest(min, n, 0.5).pvalue` is.
    #[test]
    fn mcnemar_is_the_binomial_test() {
        for (wins, losses, expected) in [
            (5, 1, 0.21875),
            (10, 2, 0.03857421875),
            (13, 13, 1.0),
            (30, 12, 0.007_915_897_334_896_727),
            (0, 8, 0.0078125),
            (600, 500, 0.002_819_544_991_436_427_5),
            (1, 0, 1.0),
        ] {
            let (a, b) = outcomes(wins, losses, 7);
            let p = mcnemar(&a, &b);
            assert!(
                (p - expected).abs() <= 1e-9 * expected,
                "{wins} {losses}: {p}"
            );
            assert_eq!(p, mcnemar(&b, &a));
        }
        assert_eq!(mcnemar(&[true; 5], &[true; 5]), 1.0);
    }

    /// The bootstrap's spread is that of the mean: its interval is that of the
    /// normal distribution for many problems, and its p-value as well.
    #[test]
    fn the_bootstrap_agrees_with_the_normal_distribution() {
        // 400 differences: +1 in 70, -1 in 40, else 0.
        let (a, b) = outcomes(70, 40, 290);
        let as_f64 = |x: &[bool]| {
            x.iter()
                .map(|&x| f64::from(u8::from(x)))
                .collect::<Vec<_>>()
        };
        let d = paired_bootstrap(&as_f64(&a), &as_f64(&b), 1).unwrap();
        assert!((d.mean - 0.075).abs() < 1e-12);
        // Variance (110/400 - .075^2) 400/399 by hand.
        let se = ((110.0 / 400.0 - 0.075f64.powi(2)) / 399.0).sqrt();
        assert!((d.standard_error - se).abs() < 1e-12);
        assert!((d.interval[0] - (0.075 - 1.96 * se)).abs() < 0.15 * se);
        assert!((d.interval[1] - (0.075 + 1.96 * se)).abs() < 0.15 * se);
        // erfc(2.8865 / sqrt 2) = 0.0039.
        assert!((0.002..0.007).contains(&d.p_value), "{}", d.p_value);
        assert_eq!(paired_bootstrap(&as_f64(&a), &as_f64(&b), 1), Some(d));
    }

    #[test]
    fn equal_models_do_not_differ() {
        let same = [1.0, 0.0, 0.5];
        let d = paired_bootstrap(&same, &same, 3).unwrap();
        assert_eq!((d.mean, d.p_value, d.interval), (0.0, 1.0, [0.0, 0.0]));
        assert!(paired_bootstrap(&[], &[], 3).is_none());
    }
}
