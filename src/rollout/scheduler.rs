//! Who is computed when: waiting, filling, running, finished.
//!
//! A request waits until rows and pages are free, fills its pages with the
//! prompt (once for all of its samples, in chunks beside the others' decode
//! rows), and its samples then run one row a forward until each ends. Service
//! is by order of submission. Pages are taken as samples grow; where none is
//! left, the youngest steps back: its pages are returned, and it waits to have
//! its rows computed again, in its old place. Every draw is keyed by sequence
//! and position, so stepping back changes no token.
//!
//! Nothing here knows a device: [`Scheduler::plan`] says what to compute,
//! [`Scheduler::advance`] takes what was drawn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::pages::{Page, PagePool};
use super::prefix::PrefixCache;
use super::sequence::{Need, Order, Running, Sequence, Work};
use super::stats::{RolloutStats, StepRecord};
use super::stop::StopStrings;
use super::{Completion, Event, Request, pages_of};
use crate::episode::{AdapterId, FinishReason};
use crate::model::batch::{Batch, PageTable, Segment};
use crate::model::engine::KvVersion;
use crate::model::plan::Capacity;
use crate::ops::decode::PAGE;
use crate::ops::sample::{SampleRequest, Sampled};
use crate::rng::stream_key;

/// Sizes that a forward must keep to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows of one forward.
    pub rows: usize,
    /// Samples side by side.
    pub sequences: usize,
    /// Rows of prompts in one forward: what decode waits for at most.
    pub prefill_rows: usize,
    /// Longest context.
    pub positions: usize,
}

/// Rows of prompts that go beside decode rows at most, unless told otherwise:
/// enough to keep a device busy, few enough that running samples do not stall.
pub const PREFILL_ROWS: usize = 512;

impl Limits {
    pub fn of(capacity: &Capacity) -> Self {
        Limits {
            rows: capacity.rows,
            sequences: capacity.sequences(),
            prefill_rows: PREFILL_ROWS,
            positions: capacity.positions,
        }
    }
}

/// The pages of a device, and what is known of their contents.
pub struct Pages {
    pub pool: PagePool,
    pub prefixes: PrefixCache,
}

impl Pages {
    pub fn new(pages: usize) -> Self {
        Pages {
            pool: PagePool::new(pages),
            prefixes: PrefixCache::default(),
        }
    }

    /// Make `n` pages free at the expense of kept prefixes, if that is enough.
    fn make_room(&mut self, n: usize) -> bool {
        while self.pool.free() < n {
            if !self.prefixes.evict() {
                return false;
            }
        }
        true
    }

    fn take(&mut self, n: usize) -> Option<Vec<Arc<Page>>> {
        match self.make_room(n) {
            true => self.pool.take(n),
            false => None,
        }
    }
}

/// What to compute next: copy pages, run the batch, draw.
pub struct Forward {
    /// (from, to), in this order, before the batch.
    pub copies: Vec<(u32, u32)>,
    pub batch: Batch,
    pub asked: Vec<SampleRequest>,
    takers: Vec<Taker>,
    /// Rows of each filling work in this forward.
    filled: Vec<(usize, usize)>,
    record: StepRecord,
}

/// Whose draw it is.
#[derive(Clone, Copy)]
enum Taker {
    Running(usize),
    Filling(usize, usize),
}

/// Rows of one sequence in a forward.
enum Part {
    Decode(usize),
    /// So many rows of a filling work.
    Fill(usize, usize),
}

/// A request that was submitted.
struct Group {
    request: Request,
    version: KvVersion,
    submitted: Instant,
    /// Samples that have not ended.
    left: usize,
    done: Vec<Completion>,
}

/// All requests of a rollout.
pub struct Scheduler {
    limits: Limits,
    groups: Vec<Group>,
    waiting: BTreeMap<Order, Work>,
    /// By order, as are the running ones.
    filling: Vec<Work>,
    running: Vec<Running>,
    stats: RolloutStats,
}

impl Scheduler {
    pub fn new(limits: Limits) -> Self {
        Scheduler {
            limits,
            groups: Vec::new(),
            waiting: BTreeMap::new(),
            filling: Vec::new(),
            running: Vec::new(),
            stats: RolloutStats::default(),
        }
    }

    /// Rows of prompts in one forward, at least one.
    pub fn set_prefill_rows(&mut self, rows: usize) {
        self.limits.prefill_rows = rows.max(1);
    }

    pub fn stats(&self) -> &RolloutStats {
        &self.stats
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.filling.is_empty() && self.running.is_empty()
    }

