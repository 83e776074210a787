//! The LM head over (row, target) pairs, in chunks: log-prob, entropy and the
//! unscaled gradient u = d log pi(target) / d x = (W_target - sum_v p_v W_v) / T.
//!
//! Every loss here has one scalar coefficient per token, known only after
//! whole completions have been through the head; d x is then coefficient * u,
//! and the logits are never needed again. No `[rows, vocab]` buffer exists for
//! more than a chunk.

use std::ops::Range;

use anyhow::{Result, bail};

use crate::device::cpu::gemm::{self, LANES, Left, Sums, with_buffer};
use crate::device::cpu::simd::{exp, fold16, ln, max, vectorized};
use crate::device::cpu::{Cpu, pool};
use crate::device::{Ctx, Device, Float, Slice, SliceMut};
use crate::ops::linear::{CpuMatrix, Linear, Panels};

pub trait LogProb: Device + Linear {
    /// For each pair of the batch: log-prob and entropy (nats) of
    /// softmax(x[row] W^T / temperature); for the first `grad_pairs` also u
    /// `[grad_pairs, hidden]` if asked. All overwritten.
    ///
    /// `reader` follows log-probs and entropies, and what `ctx` was given
    /// before, but not all of u: who reads them through it need not wait for
    /// the last product.
    #[allow(clippy::too_many_arguments)]
    fn logprob_forward(
        &self,
        ctx: &Ctx<Self>,
        reader: &Ctx<Self>,
        batch: &Self::Batch,
        head: &Self::Matrix,
        temperature: f32,
        x: Slice<Self, Self::Act>,
        logprobs: SliceMut<Self, f32>,
        entropies: SliceMut<Self, f32>,
        u: Option<SliceMut<Self, Self::Act>>,
    ) -> Result<()>;

    /// dx[row] = sum over the batch's first `grad_pairs` pairs of the row, in
    /// order, of coefficient * u. `dx` is overwritten for all saved rows.
    #[allow(clippy::too_many_arguments)]
    fn logprob_backward(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        hidden: usize,
        coefficients: Slice<Self, f32>,
        u: Slice<Self, Self::Act>,
        dx: SliceMut<Self, Self::Act>,
    ) -> Result<()>;

    /// Raw logits of some rows, `[rows.len(), vocab]` on the host: for tests
    /// and for export's check, not for training.
    fn logits(
        &self,
        ctx: &Ctx<Self>,
        head: &Self::Matrix,
        x: Slice<Self, Self::Act>,
        rows: &[u32],
    ) -> Result<Vec<f32>>;
}

/// What one row of logits says about one target.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowStats {
    pub logprob: f32,
    pub entropy: f32,
    pub top: f32,
    pub sum: f32,
}

vectorized! {
    /// Logits become exp(z / T - top); the stats are those of softmax(z / T).
    pub(crate) fn exponentials(z: &mut [f32], inverse_temperature: f32) -> RowStats {
        // At temperature 1 a pass over the row less.
        if inverse_temperature != 1.0 {
            for x in z.iter_mut() {
                *x *= inverse_temperature;
            }
        }
        let top = max(z);
        // One pass: the exponentials, their sum, and the sum of exp(d) d. The
        // latter is 0 for a token ruled out (d = -inf), not NaN.
        let mut sums = [0f32; 16];
        let mut spreads = [0f32; 16];
        let mut add = |chunk: &mut [f32]| {
            for ((x, sum), spread) in chunk.iter_mut().zip(&mut sums).zip(&mut spreads) {
                let d = *x - top;
                *x = exp(d);
                *sum += *x;
                *spread += *x * d.max(-1e4);
            }
        };
        let (whole, rest) = z.as_chunks_mut::<16>();
        for chunk in whole {
            add(chunk);
        }
        add(rest);
        let (sum, spread) = (fold16(sums), fold16(spreads));
        RowStats { logprob: 0.0, entropy: ln_sum(sum) - spread / sum, top, sum }
    }
}

/// ln of a sum of exponentials. [`ln`] would make a number of a NaN.
#[inline(always)]
fn ln_sum(sum: f32) -> f32 {
    if sum.is_nan() { sum } else { ln(sum) }
}

vectorized! {
    fn scale_row(z: &mut [f32], by: f32) -> () {
        for x in z.iter_mut() {
            *x *= by;
        }
    }
}

/// Log-prob and entropy of `target`; `z` becomes exponentials.
pub(crate) fn row_stats(z: &mut [f32], target: usize, inverse_temperature: f32) -> RowStats {
    let scaled = z[target] * inverse_temperature;
    let stats = exponentials(z, inverse_temperature);
    RowStats {
        logprob: (scaled - stats.top) - ln_sum(stats.sum),
        ..stats
    }
}

