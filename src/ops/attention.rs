//! Causal attention with grouped queries over packed segments with prefixes.
//!
//! A row attends to its segment's prefixes and to its own segment up to
//! itself. The backward sums dk and dv of a shared prefix over the segments
//! that use it in batch order: no two runs differ.
//!
//! Every reduction over a context runs in order of absolute position, so a
//! row's bits do not depend on how its context is split into segments or
//! pages (see [`crate::ops::decode`]).

use anyhow::Result;

use crate::device::cpu::gemm::{self, LANES, Left, Right, Sums, with_buffer, with_scratch};
use crate::device::cpu::simd::{exp, fold16, ln, max, sum16, vectorized};
use crate::device::cpu::{Cpu, pool};
use crate::device::{Ctx, Device, Float, Slice, SliceMut};
use crate::model::batch::Batch;
use crate::model::config::ModelShape;

pub trait Attention: Device {
    /// out `[rows, q]` and lse `[rows, heads]`, overwritten, from rotated qk
    /// `[rows, q | k]` and the v columns of qkv `[rows, q | k | v]`. The rows are
    /// all of the batch, or its saved ones; those of out may have room behind
    /// them.
    #[allow(clippy::too_many_arguments)]
    fn attention_forward(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        shape: &ModelShape,
        qk: Slice<Self, Self::Act>,
        qkv: Slice<Self, Self::Act>,
        out: SliceMut<Self, Self::Act>,
        lse: SliceMut<Self, f32>,
    ) -> Result<()>;

    /// For the saved rows: overwrites d_qk and the v columns of d_qkv. The rows
    /// of out and d_qkv may have room behind them.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        shape: &ModelShape,
        qk: Slice<Self, Self::Act>,
        qkv: Slice<Self, Self::Act>,
        out: Slice<Self, Self::Act>,
        lse: Slice<Self, f32>,
        d_out: Slice<Self, Self::Act>,
        d_qk: SliceMut<Self, Self::Act>,
        d_qkv: SliceMut<Self, Self::Act>,
    ) -> Result<()>;
}

vectorized! {
    /// Scores of one query over its n keys become unnormalised probabilities;
    /// what lies beyond n becomes zero. Returns (largest scaled score, sum).
    pub(crate) fn softmax_row(scores: &mut [f32], n: usize, scale: f32) -> (f32, f32) {
        let (row, beyond) = scores.split_at_mut(n);
        beyond.fill(0.0);
        // Rounding keeps order: the largest scaled score is the largest score's.
        let top = max(row) * scale;
        let mut sums = [0f32; LANES];
        let (whole, rest) = row.as_chunks_mut::<LANES>();
        for chunk in whole {
            for (s, sum) in chunk.iter_mut().zip(&mut sums) {
                *s = exp(*s * scale - top);
                *sum += *s;
            }
        }
        for (s, sum) in rest.iter_mut().zip(&mut sums) {
            *s = exp(*s * scale - top);
            *sum += *s;
        }
        (top, fold16(sums))
    }
}

vectorized! {
    /// From scores and dP of one query to P (in `s`) and dS (in `dp`).
    fn softmax_backward_row(s: &mut [f32], dp: &mut [f32], n: usize, scale: f32, lse: f32, delta: f32) -> () {
        for i in 0..n {
            let p = exp(s[i] * scale - lse);
            s[i] = p;
            dp[i] = p * (dp[i] - delta) * scale;
        }
        s[n..].fill(0.0);
        dp[n..].fill(0.0);
    }
}

/// Widths within the rows of qk and qkv.
struct Layout {
    hd: usize,
    /// head_dim in whole panels.
    hdp: usize,
    q: usize,
    qk: usize,
    qkv: usize,
    heads_per_kv: usize,
}

impl Layout {
    fn new(shape: &ModelShape) -> Self {
        Layout {
            hd: shape.head_dim,
            hdp: shape.head_dim.next_multiple_of(LANES),
            q: shape.q_width(),
            qk: shape.q_width() + shape.kv_width(),
            qkv: shape.qkv_width(),
            heads_per_kv: shape.num_heads / shape.num_kv_heads,
        }
    }
}

