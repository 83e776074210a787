//! Guards that training climbs: the sign of every gradient, from the reward to
//! the optimizer, through the whole program.

use crate::run::Bench;

/// Mean training reward of the first and of the last `n` steps.
fn ends(rewards: &[f64], n: usize) -> (f64, f64) {
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    (mean(&rewards[..n]), mean(&rewards[rewards.len() - n..]))
}

/// Measured with seeds 0 to 4: from 0.22 .. 0.26 to 0.60 .. 0.70, a rise of
/// 0.36 to 0.45. Half the smallest is asked for, so that the test outlives
/// changes of rounding; with a wrong sign the reward falls from the start.
#[test]
fn reward_rises() {
    let bench = Bench::new();
    let settings = [
        "train.steps=10",
        "train.prompts_per_step=16",
        "rollout.group_size=8",
        "optimizer.learning_rate=3e-3",
    ];
    let run = bench.train("run", &settings);
    let rewards = run.series("train/reward");
    let (first, last) = ends(&rewards, 3);
    assert!(
        last > first + 0.18,
        "from {first:.3} to {last:.3}: {rewards:.3?}"
    );
}
