//! One training step's data: sample, judge, compare within groups.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::advantage::advantages;
use crate::config::Config;
use crate::data::DataOrder;
use crate::episode::{AdapterId, Episode, Group, Problem};
use crate::model::half_layer::HalfLayers;
use crate::reward::{RewardItem, RewardSet};
use crate::rng::Purpose;
use crate::rollout::{Completion, Event, Request};
use crate::tokenizer::Tokenizer;
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
    /// Of judging, what was left to wait for after the last token.
    pub reward: Duration,
    /// All of judging, most of it beside the rollout.
    pub reward_work: Duration,
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
        reward_work: Duration::ZERO,
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

/// Sample and judge some problems: each group is judged on another thread as
/// soon as it is complete, while the others are still drawn. `asked` are the
/// problems already asked in this step: one asked again gets fresh sample
/// indices.
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
    let sampling = Arc::new(session.sampling(config));
    let tokenizer = session.tokenizer()?.clone();
    let judge = Judge {
        adapter,
        prompts,
        rows,
        rewards,
        tokenizer: &tokenizer,
    };
    let mut rollout = session.rollout();
    for &row in rows {
        let before = asked.iter().filter(|&&r| r == row).count() as u32;
        asked.push(row);
        rollout.submit(Request {
            adapter: Some(adapter),
            prompt_ids: prompts.ids[row].clone(),
            samples: before * k..(before + 1) * k,
            sampling: sampling.clone(),
            seed: config.train.seed,
            purpose: Purpose::Rollout,
            step: step as u64,
            problem: prompts.problems[row].key(),
        })?;
    }
    let graders = std::thread::available_parallelism().map_or(1, usize::from);
    let (complete, groups) = channel();
    let groups = Mutex::new(groups);
    let mut judged: Vec<Judged> = Vec::with_capacity(rows.len());
    std::thread::scope(|scope| -> Result<()> {
        let graders: Vec<_> = (0..graders.min(rows.len()))
            .map(|_| scope.spawn(|| judge.all(&groups)))
            .collect();
        let drawn = rollout.run(&mut |event| match event {
            Event::Complete {
                request,
                completions,
            } => complete
                .send((request, completions))
                .map_err(|_| anyhow!("nobody judges the completions")),
            _ => Ok(()),
        });
        drop(complete);
        let tail = Instant::now();
        for grader in graders {
            let groups = grader.join();
            // Where judging failed, the rollout was only told that it did.
            judged.extend(groups.map_err(|_| anyhow!("judging the completions panicked"))??);
        }
        out.rollout += tail - start;
        out.reward += tail.elapsed();
        drawn
    })?;
    judged.sort_by_key(|j| j.request);
    for j in &judged {
        let tokens = j.group.episodes.iter().map(|e| e.completion_ids.len());
        out.tokens += tokens.sum::<usize>();
        out.timed_out += j.timed_out;
        out.reward_work += j.work;
    }
    Ok(judged.into_iter().map(|j| j.group).collect())
}

/// Turns complete groups into judged ones.
struct Judge<'a> {
    adapter: AdapterId,
    prompts: &'a Prompts,
    rows: &'a [usize],
    rewards: &'a RewardSet,
    tokenizer: &'a Tokenizer,
}

struct Judged {
    request: usize,
    group: Group,
    timed_out: usize,
    work: Duration,
}

impl Judge<'_> {
    /// Judge groups as they come, until no more will. After a failure nobody
    /// waits for more.
    fn all(&self, groups: &Mutex<Receiver<(usize, Vec<Completion>)>>) -> Result<Vec<Judged>> {
        let next = || groups.lock().ok()?.recv().ok();
        let mut judged = Vec::new();
        while let Some((request, completions)) = next() {
            judged.push(self.group(request, completions)?);
        }
        Ok(judged)
    }

    fn group(&self, request: usize, completions: Vec<Completion>) -> Result<Judged> {
        let start = Instant::now();
        let row = self.rows[request];
        let problem = &self.prompts.problems[row];
        let texts: Vec<String> = completions
            .iter()
            .map(|c| self.tokenizer.decode(&c.ids, true))
            .collect::<Result<_>>()?;
        let items: Vec<RewardItem> = completions
            .iter()
            .zip(&texts)
            .map(|(c, text)| RewardItem {
                problem,
                completion: text,
                finish: c.finish,
                completion_tokens: c.ids.len(),
            })
            .collect();
        let results = self.rewards.score_batch(&items)?;
        drop(items);
        let timed_out = results.iter().filter(|r| r.timed_out).count();
        let episodes =
            completions
                .into_iter()
                .zip(texts)
                .zip(results)
                .map(|((c, text), result)| Episode {
                    adapter: Some(self.adapter),
                    sample: c.sample,
                    prompt_ids: self.prompts.ids[row].clone(),
                    completion_ids: c.ids,
                    logprobs: c.logprobs,
                    finish: c.finish,
                    text,
                    reward: result.reward,
                    rewards: result.rewards,
                    verdict: result.verdict,
                });
        Ok(Judged {
            request,
            group: Group {
                problem: problem.clone(),
                episodes: episodes.collect(),
                advantages: Vec::new(),
            },
            timed_out,
            work: start.elapsed(),
        })
    }
}