/// Rows of a block that one core takes through the whole head, its logits in the
/// second-level cache; none where a few rows would not fit.
fn rows_of_a_core(head: &CpuMatrix, rows: usize) -> Option<usize> {
    const BYTES: usize = 3 << 19;
    const LEAST: usize = 48;
    let most = BYTES / (4 * head.panels() * LANES);
    if most < LEAST {
        return None;
    }
    // As many blocks for each core.
    let threads = pool::threads();
    let blocks = rows.div_ceil(most.min(2 * LEAST)).next_multiple_of(threads);
    Some(rows.div_ceil(blocks).max(1))
}

/// Logits of these rows of x, on the calling thread.
fn head_logits<A: Float>(head: &CpuMatrix, x: &[A], rows: &[u32], logits: &mut [f32]) {
    let (hidden, padded) = (head.inputs, head.panels() * LANES);
    let mut gathered = Vec::with_capacity(rows.len() * hidden);
    for &row in rows {
        gathered.extend_from_slice(&x[row as usize * hidden..][..hidden]);
    }
    let left = Left {
        data: &gathered,
        row_stride: hidden,
        col_stride: 1,
    };
    let mut sums = Sums::new(logits, padded);
    // Few panels at a time, whose sums stay in the first-level cache.
    const PANELS: usize = 4;
    for first in (0..head.panels()).step_by(PANELS) {
        let panels = first..(first + PANELS).min(head.panels());
        let sums = sums.from(0, first * LANES);
        head.forward
            .product(0..rows.len(), panels, hidden, left, sums);
    }
}

/// Call `f(chunk start, logits, padded vocabulary)` over chunks of rows, in
/// order. `rows[i]` is the row of x that item i looks at.
pub(crate) fn head_chunks<A: Float>(
    head: &CpuMatrix,
    x: &[A],
    rows: &[u32],
    mut f: impl FnMut(usize, &mut [f32], usize) -> Result<()>,
) -> Result<()> {
    const BYTES: usize = 32 << 20;
    let hidden = head.inputs;
    let padded = head.panels() * LANES;
    let most = (BYTES / 4 / padded).clamp(16, 192).min(rows.len().max(1));
    let mut gathered = vec![A::default(); most * hidden];
    gemm::with_buffer(most * padded, |logits| -> Result<()> {
        for (c, chunk) in rows.chunks(most).enumerate() {
            for (to, &row) in gathered.chunks_exact_mut(hidden).zip(chunk) {
                to.copy_from_slice(&x[row as usize * hidden..][..hidden]);
            }
            let left = Left {
                data: &gathered,
                row_stride: hidden,
                col_stride: 1,
            };
            let out = pool::Shared::new(logits);
            gemm::blocks_within(
                chunk.len(),
                head.panels(),
                hidden,
                &out,
                0,
                padded,
                |block, sums| {
                    let (rows, panels) = (block.rows.clone(), block.panels.clone());
                    head.forward.product(rows, panels, hidden, left, sums);
                },
            );
            f(c * most, &mut logits[..chunk.len() * padded], padded)?;
        }
        Ok(())
    })
}

