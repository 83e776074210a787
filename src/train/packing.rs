//! From groups of completions to packed batches.
//!
//! Per group the prompt's rows stand once, then each completion's rows with
//! the prompt as prefix. A completion of n tokens has n - 1 rows: its first
//! token is predicted by the prompt's last row, and nothing is predicted after
//! its last. Reference rows (adapter off, or another adapter) come after all
//! policy rows and mirror them. Contrast rows come last: one contrast prompt for
//! the whole batch, and the completions once more with it as prefix, under the
//! policy. Order is canonical: group, then completion.

use anyhow::{Result, ensure};

use crate::episode::AdapterId;
use crate::model::batch::{Batch, Dropout, Pair};
use crate::rng::mix;

/// One prompt and its completions.
pub struct PackGroup<'a> {
    pub prompt: &'a [u32],
    /// (index of the sequence within the step, its tokens).
    pub completions: Vec<(usize, &'a [u32])>,
    /// Key of the prompt's dropout masks; completions mix in their index.
    pub key: u64,
}

/// What rows and pairs a batch gets.
#[derive(Clone, Copy, Debug)]
pub struct PackSpec<'a> {
    pub policy: Option<AdapterId>,
    /// Rows of the reference, if wanted: of this adapter, or the base model.
    pub reference: Option<Option<AdapterId>>,
    /// Whether reference rows also get head pairs.
    pub reference_logprobs: bool,
    /// Whether states of policy and reference rows are compared.
    pub residuals: bool,
    /// Prompt under which completions are scored once more.
    pub contrast: Option<&'a [u32]>,
    /// Keep the policy rows' activations.
    pub training: bool,
    /// Probability of LoRA dropout, 0 = none.
    pub dropout: f32,
    /// Most policy rows of a batch, if one sequence alone does not exceed it.
    /// Those of the reference and the contrast prompt mirror them, so that
    /// batches are cut in the same places with them and without.
    pub policy_rows: usize,
}

/// A batch and where each sequence's results lie in its outputs.
pub struct Packed {
    pub batch: Batch,
    pub batch_rows: usize,
    pub grad_pairs: usize,
    pub sequences: Vec<PackedSequence>,
}

/// Ranges of one sequence, one entry per completion token.
#[derive(Clone, Debug)]
pub struct PackedSequence {
    pub index: usize,
    /// Pairs under the policy.
    pub policy: std::ops::Range<usize>,
    /// Pairs under the reference; empty if not asked for.
    pub reference: std::ops::Range<usize>,
    /// Residual pairs; empty if not asked for.
    pub residuals: std::ops::Range<usize>,
    /// Pairs under the contrast prompt; empty if not asked for.
    pub contrast: std::ops::Range<usize>,
}

/// Rows of a prompt with completions, under one adapter.
fn rows_of(prompt: usize, completions: &[(usize, &[u32])]) -> usize {
    prompt
        + completions
            .iter()
            .map(|c| c.1.len().saturating_sub(1))
            .sum::<usize>()
}

/// Cut groups into batches of at most `policy_rows` policy rows. Groups stay whole where they
/// fit; a group that does not is cut between completions and its prompt
/// computed again.
pub fn pack(groups: &[PackGroup], spec: &PackSpec) -> Result<Vec<Packed>> {
    ensure!(
        spec.contrast.is_none_or(|prompt| !prompt.is_empty()),
        "the contrast prompt is empty"
    );
    let limit = spec.policy_rows;
    let mut units: Vec<Unit> = Vec::new();
    for group in groups {
        ensure!(!group.prompt.is_empty(), "a group has an empty prompt");
        let mut rest = &group.completions[..];
        while !rest.is_empty() {
            let mut n = rest.len();
            while n > 1 && rows_of(group.prompt.len(), &rest[..n]) > limit {
                n -= 1;
            }
            let (now, later) = rest.split_at(n);
            let rows = rows_of(group.prompt.len(), now);
            units.push(Unit {
                prompt: group.prompt,
                completions: now,
                key: group.key,
                rows,
            });
            rest = later;
        }
    }
    let mut batches = Vec::new();
    let mut start = 0;
    while start < units.len() {
        let mut end = start + 1;
        let mut rows = units[start].rows;
        while end < units.len() && rows + units[end].rows <= limit {
            rows += units[end].rows;
            end += 1;
        }
        batches.push(build(&units[start..end], spec));
        start = end;
    }
    Ok(batches)
}