/// Keys in panels of positions, `[head_dim, LANES]` each.
fn pack_across<A: Float>(
    out: &mut [f32],
    rows: &[usize],
    hd: usize,
    source: &[A],
    stride: usize,
    first: usize,
) {
    for (j, &row) in rows.iter().enumerate() {
        let panel = &mut out[j / LANES * hd * LANES + j % LANES..];
        for (d, x) in source[row * stride + first..][..hd].iter().enumerate() {
            panel[d * LANES] = x.to_f32();
        }
    }
}

/// One row per position, padded to whole panels.
fn pack_along<A: Float>(
    out: &mut [f32],
    rows: &[usize],
    hd: usize,
    source: &[A],
    stride: usize,
    first: usize,
) {
    let hdp = hd.next_multiple_of(LANES);
    for (to, &row) in out.chunks_exact_mut(hdp).zip(rows) {
        for (t, x) in to.iter_mut().zip(&source[row * stride + first..][..hd]) {
            *t = x.to_f32();
        }
    }
}

fn attention_work(batch: &Batch, q_width: usize) -> usize {
    (0..batch.segments.len())
        .map(|s| batch.segments[s].rows.len() * batch.context_len(s) * q_width / 8)
        .sum()
}

impl<A: Float> Attention for Cpu<A> {
    fn attention_forward(
        &self,
        _: &Ctx<Self>,
        batch: &Self::Batch,
        shape: &ModelShape,
        qk: Slice<Self, A>,
        qkv: Slice<Self, A>,
        mut out: SliceMut<Self, A>,
        mut lse: SliceMut<Self, f32>,
    ) -> Result<()> {
        let batch = &batch.batch;
        let l = Layout::new(shape);
        let scale = 1.0 / (l.hd as f32).sqrt();
        let out_len = out.len;
        let (out, lse) = (out.shared(), lse.shared());
        let (qk, qkv) = (qk.host(), qkv.host());
        let within = |s: &usize| batch.segments[*s].rows.end * l.q <= out_len;
        let ids: Vec<usize> = (0..batch.segments.len()).filter(within).collect();
        let tasks = ids.len() * shape.num_kv_heads;
        pool::parallel(tasks, attention_work(batch, l.q), |task| {
            let (id, kv) = (ids[task / shape.num_kv_heads], task % shape.num_kv_heads);
            let segment = &batch.segments[id];
            let rows: Vec<usize> = batch.context_rows(id).collect();
            let t = rows.len();
            let tp = t.next_multiple_of(LANES);
            let before = t - segment.rows.len();
            with_scratch(tp * l.hd + t * l.hdp, |packed| {
                let (keys, values) = packed.split_at_mut(tp * l.hd);
                pack_across(keys, &rows, l.hd, qk, l.qk, l.q + kv * l.hd);
                pack_along(values, &rows, l.hd, qkv, l.qkv, l.qk + kv * l.hd);
                const BLOCK: usize = 24;
                for first in (0..segment.rows.len()).step_by(BLOCK) {
                    let m = BLOCK.min(segment.rows.len() - first);
                    let row0 = segment.rows.start + first;
                    let reach = before + first + m;
                    let stride = reach.next_multiple_of(LANES);
                    for head in kv * l.heads_per_kv..(kv + 1) * l.heads_per_kv {
                        with_buffer(m * (stride + l.hdp), |buf| {
                            let (scores, acc) = buf.split_at_mut(m * stride);
                            let queries = Left {
                                data: &qk[row0 * l.qk + head * l.hd..],
                                row_stride: l.qk,
                                col_stride: 1,
                            };
                            gemm::product(
                                0..m,
                                0..stride / LANES,
                                l.hd,
                                queries,
                                Right::packed(keys, l.hd),
                                Sums::new(scores, stride),
                            );
                            let mut sums = [0f32; BLOCK];
                            for (i, row) in scores.chunks_exact_mut(stride).enumerate() {
                                let (top, sum) = softmax_row(row, before + first + i + 1, scale);
                                sums[i] = sum;
                                // SAFETY: one (row, head) each.
                                let at = (row0 + i) * shape.num_heads + head;
                                let lse = unsafe { lse.slice_mut(at, 1) };
                                lse[0] = top + ln(sum);
                            }
                            let weights = Left {
                                data: &*scores,
                                row_stride: stride,
                                col_stride: 1,
                            };
                            gemm::product(
                                0..m,
                                0..l.hdp / LANES,
                                reach,
                                weights,
                                Right::row_major(values, l.hdp),
                                Sums::new(acc, l.hdp),
                            );
                            for (i, acc) in acc.chunks_exact(l.hdp).enumerate() {
                                // SAFETY: as above.
                                let o =
                                    unsafe { out.slice_mut((row0 + i) * l.q + head * l.hd, l.hd) };
                                let inverse = 1.0 / sums[i];
                                for (o, a) in o.iter_mut().zip(acc) {
                                    *o = A::from_f32(a * inverse);
                                }
                            }
                        });
                    }
                }
            });
        });
        Ok(())
    }

