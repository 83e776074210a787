//! Packed rows: what one forward computes.
//!
//! A row is one token of one sequence. Rows stand in segments; a segment's
//! context is its prefix segments' rows, in order, and then its own up to and
//! including the row. A prompt shared by K completions is one segment that K
//! others name as prefix. There is no padding anywhere.

use std::ops::Range;
use std::sync::Arc;

use crate::episode::AdapterId;

/// Index of a segment in its batch.
pub type SegmentId = usize;

/// Contiguous rows of one sequence under one adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    pub rows: Range<usize>,
    /// Segments whose rows come before this one's in its context, in order.
    /// They must have the same adapter and stand earlier in the batch.
    pub prefix: Vec<SegmentId>,
    /// Whose LoRA these rows go through; `None` is the base model.
    pub adapter: Option<AdapterId>,
}

/// One log-prob to compute: of `target` under the state of `row`.
/// Rows may repeat: the last row of a shared prompt predicts the first token
/// of every completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub row: u32,
    pub target: u32,
}

/// Consecutive rows under one adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub rows: Range<usize>,
    pub adapter: Option<AdapterId>,
}

/// LoRA dropout of one forward: which masks, for which rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that an input of A is dropped.
    pub p: f32,
    /// One key per row; rows with the same key have the same masks.
    pub row_keys: Vec<u64>,
}

/// Packed rows in canonical order. The first `saved_rows` keep their
/// activations for a backward; base rows and scoring rows come after them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    pub tokens: Vec<u32>,
    pub positions: Vec<u32>,
    pub segments: Vec<Segment>,
    pub saved_rows: usize,
    /// Head pairs; the first `grad_pairs` take part in the backward.
    pub pairs: Vec<Pair>,
    pub grad_pairs: usize,
    /// (row with the adapter on, row with it off) whose states are compared.
    pub residual_pairs: Vec<(u32, u32)>,
    /// One table per segment where the context lies in KV pages, else empty.
    pub pages: Vec<PageTable>,
    pub dropout: Option<Dropout>,
}

/// Where a sequence's keys and values lie, by position / page size.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PageTable {
    /// Full pages of the prompt, shared by the group.
    pub group: Arc<[u32]>,
    pub own: Vec<u32>,
}

impl PageTable {
    /// The page that holds the context's `index`-th run of positions.
    pub fn page(&self, index: usize) -> u32 {
        match self.group.get(index) {
            Some(&page) => page,
            None => self.own[index - self.group.len()],
        }
    }

    pub fn len(&self) -> usize {
        self.group.len() + self.own.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Batch {
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Add a segment after the last row; its positions go on from its prefix.
    pub fn push_segment(
        &mut self,
        tokens: &[u32],
        prefix: &[SegmentId],
        adapter: Option<AdapterId>,
    ) -> SegmentId {
        let first: usize = prefix.iter().map(|&s| self.segments[s].rows.len()).sum();
        let start = self.rows();
        self.tokens.extend_from_slice(tokens);
        self.positions
            .extend((0..tokens.len()).map(|i| (first + i) as u32));
        self.segments.push(Segment {
            rows: start..self.rows(),
            prefix: prefix.to_vec(),
            adapter,
        });
        self.segments.len() - 1
    }

    /// Rows of a segment's context, in order of position: its prefixes', then
    /// its own.
    pub fn context_rows(&self, id: SegmentId) -> impl Iterator<Item = usize> + '_ {
        let segment = &self.segments[id];
        segment
            .prefix
            .iter()
            .flat_map(|&p| self.segments[p].rows.clone())
            .chain(segment.rows.clone())
    }

    /// Length of a segment's context with all its own rows.
    pub fn context_len(&self, id: SegmentId) -> usize {
        let segment = &self.segments[id];
        segment.rows.len()
            + segment
                .prefix
                .iter()
                .map(|&p| self.segments[p].rows.len())
                .sum::<usize>()
    }

    /// How many of the first `rows` rows go through an adapter.
    pub fn adapted_rows(&self, rows: usize) -> usize {
        let adapted = self.segments.iter().filter(|s| s.adapter.is_some());
        adapted
            .map(|s| s.rows.end.min(rows).saturating_sub(s.rows.start))
            .sum()
    }

    /// Maximal runs of rows with one adapter, cut at `saved_rows`.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for segment in &self.segments {
            match runs.last_mut() {
                Some(last)
                    if last.adapter == segment.adapter
                        && last.rows.end == segment.rows.start
                        && last.rows.end != self.saved_rows =>
                {
                    last.rows.end = segment.rows.end;
                }
                _ => runs.push(Run {
                    rows: segment.rows.clone(),
                    adapter: segment.adapter,
                }),
            }
        }
        runs.retain(|r| !r.rows.is_empty());
        runs
    }
}
