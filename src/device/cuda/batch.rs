//! A batch's descriptor on the device: what kernels read instead of host
//! state. Layouts are those of `cuda/common.cuh`.

use std::cmp::Reverse;
use std::collections::HashMap;

use anyhow::{Result, ensure};
use bytemuck::{Pod, Zeroable};

use super::{Cuda, CudaBuf};
use crate::device::memory::Role;
use crate::device::{BatchCapacity, Ctx};
use crate::episode::AdapterId;
use crate::model::batch::{Batch, Run, Segment};

/// Rows per tile of queries in attention.
pub const QUERY_TILE: usize = 64;
/// Rows per tile of keys in attention's backward.
pub const KEY_TILE: usize = 64;
/// Rows per tile in LoRA's products.
pub const ADAPTER_TILE: usize = 64;

/// `AdapterTile` of common.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct AdapterTile {
    pub row: u32,
    pub rows: u32,
    pub adapter: u32,
}

/// `ContextRange` of common.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ContextRange {
    pub position: u32,
    pub row: u32,
    pub rows: u32,
}

/// `AttentionTile` of common.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct AttentionTile {
    pub segment: u32,
    pub row: u32,
    pub rows: u32,
    pub position: u32,
}

/// `ContextUser` of common.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ContextUser {
    pub segment: u32,
    pub position: u32,
}

/// `Segment` of common.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SegmentEntry {
    pub row: u32,
    pub rows: u32,
    pub prefix_rows: u32,
    pub first_range: u32,
    pub last_range: u32,
    pub first_user: u32,
    pub last_user: u32,
    pub group_pages: u32,
    pub group_page_count: u32,
    pub own_pages: u32,
    pub own_page_count: u32,
}

/// Device addresses of a loaded batch's lists.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lists {
    /// u32 per row.
    pub tokens: u64,
    /// u32 per row.
    pub positions: u64,
    pub segments: u64,
    pub ranges: u64,
    /// Of saved segments only, in batch order per segment.
    pub users: u64,
    /// [`AttentionTile`] of [`QUERY_TILE`] rows, in order of rows; for a paged
    /// batch `position` is the first row's absolute position.
    pub query_tiles: u64,
    /// [`AttentionTile`] of [`KEY_TILE`] rows of saved segments; `position` is
    /// within the segment.
    pub key_tiles: u64,
    /// [`AdapterTile`], in order of rows, cut at `saved_rows`.
    pub adapter_tiles: u64,
    /// u32 per pair.
    pub pair_rows: u64,
    pub pair_targets: u64,
    /// u32 per residual pair.
    pub residual_on: u64,
    pub residual_off: u64,
    /// u32 `[saved_rows + 1]` into `row_pairs`: the grad pairs of each row.
    pub row_pair_ends: u64,
    pub row_pairs: u64,
    /// Page ids that `Segment` points into.
    pub pages: u64,
    /// u64 per row, null without dropout.
    pub dropout_keys: u64,
}

/// A batch on the device.
pub struct CudaBatch {
    capacity: BatchCapacity,
    pub(crate) host: Batch,
    memory: CudaBuf<u32>,
    words: Vec<u32>,
    pub(crate) lists: Lists,
    pub(crate) query_tiles: usize,
    /// Query tiles that hold saved rows only: they come first.
    pub(crate) saved_query_tiles: usize,
    pub(crate) key_tiles: usize,
    adapter_tiles: Vec<AdapterTile>,
    runs: Vec<Run>,
}

/// Runs of rows that products are cut into, at most, for LoRA's sake.
const MOST_RUNS: usize = 4;

impl CudaBatch {
    pub(crate) fn new(device: &Cuda, capacity: BatchCapacity) -> Result<Self> {
        Ok(CudaBatch {
            memory: device.alloc_raw(Role::Staging, words_for(&capacity))?,
            capacity,
            host: Batch::default(),
            words: Vec::new(),
            lists: Lists::default(),
            query_tiles: 0,
            saved_query_tiles: 0,
            key_tiles: 0,
            adapter_tiles: Vec::new(),
            runs: Vec::new(),
        })
    }

