//! Correction for a sampler whose log-probs are not the trainer's.
//!
//! rho_t = exp(old_t - sampling_t), then `truncate`: min(rho_t, cap), or
//! `mask`: 0 where rho_t > cap. Per token and detached; it multiplies the
//! surrogate, not the KL (TRL 1.16.0's `vllm_importance_sampling_correction`
//! in its `token_truncate` and `token_mask` modes; truncated importance
//! sampling, Yao et al. 2025).

use anyhow::{Result, ensure};

use crate::config::{LossConfig, SamplerCorrection};

/// The factor of each token, or `None` when the config asks for none.
///
/// `old` is the trainer's detached log-prob of the first inner iteration, so
/// the factors are computed once per rollout batch and kept.
pub fn sampler_ratio(
    old: &[f32],
    sampling: &[f32],
    config: &LossConfig,
) -> Result<Option<Vec<f32>>> {
    if config.sampler_correction == SamplerCorrection::None {
        return Ok(None);
    }
    let cap = f64::from(config.sampler_correction_cap);
    ensure!(
        cap.is_finite() && cap > 0.0,
        "loss.sampler_correction_cap is {cap}: it must be above 0"
    );
    ensure!(
        old.len() == sampling.len(),
        "{} trainer log-probs but {} sampler log-probs",
        old.len(),
        sampling.len()
    );
    let mut ratios = Vec::with_capacity(old.len());
    for (t, (&old, &sampling)) in old.iter().zip(sampling).enumerate() {
        ensure!(
            old.is_finite() && sampling.is_finite(),
            "token {t}: trainer log-prob {old}, sampler log-prob {sampling}"
        );
        let ratio = (f64::from(old) - f64::from(sampling)).exp();
        let kept = match config.sampler_correction {
            SamplerCorrection::Mask if ratio > cap => 0.0,
            SamplerCorrection::Mask => ratio,
            SamplerCorrection::Truncate | SamplerCorrection::None => ratio.min(cap),
        };
        ratios.push(kept as f32);
    }
    Ok(Some(ratios))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(correction: SamplerCorrection) -> LossConfig {
        LossConfig {
            sampler_correction: correction,
            sampler_correction_cap: 2.0,
            ..LossConfig::default()
        }
    }

    #[test]
    fn caps() {
        let old = [-1.0, -1.0, -0.5];
        let sampling = [-1.0, -3.0, -1.0];
        let half = 0.5f32.exp();
        let run = |c| sampler_ratio(&old, &sampling, &config(c)).unwrap();
        assert_eq!(run(SamplerCorrection::None), None);
        assert_eq!(run(SamplerCorrection::Truncate), Some(vec![1.0, 2.0, half]));
        assert_eq!(run(SamplerCorrection::Mask), Some(vec![1.0, 0.0, half]));
    }

    #[test]
    fn bad_input_is_an_error() {
        let c = config(SamplerCorrection::Truncate);
        assert!(sampler_ratio(&[0.0], &[], &c).is_err());
        assert!(sampler_ratio(&[f32::NAN], &[0.0], &c).is_err());
        assert!(sampler_ratio(&[0.0], &[f32::NEG_INFINITY], &c).is_err());
    }
}
