//! Adapters resident on the device, in bf16, and the table that kernels find
//! their factors in.

use anyhow::{Result, ensure};
use bytemuck::{Pod, Zeroable};
use half::bf16;

use crate::device::cuda::{Cuda, CudaBuf, Launch};
use crate::device::memory::Role;
use crate::device::{Ctx, Slice};
use crate::episode::AdapterId;
use crate::model::adapter::AdapterLayout;
use crate::model::config::{Group, ModelShape, Module};

/// Largest rank that the kernels take.
const MOST_RANK: usize = 256;

/// `LoraFactor` of common.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FactorEntry {
    a: u64,
    b: u64,
    scale: f32,
    r: u32,
    r_padded: u32,
    s_column: u32,
}

/// `LoraSource` of lora.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct SourceEntry {
    a_from: u64,
    b_from: u64,
    a: u64,
    b: u64,
    r: u32,
    r_padded: u32,
    inputs: u32,
    outputs: u32,
}

/// One adapter's factors in bf16, with padded ranks.
struct Compute {
    /// By layer and module.
    factors: Vec<FactorEntry>,
    sources: CudaBuf<u32>,
    count: usize,
    _memory: CudaBuf<bf16>,
}

/// All resident adapters on the device.
pub struct CudaAdapters {
    pub(super) shape: ModelShape,
    computes: Vec<Option<Compute>>,
    /// [`FactorEntry`] by layer, module and adapter.
    table: Option<CudaBuf<u32>>,
    /// By adapter, which of all syncs it had last.
    states: Vec<u64>,
    /// How many syncs there were.
    syncs: u64,
    /// Largest padded rank by group.
    pub(super) widest: [usize; 4],
}

impl CudaAdapters {
    pub(super) fn new(shape: &ModelShape) -> Self {
        CudaAdapters {
            shape: shape.clone(),
            computes: Vec::new(),
            table: None,
            states: Vec::new(),
            syncs: 0,
            widest: [0; 4],
        }
    }

    /// The table's entries of a group's first module in a layer.
    pub(crate) fn factors(&self, layer: usize, group: Group) -> u64 {
        let place = layer * Module::ALL.len() + group.modules()[0] as usize;
        let bytes = place * self.computes.len() * size_of::<FactorEntry>();
        self.table.as_ref().map_or(0, |t| t.ptr()) + bytes as u64
    }

    /// How many adapters a table's row has.
    pub(crate) fn len(&self) -> usize {
        self.computes.len()
    }

    /// A number that no other adapter has, and this one only until it changes.
    pub(crate) fn state(&self, id: AdapterId) -> u64 {
        self.states[id.0 as usize]
    }

    /// Columns of s that an adapter has in a group of a layer.
    pub(crate) fn columns(&self, id: AdapterId, layer: usize, group: Group) -> usize {
        self.padded_ranks(id, layer, group).iter().sum()
    }

    /// The same by part of the group: zero where there is none, or the adapter
    /// leaves it alone.
    pub(in crate::ops::cuda) fn padded_ranks(
        &self,
        id: AdapterId,
        layer: usize,
        group: Group,
    ) -> [usize; 3] {
        let mut ranks = [0; 3];
        if let Some(Some(compute)) = self.computes.get(id.0 as usize) {
            for (rank, &module) in ranks.iter_mut().zip(group.modules()) {
                let place = layer * Module::ALL.len() + module as usize;
                *rank = compute.factors[place].r_padded as usize;
            }
        }
        ranks
    }
}

/// Elements of an adapter's compute form.
pub(crate) fn compute_elements(layout: &AdapterLayout) -> usize {
    layout
        .factors()
        .map(|(_, _, f)| f.r.next_multiple_of(16) * (f.inputs + f.outputs))
        .sum()
}

/// Words of the map from an adapter's master copy to its compute form.
pub(crate) fn source_words(layout: &AdapterLayout) -> usize {
    layout.factors().count() * size_of::<SourceEntry>() / 4
}

/// Words of the table of so many adapters' factors.
pub(crate) fn table_words(shape: &ModelShape, adapters: usize) -> usize {
    shape.num_layers * Module::ALL.len() * adapters * size_of::<FactorEntry>() / 4
}