    /// Queue a request; its index, by which events name it. `version` is that
    /// of its adapter now; `stop` makes a matcher per sample where the request
    /// has stop strings.
    ///
    /// # Errors
    /// A request that could never be served, with what it needs and what there
    /// is.
    pub fn submit(
        &mut self,
        request: Request,
        version: KvVersion,
        pages: &Pages,
        stop: &dyn Fn() -> Option<StopStrings>,
    ) -> Result<usize> {
        let index = self.groups.len();
        let (prompt, sampling) = (request.prompt_ids.len(), &request.sampling);
        ensure!(prompt > 0, "request {index} has an empty prompt");
        ensure!(
            sampling.max_tokens > 0,
            "request {index}: a completion needs at least one token"
        );
        // The last token is drawn, but never computed.
        let context = prompt + sampling.max_tokens - 1;
        ensure!(
            context <= self.limits.positions,
            "request {index}: a prompt of {prompt} tokens and up to {} new ones are over the planned \
             context of {}",
            sampling.max_tokens,
            self.limits.positions
        );
        let (needed, total) = (pages_of(context), pages.pool.total());
        ensure!(
            needed <= total,
            "request {index}: a prompt of {prompt} tokens and up to {} new ones need {needed} KV pages; \
             there are {total}",
            sampling.max_tokens
        );
        let sequences: Vec<Sequence> = request
            .samples
            .clone()
            .map(|sample| Sequence {
                request: index,
                sample,
                key: stream_key(
                    request.seed,
                    request.purpose,
                    request.step,
                    request.problem,
                    u64::from(sample),
                ),
                ids: Vec::new(),
                logprobs: Vec::new(),
                stop: stop(),
                finish: None,
            })
            .collect();
        self.groups.push(Group {
            version,
            submitted: Instant::now(),
            left: sequences.len(),
            done: Vec::new(),
            request,
        });
        // A group comes in whole where it can.
        let request = &self.groups[index].request;
        let mut rest = sequences.into_iter().peekable();
        while rest.peek().is_some() {
            let part = rest.by_ref().take(self.limits.sequences).collect();
            let work = Work::of_prompt(request, part);
            self.waiting.insert(work.order(), work);
        }
        Ok(index)
    }

    /// End samples that have not ended: all of a request, or one.
    pub fn cancel(
        &mut self,
        request: usize,
        sample: Option<u32>,
        events: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        let hit = |s: &Sequence| s.request == request && sample.is_none_or(|n| n == s.sample);
        let mut gone: Vec<Sequence> = Vec::new();
        for work in self.waiting.values_mut().chain(&mut self.filling) {
            gone.extend(work.sequences.extract_if(.., |s| hit(s)));
        }
        self.waiting.retain(|_, work| !work.sequences.is_empty());
        self.filling.retain(|work| !work.sequences.is_empty());
        let out = self.running.extract_if(.., |r| hit(&r.sequence));
        gone.extend(out.map(|r| r.sequence));
        gone.sort_by_key(Sequence::order);
        for sequence in gone {
            self.end(sequence, FinishReason::Cancelled, events)?;
        }
        Ok(())
    }

    /// What to compute next; nothing when all is done.
    pub fn plan(&mut self, pages: &mut Pages) -> Result<Option<Forward>> {
        if self.is_idle() {
            return Ok(None);
        }
        let copies = self.make_writable(pages);
        self.admit(pages);
        let (running, filling) = (self.running.len(), self.filling.len());
        ensure!(
            running + filling > 0,
            "{} requests wait, and none could be admitted: {} of {} KV pages are free",
            self.waiting.len(),
            pages.pool.free(),
            pages.pool.total()
        );
        let mut parts: Vec<(Option<AdapterId>, Part)> = Vec::with_capacity(running + filling);
        for (i, r) in self.running.iter().enumerate() {
            parts.push((self.adapter(r.sequence.request), Part::Decode(i)));
        }
        let mut room = (self.limits.rows - running).min(self.limits.prefill_rows);
        for (i, work) in self.filling.iter().enumerate() {
            let n = work.left().min(room);
            if n == 0 {
                break;
            }
            room -= n;
            parts.push((self.adapter(work.order().0), Part::Fill(i, n)));
        }
        // Rows of one adapter stand together: their LoRA terms are one product.
        parts.sort_by_key(|(adapter, _)| *adapter);
        let mut forward = Forward {
            copies,
            batch: Batch::default(),
            asked: Vec::with_capacity(running),
            takers: Vec::with_capacity(running),
            filled: Vec::new(),
            record: StepRecord::default(),
        };
        for (adapter, part) in parts {
            self.push(&mut forward, adapter, part)?;
        }
        let record = &mut forward.record;
        record.rows = forward.batch.rows();
        record.live = running;
        record.drawn = forward.asked.len();
        record.held_pages = pages.pool.total() - pages.pool.free();
        Ok(Some(forward))
    }

