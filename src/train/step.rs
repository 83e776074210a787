//! One training step's data: sample, judge, compare within groups.

use std::ops::Range;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow};

use crate::advantage::advantages;
use crate::config::Config;
use crate::data::DataOrder;
use crate::episode::{AdapterId, Episode, Group, Problem};
use crate::model::half_layer::HalfLayers;
use crate::reward::{RewardItem, RewardSet};
use crate::rng::Purpose;
use crate::rollout::{Completion, Event, NotFinite, Request, Sampling};
use crate::tokenizer::Tokenizer;
use crate::train::session::Session;

/// The problems of a run with their prompts' ids.
pub struct Prompts {
    pub problems: Vec<Problem>,
    pub ids: Vec<Vec<u32>>,
}

/// A step's groups and how long they took.
#[derive(Default)]
pub struct Sampled {
    pub groups: Vec<Group>,
    /// Where several adapters' rollouts were decoded together, this one's share
    /// of the time, by tokens. So are the next two.
    pub rollout: Duration,
    /// Of judging, what was left to wait for after the last token.
    pub reward: Duration,
    /// All of judging, most of it beside the rollout.
    pub reward_work: Duration,
    pub timed_out: usize,
    /// Tokens sampled, replaced groups included.
    pub tokens: usize,
}

/// Whose rollout it is: an adapter, and where its run stands.
pub struct Asker<'a> {
    pub adapter: AdapterId,
    pub config: &'a Config,
    /// Goes on as problems are asked.
    pub order: DataOrder,
    /// Steps done.
    pub step: usize,
}

/// Context of a rollout's error: which of those who asked (by index) has an
/// adapter under which logits are no numbers. Without it the others' rollout
/// would have gone well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Culprit(pub usize);

impl std::fmt::Display for Culprit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("sampling")
    }
}

/// Names the culprit of a rollout that failed, where `of` tells whose request
/// it was.
pub fn blame(error: Error, of: impl Fn(usize) -> usize) -> Error {
    match error.downcast_ref::<NotFinite>() {
        Some(&NotFinite { request, .. }) => error.context(Culprit(of(request))),
        None => error,
    }
}

/// Sample `train.prompts_per_step` groups for everybody who asks, all decoded
/// together. With `rollout.refill_zero_variance`, groups whose rewards are all
/// equal give way to fresh ones for so many more rounds. What one gets depends
/// on its own configuration, adapter and step alone.
///
/// # Errors
/// A rollout that failed, with its [`Culprit`] where there is one.
pub fn sample_groups<D: HalfLayers>(
    session: &mut Session<D>,
    prompts: &Prompts,
    rewards: &RewardSet,
    askers: &mut [Asker],
) -> Result<Vec<Sampled>> {
    let mut out: Vec<Sampled> = askers.iter().map(|_| Sampled::default()).collect();
    // Problems asked so far in this step: one asked again gets fresh sample
    // indices.
    let mut asked: Vec<Vec<usize>> = askers.iter().map(|_| Vec::new()).collect();
    let mut settled = vec![false; askers.len()];
    for round in 0.. {
        let mut wanted = Vec::new();
        for (a, asker) in askers.iter_mut().enumerate().filter(|(a, _)| !settled[*a]) {
            let missing = asker.config.train.prompts_per_step - out[a].groups.len();
            for row in asker.order.next_batch(missing) {
                let before = asked[a].iter().filter(|&&r| r == row).count() as u32;
                asked[a].push(row);
                let k = asker.config.rollout.group_size as u32;
                wanted.push(Wanted {
                    asker: a,
                    row,
                    samples: before * k..(before + 1) * k,
                });
            }
        }
        if wanted.is_empty() {
            break;
        }
        draw(session, prompts, rewards, askers, &wanted, &mut out)?;
        for (a, asker) in askers.iter().enumerate() {
            if round >= asker.config.rollout.refill_zero_variance {
                settled[a] = true;
            } else if !settled[a] {
                // Kept in order; what is dropped here is drawn anew next round.
                let all = std::mem::take(&mut out[a].groups);
                let count = all.len();
                out[a].groups = all.into_iter().filter(|g| !g.zero_variance()).collect();
                settled[a] = out[a].groups.len() == count;
            }
        }
    }
    for (sampled, asker) in out.iter_mut().zip(askers.iter()) {
        let scores: Vec<Vec<f32>> = sampled
            .groups
            .iter()
            .map(|g| g.episodes.iter().map(|e| e.reward).collect())
            .collect();
        let all = advantages(&scores, &asker.config.advantage)?;
        for (group, advantages) in sampled.groups.iter_mut().zip(all) {
            group.advantages = advantages;
        }
    }
    Ok(out)
}

