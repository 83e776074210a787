//! Rollout: from prompts to completions, in batches that are never full of
//! waiting.
//!
//! A [`Request`] is one prompt and some samples of it under one adapter.
//! [`Rollout::step`] runs one forward: a row for every running sample of every
//! request, and beside them a chunk of the next prompts ([`scheduler`]). A
//! prompt is computed once for its samples, which share its KV pages ([`pages`])
//! and copy the last, partly filled one when they first write into it; full
//! pages of prompts are found again by later requests while the adapter is the
//! same ([`prefix`]). A request is handed over as soon as its last sample has
//! ended, while the others go on.
//!
//! Which requests run beside each other, how prompts are cut into chunks, and
//! who had to step back for want of pages changes no token and no log-prob: on
//! the CPU not one bit.

pub mod pages;
pub mod prefix;
pub mod scheduler;
mod sequence;
pub mod stats;
pub mod stop;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::episode::{AdapterId, FinishReason};
use crate::model::buffers::KvCache;
use crate::model::engine::Engine;
use crate::model::half_layer::HalfLayers;
use crate::ops::decode::PAGE;
use crate::profile;
use crate::rng::Purpose;
use crate::tokenizer::Tokenizer;

use scheduler::{Limits, Pages, Scheduler};
use stats::RolloutStats;
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
    /// Texts that end a completion; they need a tokenizer.
    pub stop: Arc<[String]>,
}

/// Samples of one prompt.
#[derive(Clone, Debug)]
pub struct Request {
    pub adapter: Option<AdapterId>,
    pub prompt_ids: Vec<u32>,
    /// Sample indices, part of the random key.
    pub samples: std::ops::Range<u32>,
    pub sampling: Arc<Sampling>,
    /// The rest of the key: see [`crate::rng`].
    pub seed: u64,
    pub purpose: Purpose,
    pub step: u64,
    pub problem: u64,
}

/// A finished sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Index of the request, by order of submission.
    pub request: usize,
    pub sample: u32,
    pub ids: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub finish: FinishReason,
}

/// What a rollout reports while it runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// A sample's next token.
    Token {
        request: usize,
        sample: u32,
        token: u32,
    },
    /// A sample has ended.
    Finished(&'a Completion),
    /// All samples of a request have ended: here they are, by sample.
    Complete {
        request: usize,
        completions: Vec<Completion>,
    },
}

/// The error of a rollout that ended because the logits of a sample's token are
/// NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite {
    pub request: usize,
    pub sample: u32,
    pub token: usize,
}

impl std::fmt::Display for NotFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "request {}, sample {}: the logits of token {} are NaN or infinite",
            self.request, self.sample, self.token
        )
    }
}

impl std::error::Error for NotFinite {}

/// Pages that hold so many positions.
pub fn pages_of(positions: usize) -> usize {
    positions.div_ceil(PAGE)
}

/// A device's KV pages with what is known of their contents. It outlives the
/// rollouts, so that prompts' pages are found again.
pub struct KvStore<D: HalfLayers> {
    pub cache: KvCache<D>,
    pub pages: Pages,
}

impl<D: HalfLayers> KvStore<D> {
    pub fn new(cache: KvCache<D>) -> Self {
        KvStore {
            pages: Pages::new(cache.pages),
            cache,
        }
    }
}

/// Requests on their way through an engine.
pub struct Rollout<'a, D: HalfLayers> {
    engine: &'a mut Engine<D>,
    store: &'a mut KvStore<D>,
    tokenizer: Option<Arc<Tokenizer>>,
    scheduler: Scheduler,
}

impl<'a, D: HalfLayers> Rollout<'a, D> {
    /// `tokenizer` is for stop strings.
    pub fn new(
        engine: &'a mut Engine<D>,
        store: &'a mut KvStore<D>,
        tokenizer: Option<Arc<Tokenizer>>,
    ) -> Self {
        let limits = Limits::of(&engine.capacity);
        Rollout {
            engine,
            store,
            tokenizer,
            scheduler: Scheduler::new(limits),
        }
    }

    /// Prompts in chunks of at most so many rows beside the decode rows.
    pub fn with_prefill_rows(mut self, rows: usize) -> Self {
        self.scheduler.set_prefill_rows(rows);
        self
    }

    /// Queue a request; its index.
    ///
    /// # Errors
    /// A request that could never be served, or whose stop strings nobody can
    /// read.
    pub fn submit(&mut self, request: Request) -> Result<usize> {
        let strings = request.sampling.stop.clone();
        let matcher = match strings.iter().all(String::is_empty) {
            true => None,
            false => Some(
                self.tokenizer
                    .clone()
                    .context("stop strings need a tokenizer: the model has no tokenizer.json")?,
            ),
        };
        let stop = || {
            let tokenizer = matcher.clone()?;
            Some(StopStrings::new(tokenizer, strings.clone()))
        };
        let version = self.engine.kv_version(request.adapter);
        self.scheduler
            .submit(request, version, &self.store.pages, &stop)
    }

    /// End samples before their time: all of a request, or one.
    pub fn cancel(
        &mut self,
        request: usize,
        sample: Option<u32>,
        events: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        self.scheduler.cancel(request, sample, events)
    }

    /// One forward. False, and nothing is done, when all samples have ended.
    pub fn step(&mut self, events: &mut dyn FnMut(Event) -> Result<()>) -> Result<bool> {
        let start = Instant::now();
        let Some(forward) = self.scheduler.plan(&mut self.store.pages)? else {
            return Ok(false);
        };
        for &(from, to) in &forward.copies {
            self.engine.copy_page(&mut self.store.cache, from, to)?;
        }
        let (batch, asked, taken) = forward.split();
        let drawn = self
            .engine
            .run_paged(batch, &mut self.store.cache, &asked)?;
        let seconds = start.elapsed().as_secs_f64();
        self.scheduler
            .advance(taken, &drawn, seconds, &mut self.store.pages, events)?;
        Ok(true)
    }

    /// Step until all samples have ended.
    pub fn run(&mut self, events: &mut dyn FnMut(Event) -> Result<()>) -> Result<()> {
        let _range = profile::phase("rollout");
        while self.step(events)? {}
        Ok(())
    }

    pub fn stats(&self) -> &RolloutStats {
        self.scheduler.stats()
    }
}

/// Draw all requests' samples; results in order of request, then sample. Events
/// but for [`Event::Complete`] are passed on.
pub fn generate<D: HalfLayers>(
    rollout: &mut Rollout<D>,
    requests: Vec<Request>,
    events: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<Vec<Completion>> {
    for request in requests {
        rollout.submit(request)?;
    }
    let mut all = Vec::new();
    rollout.run(&mut |event| match event {
        Event::Complete { completions, .. } => {
            all.extend(completions);
            Ok(())
        }
        event => events(event),
    })?;
    all.sort_by_key(|c| (c.request, c.sample));
    Ok(all)
}
