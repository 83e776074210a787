//! Group-relative advantages: how much better a completion did than its
//! siblings.
//!
//! With R_i the reward of sample i in a group of K:
//!
//! | key | value | formula |
//! |---|---|---|
//! | `baseline` | `mean` | d_i = R_i - mean(R) |
//! | | `leave_one_out` | d_i = R_i - mean(R without i) (RLOO, arXiv 2402.14740) |
//! | `scale` | `group` | A_i = d_i / (std of the group + eps) (GRPO, arXiv 2402.03300) |
//! | | `batch` | A_i = d_i / (std of every reward of the step + eps) |
//! | | `none` | A_i = d_i (Dr. GRPO, arXiv 2503.20783) |
//!
//! `std` divides by (count - ddof). TRL 1.16.0 is `mean`, ddof 1, eps 1e-4.

use anyhow::{Result, bail, ensure};

use crate::config::{AdvantageConfig, AdvantageScale, Baseline};

/// Refuses settings under which no completion could ever earn an advantage.
/// [`advantages`] itself accepts groups of any size, because replayed episodes
/// may come in groups of one.
pub fn validate(config: &AdvantageConfig, group_size: usize) -> Result<()> {
    ensure!(
        group_size >= 2,
        "rollout.group_size is {group_size}: an advantage compares at least 2 completions of a prompt"
    );
    if config.scale == AdvantageScale::Group {
        ensure!(
            config.ddof < group_size,
            "advantage.ddof is {}: it must be below rollout.group_size ({group_size})",
            config.ddof
        );
    }
    ensure!(
        config.epsilon.is_finite() && config.epsilon >= 0.0,
        "advantage.epsilon is {}: it must be 0 or more",
        config.epsilon
    );
    Ok(())
}

/// The advantages of one step, in the shape of `rewards` (one row per group).
///
/// Arithmetic is f64, so that a group of equal rewards gives exactly 0. Where
/// the standard deviation is undefined (no more than `ddof` rewards) or the
/// divisor is 0 the advantages are 0: never NaN. A reward that is not finite
/// is an error that names its group and sample.
pub fn advantages(rewards: &[Vec<f32>], config: &AdvantageConfig) -> Result<Vec<Vec<f32>>> {
    for (g, group) in rewards.iter().enumerate() {
        if let Some(i) = group.iter().position(|r| !r.is_finite()) {
            bail!("the reward of group {g}, sample {i} is {}", group[i]);
        }
    }
    let epsilon = f64::from(config.epsilon);
    let whole_batch = match config.scale {
        AdvantageScale::Batch => {
            let all: Vec<f32> = rewards.iter().flatten().copied().collect();
            standard_deviation(&all, config.ddof)
        }
        AdvantageScale::Group | AdvantageScale::None => None,
    };
    let scaled = |group: &Vec<f32>| {
        let factor = match config.scale {
            AdvantageScale::None => 1.0,
            AdvantageScale::Group => reciprocal(standard_deviation(group, config.ddof), epsilon),
            AdvantageScale::Batch => reciprocal(whole_batch, epsilon),
        };
        centred(group, config.baseline)
            .map(|d| (d * factor) as f32)
            .collect()
    };
    Ok(rewards.iter().map(scaled).collect())
}

/// Rewards minus their baseline. A lone sample is its own baseline.
fn centred(group: &[f32], baseline: Baseline) -> impl Iterator<Item = f64> {
    let mean = mean(group);
    let k = group.len() as f64;
    let stretch = match baseline {
        Baseline::Mean => 1.0,
        // R_i - (K mean - R_i) / (K - 1) = K / (K - 1) (R_i - mean).
        Baseline::LeaveOneOut if group.len() > 1 => k / (k - 1.0),
        Baseline::LeaveOneOut => 1.0,
    };
    group.iter().map(move |&r| (f64::from(r) - mean) * stretch)
}

