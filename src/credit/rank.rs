//! Ranks and rank correlation.

/// Rank of each value from 1 (least) to n; values that tie share the mean of
/// their ranks, so that the order they stand in does not matter.
pub fn ranks<T: Copy + PartialEq + Into<f64>>(values: &[T]) -> Vec<f64> {
    let values: Vec<f64> = values.iter().map(|&v| v.into()).collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut out = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && values[order[end]] == values[order[start]] {
            end += 1;
        }
        let shared = (start + 1 + end) as f64 / 2.0;
        for &i in &order[start..end] {
            out[i] = shared;
        }
        start = end;
    }
    out
}

/// Spearman's correlation of two lists of ranks (see [`ranks`]): `None` where
/// one of them is constant.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len();
    debug_assert_eq!(n, b.len());
    // The mean rank is the same with and without ties.
    let mean = (n as f64 + 1.0) / 2.0;
    let (mut product, mut left, mut right) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean, y - mean);
        product += x * y;
        left += x * x;
        right += y * y;
    }
    (left > 0.0 && right > 0.0).then(|| (product / (left * right).sqrt()).clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_their_ranks() {
        assert_eq!(ranks(&[3.0f32, 1.0, 3.0, 9.0]), [2.5, 1.0, 2.5, 4.0]);
        assert!(ranks::<f64>(&[]).is_empty());
    }

    #[test]
    fn correlation_by_hand() {
        let of = |a: &[f64], b: &[f64]| spearman(&ranks(a), &ranks(b));
        assert_eq!(of(&[1.0, 2.0, 3.0], &[10.0, 20.0, 90.0]), Some(1.0));
        assert_eq!(of(&[1.0, 2.0, 3.0], &[5.0, 4.0, -1.0]), Some(-1.0));
        // d = 1, 1, 0, 0: 1 - 6 * 2 / (4 * 15).
        let some = of(&[1.0, 2.0, 3.0, 4.0], &[2.0, 1.0, 3.0, 4.0]).unwrap();
        assert!((some - 0.8).abs() < 1e-15);
        assert_eq!(of(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(of(&[], &[]), None);
    }
}
