//! Where numbers live and where they are computed.
//!
//! A [`Device`] owns typed buffers and the compiled form of weights, adapters
//! and batches. What it can compute is said by the small traits in
//! [`crate::ops`]; the model is written once against those.

pub mod cpu;
pub mod cuda;
pub mod memory;
pub mod nvtx;

use anyhow::Result;
use half::bf16;

use crate::model::batch::Batch;
use crate::model::config::ModelShape;
use memory::{MemoryKind, Role};

/// Plain data that may lie in a device buffer.
pub trait Element: bytemuck::Pod + Default + Send + Sync {}
impl Element for u8 {}
impl Element for f32 {}
impl Element for bf16 {}
impl Element for u32 {}

/// A floating-point element; arithmetic happens in f32.
pub trait Float: Element {
    const NAME: &'static str;
    fn to_f32(self) -> f32;
    /// Rounds to nearest even.
    fn from_f32(x: f32) -> Self;
}

impl Float for f32 {
    const NAME: &'static str = "f32";
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Float for bf16 {
    const NAME: &'static str = "bf16";
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    /// Written out so that loops over it vectorise; NaN stays NaN.
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
    }
}

/// A place to compute.
///
/// Launch order is the order of calls on one [`Ctx`]; a device may run behind
/// the host, and [`Device::download`] waits for what it reads.
pub trait Device: Send + Sync + Sized + 'static {
    /// Activations' type. Statistics, softmax, losses and adapters are f32.
    type Act: Float;
    type Buf<T: Element>: Send + Sync;
    /// An ordered queue of work.
    type Stream: Send + Sync;
    /// Batch descriptors resident on the device, at fixed addresses, with a
    /// capacity: what launches read instead of host state.
    type Batch: Send + Sync;
    /// Memory that a plan places buffers in, some over others.
    type Region: Send + Sync;

    fn name(&self) -> String;
    /// Whether this device can run a model of these sizes.
    ///
    /// # Errors
    /// Names the size that it cannot take.
    fn check_shape(&self, _: &ModelShape) -> Result<()> {
        Ok(())
    }
    fn new_stream(&self) -> Result<Self::Stream>;
    /// A stream for copies, with no scratch for ops.
    fn new_copy_stream(&self) -> Result<Self::Stream> {
        self.new_stream()
    }
    /// Let what `ctx` is given from now on wait for all that `other` was given
    /// so far, and for nothing later.
    fn follow(&self, _ctx: &Ctx<Self>, _other: &Ctx<Self>) -> Result<()> {
        Ok(())
    }
    /// Zero-filled.
    fn alloc<T: Element>(&self, len: usize) -> Result<Self::Buf<T>>;
    /// The same, from what is reserved for the role.
    fn alloc_for<T: Element>(&self, _: Role, len: usize) -> Result<Self::Buf<T>> {
        self.alloc(len)
    }
    /// Make room for what will be allocated for a role: one piece of memory,
    /// freed when the last buffer in it is.
    fn reserve(&self, _: Role, _bytes: u64) -> Result<()> {
        Ok(())
    }
    /// Make room for the scratch of a stream's ops.
    fn reserve_workspace(&self, _: &Self::Stream, _bytes: u64) -> Result<()> {
        Ok(())
    }
    /// Zero-filled memory to place buffers in.
    fn region(&self, bytes: u64) -> Result<Self::Region>;
    /// A buffer at a byte offset, with what the memory holds there. A device
    /// that does not overlay buffers gives one of its own, zero-filled.
    fn place<T: Element>(
        &self,
        region: &Self::Region,
        offset: u64,
        len: usize,
    ) -> Result<Self::Buf<T>>;
    /// Zero a part of a region, where buffers are overlaid.
    fn clear(&self, _: &Ctx<Self>, _: &Self::Region, _offset: u64, _bytes: u64) -> Result<()> {
        Ok(())
    }
    /// How this device's memory is planned.
    fn memory_kind(&self) -> MemoryKind;
    /// Bytes that could be allocated now, where it is known.
    fn available_memory(&self) -> Option<u64>;
    /// Most bytes allocated at once so far, where the device has a memory of
    /// its own.
    fn peak_memory(&self) -> Option<u64> {
        None
    }
    fn upload<T: Element>(&self, ctx: &Ctx<Self>, to: SliceMut<Self, T>, from: &[T]) -> Result<()>;
    fn download<T: Element>(
        &self,
        ctx: &Ctx<Self>,
        from: Slice<Self, T>,
        to: &mut [T],
    ) -> Result<()>;
    fn zero<T: Element>(&self, ctx: &Ctx<Self>, to: SliceMut<Self, T>) -> Result<()>;
    /// Room for batches of at most this many rows, segments and pairs.
    fn new_batch(&self, capacity: BatchCapacity) -> Result<Self::Batch>;
    fn load_batch(&self, ctx: &Ctx<Self>, to: &mut Self::Batch, from: Batch) -> Result<()>;
    fn batch<'a>(&self, batch: &'a Self::Batch) -> &'a Batch;

    /// Seconds from the start of the first of `work`'s launches to the end of
    /// its last, on the device's own clock where it has one.
    fn timed(&self, _: &Ctx<Self>, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = std::time::Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    }
    /// Wait for all work of the stream so far.
    fn wait(&self, _: &Ctx<Self>) -> Result<()> {
        Ok(())
    }
    /// The stream's present end, whose time is told later; none where work is
    /// done when its call returns, so that the host's clock tells.
    fn mark(&self, _: &Ctx<Self>) -> Result<Option<Mark>> {
        Ok(None)
    }
    /// Seconds from the first of these marks to each, waiting for all. All but
    /// the last are given up.
    fn mark_times(&self, marks: &[Mark]) -> Result<Vec<f64>> {
        anyhow::ensure!(marks.is_empty(), "marks of another device");
        Ok(Vec::new())
    }
    /// Let profilers of the vendor begin or end what they collect
    /// (cudaProfilerStart and Stop).
    fn collect(&self, _on: bool) -> Result<()> {
        Ok(())
    }
}

