//! Rollout: from prompts to completions, in batches.
//!
//! A request is one prompt and some samples of it under one adapter. Its
//! prompt is prefilled once; the samples share the prompt's full pages and
//! copy its last, partly filled one. Requests wait until their pages are free;
//! samples leave as they finish. Which requests run beside each other changes
//! no token and no log-prob.

pub mod pages;
pub mod stop;

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use crate::episode::{AdapterId, FinishReason};
use crate::model::batch::{Batch, PageTable, Segment};
use crate::model::buffers::KvCache;
use crate::model::engine::Engine;
use crate::model::half_layer::HalfLayers;
use crate::ops::decode::PAGE;
use crate::ops::sample::{SampleRequest, Sampled};
use crate::rng::{Purpose, stream_key};

use pages::{Lease, PagePool};
use stop::StopStrings;

/// How tokens are drawn and when a completion ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: usize,
    pub min_p: f32,
    /// Most tokens of a completion, the stop id included.
    pub max_tokens: usize,
    pub stop_ids: Vec<u32>,
}

/// Samples of one prompt.
#[derive(Clone, Debug)]
pub struct Request {
    pub adapter: Option<AdapterId>,
    pub prompt_ids: Vec<u32>,
    /// Sample indices, part of the random key.
    pub samples: std::ops::Range<u32>,
    /// The rest of the key: see [`crate::rng`].
    pub seed: u64,
    pub purpose: Purpose,
    pub step: u64,
    pub problem: u64,
}

/// A finished sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Index into the requests.
    pub request: usize,
    pub sample: u32,
    pub ids: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub finish: FinishReason,
}

/// What a rollout reports while it runs.
pub enum Event<'a> {
    /// A sample's next token.
    Token {
        request: usize,
        sample: u32,
        token: u32,
    },
    /// A sample has ended.
    Finished(&'a Completion),
}

/// Pages that `samples` completions of a prompt need.
pub fn pages_needed(prompt: usize, samples: usize, max_tokens: usize) -> usize {
    prompt.div_ceil(PAGE) + samples * own_pages(prompt, max_tokens)
}

/// Pages of one sample beside the prompt's full ones: the copied last page and
/// what follows.
fn own_pages(prompt: usize, max_tokens: usize) -> usize {
    (prompt + max_tokens).div_ceil(PAGE) - prompt / PAGE
}

/// A sample being drawn.
struct Sequence {
    request: usize,
    sample: u32,
    key: u64,
    adapter: Option<AdapterId>,
    prompt: usize,
    table: PageTable,
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    stop: Option<StopStrings>,
    /// Held until the sample ends; the prompt's until its last sample ends.
    _own: Lease,
    _group: Arc<Lease>,
}

