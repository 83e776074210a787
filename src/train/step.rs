//! One training step's data: sample, judge, compare within groups.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::advantage::advantages;
use crate::config::Config;
use crate::data::DataOrder;
use crate::episode::{AdapterId, Episode, Group, Problem};
use crate::model::half_layer::HalfLayers;
use crate::reward::{RewardItem, RewardSet};
use crate::rng::Purpose;
use crate::rollout::Request;
use crate::train::session::Session;

/// The problems of a run with their prompts' ids.
pub struct Prompts {
    pub problems: Vec<Problem>,
    pub ids: Vec<Vec<u32>>,
}

/// A step's groups and how long they took.
pub struct Sampled {
    pub groups: Vec<Group>,
    pub rollout: Duration,
    pub reward: Duration,
    pub timed_out: usize,
    /// Tokens sampled, replaced groups included.
    pub tokens: usize,
}

/// Sample `train.prompts_per_step` groups. With `rollout.refill_zero_variance`,
/// groups whose rewards are all equal give way to fresh ones for so many more
/// rounds.
pub fn sample_groups<D: HalfLayers>(
    session: &mut Session<D>,
    config: &Config,
    prompts: &Prompts,
    rewards: &RewardSet,
    order: &mut DataOrder,
    adapter: AdapterId,
    step: usize,
) -> Result<Sampled> {
    let wanted = config.train.prompts_per_step;
    let mut out = Sampled {
        groups: Vec::new(),
        rollout: Duration::ZERO,
        reward: Duration::ZERO,
        timed_out: 0,
        tokens: 0,
    };
    let mut asked: Vec<usize> = Vec::new();
    for round in 0..=config.rollout.refill_zero_variance {
        let missing = wanted - out.groups.len();
        let rows = order.next_batch(missing);
        let fresh = draw(
            session, config, prompts, rewards, &rows, &mut asked, adapter, step, &mut out,
        )?;
        out.groups.extend(fresh);
        if round < config.rollout.refill_zero_variance {
            // Kept in order; what is dropped here is drawn anew next round.
            let all = std::mem::take(&mut out.groups);
            let (useful, flat): (Vec<Group>, Vec<Group>) =
                all.into_iter().partition(|g| !g.zero_variance());
            out.groups = useful;
            if flat.is_empty() {
                break;
            }
        }
    }
    let scores: Vec<Vec<f32>> = out
        .groups
        .iter()
        .map(|g| g.episodes.iter().map(|e| e.reward).collect())
        .collect();
    for (group, a) in out
        .groups
        .iter_mut()
        .zip(advantages(&scores, &config.advantage)?)
    {
        group.advantages = a;
    }
    Ok(out)
}

/// Sample and judge some problems. `asked` are the problems already asked in
/// this step: one asked again gets fresh sample indices.
#[allow(clippy::too_many_arguments)]
fn draw<D: HalfLayers>(
    session: &mut Session<D>,
    config: &Config,
    prompts: &Prompts,
    rewards: &RewardSet,
    rows: &[usize],
    asked: &mut Vec<usize>,
    adapter: AdapterId,
    step: usize,
    out: &mut Sampled,
) -> Result<Vec<Group>> {
    let k = config.rollout.group_size as u32;
    let start = Instant::now();
    let requests: Vec<Request> = rows
        .iter()
        .map(|&row| {
            let before = asked.iter().filter(|&&r| r == row).count() as u32;
            asked.push(row);
            Request {
                adapter: Some(adapter),
                prompt_ids: prompts.ids[row].clone(),
                samples: before * k..(before + 1) * k,
                seed: config.train.seed,
                purpose: Purpose::Rollout,
                step: step as u64,
                problem: prompts.problems[row].key(),
            }
        })
        .collect();
    let sampling = session.sampling(config);
    let completions =
        session.generate(&requests, &sampling, &config.rollout.stop, &mut |_| Ok(()))?;
    out.rollout += start.elapsed();

    let start = Instant::now();
    let tokenizer = session.tokenizer()?.clone();
    let texts: Vec<String> = completions
        .iter()
        .map(|c| tokenizer.decode(&c.ids, true))
        .collect::<Result<_>>()?;
    let items: Vec<RewardItem> = completions
        .iter()
        .zip(&texts)
        .map(|(c, text)| RewardItem {
            problem: &prompts.problems[rows[c.request]],
            completion: text,
            finish: c.finish,
            completion_tokens: c.ids.len(),
        })
        .collect();
    let results = rewards.score_batch(&items)?;
    drop(items);
    out.reward += start.elapsed();

    let mut groups: Vec<Group> = rows
        .iter()
        .map(|&row| Group {
            problem: prompts.problems[row].clone(),
            episodes: Vec::new(),
            advantages: Vec::new(),
        })
        .collect();
    for ((c, text), result) in completions.into_iter().zip(texts).zip(results) {
        out.tokens += c.ids.len();
        out.timed_out += usize::from(result.timed_out);
        groups[c.request].episodes.push(Episode {
            adapter: Some(adapter),
            sample: c.sample,
            prompt_ids: prompts.ids[rows[c.request]].clone(),
            completion_ids: c.ids,
            logprobs: c.logprobs,
            finish: c.finish,
            text,
            reward: result.reward,
            rewards: result.rewards,
            verdict: result.verdict,
        });
    }
    Ok(groups)
}