impl Cuda {
    /// See [`Lora::sync_adapter`].
    ///
    /// [`Lora::sync_adapter`]: crate::ops::lora::Lora::sync_adapter
    pub(super) fn sync(
        &self,
        ctx: &Ctx<Self>,
        adapters: &mut CudaAdapters,
        id: AdapterId,
        layout: &AdapterLayout,
        params: Slice<Self, f32>,
    ) -> Result<()> {
        let index = id.0 as usize;
        if adapters.computes.len() <= index {
            adapters.computes.resize_with(index + 1, || None);
            adapters.states.resize(index + 1, 0);
        }
        adapters.syncs += 1;
        adapters.states[index] = adapters.syncs;
        if adapters.computes[index].is_none() {
            adapters.computes[index] = Some(self.new_compute(ctx, &adapters.shape, layout)?);
            self.rebuild_table(ctx, adapters)?;
        }
        let Some(compute) = &adapters.computes[index] else {
            return Ok(());
        };
        self.launch(
            ctx,
            Launch::new("lora_sync", [16, compute.count as u32, 1], 256)
                .ptr("params", &params)
                .ptr("sources", &compute.sources),
        )
    }

    /// Room for an adapter's compute form, and the map from its master copy.
    fn new_compute(
        &self,
        ctx: &Ctx<Self>,
        shape: &ModelShape,
        layout: &AdapterLayout,
    ) -> Result<Compute> {
        let mut elements = 0;
        for (layer, module, f) in layout.factors() {
            ensure!(
                f.r <= MOST_RANK,
                "rank {} for layer {layer} {}: the CUDA kernels take ranks up to {MOST_RANK}",
                f.r,
                module.name()
            );
            elements += f.r.next_multiple_of(16) * (f.inputs + f.outputs);
        }
        debug_assert_eq!(elements, compute_elements(layout));
        let memory = self.alloc_raw::<bf16>(Role::Adapters, elements)?;
        let mut factors = vec![FactorEntry::zeroed(); shape.num_layers * Module::ALL.len()];
        let mut sources = Vec::new();
        let mut at = memory.ptr();
        let mut columns = [0u32; 4];
        let mut current = usize::MAX;
        for (layer, module, f) in layout.factors() {
            if layer != current {
                (current, columns) = (layer, [0; 4]);
            }
            let r_padded = f.r.next_multiple_of(16) as u32;
            let a = at;
            let b = a + 2 * (r_padded as usize * f.inputs) as u64;
            at = b + 2 * (r_padded as usize * f.outputs) as u64;
            let column = &mut columns[module.group() as usize];
            factors[layer * Module::ALL.len() + module as usize] = FactorEntry {
                a,
                b,
                scale: f.scale,
                r: f.r as u32,
                r_padded,
                s_column: *column,
            };
            *column += r_padded;
            sources.push(SourceEntry {
                a_from: f.a as u64,
                b_from: f.b as u64,
                a,
                b,
                r: f.r as u32,
                r_padded,
                inputs: f.inputs as u32,
                outputs: f.outputs as u32,
            });
        }
        Ok(Compute {
            factors,
            count: sources.len(),
            sources: self.upload_words(ctx, bytemuck::cast_slice(&sources))?,
            _memory: memory,
        })
    }

    fn upload_words(&self, ctx: &Ctx<Self>, words: &[u32]) -> Result<CudaBuf<u32>> {
        let buf = self.alloc_raw::<u32>(Role::Adapters, words.len())?;
        self.driver
            .upload(ctx.stream.id, buf.ptr(), bytemuck::cast_slice(words))?;
        Ok(buf)
    }

    /// The table that kernels find factors in, for all adapters.
    fn rebuild_table(&self, ctx: &Ctx<Self>, adapters: &mut CudaAdapters) -> Result<()> {
        let places = adapters.shape.num_layers * Module::ALL.len();
        let mut table = Vec::with_capacity(places * adapters.computes.len());
        for place in 0..places {
            for compute in &adapters.computes {
                table.push(match compute {
                    Some(c) => c.factors[place],
                    None => FactorEntry::zeroed(),
                });
            }
        }
        for group in Group::ALL {
            let widest = adapters
                .computes
                .iter()
                .flatten()
                .flat_map(|c| c.factors.iter().enumerate())
                .filter(|(i, _)| Module::ALL[i % Module::ALL.len()].group() == group)
                .map(|(_, f)| f.r_padded as usize)
                .max();
            adapters.widest[group as usize] = widest.unwrap_or(0);
        }
        // Launches under way may still read the old table.
        self.driver.synchronize(ctx.stream.id)?;
        adapters.table = Some(self.upload_words(ctx, bytemuck::cast_slice(&table))?);
        Ok(())
    }
}
