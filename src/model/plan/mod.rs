//! The memory plan: what a run will need, decided before step 0.
//!
//! Every buffer of the engine is allocated from a [`Plan`]; nothing grows in
//! the loop. Planning needs no device, only a [`MemoryKind`].

mod buffers;
mod layout;
mod memory;
mod table;
mod weights;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::device::cuda::PRODUCT_WORKSPACE;
use crate::device::memory::{Dtype, MemoryKind, Role};
use crate::device::{BatchCapacity, Device, Element};
use crate::model::adapter::AdapterLayout;
use crate::model::config::ModelShape;
use crate::ops::cuda;
use crate::rollout::pages_of;

pub use buffers::{Buffer, EXACT, KV_PAGES, LIVE, Phase, STREAM, joined_stride, noise_floor_rows};
use layout::Layout;
pub use memory::{available_memory, peak_memory, resident_memory};
pub use table::parse_bytes;
pub use weights::WeightTypes;

/// The largest batches a run will make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Rows of one forward.
    pub rows: usize,
    /// Of these, rows that keep activations for a backward.
    pub saved_rows: usize,
    pub segments: usize,
    /// Head pairs of one forward.
    pub pairs: usize,
    /// Of these, pairs in the backward.
    pub grad_pairs: usize,
    /// Columns of s per group (widest resident adapter).
    pub s_width: [usize; 4],
    /// KV pages (of 16 positions).
    pub pages: usize,
    /// Samples decoded side by side (0: what rows and segments allow).
    pub sequences: usize,
    /// Longest context.
    pub positions: usize,
    /// Saved rows keep only the residual stream that enters each layer, and the
    /// backward computes the rest of a layer again.
    pub recompute: bool,
}

impl Capacity {
    /// Samples decoded side by side.
    pub fn sequences(&self) -> usize {
        let most = self.rows.min(self.segments);
        match self.sequences {
            0 => most,
            n => n.min(most),
        }
    }

    /// Of the batch descriptor.
    pub fn batch(&self) -> BatchCapacity {
        BatchCapacity {
            rows: self.rows,
            segments: self.segments,
            pairs: self.pairs,
            // A page that several samples share may be in the table of each.
            pages: match self.pages {
                0 => 0,
                _ => self.sequences() * pages_of(self.positions),
            },
        }
    }
}

/// One line of the memory table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    pub what: String,
    pub role: Role,
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    /// When it is in use.
    pub phases: &'static str,
    /// With what alignment adds.
    pub bytes: u64,
    /// Page-locked memory of the host, beside the device's own: not counted in
    /// the total.
    pub host: bool,
    /// Settings that make it smaller.
    pub shrink: &'static str,
    /// Whose it is, of the memory that phases share.
    #[serde(skip)]
    phase: Option<Phase>,
    #[serde(skip)]
    overlaid: bool,
}

impl Entry {
    fn new(what: &str, role: Role, dtype: Dtype, shrink: &'static str) -> Entry {
        Entry {
            what: what.to_string(),
            role,
            shape: Vec::new(),
            dtype,
            phases: "all",
            bytes: 0,
            host: false,
            shrink,
            phase: None,
            overlaid: false,
        }
    }
}

/// The memory of a run: its table, and where the buffers of batches lie.
#[derive(Clone, Debug)]
pub struct Plan {
    pub kind: MemoryKind,
    pub capacity: Capacity,
    pub training: bool,
    pub entries: Vec<Entry>,
    buffers: Vec<Buffer>,
    layout: Layout,
    workspace: u64,
}

impl Plan {
    /// For a model of `shape` with these resident adapters, of which the first
    /// `trained` train, one after another.
    pub fn new(
        kind: MemoryKind,
        types: &WeightTypes,
        shape: &ModelShape,
        capacity: &Capacity,
        adapters: &[AdapterLayout],
        trained: usize,
    ) -> Plan {
        let training = trained > 0;
        let mut entries = weights::weights(kind, types, shape, capacity, training);
        entries.extend(weights::adapters(kind, shape, adapters, trained));

        let buffers = buffers::buffers(shape, capacity, kind, training);
        let alignment = kind.alignment();
        let layout = match kind.overlays() {
            true => layout::overlay(&buffers, alignment),
            false => layout::apart(&buffers, alignment),
        };
        entries.extend(buffers.iter().map(|b| Entry {
            shape: match b.count {
                1 => b.dims.clone(),
                n => [&[n], &b.dims[..]].concat(),
            },
            phases: b.phases(),
            bytes: b.count as u64 * layout::bytes_of(b, alignment),
            phase: b.phase,
            overlaid: kind.overlays(),
            ..Entry::new(&b.name, b.role, b.dtype, b.shrink)
        }));

        let list = |what: &str, role, n: usize, dtype: Dtype, shrink| Entry {
            shape: vec![n],
            bytes: (n * dtype.size()) as u64,
            ..Entry::new(what, role, dtype, shrink)
        };
        let mut workspace = 0;
        match kind {
            MemoryKind::Cpu { .. } => {
                let n = CPU_LOGITS / 4;
                entries.push(list(
                    "logits of one chunk",
                    Role::Workspace,
                    n,
                    Dtype::F32,
                    "",
                ));
            }
            MemoryKind::Cuda => {
                workspace = cuda::workspace_bytes(shape, capacity, adapters, training)
                    .next_multiple_of(alignment);
                let shrink = "train.tokens_per_batch";
                let role = Role::Workspace;
                entries.push(list("scratch of ops", role, workspace, Dtype::U8, shrink));
                entries.push(list(
                    "scratch of products",
                    role,
                    PRODUCT_WORKSPACE,
                    Dtype::U8,
                    "",
                ));
                let words = crate::device::cuda::batch::words_for(&capacity.batch());
                let mut batch = list("batch descriptor", Role::Staging, words, Dtype::U32, shrink);
                batch.bytes = batch.bytes.next_multiple_of(alignment as u64);
                entries.push(batch);
                entries.push(Entry {
                    host: true,
                    ..list("page-locked copies", Role::Staging, PINNED, Dtype::U8, "")
                });
            }
        }
        entries.retain(|e| e.bytes > 0);
        Plan {
            kind,
            capacity: *capacity,
            training,
            entries,
            buffers,
            layout,
            workspace: workspace as u64,
        }
    }

