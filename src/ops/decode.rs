//! Attention over KV pages, for prefill chunks and decode rows alike.
//!
//! A page holds [`PAGE`] positions of one layer for all KV heads: per head
//! first K as `[head_dim, PAGE]`, then V as `[PAGE, head_dim padded]`. A
//! sequence's table has two levels: pages it shares with its group (a common
//! prompt), then its own.

use anyhow::{Result, bail};

use crate::device::cpu::gemm::{self, LANES, Left, Right, Sums, with_buffer};
use crate::device::cpu::{Cpu, pool};
use crate::device::{Ctx, Device, Float, Slice, SliceMut};
use crate::model::config::ModelShape;
use crate::ops::attention::softmax_row;

/// Positions per page.
pub const PAGE: usize = LANES;

/// Elements of one page in one layer.
pub fn page_elements(shape: &ModelShape) -> usize {
    shape.num_kv_heads * head_elements(shape)
}

fn head_elements(shape: &ModelShape) -> usize {
    PAGE * (shape.head_dim + shape.head_dim.next_multiple_of(LANES))
}

pub trait DecodeAttention: Device {
    /// Write k and v of every row into its sequence's pages of one layer, then
    /// out `[rows, q]`: each row over its context, positions 0 to its own. The
    /// rows of out may have room behind them.
    /// Every segment of the batch has a page table.
    #[allow(clippy::too_many_arguments)]
    fn decode_attention(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        shape: &ModelShape,
        qk: Slice<Self, Self::Act>,
        qkv: Slice<Self, Self::Act>,
        pages: SliceMut<Self, Self::Act>,
        out: SliceMut<Self, Self::Act>,
    ) -> Result<()>;

    /// Copy page `from` to page `to` in one layer.
    fn copy_page(
        &self,
        ctx: &Ctx<Self>,
        shape: &ModelShape,
        pages: SliceMut<Self, Self::Act>,
        from: u32,
        to: u32,
    ) -> Result<()>;
}