/// 1 / (std + eps); 0 where that is undefined.
fn reciprocal(std: Option<f64>, epsilon: f64) -> f64 {
    match std {
        Some(std) if std + epsilon > 0.0 => 1.0 / (std + epsilon),
        _ => 0.0,
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64
}

/// None for no more than `ddof` values.
fn standard_deviation(values: &[f32], ddof: usize) -> Option<f64> {
    let freedom = values.len().checked_sub(ddof).filter(|&f| f > 0)?;
    let mean = mean(values);
    let squares: f64 = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
    Some((squares / freedom as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(scale: AdvantageScale, baseline: Baseline) -> AdvantageConfig {
        AdvantageConfig {
            scale,
            baseline,
            ..AdvantageConfig::default()
        }
    }

    #[test]
    fn trl_default_by_hand() {
        // mean 1/4, squares 3/16 + 9/16 = 3/4, std (ddof 1) 1/2.
        let a = advantages(&[vec![1.0, 0.0, 0.0, 0.0]], &AdvantageConfig::default()).unwrap();
        let expected = [0.75 / 0.5001, -0.25 / 0.5001];
        assert!((a[0][0] - expected[0]).abs() < 1e-6);
        assert!((a[0][3] - expected[1]).abs() < 1e-6);
    }

    #[test]
    fn population_std_is_smaller() {
        let c = AdvantageConfig {
            ddof: 0,
            ..AdvantageConfig::default()
        };
        let a = advantages(&[vec![1.0, 0.0, 0.0, 0.0]], &c).unwrap();
        assert!((a[0][0] - 0.75 / (0.1875f32.sqrt() + 1e-4)).abs() < 1e-6);
    }

    #[test]
    fn batch_scale_keeps_group_means_apart() {
        let rewards = [vec![1.0, 0.0], vec![3.0, 3.0]];
        let a = advantages(&rewards, &config(AdvantageScale::Batch, Baseline::Mean)).unwrap();
        // mean 7/4; squares 9/16 + 49/16 + 25/16 + 25/16 = 108/16; / 3 = 9/4.
        assert!((a[0][0] - 0.5 / 1.5001).abs() < 1e-6);
        assert_eq!(a[1], [0.0, 0.0]);
    }

    #[test]
    fn leave_one_out_is_the_mean_of_the_others() {
        let c = config(AdvantageScale::None, Baseline::LeaveOneOut);
        let a = advantages(&[vec![1.0, 2.0, 6.0]], &c).unwrap();
        assert_eq!(a[0], [-3.0, -1.5, 4.5]);
    }

    #[test]
    fn degenerate_groups_give_zero() {
        for scale in [
            AdvantageScale::Group,
            AdvantageScale::Batch,
            AdvantageScale::None,
        ] {
            for baseline in [Baseline::Mean, Baseline::LeaveOneOut] {
                let mut c = config(scale, baseline);
                c.epsilon = 0.0;
                let a = advantages(&[vec![0.1], vec![0.3; 3], vec![]], &c).unwrap();
                assert_eq!(a, [vec![0.0], vec![0.0; 3], vec![]]);
            }
        }
    }

    #[test]
    fn too_few_rewards_for_ddof_give_zero() {
        let c = AdvantageConfig {
            ddof: 2,
            ..AdvantageConfig::default()
        };
        assert_eq!(advantages(&[vec![0.0, 1.0]], &c).unwrap(), [[0.0, 0.0]]);
        assert!(validate(&c, 2).is_err());
        assert!(validate(&c, 3).is_ok());
        assert!(validate(&AdvantageConfig::default(), 1).is_err());
    }

    #[test]
    fn a_reward_that_is_no_number_is_named() {
        let e = advantages(
            &[vec![0.0, 1.0], vec![0.0, f32::NAN]],
            &AdvantageConfig::default(),
        );
        let message = e.unwrap_err().to_string();
        assert!(message.contains("group 1, sample 1"), "{message}");
    }

    proptest! {
        #[test]
        fn groups_are_centred_and_finite(
            rewards in prop::collection::vec(prop::collection::vec(-5.0f32..5.0, 1..9), 1..5),
            ddof in 0usize..3,
            leave_one_out: bool,
            which in 0..3,
        ) {
            let scale = [AdvantageScale::Group, AdvantageScale::Batch, AdvantageScale::None][which as usize];
            let baseline = if leave_one_out { Baseline::LeaveOneOut } else { Baseline::Mean };
            let c = AdvantageConfig { scale, baseline, ddof, epsilon: 1e-4 };
            let a = advantages(&rewards, &c).unwrap();
            for (row, group) in a.iter().zip(&rewards) {
                prop_assert_eq!(row.len(), group.len());
                prop_assert!(row.iter().all(|v| v.is_finite()));
                let sum: f64 = row.iter().map(|&v| f64::from(v)).sum();
                let size: f64 = row.iter().map(|&v| f64::from(v).abs()).sum();
                prop_assert!(sum.abs() <= 1e-6 * (1.0 + size), "sum {}", sum);
            }
        }
    }
}