    /// Bytes of a role's entries, each for itself.
    pub fn role_bytes(&self, role: Role) -> u64 {
        self.entries
            .iter()
            .filter(|e| e.role == role && !e.host)
            .map(|e| e.bytes)
            .sum()
    }

    /// Bytes of the memory that activations, the backward's scratch and KV
    /// pages lie in.
    pub fn region_bytes(&self) -> u64 {
        self.layout.bytes
    }

    /// Bytes of the scratch of ops (none planned on the CPU).
    pub fn workspace_bytes(&self) -> u64 {
        self.workspace
    }

    /// Bytes that are saved because buffers of different phases lie over each
    /// other.
    pub fn shared_bytes(&self) -> u64 {
        let apart: u64 = self.overlaid().map(|e| e.bytes).sum();
        apart.saturating_sub(self.layout.bytes)
    }

    /// Bytes of the shared memory that a phase has for itself.
    fn need(&self, phase: Phase) -> u64 {
        let own = self.buffers.iter().filter(|b| b.phase == Some(phase));
        own.map(|b| b.count as u64 * layout::bytes_of(b, self.kind.alignment()))
            .sum()
    }

    fn overlaid(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|e| e.overlaid)
    }

    /// Bytes of memory that the run takes.
    pub fn total(&self) -> u64 {
        let entries = self.entries.iter().filter(|e| !e.host);
        entries.map(|e| e.bytes).sum::<u64>() - self.shared_bytes()
    }

    /// Where the buffers lie that a phase finds zero when it begins: (offset,
    /// bytes). Of activations a forward writes whatever is read.
    pub fn cleared(&self, phase: Phase) -> impl Iterator<Item = (u64, u64)> {
        let alignment = self.kind.alignment();
        self.buffers
            .iter()
            .zip(&self.layout.offsets)
            .filter(move |(b, _)| {
                b.phase == Some(phase)
                    && (b.role != Role::Activations || phase == Phase::NoiseFloor)
            })
            .flat_map(move |(b, offsets)| {
                let bytes = layout::bytes_of(b, alignment);
                offsets.iter().map(move |&offset| (offset, bytes))
            })
    }
}

/// Most bytes of the logits that the CPU's head holds at once, about.
const CPU_LOGITS: usize = 64 << 20;

/// Page-locked memory of a GPU, both directions.
const PINNED: usize = 2 * crate::device::cuda::STAGING;

/// Makes the buffers of a plan, in memory that was reserved for them.
pub struct Planned<'a, D: Device> {
    pub device: &'a D,
    pub plan: &'a Plan,
    pub region: &'a D::Region,
}

impl<D: Device> Planned<'_, D> {
    pub fn has(&self, name: &str) -> bool {
        self.plan.buffers.iter().any(|b| b.name == name)
    }

    /// A planned buffer and its row width.
    pub fn buffer<T: Element>(&self, name: &str) -> Result<(D::Buf<T>, usize)> {
        let (buffers, width) = self.buffers(name)?;
        let first = buffers.into_iter().next();
        Ok((first.with_context(|| format!("no {name}"))?, width))
    }

    /// All copies of a planned buffer and their row width.
    pub fn buffers<T: Element>(&self, name: &str) -> Result<(Vec<D::Buf<T>>, usize)> {
        let index = self.plan.buffers.iter().position(|b| b.name == name);
        let index = index.with_context(|| format!("no buffer {name} in the plan"))?;
        let buffer = &self.plan.buffers[index];
        ensure!(
            buffer.dtype.size() == size_of::<T>(),
            "{name} is planned as {}",
            buffer.dtype.name()
        );
        let width = buffer.dims.get(1).copied().unwrap_or(1);
        let made = self.plan.layout.offsets[index]
            .iter()
            .map(|&offset| self.device.place(self.region, offset, buffer.reach()))
            .collect::<Result<_>>()?;
        Ok((made, width))
    }
}