/// Draw all requests' samples; results in order of request, then sample.
/// `stop` makes a matcher per sample where there are stop strings.
pub fn generate<D: HalfLayers>(
    engine: &mut Engine<D>,
    cache: &mut KvCache<D>,
    requests: &[Request],
    sampling: &Sampling,
    stop: &dyn Fn() -> Option<StopStrings>,
    events: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<Vec<Completion>> {
    let pool = PagePool::new(cache.pages);
    let most_rows = engine.capacity.rows.min(engine.capacity.segments);
    let mut waiting: VecDeque<usize> = (0..requests.len())
        .filter(|&i| !requests[i].samples.is_empty())
        .collect();
    let mut running: Vec<Sequence> = Vec::new();
    let mut done: Vec<Completion> = Vec::new();
    ensure!(
        sampling.max_tokens > 0,
        "a completion needs at least one token"
    );

    while !waiting.is_empty() || !running.is_empty() {
        let mut admitted = Vec::new();
        let mut rows = running.len();
        while let Some(&index) = waiting.front() {
            let request = &requests[index];
            let (prompt, samples) = (request.prompt_ids.len(), request.samples.len());
            ensure!(prompt > 0, "request {index} has an empty prompt");
            let needed = pages_needed(prompt, samples, sampling.max_tokens);
            ensure!(
                needed <= pool.total() && samples <= most_rows,
                "request {index}: a prompt of {prompt} tokens with {samples} samples of up to {} \
                 needs {needed} KV pages and {samples} rows; there are {} pages and {most_rows} rows",
                sampling.max_tokens,
                pool.total()
            );
            if rows + samples > most_rows {
                break;
            }
            let Some(group) = pool.take(prompt.div_ceil(PAGE)) else {
                break;
            };
            let own: Option<Vec<Lease>> = (0..samples)
                .map(|_| pool.take(own_pages(prompt, sampling.max_tokens)))
                .collect();
            // A group comes in whole or waits: its pages go back on drop.
            let Some(own) = own else { break };
            rows += samples;
            waiting.pop_front();
            admitted.push((index, group, own));
        }
        if !admitted.is_empty() {
            let fresh = prefill(
                engine, cache, requests, sampling, admitted, stop, events, &mut done,
            )?;
            running.extend(fresh);
            // Rows of one adapter stand together, so that their LoRA terms are one product.
            running.sort_by_key(|s| s.adapter);
        }
        if running.is_empty() {
            ensure!(
                waiting.is_empty() || !done.is_empty(),
                "no request could be admitted"
            );
            continue;
        }
        decode_step(engine, cache, sampling, &mut running, events, &mut done)?;
    }
    done.sort_by_key(|c| (c.request, c.sample));
    Ok(done)
}

/// Prefill the admitted prompts, in as few forwards as the rows allow, and
/// draw every sample's first token.
#[allow(clippy::too_many_arguments)]
fn prefill<D: HalfLayers>(
    engine: &mut Engine<D>,
    cache: &mut KvCache<D>,
    requests: &[Request],
    sampling: &Sampling,
    admitted: Vec<(usize, Lease, Vec<Lease>)>,
    stop: &dyn Fn() -> Option<StopStrings>,
    events: &mut dyn FnMut(Event) -> Result<()>,
    done: &mut Vec<Completion>,
) -> Result<Vec<Sequence>> {
    let most_rows = engine.capacity.rows;
    let mut fresh = Vec::new();
    let mut queue: VecDeque<_> = admitted.into();
    while !queue.is_empty() {
        let mut batch = Batch::default();
        let mut asked = Vec::new();
        let mut filled = Vec::new();
        while let Some((index, group, own)) = queue.pop_front() {
            let request = &requests[index];
            let room = most_rows - batch.rows();
            let prompt = &request.prompt_ids;
            let full = batch.segments.len() == engine.capacity.segments;
            if prompt.len() > room || full {
                if !batch.tokens.is_empty() {
                    queue.push_front((index, group, own));
                    break;
                }
                // Longer than any forward: all but the end goes ahead in chunks.
                let last = prompt.len() - (prompt.len() - 1) % most_rows - 1;
                for start in (0..last).step_by(most_rows) {
                    let mut chunk = Batch::default();
                    push_rows(
                        &mut chunk,
                        &prompt[start..start + most_rows],
                        start,
                        request.adapter,
                        group.pages(),
                    );
                    engine.run_paged(chunk, cache, &[])?;
                }
                push_rows(
                    &mut batch,
                    &prompt[last..],
                    last,
                    request.adapter,
                    group.pages(),
                );
            } else {
                push_rows(&mut batch, prompt, 0, request.adapter, group.pages());
            }
            let row = batch.rows() as u32 - 1;
            for sample in request.samples.clone() {
                let key = stream_key(
                    request.seed,
                    request.purpose,
                    request.step,
                    request.problem,
                    sample as u64,
                );
                asked.push(sample_request(sampling, row, key, 0));
            }
            filled.push((index, group, own));
        }
        let drawn = engine.run_paged(batch, cache, &asked)?;
        let mut drawn = asked.iter().zip(drawn);
        for (index, group, own) in filled {
            let request = &requests[index];
            let prompt = request.prompt_ids.len();
            let full = prompt / PAGE;
            let shared: Arc<[u32]> = group.pages()[..full].into();
            let group = Arc::new(group);
            for (sample, lease) in request.samples.clone().zip(own) {
                if !prompt.is_multiple_of(PAGE) {
                    engine.copy_page(cache, group.pages()[full], lease.pages()[0])?;
                }
                let mut sequence = Sequence {
                    request: index,
                    sample,
                    key: 0,
                    adapter: request.adapter,
                    prompt,
                    table: PageTable {
                        group: shared.clone(),
                        own: lease.pages().to_vec(),
                    },
                    ids: Vec::new(),
                    logprobs: Vec::new(),
                    stop: stop(),
                    _own: lease,
                    _group: group.clone(),
                };
                let (asked, token) = drawn.next().context("a sample got no token")?;
                sequence.key = asked.key;
                if let Some(sequence) = accept(sequence, token, sampling, events, done)? {
                    fresh.push(sequence);
                }
            }
        }
    }
    Ok(fresh)
}

fn push_rows(
    batch: &mut Batch,
    tokens: &[u32],
    first: usize,
    adapter: Option<AdapterId>,
    pages: &[u32],
) {
    let start = batch.rows();
    batch.tokens.extend_from_slice(tokens);
    batch
        .positions
        .extend((first..first + tokens.len()).map(|p| p as u32));
    batch.segments.push(Segment {
        rows: start..batch.rows(),
        prefix: Vec::new(),
        adapter,
    });
    batch.pages.push(PageTable {
        group: pages.into(),
        own: Vec::new(),
    });
}

/// One token for every running sample.
fn decode_step<D: HalfLayers>(
    engine: &mut Engine<D>,
    cache: &mut KvCache<D>,
    sampling: &Sampling,
    running: &mut Vec<Sequence>,
    events: &mut dyn FnMut(Event) -> Result<()>,
    done: &mut Vec<Completion>,
) -> Result<()> {
    let mut batch = Batch::default();
    let mut asked = Vec::with_capacity(running.len());
    for (row, s) in running.iter().enumerate() {
        // A running sample has at least one token, and the last one has not
        // been through the model yet.
        let last = *s.ids.last().context("a running sample has no token")?;
        batch.tokens.push(last);
        batch.positions.push((s.prompt + s.ids.len() - 1) as u32);
        batch.segments.push(Segment {
            rows: row..row + 1,
            prefix: Vec::new(),
            adapter: s.adapter,
        });
        batch.pages.push(s.table.clone());
        asked.push(sample_request(
            sampling,
            row as u32,
            s.key,
            s.ids.len() as u32,
        ));
    }
    let drawn = engine.run_paged(batch, cache, &asked)?;
    let mut still = Vec::with_capacity(running.len());
    for (sequence, token) in running.drain(..).zip(drawn) {
        if let Some(sequence) = accept(sequence, token, sampling, events, done)? {
            still.push(sequence);
        }
    }
    *running = still;
    Ok(())
}

fn sample_request(sampling: &Sampling, row: u32, key: u64, position: u32) -> SampleRequest {
    SampleRequest {
        row,
        key,
        position,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k as u32,
        min_p: sampling.min_p,
    }
}

/// Add a token; a sample that ends thereby moves to `done` and frees its pages.
fn accept(
    mut s: Sequence,
    drawn: Sampled,
    sampling: &Sampling,
    events: &mut dyn FnMut(Event) -> Result<()>,
    done: &mut Vec<Completion>,
) -> Result<Option<Sequence>> {
    if drawn.invalid {
        bail!(
            "request {}, sample {}: the logits of token {} are NaN or infinite",
            s.request,
            s.sample,
            s.ids.len()
        );
    }
    s.ids.push(drawn.token);
    s.logprobs.push(drawn.logprob);
    events(Event::Token {
        request: s.request,
        sample: s.sample,
        token: drawn.token,
    })?;
    let stopped = sampling.stop_ids.contains(&drawn.token)
        || s.stop.as_mut().is_some_and(|m| m.push(drawn.token));
    let finish = if stopped {
        FinishReason::Stop
    } else if s.ids.len() >= sampling.max_tokens {
        FinishReason::Length
    } else {
        return Ok(Some(s));
    };
    let completion = Completion {
        request: s.request,
        sample: s.sample,
        ids: s.ids,
        logprobs: s.logprobs,
        finish,
    };
    events(Event::Finished(&completion))?;
    done.push(completion);
    Ok(None)
}