    fn attention_backward(
        &self,
        _: &Ctx<Self>,
        batch: &Self::Batch,
        shape: &ModelShape,
        qk: Slice<Self, A>,
        qkv: Slice<Self, A>,
        out: Slice<Self, A>,
        lse: Slice<Self, f32>,
        d_out: Slice<Self, A>,
        mut d_qk: SliceMut<Self, A>,
        mut d_qkv: SliceMut<Self, A>,
    ) -> Result<()> {
        let batch = &batch.batch;
        let l = Layout::new(shape);
        let scale = 1.0 / (l.hd as f32).sqrt();
        let families = families(batch);
        let (d_qk, d_qkv) = (d_qk.shared(), d_qkv.shared());
        let (qk, qkv, out, lse, d_out) =
            (qk.host(), qkv.host(), out.host(), lse.host(), d_out.host());
        let tasks = families.len() * shape.num_kv_heads;
        pool::parallel(tasks, 3 * attention_work(batch, l.q), |task| {
            let (family, kv) = (
                &families[task / shape.num_kv_heads],
                task % shape.num_kv_heads,
            );
            // The family's rows, wherever they stand in the batch.
            let low = family.iter().map(|&s| batch.segments[s].rows.start).min();
            let high = family.iter().map(|&s| batch.segments[s].rows.end).max();
            let (low, high) = (low.unwrap_or(0), high.unwrap_or(0));
            let span = (high - low) * l.hdp;
            with_scratch(2 * span, |sums| {
                let (dk_all, dv_all) = sums.split_at_mut(span);
                for &id in family {
                    let segment = &batch.segments[id];
                    let rows: Vec<usize> = batch.context_rows(id).collect();
                    let t = rows.len();
                    let tp = t.next_multiple_of(LANES);
                    let before = t - segment.rows.len();
                    with_scratch(2 * tp * l.hd + 3 * t * l.hdp, |packed| {
                        let (keys, rest) = packed.split_at_mut(tp * l.hd);
                        let (values, rest) = rest.split_at_mut(tp * l.hd);
                        let (key_rows, rest) = rest.split_at_mut(t * l.hdp);
                        let (dk, dv) = rest.split_at_mut(t * l.hdp);
                        let v_column = l.qk + kv * l.hd;
                        let k_column = l.q + kv * l.hd;
                        pack_across(keys, &rows, l.hd, qk, l.qk, k_column);
                        pack_across(values, &rows, l.hd, qkv, l.qkv, v_column);
                        pack_along(key_rows, &rows, l.hd, qk, l.qk, k_column);
                        const BLOCK: usize = 24;
                        for first in (0..segment.rows.len()).step_by(BLOCK) {
                            let m = BLOCK.min(segment.rows.len() - first);
                            let row0 = segment.rows.start + first;
                            let reach = before + first + m;
                            let stride = reach.next_multiple_of(LANES);
                            let own: Vec<usize> = (row0..row0 + m).collect();
                            // The heads that share these keys stand one below
                            // the other: dk and dv are read and written once
                            // for all of them.
                            let heads = kv * l.heads_per_kv..(kv + 1) * l.heads_per_kv;
                            let n = heads.len() * m;
                            with_buffer(n * (2 * stride + 3 * l.hdp), |buf| {
                                let (s, rest) = buf.split_at_mut(n * stride);
                                let (dp, rest) = rest.split_at_mut(n * stride);
                                let (q, rest) = rest.split_at_mut(n * l.hdp);
                                let (go, dq) = rest.split_at_mut(n * l.hdp);
                                for (h, head) in heads.clone().enumerate() {
                                    let of_head = h * m * l.hdp..(h + 1) * m * l.hdp;
                                    let (q, go) = (&mut q[of_head.clone()], &mut go[of_head]);
                                    pack_along(q, &own, l.hd, qk, l.qk, head * l.hd);
                                    pack_along(go, &own, l.hd, d_out, l.q, head * l.hd);
                                }
                                let rows_of = |data| Left {
                                    data,
                                    row_stride: l.hdp,
                                    col_stride: 1,
                                };
                                let panels = stride / LANES;
                                gemm::product(
                                    0..n,
                                    0..panels,
                                    l.hd,
                                    rows_of(&*q),
                                    Right::packed(keys, l.hd),
                                    Sums::new(s, stride),
                                );
                                gemm::product(
                                    0..n,
                                    0..panels,
                                    l.hd,
                                    rows_of(&*go),
                                    Right::packed(values, l.hd),
                                    Sums::new(dp, stride),
                                );
                                for r in 0..n {
                                    let (head, i) = (heads.start + r / m, r % m);
                                    let at = (row0 + i) * l.q + head * l.hd;
                                    let (go, out) = (&go[r * l.hdp..][..l.hd], &out[at..][..l.hd]);
                                    let delta = sum16(l.hd, |d| go[d] * out[d].to_f32());
                                    softmax_backward_row(
                                        &mut s[r * stride..(r + 1) * stride],
                                        &mut dp[r * stride..(r + 1) * stride],
                                        before + first + i + 1,
                                        scale,
                                        lse[(row0 + i) * shape.num_heads + head],
                                        delta,
                                    );
                                }
                                let turned = |data| Left {
                                    data,
                                    row_stride: 1,
                                    col_stride: stride,
                                };
                                let wide = 0..l.hdp / LANES;
                                gemm::accumulate(
                                    0..reach,
                                    wide.clone(),
                                    n,
                                    turned(&*s),
                                    Right::row_major(go, l.hdp),
                                    Sums::new(dv, l.hdp),
                                );
                                gemm::accumulate(
                                    0..reach,
                                    wide.clone(),
                                    n,
                                    turned(&*dp),
                                    Right::row_major(q, l.hdp),
                                    Sums::new(dk, l.hdp),
                                );
                                let ds = Left {
                                    data: &*dp,
                                    row_stride: stride,
                                    col_stride: 1,
                                };
                                gemm::product(
                                    0..n,
                                    wide,
                                    reach,
                                    ds,
                                    Right::row_major(key_rows, l.hdp),
                                    Sums::new(dq, l.hdp),
                                );
                                for (r, dq) in dq.chunks_exact(l.hdp).enumerate() {
                                    let (head, i) = (heads.start + r / m, r % m);
                                    // SAFETY: one (row, head) each.
                                    let o = unsafe {
                                        d_qk.slice_mut((row0 + i) * l.qk + head * l.hd, l.hd)
                                    };
                                    for (o, x) in o.iter_mut().zip(dq) {
                                        *o = A::from_f32(*x);
                                    }
                                }
                            });
                        }
                        for (j, &row) in rows.iter().enumerate() {
                            let at = (row - low) * l.hdp;
                            for d in 0..l.hd {
                                dk_all[at + d] += dk[j * l.hdp + d];
                                dv_all[at + d] += dv[j * l.hdp + d];
                            }
                        }
                    });
                }
                for &id in family {
                    for row in batch.segments[id].rows.clone() {
                        let at = (row - low) * l.hdp;
                        // SAFETY: one (row, kv head) each.
                        let (k, v) = unsafe {
                            (
                                d_qk.slice_mut(row * l.qk + l.q + kv * l.hd, l.hd),
                                d_qkv.slice_mut(row * l.qkv + l.qk + kv * l.hd, l.hd),
                            )
                        };
                        for d in 0..l.hd {
                            k[d] = A::from_f32(dk_all[at + d]);
                            v[d] = A::from_f32(dv_all[at + d]);
                        }
                    }
                }
            });
        });
        Ok(())
    }
}

/// Saved segments gathered by shared prefix, in batch order.
fn families(batch: &Batch) -> Vec<Vec<usize>> {
    let mut family_of = vec![usize::MAX; batch.segments.len()];
    let mut families: Vec<Vec<usize>> = Vec::new();
    for (id, segment) in batch.segments.iter().enumerate() {
        if segment.rows.end > batch.saved_rows || segment.rows.is_empty() {
            continue;
        }
        let family = match segment.prefix.first() {
            Some(&p) if family_of[p] != usize::MAX => family_of[p],
            _ => {
                families.push(Vec::new());
                families.len() - 1
            }
        };
        family_of[id] = family;
        families[family].push(id);
    }
    families
}