    /// How many adapter tiles cover the adapted rows among the first `rows`
    /// (which must be all rows or the saved rows).
    pub(crate) fn adapter_tiles(&self, rows: usize) -> usize {
        self.adapter_tiles
            .iter()
            .take_while(|t| (t.row as usize) < rows)
            .count()
    }

    /// See [`Batch::runs`].
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The adapter of all adapted rows, if it is one and they are not scattered.
    pub(crate) fn sole_adapter(&self) -> Option<AdapterId> {
        let mut adapters = self.runs.iter().filter_map(|r| r.adapter);
        let first = adapters.next()?;
        (adapters.all(|a| a == first) && self.runs.len() <= MOST_RUNS).then_some(first)
    }

    pub(crate) fn load(&mut self, device: &Cuda, ctx: &Ctx<Cuda>, batch: Batch) -> Result<()> {
        ensure!(
            batch.rows() <= self.capacity.rows
                && batch.segments.len() <= self.capacity.segments
                && batch.pairs.len() <= self.capacity.pairs,
            "a batch of {} rows, {} segments and {} pairs is over its plan of {:?}",
            batch.rows(),
            batch.segments.len(),
            batch.pairs.len(),
            self.capacity
        );
        let segments = Segments::new(&batch);
        let query_tiles = query_tiles(&batch);
        let key_tiles = key_tiles(&batch);
        self.saved_query_tiles = query_tiles
            .iter()
            .take_while(|t| ((t.row + t.rows) as usize) <= batch.saved_rows)
            .count();
        self.query_tiles = query_tiles.len();
        self.key_tiles = key_tiles.len();
        self.adapter_tiles = adapter_tiles(&batch);
        self.runs = batch.runs();
        let (ends, row_pairs) = pairs_of_rows(&batch);

        self.words.clear();
        let words = &mut self.words;
        let mut lists = Lists::default();
        let u32s = |v: &mut dyn Iterator<Item = u32>| v.collect::<Vec<u32>>();
        let pairs = &batch.pairs;
        let residuals = &batch.residual_pairs;
        put(words, &mut lists.tokens, &batch.tokens);
        put(words, &mut lists.positions, &batch.positions);
        put(words, &mut lists.segments, &segments.entries);
        put(words, &mut lists.ranges, &segments.ranges);
        put(words, &mut lists.users, &segments.users);
        put(words, &mut lists.query_tiles, &query_tiles);
        put(words, &mut lists.key_tiles, &key_tiles);
        put(words, &mut lists.adapter_tiles, &self.adapter_tiles);
        put(
            words,
            &mut lists.pair_rows,
            &u32s(&mut pairs.iter().map(|p| p.row)),
        );
        put(
            words,
            &mut lists.pair_targets,
            &u32s(&mut pairs.iter().map(|p| p.target)),
        );
        put(
            words,
            &mut lists.residual_on,
            &u32s(&mut residuals.iter().map(|p| p.0)),
        );
        put(
            words,
            &mut lists.residual_off,
            &u32s(&mut residuals.iter().map(|p| p.1)),
        );
        put(words, &mut lists.row_pair_ends, &ends);
        put(words, &mut lists.row_pairs, &row_pairs);
        put(words, &mut lists.pages, &segments.pages);
        let keys = batch.dropout.as_ref().map_or(&[][..], |d| &d.row_keys);
        put(words, &mut lists.dropout_keys, keys);

        // The plan counts one prefix per segment and the planned pages; tests
        // and benches have batches with more.
        if self.memory.len() < words.len() {
            self.memory = device.alloc_raw(Role::Staging, words.len())?;
        }
        let base = self.memory.ptr();
        for list in lists.all() {
            *list = base + 4 * *list;
        }
        if batch.dropout.is_none() {
            lists.dropout_keys = 0;
        }
        self.lists = lists;
        self.host = batch;
        let bytes = bytemuck::cast_slice(&self.words);
        match bytes.is_empty() {
            true => Ok(()),
            false => device.driver.upload(ctx.stream.id, base, bytes),
        }
    }
}

