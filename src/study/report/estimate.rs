//! A mean over seeds or problems, and its standard error.

/// A mean and what is known of its error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Standard error (unbiased variance); `None` for a single value.
    pub error: Option<f64>,
    /// Values averaged.
    pub n: usize,
}

impl Estimate {
    /// Mean and standard error of `values`; those not finite are passed over,
    /// and `None` is what nothing comes to.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Estimate> {
        let values: Vec<f64> = values.into_iter().filter(|x| x.is_finite()).collect();
        if values.is_empty() {
            return None;
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let error = (values.len() > 1).then(|| {
            let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
            (squares / (n - 1.0) / n).sqrt()
        });
        Some(Estimate {
            mean,
            error,
            n: values.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(Estimate::of([]), None);
        assert_eq!(Estimate::of([f64::NAN]), None);
        let one = Estimate::of([2.0]).unwrap();
        assert_eq!((one.mean, one.error, one.n), (2.0, None, 1));
        // Variance of 1, 2, 3 is 1; its mean's error 1 / sqrt 3.
        let three = Estimate::of([1.0, 3.0, f64::NAN, 2.0]).unwrap();
        assert_eq!(three.mean, 2.0);
        assert!((three.error.unwrap() - 1.0 / 3f64.sqrt()).abs() < 1e-15);
    }
}