struct Unit<'a> {
    prompt: &'a [u32],
    completions: &'a [(usize, &'a [u32])],
    key: u64,
    rows: usize,
}

fn build(units: &[Unit], spec: &PackSpec) -> Packed {
    let mut batch = Batch::default();
    let mut sequences = Vec::new();
    let mut keys = Vec::new();
    // The row whose state predicts each token of each sequence.
    let policy = predicting_rows(&mut batch, units, spec.policy);
    if spec.training {
        batch.saved_rows = batch.rows();
    }
    for unit in units {
        let row_key = |stream: u64, position: usize| {
            mix(unit.key ^ mix(stream.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ position as u64))
        };
        keys.extend((0..unit.prompt.len()).map(|p| row_key(0, p)));
        for (index, tokens) in unit.completions {
            let rows = tokens.len().saturating_sub(1);
            keys.extend((0..rows).map(|p| row_key(*index as u64 + 1, unit.prompt.len() + p)));
        }
    }
    let mut all = policy.iter();
    for (index, tokens) in units.iter().flat_map(|u| u.completions) {
        let start = batch.pairs.len();
        let rows = all.next().map_or(&[][..], |r| &r[..]);
        push_pairs(&mut batch, rows, tokens);
        sequences.push(PackedSequence {
            index: *index,
            policy: start..batch.pairs.len(),
            reference: 0..0,
            residuals: 0..0,
            contrast: 0..0,
        });
    }
    if spec.training {
        batch.grad_pairs = batch.pairs.len();
    }
    if let Some(reference) = spec.reference {
        let mirrored = predicting_rows(&mut batch, units, reference);
        keys.resize(batch.rows(), 0);
        let tokens = units.iter().flat_map(|u| u.completions);
        for (i, (_, tokens)) in tokens.enumerate() {
            if spec.reference_logprobs {
                let start = batch.pairs.len();
                push_pairs(&mut batch, &mirrored[i], tokens);
                sequences[i].reference = start..batch.pairs.len();
            }
            if spec.residuals {
                let start = batch.residual_pairs.len();
                let pairs = policy[i].iter().copied().zip(mirrored[i].iter().copied());
                batch.residual_pairs.extend(pairs);
                sequences[i].residuals = start..batch.residual_pairs.len();
            }
        }
    }
    if let Some(prompt) = spec.contrast {
        // The prompt is the whole batch's: one unit with all completions.
        let all: Vec<(usize, &[u32])> = units.iter().flat_map(|u| u.completions).copied().collect();
        let unit = Unit {
            prompt,
            completions: &all,
            key: 0,
            rows: rows_of(prompt.len(), &all),
        };
        let rows = predicting_rows(&mut batch, &[unit], spec.policy);
        keys.resize(batch.rows(), 0);
        for (i, (_, tokens)) in all.iter().enumerate() {
            let start = batch.pairs.len();
            push_pairs(&mut batch, &rows[i], tokens);
            sequences[i].contrast = start..batch.pairs.len();
        }
    }
    if spec.dropout > 0.0 {
        batch.dropout = Some(Dropout {
            p: spec.dropout,
            row_keys: keys,
        });
    }
    Packed {
        batch_rows: batch.rows(),
        grad_pairs: batch.grad_pairs,
        batch,
        sequences,
    }
}

/// Push all units' segments under one adapter; for each sequence, the row that
/// predicts each of its tokens.
fn predicting_rows(batch: &mut Batch, units: &[Unit], adapter: Option<AdapterId>) -> Vec<Vec<u32>> {
    let mut out = Vec::new();
    for unit in units {
        let prompt = batch.push_segment(unit.prompt, &[], adapter);
        let last = batch.segments[prompt].rows.end - 1;
        for (_, tokens) in unit.completions {
            let own = tokens.len().saturating_sub(1);
            let start = batch.rows();
            if own > 0 {
                batch.push_segment(&tokens[..own], &[prompt], adapter);
            }
            let rows = std::iter::once(last).chain(start..start + own);
            out.push(rows.take(tokens.len()).map(|r| r as u32).collect());
        }
    }
    out
}

fn push_pairs(batch: &mut Batch, rows: &[u32], tokens: &[u32]) {
    let pairs = rows
        .iter()
        .zip(tokens)
        .map(|(&row, &target)| Pair { row, target });
    batch.pairs.extend(pairs);
}