impl<A: Float> LogProb for Cpu<A> {
    fn logprob_forward(
        &self,
        _: &Ctx<Self>,
        _reader: &Ctx<Self>,
        batch: &Self::Batch,
        head: &CpuMatrix,
        temperature: f32,
        x: Slice<Self, A>,
        mut logprobs: SliceMut<Self, f32>,
        mut entropies: SliceMut<Self, f32>,
        mut u: Option<SliceMut<Self, A>>,
    ) -> Result<()> {
        let pairs = &batch.batch.pairs;
        let grad_pairs = batch.batch.grad_pairs;
        let (hidden, vocab) = (head.inputs, head.outputs);
        let rows: Vec<u32> = pairs.iter().map(|p| p.row).collect();
        if u.is_some() && head.backward.is_none() {
            bail!("the model was loaded without room for a backward");
        }
        let (logprobs, entropies) = (logprobs.shared(), entropies.shared());
        let u = u.as_mut().map(|u| u.shared());
        // Statistics of pair i, whose logits become probabilities if it has a u.
        let finish = |i: usize, z: &mut [f32]| {
            let stats = row_stats(z, pairs[i].target as usize, 1.0 / temperature);
            // SAFETY: one pair each.
            let (lp, h) = unsafe { (logprobs.slice_mut(i, 1), entropies.slice_mut(i, 1)) };
            (lp[0], h[0]) = (stats.logprob, stats.entropy);
            if u.is_some() && i < grad_pairs {
                scale_row(z, 1.0 / stats.sum);
            }
        };
        // u of the pairs from `first` on, over some panels, from mean rows of W.
        let write_u = |first: usize, panels: Range<usize>, mean: &[f32]| {
            let (Some(u), Some(backward)) = (&u, &head.backward) else {
                return;
            };
            let (column, stride) = (panels.start * LANES, panels.len() * LANES);
            let width = stride.min(hidden - column);
            for (i, mean) in mean.chunks_exact(stride).enumerate() {
                let target = pairs[first + i].target as usize;
                // SAFETY: no two blocks of pairs and panels overlap.
                let out = unsafe { u.slice_mut((first + i) * hidden + column, width) };
                let panels = panels
                    .clone()
                    .zip(out.chunks_mut(LANES).zip(mean.chunks(LANES)));
                for (panel, (out, mean)) in panels {
                    let w = panel_column(backward, vocab, panel, target);
                    for ((o, w), a) in out.iter_mut().zip(w).zip(mean) {
                        *o = A::from_f32((w - a) / temperature);
                    }
                }
            }
        };
        let u_panels = hidden.div_ceil(LANES);
        if rows.is_empty() {
            return Ok(());
        }
        if let Some(each) = rows_of_a_core(head, rows.len()) {
            let padded = head.panels() * LANES;
            let work = rows.len() * padded * hidden / 16;
            pool::parallel(rows.len().div_ceil(each), work, |task| {
                let range = task * each..((task + 1) * each).min(rows.len());
                with_buffer(each * padded, |logits| {
                    head_logits(head, x.host(), &rows[range.clone()], logits);
                    for (i, z) in range.clone().zip(logits.chunks_exact_mut(padded)) {
                        finish(i, &mut z[..vocab]);
                    }
                    let m = range.len().min(grad_pairs.saturating_sub(range.start));
                    let backward = head.backward.as_ref().filter(|_| u.is_some() && m > 0);
                    let Some(backward) = backward else { return };
                    with_buffer(m * u_panels * LANES, |mean| {
                        let left = Left {
                            data: &*logits,
                            row_stride: padded,
                            col_stride: 1,
                        };
                        let sums = Sums::new(mean, u_panels * LANES);
                        backward.product(0..m, 0..u_panels, vocab, left, sums);
                        write_u(range.start, 0..u_panels, mean);
                    });
                });
            });
            return Ok(());
        }
        head_chunks(head, x.host(), &rows, |start, logits, padded| {
            let n = logits.len() / padded;
            let shared = pool::Shared::new(logits);
            pool::parallel_rows(n, vocab * 2, |range| {
                for i in range {
                    // SAFETY: one row each.
                    let z = unsafe { &mut shared.slice_mut(i * padded, padded)[..vocab] };
                    finish(start + i, z);
                }
            });
            if let (Some(_), Some(backward)) = (&u, &head.backward) {
                let m = n.min(grad_pairs.saturating_sub(start));
                let left = Left {
                    data: &*logits,
                    row_stride: padded,
                    col_stride: 1,
                };
                gemm::blocks(
                    m,
                    u_panels,
                    vocab,
                    |block, sums| {
                        let (rows, panels) = (block.rows.clone(), block.panels.clone());
                        backward.product(rows, panels, vocab, left, sums);
                    },
                    |block, mean| write_u(start + block.rows.start, block.panels.clone(), mean),
                );
            }
            Ok(())
        })
    }

    fn logprob_backward(
        &self,
        _: &Ctx<Self>,
        batch: &Self::Batch,
        hidden: usize,
        coefficients: Slice<Self, f32>,
        u: Slice<Self, A>,
        mut dx: SliceMut<Self, A>,
    ) -> Result<()> {
        let batch = &batch.batch;
        let mut of_row: Vec<Vec<usize>> = vec![Vec::new(); batch.saved_rows];
        for (i, pair) in batch.pairs[..batch.grad_pairs].iter().enumerate() {
            of_row[pair.row as usize].push(i);
        }
        let dx = dx.shared();
        let (c, u) = (coefficients.host(), u.host());
        pool::parallel_rows(batch.saved_rows, hidden * 2, |range| {
            let mut sum = vec![0f32; hidden];
            for row in range {
                sum.fill(0.0);
                for &i in &of_row[row] {
                    for (s, x) in sum.iter_mut().zip(&u[i * hidden..]) {
                        *s += c[i] * x.to_f32();
                    }
                }
                // SAFETY: one row each.
                let out = unsafe { dx.slice_mut(row * hidden, hidden) };
                for (o, s) in out.iter_mut().zip(&sum) {
                    *o = A::from_f32(*s);
                }
            }
        });
        Ok(())
    }

    fn logits(
        &self,
        _: &Ctx<Self>,
        head: &CpuMatrix,
        x: Slice<Self, A>,
        rows: &[u32],
    ) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(rows.len() * head.outputs);
        head_chunks(head, x.host(), rows, |_, logits, padded| {
            for row in logits.chunks_exact(padded) {
                all.extend_from_slice(&row[..head.outputs]);
            }
            Ok(())
        })?;
        Ok(all)
    }
}

/// W[row, ..] of one panel of columns, out of the transposed packing.
fn panel_column(backward: &Panels, rows: usize, panel: usize, row: usize) -> [f32; LANES] {
    let at = (panel * rows + row) * LANES;
    std::array::from_fn(|j| match backward {
        Panels::F32(v) => v[at + j],
        Panels::Bf16(v) => Float::to_f32(v[at + j]),
    })
}