impl Lists {
    fn all(&mut self) -> [&mut u64; 16] {
        [
            &mut self.tokens,
            &mut self.positions,
            &mut self.segments,
            &mut self.ranges,
            &mut self.users,
            &mut self.query_tiles,
            &mut self.key_tiles,
            &mut self.adapter_tiles,
            &mut self.pair_rows,
            &mut self.pair_targets,
            &mut self.residual_on,
            &mut self.residual_off,
            &mut self.row_pair_ends,
            &mut self.row_pairs,
            &mut self.pages,
            &mut self.dropout_keys,
        ]
    }
}

/// Words of a descriptor of this capacity, with two prefixes a segment.
pub(crate) fn words_for(c: &BatchCapacity) -> usize {
    let tiles = c.rows.div_ceil(QUERY_TILE) + c.segments;
    // tokens, positions, dropout keys (of two words), row_pair_ends
    5 * c.rows
        + 1
        + c.segments * (11 + 3 * 3 + 3 * 2)
        + tiles * (4 + 4 + 3)
        + 6 * c.pairs
        + c.pages
        // Each of 16 lists begins at a multiple of four words.
        + 16 * 3
}

/// Append a list, 16-byte aligned; `at` becomes its first word's index.
fn put<T: Pod>(words: &mut Vec<u32>, at: &mut u64, list: &[T]) {
    words.resize(words.len().next_multiple_of(4), 0);
    *at = words.len() as u64;
    words.extend_from_slice(bytemuck::cast_slice(list));
}

/// Segments with the lists they point into.
struct Segments {
    entries: Vec<SegmentEntry>,
    ranges: Vec<ContextRange>,
    users: Vec<ContextUser>,
    pages: Vec<u32>,
}

impl Segments {
    fn new(batch: &Batch) -> Self {
        let mut s = Segments {
            entries: Vec::with_capacity(batch.segments.len()),
            ranges: Vec::new(),
            users: Vec::new(),
            pages: Vec::new(),
        };
        let mut users: Vec<Vec<ContextUser>> = vec![Vec::new(); batch.segments.len()];
        for (id, segment) in batch.segments.iter().enumerate() {
            let first_range = s.ranges.len() as u32;
            let mut position = 0;
            for &of in segment.prefix.iter().chain([&id]) {
                let rows = &batch.segments[of].rows;
                s.ranges.push(ContextRange {
                    position,
                    row: rows.start as u32,
                    rows: rows.len() as u32,
                });
                if segment.rows.end <= batch.saved_rows {
                    users[of].push(ContextUser {
                        segment: id as u32,
                        position,
                    });
                }
                position += rows.len() as u32;
            }
            s.entries.push(SegmentEntry {
                row: segment.rows.start as u32,
                rows: segment.rows.len() as u32,
                prefix_rows: position - segment.rows.len() as u32,
                first_range,
                last_range: s.ranges.len() as u32,
                ..SegmentEntry::default()
            });
        }
        for (entry, users) in s.entries.iter_mut().zip(users) {
            entry.first_user = s.users.len() as u32;
            s.users.extend(users);
            entry.last_user = s.users.len() as u32;
        }
        // A group's pages are listed once however many sequences share them.
        let mut groups: HashMap<*const u32, u32> = HashMap::new();
        for (entry, table) in s.entries.iter_mut().zip(&batch.pages) {
            entry.group_page_count = table.group.len() as u32;
            if !table.group.is_empty() {
                let pages = &mut s.pages;
                entry.group_pages = *groups.entry(table.group.as_ptr()).or_insert_with(|| {
                    let at = pages.len() as u32;
                    pages.extend_from_slice(&table.group);
                    at
                });
            }
            entry.own_pages = s.pages.len() as u32;
            entry.own_page_count = table.own.len() as u32;
            s.pages.extend_from_slice(&table.own);
        }
        s
    }
}

