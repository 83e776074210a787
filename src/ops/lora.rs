//! LoRA (arXiv 2106.09685), several adapters at once, "none" among them.
//!
//! With scale c (alpha / r, or alpha / sqrt(r)): s = c x A^T and
//! y = x W^T + s B^T; backward ds = c dy B, dx = dy W + ds A,
//! dA += ds^T x, dB += dy^T s. The scale lives in s and ds, so that the sums
//! over rows of dA and dB are plain chains, continued from batch to batch.
//!
//! s has one block of columns per part of the matrix, each padded to whole
//! panels; base rows take no part.

mod pack;

use std::ops::Range;

use anyhow::Result;

use crate::device::cpu::gemm::{self, Block, LANES, Left, Right, Sums};
use crate::device::cpu::{Cpu, CpuBatch, pool};
use crate::device::{Ctx, Device, Float, Slice, SliceMut};
use crate::episode::AdapterId;
use crate::model::adapter::AdapterLayout;
use crate::model::batch::Run;
use crate::model::config::{Group, ModelShape};
use crate::ops::linear::Part;
use crate::rng;
use pack::FactorPack;
pub(crate) use pack::packed_elements;

/// Which LoRA terms a product has, and where s (or ds) lies.
pub struct LoraCall<'a, D: Lora> {
    pub adapters: &'a D::Adapters,
    pub layer: usize,
    pub group: Group,
    /// A row of s (or ds) for each of the product's; columns as the adapter's
    /// layout has them.
    pub s: Slice<'a, D, D::Act>,
}

/// A group's backward in a layer: what goes into it, with a row for each of dy's.
pub struct LoraBackward<'a, D: Lora> {
    pub adapters: &'a D::Adapters,
    /// Of the adapter that all rows use.
    pub layout: &'a AdapterLayout,
    pub layer: usize,
    pub group: Group,
    pub x: Slice<'a, D, D::Act>,
    /// As [`Lora::lora_shrink`] left it.
    pub s: Slice<'a, D, D::Act>,
    pub dy: Slice<'a, D, D::Act>,
}

pub trait Lora: Device {
    /// The compute form of all resident adapters, by [`AdapterId`].
    type Adapters: Send + Sync;

    fn new_adapters(&self, shape: &ModelShape) -> Result<Self::Adapters>;

    /// (Re)build the compute form of one adapter from its flat f32 master copy.
    fn sync_adapter(
        &self,
        ctx: &Ctx<Self>,
        adapters: &mut Self::Adapters,
        id: AdapterId,
        layout: &AdapterLayout,
        params: Slice<Self, f32>,
    ) -> Result<()>;

    /// s, overwritten for adapted rows: c x A^T, with the batch's dropout on x.
    /// The rows of x and of s may have room behind them.
    #[allow(clippy::too_many_arguments)]
    fn lora_shrink(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        rows: usize,
        adapters: &Self::Adapters,
        layer: usize,
        group: Group,
        x: Slice<Self, Self::Act>,
        s: SliceMut<Self, Self::Act>,
    ) -> Result<()>;

    /// ds, overwritten for adapted rows: c dy B. As [`Lora::lora_shrink`].
    #[allow(clippy::too_many_arguments)]
    fn lora_shrink_backward(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        rows: usize,
        adapters: &Self::Adapters,
        layer: usize,
        group: Group,
        dy: Slice<Self, Self::Act>,
        ds: SliceMut<Self, Self::Act>,
    ) -> Result<()>;

    /// Adds dA and dB of rows 0..rows into the flat gradient arena of the one
    /// adapter those rows use. Rows are summed in order, one chain per element.
    #[allow(clippy::too_many_arguments)]
    fn lora_gradients(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        rows: usize,
        layout: &AdapterLayout,
        layer: usize,
        group: Group,
        x: Slice<Self, Self::Act>,
        s: Slice<Self, Self::Act>,
        dy: Slice<Self, Self::Act>,
        ds: Slice<Self, Self::Act>,
        grads: SliceMut<Self, f32>,
    ) -> Result<()>;