/// See [`Device::mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u64);

/// What a batch descriptor has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchCapacity {
    pub rows: usize,
    pub segments: usize,
    pub pairs: usize,
    /// Entries of all page tables together.
    pub pages: usize,
}

/// What every op is handed beside its operands.
pub struct Ctx<'a, D: Device> {
    pub stream: &'a D::Stream,
}

/// A read-only run of elements of a device buffer.
pub struct Slice<'a, D: Device, T: Element> {
    pub buf: &'a D::Buf<T>,
    pub start: usize,
    pub len: usize,
}

impl<D: Device, T: Element> Clone for Slice<'_, D, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device, T: Element> Copy for Slice<'_, D, T> {}

/// A writable run of elements of a device buffer.
pub struct SliceMut<'a, D: Device, T: Element> {
    pub buf: &'a mut D::Buf<T>,
    pub start: usize,
    pub len: usize,
}

/// The first `len` elements of a buffer.
pub fn slice<D: Device, T: Element>(buf: &D::Buf<T>, len: usize) -> Slice<'_, D, T> {
    Slice { buf, start: 0, len }
}

/// The first `len` elements of a buffer, writable.
pub fn slice_mut<D: Device, T: Element>(buf: &mut D::Buf<T>, len: usize) -> SliceMut<'_, D, T> {
    SliceMut { buf, start: 0, len }
}

impl<D: Device, T: Element> Slice<'_, D, T> {
    /// Elements from one of its `rows` rows to the next: a row may have room
    /// behind what an op uses of it.
    pub fn stride(&self, rows: usize) -> usize {
        self.len.checked_div(rows).unwrap_or(0)
    }
}

impl<D: Device, T: Element> SliceMut<'_, D, T> {
    /// See [`Slice::stride`].
    pub fn stride(&self, rows: usize) -> usize {
        self.as_const().stride(rows)
    }

    /// The same elements, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> SliceMut<'_, D, T> {
        SliceMut {
            buf: self.buf,
            start: self.start,
            len: self.len,
        }
    }

    pub fn as_const(&self) -> Slice<'_, D, T> {
        Slice {
            buf: self.buf,
            start: self.start,
            len: self.len,
        }
    }
}