    /// Take what was drawn, in the order it was asked for, and how long it took.
    pub fn advance(
        &mut self,
        mut forward: Taken,
        drawn: &[Sampled],
        seconds: f64,
        pages: &mut Pages,
        events: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        ensure!(
            drawn.len() == forward.takers.len(),
            "{} tokens were drawn for {} samples",
            drawn.len(),
            forward.takers.len()
        );
        for &(i, rows) in &forward.filled {
            let work = &mut self.filling[i];
            work.computed += rows;
            let group = &self.groups[work.sequences[0].request];
            let known = work.computed.min(work.prompt) / PAGE;
            pages.prefixes.insert(
                group.request.adapter,
                group.version,
                &work.tokens[..known * PAGE],
                &work.pages[..known],
            );
        }
        for (taker, drawn) in forward.takers.iter().zip(drawn) {
            let sequence = match *taker {
                Taker::Running(i) => &mut self.running[i].sequence,
                Taker::Filling(i, k) => &mut self.filling[i].sequences[k],
            };
            let group = &self.groups[sequence.request];
            sequence.accept(*drawn, &group.request.sampling)?;
            if sequence.ids.len() == 1 {
                let waited = group.submitted.elapsed().as_secs_f64();
                self.stats.first_token_seconds.push(waited);
            }
            events(Event::Token {
                request: sequence.request,
                sample: sequence.sample,
                token: drawn.token,
            })?;
        }
        // Shared pages are given up by those who end before anybody asks for a
        // copy of them.
        let filled = self.filling.extract_if(.., |w| w.left() == 0);
        self.running.extend(filled.flat_map(Work::into_running));
        let ended: Vec<Running> = self
            .running
            .extract_if(.., |r| r.sequence.finish.is_some())
            .collect();
        for Running { sequence, .. } in ended {
            if let Some(finish) = sequence.finish {
                self.end(sequence, finish, events)?;
            }
        }
        self.running.sort_by_key(|r| r.sequence.order());
        forward.record.seconds = seconds;
        self.stats.steps.push(forward.record);
        Ok(())
    }

    fn adapter(&self, request: usize) -> Option<AdapterId> {
        self.groups[request].request.adapter
    }

    /// A page to write into for every running sample, oldest first; the
    /// youngest step back where there are not enough. Pages to be copied.
    fn make_writable(&mut self, pages: &mut Pages) -> Vec<(u32, u32)> {
        let mut copies = Vec::new();
        let mut i = 0;
        while i < self.running.len() {
            let need = self.running[i].need();
            if matches!(need, Need::Nothing) {
                i += 1;
                continue;
            }
            let Some(page) = pages.take(1).and_then(|mut taken| taken.pop()) else {
                self.step_back();
                continue;
            };
            let running = &mut self.running[i];
            match need {
                Need::Copy => {
                    copies.push(running.replace_page(page));
                    self.stats.copied_pages += 1;
                }
                _ => running.push_page(page),
            }
            i += 1;
        }
        copies
    }

    /// Send the youngest of all who hold pages back to wait.
    fn step_back(&mut self) {
        let youngest_filling = self.filling.last().map(Work::order);
        let youngest_running = self.running.last().map(|r| r.sequence.order());
        let work = if youngest_filling > youngest_running {
            self.filling.pop().map(|mut work| {
                work.reset();
                work
            })
        } else {
            self.running.pop().map(|r| {
                let request = &self.groups[r.sequence.request].request;
                r.into_work(request)
            })
        };
        if let Some(work) = work {
            self.stats.preemptions += 1;
            self.waiting.insert(work.order(), work);
        }
    }

