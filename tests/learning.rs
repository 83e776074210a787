//! Guards that training climbs: the sign of every gradient, from the reward to
//! the optimizer, through the whole program.

use crate::run::Bench;

/// Mean training reward of the first and of the last `n` steps.
fn ends(rewards: &[f64], n: usize) -> (f64, f64) {
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    (mean(&rewards[..n]), mean(&rewards[rewards.len() - n..]))
}

#[test]
fn reward_rises() {
    let bench = Bench::new();
    let settings = [
        "train.steps=12",
        "train.prompts_per_step=16",
        "rollout.group_size=8",
    ];
    let run = bench.train("run", &settings);
    let rewards = run.series("train/reward");
    let (first, last) = ends(&rewards, 3);
    assert!(
        last > first + 0.1,
        "from {first:.3} to {last:.3}: {rewards:.3?}"
    );
}