    /// ds, overwritten, and dA and dB added: what [`Lora::lora_shrink_backward`]
    /// and then [`Lora::lora_gradients`] do, in one op that may read dy once.
    fn lora_backward(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        rows: usize,
        call: &LoraBackward<Self>,
        ds: SliceMut<Self, Self::Act>,
        grads: SliceMut<Self, f32>,
    ) -> Result<()> {
        two_passes(self, ctx, batch, rows, call, ds, grads)
    }
}

/// The reference body of [`Lora::lora_backward`].
pub fn two_passes<D: Lora>(
    device: &D,
    ctx: &Ctx<D>,
    batch: &D::Batch,
    rows: usize,
    call: &LoraBackward<D>,
    mut ds: SliceMut<D, D::Act>,
    grads: SliceMut<D, f32>,
) -> Result<()> {
    let LoraBackward { layer, group, .. } = *call;
    device.lora_shrink_backward(
        ctx,
        batch,
        rows,
        call.adapters,
        layer,
        group,
        call.dy,
        ds.reborrow(),
    )?;
    device.lora_gradients(
        ctx,
        batch,
        rows,
        call.layout,
        layer,
        group,
        call.x,
        call.s,
        call.dy,
        ds.as_const(),
        grads,
    )
}

/// One layer's factors, by group and part.
type LayerPacks = [Vec<Option<FactorPack>>; 4];

/// All resident adapters on the CPU: `[adapter][layer][group][part]`.
pub struct CpuAdapters {
    shape: ModelShape,
    packs: Vec<Option<Vec<LayerPacks>>>,
}

impl CpuAdapters {
    fn group(&self, id: AdapterId, layer: usize, group: Group) -> &[Option<FactorPack>] {
        match self.packs.get(id.0 as usize) {
            Some(Some(layers)) => &layers[layer][group as usize],
            _ => &[],
        }
    }

    /// Parts of a group with their first column in s.
    fn parts(
        &self,
        id: AdapterId,
        layer: usize,
        group: Group,
    ) -> impl Iterator<Item = (usize, usize, &FactorPack)> {
        let mut offset = 0;
        self.group(id, layer, group)
            .iter()
            .enumerate()
            .filter_map(move |(p, pack)| {
                let pack = pack.as_ref()?;
                let at = offset;
                offset += pack.width();
                Some((p, at, pack))
            })
    }

    /// Add s B^T to a block of the `rows` rows of y.
    pub(crate) fn expand<A: Float>(
        &self,
        call: &LoraCall<Cpu<A>>,
        runs: &[Run],
        parts: &[Part],
        (rows, block): (usize, &Block),
        mut sums: Sums,
    ) {
        let s_width = call.s.stride(rows);
        for run in runs {
            let Some((id, rows)) = overlap(run, &block.rows) else {
                continue;
            };
            for (p, offset, pack) in self.parts(id, call.layer, call.group) {
                let whole = &parts[p].panels;
                let panels = block.panels.start.max(whole.start)..block.panels.end.min(whole.end);
                if panels.is_empty() {
                    continue;
                }
                let column = (panels.start - block.panels.start) * LANES;
                gemm::accumulate(
                    rows.clone(),
                    panels.start - whole.start..panels.end - whole.start,
                    pack.r,
                    columns(call.s.host(), offset, s_width),
                    Right::packed(&pack.expand, pack.r),
                    sums.from(rows.start - block.rows.start, column),
                );
            }
        }
    }

