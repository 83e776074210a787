//! Launches of `cuda/sample.cu`: see [`crate::ops::sample`] for the contract.

use anyhow::Result;
use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::linear::CudaMatrix;
use super::logprob::Chunk;
use crate::device::cuda::{Cuda, Launch};
use crate::device::{Ctx, Slice};
use crate::ops::sample::{Sample, SampleRequest, Sampled};

/// `SampleRequest` of sample.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct RequestEntry {
    key: u64,
    position: u32,
    greedy: u32,
    scale: f32,
    top_p: f32,
    top_k: u32,
    log_min_p: f32,
}

/// `Sampled` of sample.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
struct SampledEntry {
    token: u32,
    logprob: f32,
    invalid: u32,
    padding: u32,
}

impl RequestEntry {
    fn new(r: &SampleRequest) -> Self {
        let greedy = r.temperature <= 0.0;
        RequestEntry {
            key: r.key,
            position: r.position,
            greedy: u32::from(greedy),
            scale: if greedy { 1.0 } else { 1.0 / r.temperature },
            top_p: r.top_p,
            top_k: r.top_k,
            log_min_p: match r.min_p > 0.0 {
                true => r.min_p.ln(),
                false => f32::NEG_INFINITY,
            },
        }
    }
}

/// Scratch of one call: a chunk of the head, then requests, rows and results.
pub(crate) fn workspace_bytes(requests: usize, hidden: usize, vocab: usize) -> usize {
    let chunk = Chunk::new(requests, hidden, vocab.next_multiple_of(8), false);
    chunk.bytes + chunk.pairs * (size_of::<RequestEntry>() + size_of::<SampledEntry>() + 4)
}

impl Sample for Cuda {
    fn sample(
        &self,
        ctx: &Ctx<Self>,
        head: &CudaMatrix,
        x: Slice<Self, bf16>,
        requests: &[SampleRequest],
    ) -> Result<Vec<Sampled>> {
        let chunk = Chunk::new(requests.len(), head.inputs, head.rows_padded, false);
        let base = self.workspace(
            ctx,
            workspace_bytes(requests.len(), head.inputs, head.outputs),
        )?;
        let entries_at = base + chunk.bytes as u64;
        let results_at = entries_at + (chunk.pairs * size_of::<RequestEntry>()) as u64;
        let rows_at = results_at + (chunk.pairs * size_of::<SampledEntry>()) as u64;
        let mut drawn = Vec::with_capacity(requests.len());
        for requests in requests.chunks(chunk.pairs) {
            let entries: Vec<RequestEntry> = requests.iter().map(RequestEntry::new).collect();
            let rows: Vec<u32> = requests.iter().map(|r| r.row).collect();
            let stream = ctx.stream.id;
            self.driver
                .upload(stream, entries_at, bytemuck::cast_slice(&entries))?;
            self.driver
                .upload(stream, rows_at, bytemuck::cast_slice(&rows))?;
            self.head_logits(ctx, head, &x, rows_at, requests.len(), (base, &chunk))?;
            self.launch(
                ctx,
                Launch::new("sample_draw", [requests.len() as u32, 1, 1], 512)
                    .ptr("logits", &(base + chunk.logits))
                    .ptr("requests", &entries_at)
                    .ptr("out", &results_at)
                    .u32("vocab", head.outputs)
                    .u32("columns", head.rows_padded),
            )?;
            let mut results = vec![SampledEntry::default(); requests.len()];
            self.driver
                .download(stream, results_at, bytemuck::cast_slice_mut(&mut results))?;
            drawn.extend(results.iter().map(|r| Sampled {
                token: r.token,
                logprob: r.logprob,
                invalid: r.invalid != 0,
            }));
        }
        Ok(drawn)
    }
}
