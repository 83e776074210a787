//! The CPU device: the reference for every op, and the default where there is
//! no GPU.
//!
//! Buffers are vectors and calls are synchronous. Every reduction runs in one
//! fixed order per output element, whatever the batch: a row alone has the
//! bits it has in company, which is what makes the sampler's and the
//! trainer's log-probs equal.

pub mod gemm;
pub(crate) mod memory;
pub mod pool;
pub mod simd;
mod tile;

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};

use super::memory::{Dtype, MemoryKind};
use super::{BatchCapacity, Ctx, Device, Element, Float, Slice, SliceMut};
use crate::model::batch::{Batch, Run};
use crate::model::plan::available_memory;

/// The CPU with activations of type `A`. `Cpu<f32>` is the exact mode;
/// `Cpu<bf16>` rounds wherever a bf16 GPU run rounds.
pub struct Cpu<A: Float = f32> {
    act: PhantomData<A>,
    allocated: AtomicU64,
}

impl<A: Float> Default for Cpu<A> {
    fn default() -> Self {
        Cpu {
            act: PhantomData,
            allocated: AtomicU64::new(0),
        }
    }
}

impl<A: Float> Cpu<A> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of all buffers, packed weights and adapters made so far.
    pub fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Count bytes that were allocated.
    pub(crate) fn count(&self, bytes: usize) {
        self.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A CPU buffer.
pub struct CpuBuf<T> {
    pub data: Vec<T>,
}

impl<A: Float> Device for Cpu<A> {
    type Act = A;
    type Buf<T: Element> = CpuBuf<T>;
    type Stream = ();
    type Batch = CpuBatch;
    type Region = ();

    fn name(&self) -> String {
        format!("cpu ({}, {} threads)", A::NAME, pool::threads())
    }

    fn new_stream(&self) -> Result<()> {
        Ok(())
    }

    fn alloc<T: Element>(&self, len: usize) -> Result<CpuBuf<T>> {
        self.count(len * size_of::<T>());
        Ok(CpuBuf {
            data: memory::zeroed(len),
        })
    }

    fn region(&self, _: u64) -> Result<()> {
        Ok(())
    }

    fn place<T: Element>(&self, _: &(), _: u64, len: usize) -> Result<CpuBuf<T>> {
        self.alloc(len)
    }

    fn memory_kind(&self) -> MemoryKind {
        MemoryKind::Cpu {
            act: match size_of::<A>() {
                4 => Dtype::F32,
                _ => Dtype::Bf16,
            },
        }
    }

    fn available_memory(&self) -> Option<u64> {
        available_memory()
    }

    fn upload<T: Element>(
        &self,
        _: &Ctx<Self>,
        mut to: SliceMut<Self, T>,
        from: &[T],
    ) -> Result<()> {
        ensure!(
            to.len == from.len(),
            "upload of {} into {}",
            from.len(),
            to.len
        );
        to.host_mut().copy_from_slice(from);
        Ok(())
    }

    fn download<T: Element>(
        &self,
        _: &Ctx<Self>,
        from: Slice<Self, T>,
        to: &mut [T],
    ) -> Result<()> {
        ensure!(
            from.len == to.len(),
            "download of {} into {}",
            from.len,
            to.len()
        );
        to.copy_from_slice(from.host());
        Ok(())
    }

    fn zero<T: Element>(&self, _: &Ctx<Self>, mut to: SliceMut<Self, T>) -> Result<()> {
        to.host_mut().fill(T::default());
        Ok(())
    }

    fn new_batch(&self, capacity: BatchCapacity) -> Result<CpuBatch> {
        Ok(CpuBatch {
            capacity,
            batch: Batch::default(),
            runs: Vec::new(),
        })
    }

    fn load_batch(&self, _: &Ctx<Self>, to: &mut CpuBatch, from: Batch) -> Result<()> {
        ensure!(
            from.rows() <= to.capacity.rows
                && from.segments.len() <= to.capacity.segments
                && from.pairs.len() <= to.capacity.pairs,
            "a batch of {} rows, {} segments and {} pairs is over its plan of {:?}",
            from.rows(),
            from.segments.len(),
            from.pairs.len(),
            to.capacity
        );
        to.runs = from.runs();
        to.batch = from;
        Ok(())
    }

    fn batch<'a>(&self, batch: &'a CpuBatch) -> &'a Batch {
        &batch.batch
    }
}

/// On the CPU the descriptor is the batch itself.
pub struct CpuBatch {
    capacity: BatchCapacity,
    pub(crate) batch: Batch,
    pub(crate) runs: Vec<Run>,
}

impl<'a, A: Float, T: Element> Slice<'a, Cpu<A>, T> {
    pub fn host(&self) -> &'a [T] {
        &self.buf.data[self.start..self.start + self.len]
    }
}

impl<A: Float, T: Element> SliceMut<'_, Cpu<A>, T> {
    pub fn host_mut(&mut self) -> &mut [T] {
        &mut self.buf.data[self.start..self.start + self.len]
    }

    /// For writes by several threads to disjoint elements.
    pub(crate) fn shared(&mut self) -> pool::Shared<T> {
        pool::Shared::new(self.host_mut())
    }
}
