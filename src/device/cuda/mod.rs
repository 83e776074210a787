//! The CUDA device: bf16 activations, kernels from `cuda/*.cu`, base products
//! through cuBLASLt; on a GPU, or in the emulator.

mod arena;
pub mod batch;
mod cublaslt;
pub mod driver;
#[cfg(feature = "emulator")]
pub mod emulator;
mod gpu;
#[cfg(feature = "emulator")]
mod host_gemm;
pub mod launch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use anyhow::{Context as _, Result, ensure};
use half::bf16;
use memmap2::Mmap;

use super::memory::{MemoryKind, Role};
use super::{BatchCapacity, Ctx, Device, Element, Mark, Slice, SliceMut};
use crate::model::batch::Batch;
use crate::model::config::ModelShape;
use crate::ops::cuda::AttentionChoice;
pub use crate::ops::cuda::AttentionKernels;
pub use arena::{Allocation, CudaBuf, MemoryUse};
use arena::{Arenas, Usage};
use batch::CudaBatch;
use driver::{Driver, EventId, StreamId};
pub use launch::{Address, Launch};

/// Weights on the device by where they lie in a mapped file, so that a tied
/// head and embedding are one buffer. The map is kept, or its address might come
/// to mean another file.
pub(crate) type LoadedWeights = Mutex<HashMap<(usize, usize), LoadedWeight>>;

/// Where a weight lies on the device.
pub(crate) struct LoadedWeight {
    pub memory: Weak<Allocation>,
    pub offset: usize,
    pub _map: Arc<Mmap>,
}

/// Scratch of cuBLASLt on a stream: what NVIDIA recommends for Hopper.
pub const PRODUCT_WORKSPACE: usize = 32 << 20;

/// Page-locked memory of one direction of copies, in bytes.
pub const STAGING: usize = 8 << 20;

/// A CUDA device and whoever executes it. Clones are the same device.
#[derive(Clone)]
pub struct Cuda {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) weights: Arc<LoadedWeights>,
    usage: Arc<Usage>,
    arenas: Arc<Arenas>,
    pub(crate) attention: Arc<AttentionChoice>,
}

impl Cuda {
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Cuda {
            driver,
            weights: Arc::default(),
            usage: Arc::default(),
            arenas: Arc::default(),
            attention: Arc::default(),
        }
    }

    /// The same device with these attention kernels, whatever it would choose.
    pub fn with_attention(self, kernels: AttentionKernels) -> Self {
        Cuda {
            attention: Arc::new(kernels.into()),
            ..self
        }
    }

    fn cleared<T: Element>(&self, buf: CudaBuf<T>) -> Result<CudaBuf<T>> {
        if !buf.is_empty() {
            let (stream, bytes) = (StreamId::DEFAULT, buf.len() * size_of::<T>());
            self.driver.zero(stream, buf.ptr(), bytes)?;
            self.driver.synchronize(stream)?;
        }
        Ok(buf)
    }

    /// This stream's scratch of at least `bytes`, for one op: the next op on
    /// the stream may overwrite it. Grows only where no plan reserved enough.
    pub(crate) fn workspace(&self, ctx: &Ctx<Self>, bytes: usize) -> Result<u64> {
        let mut workspace = lock(&ctx.stream.workspace);
        if workspace.as_ref().is_none_or(|w| w.bytes < bytes) {
            *workspace = None;
            *workspace = Some(self.allocation(bytes)?);
        }
        Ok(workspace.as_ref().map_or(0, |w| w.ptr))
    }
}

/// A poisoned lock only means that another thread panicked; what these guard is
/// valid after any of its statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// A queue of launches, with the scratch of its ops.
pub struct CudaStream {
    pub(crate) id: StreamId,
    workspace: Mutex<Option<Allocation>>,
    /// cuBLASLt's; none on a stream for copies.
    pub(crate) products: Option<Allocation>,
}

/// Refuses slices that reach beyond their buffer: a host bug that would corrupt
/// memory far from its cause.
fn check<T: Element>(buf: &CudaBuf<T>, start: usize, len: usize) -> Result<()> {
    ensure!(
        start + len <= buf.len,
        "a slice of {start}..{} in a device buffer of {} elements",
        start + len,
        buf.len
    );
    Ok(())
}

impl Device for Cuda {
    type Act = bf16;
    type Buf<T: Element> = CudaBuf<T>;
    type Stream = CudaStream;
    type Batch = CudaBatch;
    type Region = Arc<Allocation>;

    fn name(&self) -> String {
        let info = self.driver.info();
        format!("{} (sm_{}, bf16)", info.name, info.arch)
    }

    fn check_shape(&self, shape: &ModelShape) -> Result<()> {
        ensure!(
            matches!(shape.head_dim, 64 | 128),
            "head_dim {}: the CUDA kernels take 64 and 128; use --device cpu",
            shape.head_dim
        );
        for (name, size) in [
            ("hidden_size", shape.hidden_size),
            ("intermediate_size", shape.intermediate_size),
        ] {
            ensure!(
                size % 16 == 0,
                "{name} {size}: the CUDA kernels take multiples of 16; use --device cpu"
            );
        }
        let group = shape.num_heads / shape.num_kv_heads;
        ensure!(
            group <= 16,
            "{group} query heads per KV head: the CUDA kernels take up to 16; use --device cpu"
        );
        // Now, and not at the first step.
        self.attention_kernels(shape)?;
        Ok(())
    }

