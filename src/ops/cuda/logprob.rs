//! Launches of `cuda/logprob.cu`: see [`crate::ops::logprob`] for the contract.

use anyhow::Result;
use half::bf16;

use super::linear::CudaMatrix;
use crate::device::cuda::driver::Gemm;
use crate::device::cuda::{Address, Cuda, Launch};
use crate::device::{Ctx, Device, Slice, SliceMut};
use crate::ops::logprob::LogProb;

/// Most scratch of one chunk in bytes, and most pairs: beyond a few thousand
/// rows a product gets no faster.
const CHUNK_BYTES: usize = 1 << 30;
const CHUNK_PAIRS: usize = 4096;

/// Parts of the workspace start at multiples of this.
const ALIGNMENT: usize = 256;

/// Where a chunk's parts lie in the workspace.
pub(super) struct Chunk {
    /// Most pairs of one chunk.
    pub pairs: usize,
    /// Offsets of bf16 x `[pairs, hidden]`, f32 logits `[pairs, columns]`,
    /// f32 sums of weights `[pairs, hidden]`, f32 factors `[pairs]` that make
    /// means of them. Exponentials in bf16 come to lie over the logits, in the
    /// first half of each row.
    x: u64,
    pub logits: u64,
    sums: u64,
    inverses: u64,
    pub bytes: usize,
}

impl Chunk {
    pub fn new(pairs: usize, hidden: usize, columns: usize, with_u: bool) -> Chunk {
        let each = 2 * hidden + 4 * columns + if with_u { 4 * hidden + 4 } else { 0 };
        let pairs = pairs
            .min(CHUNK_PAIRS)
            .min((CHUNK_BYTES / each).max(16))
            .max(1);
        let mut end = 0;
        let mut part = |bytes: usize| {
            let at = end;
            end += bytes.next_multiple_of(ALIGNMENT);
            at as u64
        };
        let (x, logits) = (part(2 * pairs * hidden), part(4 * pairs * columns));
        let (sums, inverses) = match with_u {
            true => (part(4 * pairs * hidden), part(4 * pairs)),
            false => (0, 0),
        };
        Chunk {
            pairs,
            x,
            logits,
            sums,
            inverses,
            bytes: end,
        }
    }
}

/// Scratch of the head over so many pairs.
pub(crate) fn workspace_bytes(pairs: usize, hidden: usize, vocab: usize, with_u: bool) -> usize {
    Chunk::new(pairs, hidden, vocab.next_multiple_of(8), with_u).bytes
}

impl Cuda {
    /// Logits of `count` rows of x, listed at `rows` on the device, into the
    /// workspace at `base`.
    pub(super) fn head_logits(
        &self,
        ctx: &Ctx<Self>,
        head: &CudaMatrix,
        x: &Slice<Self, bf16>,
        rows: u64,
        count: usize,
        (base, chunk): (u64, &Chunk),
    ) -> Result<()> {
        let gathered = base + chunk.x;
        self.launch(
            ctx,
            Launch::new("logprob_gather", [count as u32, 1, 1], 128)
                .ptr("x", x)
                .ptr("rows", &rows)
                .ptr("to", &gathered)
                .u32("hidden", head.inputs),
        )?;
        let gemm = Gemm {
            m: count,
            n: head.rows_padded,
            k: head.inputs,
            a: gathered,
            lda: head.inputs,
            transpose_a: false,
            b: head.weight.ptr(),
            ldb: head.inputs,
            transpose_b: true,
            c: base + chunk.logits,
            ldc: head.rows_padded,
            c_f32: true,
            accumulate: false,
        };
        self.gemm(ctx, &gemm)
    }
}