    /// Add ds A to a block of the `rows` rows of dx, through the dropout mask where there is one.
    pub(crate) fn expand_backward<A: Float>(
        &self,
        call: &LoraCall<Cpu<A>>,
        batch: &CpuBatch,
        inputs: usize,
        (rows, block): (usize, &Block),
        mut sums: Sums,
    ) {
        let s_width = call.s.stride(rows);
        for run in &batch.runs {
            let Some((id, rows)) = overlap(run, &block.rows) else {
                continue;
            };
            for (p, offset, pack) in self.parts(id, call.layer, call.group) {
                let mut sums = sums.from(rows.start - block.rows.start, 0);
                let left = columns(call.s.host(), offset, s_width);
                let right = Right::packed(&pack.expand_backward, pack.r);
                let Some(dropout) = &batch.batch.dropout else {
                    gemm::accumulate(
                        rows.clone(),
                        block.panels.clone(),
                        pack.r,
                        left,
                        right,
                        sums,
                    );
                    continue;
                };
                let n = rows.len() * block.stride();
                gemm::with_buffer(n, |own| {
                    gemm::product(
                        rows.clone(),
                        block.panels.clone(),
                        pack.r,
                        left,
                        right,
                        Sums::new(own, block.stride()),
                    );
                    let first = block.panels.start * LANES;
                    for (i, row) in rows.clone().enumerate() {
                        let key = mask_key(dropout.row_keys[row], call.layer, call.group, p);
                        let width = block.stride().min(inputs - first);
                        let own = &own[i * block.stride()..];
                        for (j, (sum, x)) in sums.row(i, width).iter_mut().zip(own).enumerate() {
                            *sum += x * mask(key, first + j, dropout.p);
                        }
                    }
                });
            }
        }
    }
}

/// The adapter and the rows that a run shares with a block.
fn overlap(run: &Run, rows: &Range<usize>) -> Option<(AdapterId, Range<usize>)> {
    let shared = run.rows.start.max(rows.start)..run.rows.end.min(rows.end);
    (!shared.is_empty()).then_some((run.adapter?, shared))
}

/// Columns of s from `offset` as a left operand over rows.
fn columns<A>(s: &[A], offset: usize, s_width: usize) -> Left<'_, A> {
    Left {
        data: &s[offset..],
        row_stride: s_width,
        col_stride: 1,
    }
}