    fn new_stream(&self) -> Result<CudaStream> {
        Ok(CudaStream {
            id: self.driver.new_stream()?,
            workspace: Mutex::default(),
            products: Some(self.allocation(PRODUCT_WORKSPACE)?),
        })
    }

    fn new_copy_stream(&self) -> Result<CudaStream> {
        Ok(CudaStream {
            id: self.driver.new_stream()?,
            workspace: Mutex::default(),
            products: None,
        })
    }

    fn follow(&self, ctx: &Ctx<Self>, other: &Ctx<Self>) -> Result<()> {
        self.driver.follow(ctx.stream.id, other.stream.id)
    }

    fn alloc<T: Element>(&self, len: usize) -> Result<CudaBuf<T>> {
        let memory = Arc::new(self.allocation(len * size_of::<T>())?);
        self.cleared(CudaBuf::over(memory, 0, len))
    }

    fn alloc_for<T: Element>(&self, role: Role, len: usize) -> Result<CudaBuf<T>> {
        self.cleared(self.alloc_raw(role, len)?)
    }

    fn reserve(&self, role: Role, bytes: u64) -> Result<()> {
        self.reserve_arena(role, bytes)
            .with_context(|| format!("reserving memory for {}", role.name()))
    }

    fn reserve_workspace(&self, stream: &CudaStream, bytes: u64) -> Result<()> {
        let mut workspace = lock(&stream.workspace);
        *workspace = None;
        *workspace = Some(self.allocation(bytes as usize)?);
        Ok(())
    }

    fn region(&self, bytes: u64) -> Result<Arc<Allocation>> {
        let memory = Arc::new(
            self.allocation(bytes as usize)
                .context("reserving memory for activations and KV pages")?,
        );
        self.cleared(CudaBuf::<u32>::over(memory.clone(), 0, bytes as usize / 4))?;
        Ok(memory)
    }

    fn place<T: Element>(
        &self,
        region: &Arc<Allocation>,
        offset: u64,
        len: usize,
    ) -> Result<CudaBuf<T>> {
        CudaBuf::within(region, offset, len)
    }

    fn clear(
        &self,
        ctx: &Ctx<Self>,
        region: &Arc<Allocation>,
        offset: u64,
        bytes: u64,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let place = CudaBuf::<u8>::within(region, offset, bytes as usize)?;
        self.driver.zero(ctx.stream.id, place.ptr(), bytes as usize)
    }

    fn memory_kind(&self) -> MemoryKind {
        MemoryKind::Cuda
    }

    fn available_memory(&self) -> Option<u64> {
        self.driver.available_memory()
    }

    fn peak_memory(&self) -> Option<u64> {
        Some(self.memory().peak)
    }

    fn upload<T: Element>(&self, ctx: &Ctx<Self>, to: SliceMut<Self, T>, from: &[T]) -> Result<()> {
        ensure!(
            to.len == from.len(),
            "upload of {} into {}",
            from.len(),
            to.len
        );
        check(to.buf, to.start, to.len)?;
        if from.is_empty() {
            return Ok(());
        }
        self.driver
            .upload(ctx.stream.id, to.address(), bytemuck::cast_slice(from))
            .with_context(|| format!("copying {} elements to the device", from.len()))
    }

    fn download<T: Element>(
        &self,
        ctx: &Ctx<Self>,
        from: Slice<Self, T>,
        to: &mut [T],
    ) -> Result<()> {
        ensure!(
            from.len == to.len(),
            "download of {} into {}",
            from.len,
            to.len()
        );
        check(from.buf, from.start, from.len)?;
        if to.is_empty() {
            return Ok(());
        }
        let n = to.len();
        self.driver
            .download(ctx.stream.id, from.address(), bytemuck::cast_slice_mut(to))
            .with_context(|| format!("copying {n} elements from the device"))
    }

    fn zero<T: Element>(&self, ctx: &Ctx<Self>, to: SliceMut<Self, T>) -> Result<()> {
        check(to.buf, to.start, to.len)?;
        match to.len {
            0 => Ok(()),
            n => self
                .driver
                .zero(ctx.stream.id, to.address(), n * size_of::<T>()),
        }
    }

    fn new_batch(&self, capacity: BatchCapacity) -> Result<CudaBatch> {
        CudaBatch::new(self, capacity)
    }

    fn load_batch(&self, ctx: &Ctx<Self>, to: &mut CudaBatch, from: Batch) -> Result<()> {
        to.load(self, ctx, from)
    }

    fn batch<'a>(&self, batch: &'a CudaBatch) -> &'a Batch {
        &batch.host
    }

    fn timed(&self, ctx: &Ctx<Self>, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = self.driver.record(ctx.stream.id)?;
        work()?;
        let end = self.driver.record(ctx.stream.id)?;
        self.driver.elapsed(start, end)
    }

    fn wait(&self, ctx: &Ctx<Self>) -> Result<()> {
        self.driver.synchronize(ctx.stream.id)
    }

    fn mark(&self, ctx: &Ctx<Self>) -> Result<Option<Mark>> {
        Ok(Some(Mark(self.driver.record(ctx.stream.id)?.0)))
    }

    fn mark_times(&self, marks: &[Mark]) -> Result<Vec<f64>> {
        let events: Vec<EventId> = marks.iter().map(|m| EventId(m.0)).collect();
        self.driver.times(&events)
    }

    fn collect(&self, on: bool) -> Result<()> {
        self.driver.collect(on)
    }
}