/// Samples of one problem that somebody asks for.
struct Wanted {
    asker: usize,
    row: usize,
    samples: Range<u32>,
}

/// Sample and judge some problems: each group is judged on another thread as
/// soon as it is complete, while the others are still drawn.
fn draw<D: HalfLayers>(
    session: &mut Session<D>,
    prompts: &Prompts,
    rewards: &RewardSet,
    askers: &[Asker],
    wanted: &[Wanted],
    out: &mut [Sampled],
) -> Result<()> {
    let start = Instant::now();
    let sampling: Vec<Arc<Sampling>> = askers
        .iter()
        .map(|a| Arc::new(session.sampling(a.config)))
        .collect();
    let tokenizer = session.tokenizer()?.clone();
    let judge = Judge {
        askers,
        prompts,
        wanted,
        rewards,
        tokenizer: &tokenizer,
    };
    let mut rollout = session.rollout();
    for w in wanted {
        let asker = &askers[w.asker];
        rollout.submit(Request {
            adapter: Some(asker.adapter),
            prompt_ids: prompts.ids[w.row].clone(),
            samples: w.samples.clone(),
            sampling: sampling[w.asker].clone(),
            seed: asker.config.train.seed,
            purpose: Purpose::Rollout,
            step: asker.step as u64,
            problem: prompts.problems[w.row].key(),
        })?;
    }
    let graders = std::thread::available_parallelism().map_or(1, usize::from);
    let (complete, groups) = channel();
    let groups = Mutex::new(groups);
    let mut judged: Vec<Judged> = Vec::with_capacity(wanted.len());
    let mut took = [Duration::ZERO; 2];
    std::thread::scope(|scope| -> Result<()> {
        let graders: Vec<_> = (0..graders.min(wanted.len()))
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
        took = [tail - start, tail.elapsed()];
        drawn.map_err(|e| blame(e, |request| wanted[request].asker))
    })?;
    judged.sort_by_key(|j| j.request);
    let mut tokens = vec![0; askers.len()];
    for j in judged {
        let asker = wanted[j.request].asker;
        let lengths = j.group.episodes.iter().map(|e| e.completion_ids.len());
        tokens[asker] += lengths.sum::<usize>();
        out[asker].timed_out += j.timed_out;
        out[asker].reward_work += j.work;
        out[asker].groups.push(j.group);
    }
    let all = tokens.iter().sum::<usize>().max(1) as f64;
    for (sampled, tokens) in out.iter_mut().zip(tokens) {
        let share = tokens as f64 / all;
        sampled.rollout += took[0].mul_f64(share);
        sampled.reward += took[1].mul_f64(share);
        sampled.tokens += tokens;
    }
    Ok(())
}

/// Turns complete groups into judged ones.
struct Judge<'a> {
    askers: &'a [Asker<'a>],
    prompts: &'a Prompts,
    wanted: &'a [Wanted],
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
        let Wanted { asker, row, .. } = self.wanted[request];
        let adapter = self.askers[asker].adapter;
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
                    adapter: Some(adapter),
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