fn query_tiles(batch: &Batch) -> Vec<AttentionTile> {
    let paged = !batch.pages.is_empty();
    let mut tiles = Vec::new();
    for (id, segment) in batch.segments.iter().enumerate() {
        let prefix = batch.context_len(id) - segment.rows.len();
        for first in segment.rows.clone().step_by(QUERY_TILE) {
            tiles.push(AttentionTile {
                segment: id as u32,
                row: first as u32,
                rows: QUERY_TILE.min(segment.rows.end - first) as u32,
                position: match paged {
                    true => batch.positions[first],
                    false => (prefix + first - segment.rows.start) as u32,
                },
            });
        }
    }
    tiles
}

/// Those that most queries see come first: a shared prompt's keys are seen by
/// all of its completions, and a block that begins last would be waited for.
fn key_tiles(batch: &Batch) -> Vec<AttentionTile> {
    let mut queries = vec![0; batch.segments.len()];
    let saved = |s: &&Segment| s.rows.end <= batch.saved_rows;
    for segment in batch.segments.iter().filter(saved) {
        for &of in &segment.prefix {
            queries[of] += segment.rows.len();
        }
    }
    let mut tiles = Vec::new();
    for (id, segment) in batch.segments.iter().enumerate() {
        if segment.rows.end > batch.saved_rows {
            continue;
        }
        for first in segment.rows.clone().step_by(KEY_TILE) {
            tiles.push(AttentionTile {
                segment: id as u32,
                row: first as u32,
                rows: KEY_TILE.min(segment.rows.end - first) as u32,
                position: (first - segment.rows.start) as u32,
            });
        }
    }
    tiles.sort_by_key(|t: &AttentionTile| {
        let segment = &batch.segments[t.segment as usize];
        Reverse(queries[t.segment as usize] + segment.rows.len() - t.position as usize)
    });
    tiles
}

fn adapter_tiles(batch: &Batch) -> Vec<AdapterTile> {
    let mut tiles = Vec::new();
    for run in batch.runs() {
        let Some(adapter) = run.adapter else { continue };
        for first in run.rows.clone().step_by(ADAPTER_TILE) {
            tiles.push(AdapterTile {
                row: first as u32,
                rows: ADAPTER_TILE.min(run.rows.end - first) as u32,
                adapter: adapter.0,
            });
        }
    }
    tiles
}

/// The grad pairs of each saved row, in order: ends by row, then pair indices.
fn pairs_of_rows(batch: &Batch) -> (Vec<u32>, Vec<u32>) {
    let mut ends = vec![0u32; batch.saved_rows + 1];
    let pairs = &batch.pairs[..batch.grad_pairs];
    for p in pairs {
        ends[p.row as usize + 1] += 1;
    }
    for i in 1..ends.len() {
        ends[i] += ends[i - 1];
    }
    let mut next = ends.clone();
    let mut order = vec![0u32; pairs.len()];
    for (i, p) in pairs.iter().enumerate() {
        let at = &mut next[p.row as usize];
        order[*at as usize] = i as u32;
        *at += 1;
    }
    (ends, order)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tiles of a shared prompt are not left for the end, and none is lost.
    #[test]
    fn keys_that_most_queries_see_come_first() {
        let mut batch = Batch::default();
        batch.push_segment(&[0; 70], &[], None);
        let prompt = batch.push_segment(&[0; 100], &[], None);
        batch.push_segment(&[0; 65], &[prompt], None);
        batch.push_segment(&[0; 30], &[prompt], None);
        batch.saved_rows = batch.rows();
        // Without gradient: it counts for nothing.
        let other = batch.push_segment(&[0; 300], &[], None);
        batch.push_segment(&[0; 300], &[other], None);
        let order: Vec<(u32, u32)> = key_tiles(&batch).iter().map(|t| (t.row, t.rows)).collect();
        let want = [
            (70, 64),
            (134, 36),
            (0, 64),
            (170, 64),
            (235, 30),
            (64, 6),
            (234, 1),
        ];
        assert_eq!(order, want);
    }
}