impl<A: Float> DecodeAttention for Cpu<A> {
    fn decode_attention(
        &self,
        _: &Ctx<Self>,
        batch: &Self::Batch,
        shape: &ModelShape,
        qk: Slice<Self, A>,
        qkv: Slice<Self, A>,
        mut pages: SliceMut<Self, A>,
        mut out: SliceMut<Self, A>,
    ) -> Result<()> {
        let batch = &batch.batch;
        if batch.pages.len() != batch.segments.len() {
            bail!("paged attention needs a page table for every segment");
        }
        let hd = shape.head_dim;
        let hdp = hd.next_multiple_of(LANES);
        let (q_width, qk_width) = (shape.q_width(), shape.q_width() + shape.kv_width());
        let qkv_width = shape.qkv_width();
        let per_kv = shape.num_heads / shape.num_kv_heads;
        let scale = 1.0 / (hd as f32).sqrt();
        let (page_len, head_len) = (page_elements(shape), head_elements(shape));
        let (qk, qkv) = (qk.host(), qkv.host());
        let (store, out) = (pages.shared(), out.shared());

        let work: usize = batch
            .segments
            .iter()
            .map(|s| {
                let last = batch.positions[s.rows.end - 1] as usize + 1;
                s.rows.len() * last * q_width / 8 + last * 4
            })
            .sum();
        let tasks = batch.segments.len() * shape.num_kv_heads;
        pool::parallel(tasks, work, |task| {
            let (id, kv) = (task / shape.num_kv_heads, task % shape.num_kv_heads);
            let segment = &batch.segments[id];
            let table = &batch.pages[id];
            let start_of =
                |position: usize| table.page(position / PAGE) as usize * page_len + kv * head_len;
            for row in segment.rows.clone() {
                let position = batch.positions[row] as usize;
                let slot = position % PAGE;
                // SAFETY: a task writes only the (page, head) of its own rows'
                // positions, which no other task reads or writes: pages that
                // are written belong to one sequence.
                let head = unsafe { store.slice_mut(start_of(position), head_len) };
                let k = &qk[row * qk_width + q_width + kv * hd..][..hd];
                let v = &qkv[row * qkv_width + qk_width + kv * hd..][..hd];
                for d in 0..hd {
                    head[d * PAGE + slot] = k[d];
                    head[hd * PAGE + slot * hdp + d] = v[d];
                }
            }
            // SAFETY: this task's writes are done, and by the above nobody else
            // writes what it reads; pages of the group may have many readers.
            let head_of = |position: usize| unsafe { store.slice(start_of(position), head_len) };
            // One decode row takes all its query heads together; rows of a
            // prefill chunk go head by head.
            let single = segment.rows.len() == 1;
            let block = if single { per_kv } else { 6 };
            let passes = if single { 1 } else { per_kv };
            for pass in 0..passes {
                let first_head = kv * per_kv + pass;
                for first in (0..segment.rows.len()).step_by(if single { 1 } else { block }) {
                    let m = if single {
                        block
                    } else {
                        block.min(segment.rows.len() - first)
                    };
                    let row0 = segment.rows.start + first;
                    let last_row = if single { row0 } else { row0 + m - 1 };
                    let reach = batch.positions[last_row] as usize + 1;
                    let stride = reach.next_multiple_of(PAGE);
                    with_buffer(m * (stride + hdp), |buf| {
                        let (scores, acc) = buf.split_at_mut(m * stride);
                        let queries = Left {
                            data: &qk[row0 * qk_width + first_head * hd..],
                            row_stride: if single { hd } else { qk_width },
                            col_stride: 1,
                        };
                        for p in 0..stride / PAGE {
                            let head = head_of(p * PAGE);
                            gemm::product(
                                0..m,
                                0..1,
                                hd,
                                queries,
                                Right::packed(&head[..hd * PAGE], hd),
                                Sums::new(&mut scores[p * PAGE..], stride),
                            );
                        }
                        let sums: Vec<f32> = scores
                            .chunks_exact_mut(stride)
                            .enumerate()
                            .map(|(i, row)| {
                                let row_of = if single { row0 } else { row0 + i };
                                let n = batch.positions[row_of] as usize + 1;
                                softmax_row(row, n, scale).1
                            })
                            .collect();
                        for p in 0..stride / PAGE {
                            let head = head_of(p * PAGE);
                            let weights = Left {
                                data: &scores[p * PAGE..],
                                row_stride: stride,
                                col_stride: 1,
                            };
                            let add = match p {
                                0 => gemm::product::<f32, A>,
                                _ => gemm::accumulate::<f32, A>,
                            };
                            add(
                                0..m,
                                0..hdp / LANES,
                                PAGE.min(reach - p * PAGE),
                                weights,
                                Right::row_major(&head[hd * PAGE..], hdp),
                                Sums::new(acc, hdp),
                            );
                        }
                        for (i, acc) in acc.chunks_exact(hdp).enumerate() {
                            let (row, head) = if single {
                                (row0, first_head + i)
                            } else {
                                (row0 + i, first_head)
                            };
                            // SAFETY: one (row, head) each.
                            let o = unsafe { out.slice_mut(row * q_width + head * hd, hd) };
                            let inverse = 1.0 / sums[i];
                            for (o, a) in o.iter_mut().zip(acc) {
                                *o = A::from_f32(a * inverse);
                            }
                        }
                    });
                }
            }
        });
        Ok(())
    }

    fn copy_page(
        &self,
        _: &Ctx<Self>,
        shape: &ModelShape,
        mut pages: SliceMut<Self, A>,
        from: u32,
        to: u32,
    ) -> Result<()> {
        let n = page_elements(shape);
        let data = pages.host_mut();
        data.copy_within(from as usize * n..(from as usize + 1) * n, to as usize * n);
        Ok(())
    }
}