fn mask_key(row_key: u64, layer: usize, group: Group, part: usize) -> u64 {
    let place = (layer as u64) << 8 | (group as u64) << 4 | part as u64;
    rng::mix(row_key ^ place.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// 0 where input `j` is dropped, else 1 / (1 - p).
fn mask(key: u64, j: usize, p: f32) -> f32 {
    let bits = rng::philox([(j / 4) as u32, 0, 0, 0], rng::split_key(key))[j % 4];
    if rng::open_unit(bits) < p {
        0.0
    } else {
        1.0 / (1.0 - p)
    }
}

/// x with the mask of one module applied, for rows of one run.
fn dropped<A: Float>(
    batch: &CpuBatch,
    rows: &Range<usize>,
    place: (usize, Group, usize),
    x: &[A],
    inputs: usize,
) -> Option<Vec<A>> {
    let dropout = batch.batch.dropout.as_ref()?;
    let mut out = vec![A::default(); rows.len() * inputs];
    let shared = pool::Shared::new(&mut out);
    pool::parallel_rows(rows.len(), inputs * 8, |range| {
        for i in range {
            let row = rows.start + i;
            let key = mask_key(dropout.row_keys[row], place.0, place.1, place.2);
            // SAFETY: one row each.
            let out = unsafe { shared.slice_mut(i * inputs, inputs) };
            for (j, o) in out.iter_mut().enumerate() {
                *o = A::from_f32(x[row * inputs + j].to_f32() * mask(key, j, dropout.p));
            }
        }
    });
    Some(out)
}

impl<A: Float> Cpu<A> {
    /// out[rows, offset..] = left panels, for one adapted run.
    #[allow(clippy::too_many_arguments)]
    fn shrink_run(
        rows: Range<usize>,
        left: Left<A>,
        k: usize,
        panels: &[f32],
        width: usize,
        out: &pool::Shared<A>,
        offset: usize,
        s_width: usize,
    ) {
        let panels_wide = width / LANES;
        let first = rows.start * s_width + offset;
        let fill = |block: &Block, sums: Sums| {
            let (rows, columns) = (block.rows.clone(), block.panels.clone());
            gemm::product(rows, columns, k, left, Right::packed(panels, k), sums);
        };
        if let Some(out) = out.as_f32() {
            gemm::blocks_within(rows.len(), panels_wide, k, &out, first, s_width, fill);
            return;
        }
        gemm::blocks(rows.len(), panels_wide, k, fill, |block, acc| {
            for (i, row) in block.rows.clone().enumerate() {
                let at = first + row * s_width + block.panels.start * LANES;
                // SAFETY: blocks do not overlap.
                let out = unsafe { out.slice_mut(at, block.stride()) };
                for (o, a) in out.iter_mut().zip(&acc[i * block.stride()..]) {
                    *o = A::from_f32(*a);
                }
            }
        });
    }

    /// grads += a product `[m, n]` over `k` rows, `turned` where they hold its
    /// transpose: so dB's wide operand, too, is read along its rows, as it lies,
    /// and each of its elements is used for m sums at once.
    fn gradient<B: Float>(
        (m, n, k): (usize, usize, usize),
        left: Left<A>,
        right: Right<B>,
        grads: &mut [f32],
        turned: bool,
    ) {
        let shared = pool::Shared::new(grads);
        let element = |row: usize, column: usize| {
            let at = match turned {
                true => column * m + row,
                false => row * n + column,
            };
            // SAFETY: blocks do not overlap, and no two calls' results live at once.
            let one: &mut [f32] = unsafe { shared.slice_mut(at, 1) };
            &mut one[0]
        };
        let columns = |block: &Block| {
            let first = block.panels.start * LANES;
            first..n.min(first + block.stride())
        };
        gemm::wide_blocks(
            m,
            n.div_ceil(LANES),
            k,
            |block, mut sums| {
                for (i, row) in block.rows.clone().enumerate() {
                    let sums = sums.row(i, columns(block).len());
                    for (sum, column) in sums.iter_mut().zip(columns(block)) {
                        *sum = *element(row, column);
                    }
                }
                let (rows, panels) = (block.rows.clone(), block.panels.clone());
                gemm::accumulate(rows, panels, k, left, right, sums);
            },
            |block, sums| {
                for (i, row) in block.rows.clone().enumerate() {
                    let sums = &sums[i * block.stride()..];
                    for (sum, column) in sums.iter().zip(columns(block)) {
                        *element(row, column) = *sum;
                    }
                }
            },
        );
    }
}

impl<A: Float> Lora for Cpu<A> {
    type Adapters = CpuAdapters;

    fn new_adapters(&self, shape: &ModelShape) -> Result<CpuAdapters> {
        Ok(CpuAdapters {
            shape: shape.clone(),
            packs: Vec::new(),
        })
    }

    fn sync_adapter(
        &self,
        _: &Ctx<Self>,
        adapters: &mut CpuAdapters,
        id: AdapterId,
        layout: &AdapterLayout,
        params: Slice<Self, f32>,
    ) -> Result<()> {
        let index = id.0 as usize;
        if adapters.packs.len() <= index {
            adapters.packs.resize_with(index + 1, || None);
        }
        let params = params.host();
        let layers: Vec<LayerPacks> = (0..adapters.shape.num_layers)
            .map(|layer| {
                Group::ALL.map(|group| {
                    group
                        .modules()
                        .iter()
                        .map(|&m| layout.factor(layer, m).map(|f| FactorPack::new(f, params)))
                        .collect()
                })
            })
            .collect();
        if adapters.packs[index].is_none() {
            let packs = layers.iter().flatten().flatten().flatten();
            self.count(4 * packs.map(FactorPack::elements).sum::<usize>());
        }
        adapters.packs[index] = Some(layers);
        Ok(())
    }

    fn lora_shrink(
        &self,
        _: &Ctx<Self>,
        batch: &CpuBatch,
        rows: usize,
        adapters: &CpuAdapters,
        layer: usize,
        group: Group,
        x: Slice<Self, A>,
        mut s: SliceMut<Self, A>,
    ) -> Result<()> {
        let s_width = s.stride(rows);
        let inputs = group.inputs(&adapters.shape);
        let out = s.shared();
        for run in &batch.runs {
            let Some((id, run_rows)) = overlap(run, &(0..rows)) else {
                continue;
            };
            for (p, offset, pack) in adapters.parts(id, layer, group) {
                let masked = dropped(batch, &run_rows, (layer, group, p), x.host(), inputs);
                let data = match &masked {
                    Some(m) => &m[..],
                    None => &x.host()[run_rows.start * inputs..],
                };
                let left = Left {
                    data,
                    row_stride: inputs,
                    col_stride: 1,
                };
                Self::shrink_run(
                    run_rows.clone(),
                    left,
                    inputs,
                    &pack.shrink,
                    pack.width(),
                    &out,
                    offset,
                    s_width,
                );
            }
        }
        Ok(())
    }

    fn lora_shrink_backward(
        &self,
        _: &Ctx<Self>,
        batch: &CpuBatch,
        rows: usize,
        adapters: &CpuAdapters,
        layer: usize,
        group: Group,
        dy: Slice<Self, A>,
        mut ds: SliceMut<Self, A>,
    ) -> Result<()> {
        let s_width = ds.stride(rows);
        let widths = group.outputs(&adapters.shape);
        let total: usize = widths.iter().sum();
        let out = ds.shared();
        for run in &batch.runs {
            let Some((id, run_rows)) = overlap(run, &(0..rows)) else {
                continue;
            };
            for (p, offset, pack) in adapters.parts(id, layer, group) {
                let first: usize = widths[..p].iter().sum();
                let left = Left {
                    data: &dy.host()[run_rows.start * total + first..],
                    row_stride: total,
                    col_stride: 1,
                };
                Self::shrink_run(
                    run_rows.clone(),
                    left,
                    widths[p],
                    &pack.shrink_backward,
                    pack.width(),
                    &out,
                    offset,
                    s_width,
                );
            }
        }
        Ok(())
    }

    fn lora_gradients(
        &self,
        _: &Ctx<Self>,
        batch: &CpuBatch,
        rows: usize,
        layout: &AdapterLayout,
        layer: usize,
        group: Group,
        x: Slice<Self, A>,
        s: Slice<Self, A>,
        dy: Slice<Self, A>,
        ds: Slice<Self, A>,
        mut grads: SliceMut<Self, f32>,
    ) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        let modules = group.modules();
        let widths: Vec<usize> = group.outputs(layout.shape());
        let total: usize = widths.iter().sum();
        let inputs = group.inputs(layout.shape());
        let grads = grads.host_mut();
        let mut offset = 0;
        for (p, &module) in modules.iter().enumerate() {
            let Some(f) = layout.factor(layer, module) else {
                continue;
            };
            let first: usize = widths[..p].iter().sum();
            let masked = dropped(batch, &(0..rows), (layer, group, p), x.host(), inputs);
            let x = masked.as_deref().unwrap_or(x.host());
            let down = Left {
                data: &ds.host()[offset..],
                row_stride: 1,
                col_stride: ds.stride(rows),
            };
            let da = &mut grads[f.a..f.a + f.r * inputs];
            if inputs.is_multiple_of(LANES) {
                let right = Right::row_major(x, inputs);
                Self::gradient((f.r, inputs, rows), down, right, da, false);
            } else {
                // Rows that end within a panel are padded first.
                let wide = inputs.next_multiple_of(LANES);
                let mut padded = vec![A::default(); rows * wide];
                for (to, from) in padded.chunks_exact_mut(wide).zip(x.chunks_exact(inputs)) {
                    to[..inputs].copy_from_slice(from);
                }
                let right = Right::row_major(&padded, wide);
                Self::gradient((f.r, inputs, rows), down, right, da, false);
            }
            let db = &mut grads[f.b..f.b + widths[p] * f.r];
            let (s, s_width) = (&s.host()[offset..], s.stride(rows));
            if widths[p].is_multiple_of(LANES) && total.is_multiple_of(LANES) {
                let left = Left {
                    data: s,
                    row_stride: 1,
                    col_stride: s_width,
                };
                let right = Right::row_major(&dy.host()[first..], total);
                Self::gradient((f.r, widths[p], rows), left, right, db, true);
            } else {
                let up = Left {
                    data: &dy.host()[first..],
                    row_stride: 1,
                    col_stride: total,
                };
                let right = Right {
                    data: s,
                    panel_stride: LANES,
                    k_stride: s_width,
                    pairs: false,
                };
                Self::gradient((widths[p], f.r, rows), up, right, db, false);
            }
            offset += f.r.next_multiple_of(LANES);
        }
        Ok(())
    }
}
