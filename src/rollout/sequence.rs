//! Samples on their way: waiting for their rows, or drawing a token a forward.

use std::sync::Arc;

use anyhow::Result;

use super::pages::{self, Page};
use super::stop::StopStrings;
use super::{Completion, NotFinite, Request, Sampling};
use crate::episode::FinishReason;
use crate::model::batch::PageTable;
use crate::ops::decode::PAGE;
use crate::ops::sample::{SampleRequest, Sampled};

/// Place in the order of service: index of the request, index of the sample.
/// What came first is served first, also after it had to step back.
pub(super) type Order = (usize, u32);

/// A sample: what was drawn so far.
pub(super) struct Sequence {
    pub request: usize,
    pub sample: u32,
    pub key: u64,
    pub ids: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub stop: Option<StopStrings>,
    pub finish: Option<FinishReason>,
}

impl Sequence {
    pub fn order(&self) -> Order {
        (self.request, self.sample)
    }

    /// The draw of its next token from the state of `row`.
    pub fn ask(&self, row: usize, sampling: &Sampling) -> SampleRequest {
        SampleRequest {
            row: row as u32,
            key: self.key,
            position: self.ids.len() as u32,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k as u32,
            min_p: sampling.min_p,
        }
    }

    /// Add a token, and see whether the sample ends with it.
    ///
    /// # Errors
    /// The logits it was drawn from are no numbers.
    pub fn accept(&mut self, drawn: Sampled, sampling: &Sampling) -> Result<()> {
        if drawn.invalid {
            return Err(NotFinite {
                request: self.request,
                sample: self.sample,
                token: self.ids.len(),
            }
            .into());
        }
        self.ids.push(drawn.token);
        self.logprobs.push(drawn.logprob);
        let stopped = sampling.stop_ids.contains(&drawn.token)
            || self.stop.as_mut().is_some_and(|m| m.push(drawn.token));
        self.finish = match stopped {
            true => Some(FinishReason::Stop),
            false if self.ids.len() >= sampling.max_tokens => Some(FinishReason::Length),
            false => None,
        };
        Ok(())
    }

    pub fn into_completion(self, finish: FinishReason) -> Completion {
        Completion {
            request: self.request,
            sample: self.sample,
            ids: self.ids,
            logprobs: self.logprobs,
            finish,
        }
    }
}

/// Rows to compute before samples can be drawn from the last one: a prompt for
/// its samples, or all that a sample had that was sent back.
pub(super) struct Work {
    pub sequences: Vec<Sequence>,
    pub tokens: Vec<u32>,
    /// For all of `tokens` once it is admitted, none before.
    pub pages: Vec<Arc<Page>>,
    /// Rows that are in the pages.
    pub computed: usize,
    /// Of `tokens`, those of the prompt.
    pub prompt: usize,
}

impl Work {
    pub fn order(&self) -> Order {
        self.sequences.first().map_or((0, 0), Sequence::order)
    }

    /// A request's prompt for these samples of it.
    pub fn of_prompt(request: &Request, sequences: Vec<Sequence>) -> Work {
        Work {
            sequences,
            tokens: request.prompt_ids.clone(),
            pages: Vec::new(),
            computed: 0,
            prompt: request.prompt_ids.len(),
        }
    }

    /// Let go of all pages: everything is to be computed again.
    pub fn reset(&mut self) {
        self.pages.clear();
        self.computed = 0;
    }

    pub fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub fn table(&self) -> PageTable {
        PageTable {
            group: pages::ids(&self.pages).into(),
            own: Vec::new(),
        }
    }

    /// All rows are computed: the samples go on one row each. Their tables
    /// share the prompt's full pages, listed once for all of them.
    pub fn into_running(self) -> impl Iterator<Item = Running> {
        let full = self.prompt / PAGE;
        let group: Arc<[u32]> = pages::ids(&self.pages[..full]).into();
        let (pages, prompt) = (self.pages, self.prompt);
        self.sequences.into_iter().map(move |sequence| Running {
            sequence,
            prompt,
            table: PageTable {
                group: group.clone(),
                own: pages::ids(&pages[full..]),
            },
            pages: pages.clone(),
        })
    }
}

/// What a running sample needs before its next row can be written.
pub(super) enum Need {
    Nothing,
    /// One more page.
    Page,
    /// A page of its own for the one that it shares.
    Copy,
}

/// A sample with its context in pages, but for its last token.
pub(super) struct Running {
    pub sequence: Sequence,
    pub prompt: usize,
    pub pages: Vec<Arc<Page>>,
    pub table: PageTable,
}

impl Running {
    /// Position of the row to come: the last token's.
    pub fn position(&self) -> usize {
        self.prompt + self.sequence.ids.len() - 1
    }

    pub fn need(&self) -> Need {
        match self.pages.get(self.position() / PAGE) {
            None => Need::Page,
            Some(page) if Arc::strong_count(page) > 1 => Need::Copy,
            Some(_) => Need::Nothing,
        }
    }

    pub fn push_page(&mut self, page: Arc<Page>) {
        self.table.own.push(page.id());
        self.pages.push(page);
    }

    /// Write into `page` from now on; what is to be copied: (from, to).
    pub fn replace_page(&mut self, page: Arc<Page>) -> (u32, u32) {
        let index = self.position() / PAGE;
        let (from, to) = (self.pages[index].id(), page.id());
        self.table.own[index - self.table.group.len()] = to;
        self.pages[index] = page;
        (from, to)
    }

    /// Give all pages back; what is to be computed to go on.
    pub fn into_work(self, request: &Request) -> Work {
        let tokens = [&request.prompt_ids[..], &self.sequence.ids[..]].concat();
        Work {
            sequences: vec![self.sequence],
            tokens,
            pages: Vec::new(),
            computed: 0,
            prompt: self.prompt,
        }
    }
}