    /// Let in who waits longest, while rows and pages last. Nobody overtakes.
    fn admit(&mut self, pages: &mut Pages) {
        let filling: usize = self.filling.iter().map(|w| w.sequences.len()).sum();
        let mut rows = self.running.len() + filling;
        if self.waiting.is_empty() || rows >= self.limits.sequences {
            return;
        }
        let longest = |request: usize| {
            let request = &self.groups[request].request;
            request.prompt_ids.len() + request.sampling.max_tokens - 1
        };
        let grows = |r: &&Running| r.pages.len() < pages_of(longest(r.sequence.request));
        let mut growing = self.running.iter().filter(grows).count() + filling;
        while let Some(first) = self.waiting.first_entry() {
            let samples = first.get().sequences.len();
            if rows + samples > self.limits.sequences {
                break;
            }
            let group = &self.groups[first.key().0];
            let work = first.get();
            // The last row is computed in any case: it is drawn from.
            let whole = (work.prompt.min(work.tokens.len() - 1)) / PAGE * PAGE;
            let known =
                pages
                    .prefixes
                    .find(group.request.adapter, group.version, &work.tokens[..whole]);
            let needed = pages_of(work.tokens.len()) - known.len();
            // Room for everybody's next page, or admission would be followed
            // by stepping back at once.
            let own = match group.request.sampling.max_tokens {
                1 => 0,
                _ => samples,
            };
            if !pages.make_room(needed + if rows == 0 { 0 } else { growing + own }) {
                break;
            }
            let Some(fresh) = pages.pool.take(needed) else {
                break;
            };
            let mut work = first.remove();
            work.computed = known.len() * PAGE;
            self.stats.reused_rows += work.computed;
            self.stats.recomputed_rows += work.tokens.len() - work.prompt;
            work.pages = known;
            work.pages.extend(fresh);
            rows += samples;
            growing += own;
            self.filling.push(work);
        }
        self.filling.sort_by_key(Work::order);
    }

    /// Add a part's rows and draws to a forward.
    fn push(
        &mut self,
        forward: &mut Forward,
        adapter: Option<AdapterId>,
        part: Part,
    ) -> Result<()> {
        let first = forward.batch.rows();
        let mut rows = |tokens: &[u32], position: usize, table: PageTable| {
            let batch = &mut forward.batch;
            batch.tokens.extend_from_slice(tokens);
            let positions = position..position + tokens.len();
            batch.positions.extend(positions.map(|p| p as u32));
            batch.segments.push(Segment {
                rows: first..first + tokens.len(),
                prefix: Vec::new(),
                adapter,
            });
            batch.pages.push(table);
        };
        match part {
            Part::Decode(i) => {
                let running = &self.running[i];
                let (s, position) = (&running.sequence, running.position());
                // A running sample has at least one token, and the last one has
                // not been through the model yet.
                let last = *s.ids.last().context("a running sample has no token")?;
                rows(&[last], position, running.table.clone());
                let sampling = &self.groups[s.request].request.sampling;
                forward.asked.push(s.ask(first, sampling));
                forward.takers.push(Taker::Running(i));
                forward.record.context += position + 1;
                self.stats.decode_rows += 1;
            }
            Part::Fill(i, n) => {
                let work = &self.filling[i];
                let (from, to) = (work.computed, work.computed + n);
                rows(&work.tokens[from..to], from, work.table());
                forward.filled.push((i, n));
                self.stats.prefill_rows += n;
                self.stats.prefill_pairs += n * from + n * (n + 1) / 2;
                if to == work.tokens.len() {
                    for (k, s) in work.sequences.iter().enumerate() {
                        let sampling = &self.groups[s.request].request.sampling;
                        forward.asked.push(s.ask(first + n - 1, sampling));
                        forward.takers.push(Taker::Filling(i, k));
                    }
                }
            }
        }
        Ok(())
    }

    /// Hand a sample over, and its request with the last of its samples.
    fn end(
        &mut self,
        sequence: Sequence,
        finish: FinishReason,
        events: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        let request = sequence.request;
        let completion = sequence.into_completion(finish);
        events(Event::Finished(&completion))?;
        let group = &mut self.groups[request];
        group.done.push(completion);
        group.left -= 1;
        if group.left == 0 {
            let mut completions = std::mem::take(&mut group.done);
            completions.sort_by_key(|c| c.sample);
            events(Event::Complete {
                request,
                completions,
            })?;
        }
        Ok(())
    }
}

/// What is left of a [`Forward`] once its batch has been handed over.
pub struct Taken {
    takers: Vec<Taker>,
    filled: Vec<(usize, usize)>,
    record: StepRecord,
}

impl Forward {
    /// Batch and draws for the engine, and the rest for [`Scheduler::advance`].
    pub fn split(self) -> (Batch, Vec<SampleRequest>, Taken) {
        let taken = Taken {
            takers: self.takers,
            filled: self.filled,
            record: self.record,
        };
        (self.batch, self.asked, taken)
    }
}