impl LogProb for Cuda {
    fn logprob_forward(
        &self,
        ctx: &Ctx<Self>,
        reader: &Ctx<Self>,
        batch: &<Self as Device>::Batch,
        head: &CudaMatrix,
        temperature: f32,
        x: Slice<Self, bf16>,
        logprobs: SliceMut<Self, f32>,
        entropies: SliceMut<Self, f32>,
        u: Option<SliceMut<Self, bf16>>,
    ) -> Result<()> {
        let (pairs, hidden, columns) = (batch.host.pairs.len(), head.inputs, head.rows_padded);
        let chunk = Chunk::new(pairs, hidden, columns, u.is_some());
        let base = self.workspace(ctx, chunk.bytes)?;
        let grad_pairs = match u {
            Some(_) => batch.host.grad_pairs,
            None => 0,
        };
        if pairs == 0 {
            return self.follow(reader, ctx);
        }
        // From the end: pairs with u come first, so that the last chunk's u is
        // a whole chunk's, beside which the host works on what it has read.
        for first in (0..pairs).step_by(chunk.pairs).rev() {
            let count = chunk.pairs.min(pairs - first);
            let rows = batch.lists.pair_rows + 4 * first as u64;
            let targets = batch.lists.pair_targets + 4 * first as u64;
            self.head_logits(ctx, head, &x, rows, count, (base, &chunk))?;
            let with_u = grad_pairs.saturating_sub(first).min(count);
            let inverses = base + chunk.inverses;
            self.launch(
                ctx,
                Launch::new("logprob_stats", [count as u32, 1, 1], 512)
                    .ptr("logits", &(base + chunk.logits))
                    .ptr("targets", &targets)
                    .ptr("logprobs", &(logprobs.address() + 4 * first as u64))
                    .ptr("entropies", &(entropies.address() + 4 * first as u64))
                    .maybe("inverses", (with_u > 0).then_some(inverses))
                    .u32("grad_pairs", with_u)
                    .u32("vocab", head.outputs)
                    .u32("columns", columns)
                    .f32("inverse_temperature", 1.0 / temperature),
            )?;
            if first == 0 {
                self.follow(reader, ctx)?;
            }
            let Some(u) = u.as_ref().filter(|_| with_u > 0) else {
                continue;
            };
            let gemm = Gemm {
                m: with_u,
                n: hidden,
                k: columns,
                a: base + chunk.logits,
                lda: 2 * columns,
                transpose_a: false,
                b: head.weight.ptr(),
                ldb: hidden,
                transpose_b: false,
                c: base + chunk.sums,
                ldc: hidden,
                c_f32: true,
                accumulate: false,
            };
            self.gemm(ctx, &gemm)?;
            self.launch(
                ctx,
                Launch::new("logprob_u", [with_u as u32, 1, 1], 128)
                    .ptr("weight", &head.weight)
                    .ptr("targets", &targets)
                    .ptr("sums", &(base + chunk.sums))
                    .ptr("inverses", &inverses)
                    .ptr("u", &(u.address() + 2 * (first * hidden) as u64))
                    .u32("hidden", hidden)
                    .f32("inverse_temperature", 1.0 / temperature),
            )?;
        }
        Ok(())
    }

    fn logprob_backward(
        &self,
        ctx: &Ctx<Self>,
        batch: &<Self as Device>::Batch,
        hidden: usize,
        coefficients: Slice<Self, f32>,
        u: Slice<Self, bf16>,
        dx: SliceMut<Self, bf16>,
    ) -> Result<()> {
        self.launch(
            ctx,
            Launch::new(
                "logprob_backward",
                [batch.host.saved_rows as u32, 1, 1],
                128,
            )
            .ptr("coefficients", &coefficients)
            .ptr("u", &u)
            .ptr("ends", &batch.lists.row_pair_ends)
            .ptr("pairs", &batch.lists.row_pairs)
            .ptr("dx", &dx)
            .u32("hidden", hidden),
        )
    }

    fn logits(
        &self,
        ctx: &Ctx<Self>,
        head: &CudaMatrix,
        x: Slice<Self, bf16>,
        rows: &[u32],
    ) -> Result<Vec<f32>> {
        let columns = head.rows_padded;
        let chunk = Chunk::new(rows.len(), head.inputs, columns, false);
        let list_at = chunk.bytes as u64;
        let base = self.workspace(ctx, chunk.bytes + 4 * chunk.pairs)?;
        let mut all = Vec::with_capacity(rows.len() * head.outputs);
        let mut padded = vec![0f32; chunk.pairs * columns];
        for rows in rows.chunks(chunk.pairs) {
            let list = base + list_at;
            self.driver
                .upload(ctx.stream.id, list, bytemuck::cast_slice(rows))?;
            self.head_logits(ctx, head, &x, list, rows.len(), (base, &chunk))?;
            let padded = &mut padded[..rows.len() * columns];
            self.driver.download(
                ctx.stream.id,
                base + chunk.logits,
                bytemuck::cast_slice_mut(padded),
            )?;
            for row in padded.chunks_exact(columns) {
                all.extend_from_slice(&row[..head.outputs]);
            }
        }
        Ok(all)
    }
}
