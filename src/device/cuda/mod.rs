//! The CUDA device: bf16 activations, kernels from `cuda/*.cu`, base products
//! through cuBLASLt; on a GPU, or in the emulator.

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
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, Weak};

use anyhow::{Context as _, Result, ensure};
use half::bf16;
use memmap2::Mmap;

use super::{BatchCapacity, Ctx, Device, Element, Float, Slice, SliceMut};
use crate::model::batch::Batch;
use crate::model::config::ModelShape;
use crate::model::plan::{Form, Role};
use batch::CudaBatch;
use driver::{Driver, StreamId};
pub use launch::{Address, Launch};

/// Weights on the device by where they lie in a mapped file, so that a tied
/// head and embedding are one buffer.
pub(crate) type LoadedWeights = Mutex<HashMap<(usize, usize), LoadedWeight>>;

/// Where a weight lies. The map is kept, or its address might come to mean
/// another file.
pub(crate) struct LoadedWeight {
    pub memory: Weak<Allocation>,
    pub offset: usize,
    pub _map: Arc<Mmap>,
}

/// A CUDA device and whoever executes it. Clones are the same device.
#[derive(Clone)]
pub struct Cuda {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) weights: Arc<LoadedWeights>,
    memory: Arc<Memory>,
}

/// Device memory that is allocated, and the most that ever was, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    pub now: u64,
    pub peak: u64,
}

/// Sizes are counted, and parts of an arena begin, in units of this.
const ALIGNMENT: usize = 256;

/// Scratch of cuBLASLt: what NVIDIA recommends for Hopper.
pub const PRODUCT_WORKSPACE: usize = 32 << 20;

#[derive(Default)]
struct Memory {
    used: Mutex<MemoryUse>,
    arenas: Mutex<Arenas>,
}

/// One allocation per role, filled from the start.
#[derive(Default)]
struct Arenas {
    current: Option<Role>,
    of_role: HashMap<Role, (Arc<Allocation>, usize)>,
}

impl Arenas {
    /// The next part of the current role's arena, if it has room.
    fn take(&mut self, bytes: usize) -> Option<(Arc<Allocation>, usize)> {
        let (memory, used) = self.of_role.get_mut(&self.current?)?;
        let (at, end) = (*used, *used + bytes.next_multiple_of(ALIGNMENT));
        (end <= memory.bytes).then(|| {
            *used = end;
            (memory.clone(), at)
        })
    }
}

impl Cuda {
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Cuda {
            driver,
            weights: Arc::default(),
            memory: Arc::default(),
        }
    }

    /// Memory for `len` elements with undefined contents: part of the role's
    /// arena while one is begun and has room, else an allocation of its own.
    pub(crate) fn alloc_raw<T: Element>(&self, len: usize) -> Result<CudaBuf<T>> {
        let bytes = len * size_of::<T>();
        let part = lock(&self.memory.arenas).take(bytes);
        let (memory, offset) = match part {
            Some(part) if bytes > 0 => part,
            _ => (Arc::new(Allocation::new(self, bytes)?), 0),
        };
        Ok(CudaBuf::over(memory, offset, len))
    }

    /// Device memory that this device's users hold now and held at most.
    pub fn memory_use(&self) -> MemoryUse {
        *lock(&self.memory.used)
    }

    /// This stream's scratch of at least `bytes`, for one op: the next op on
    /// the stream may overwrite it. Grows only where no plan reserved enough.
    pub(crate) fn workspace(&self, ctx: &Ctx<Self>, bytes: usize) -> Result<u64> {
        let mut workspace = lock(&ctx.stream.workspace);
        if workspace.as_ref().is_none_or(|w| w.bytes < bytes) {
            *workspace = None;
            *workspace = Some(Allocation::new(self, bytes)?);
        }
        Ok(workspace.as_ref().map_or(0, |w| w.ptr))
    }
}

/// A poisoned lock only means that another thread panicked; what these guard is
/// valid after any of its statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Device memory, freed on drop.
pub struct Allocation {
    driver: Arc<dyn Driver>,
    /// Weak, because arenas hold allocations.
    memory: Weak<Memory>,
    ptr: u64,
    bytes: usize,
}

impl Allocation {
    fn new(device: &Cuda, bytes: usize) -> Result<Self> {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        let ptr = match bytes {
            0 => 0,
            _ => device.driver.alloc(bytes)?,
        };
        let mut used = lock(&device.memory.used);
        used.now += bytes as u64;
        used.peak = used.peak.max(used.now);
        Ok(Allocation {
            driver: device.driver.clone(),
            memory: Arc::downgrade(&device.memory),
            ptr,
            bytes,
        })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.ptr != 0 {
            self.driver.free(self.ptr);
        }
        if let Some(memory) = self.memory.upgrade() {
            lock(&memory.used).now -= self.bytes as u64;
        }
    }
}

/// A run of elements in device memory.
pub struct CudaBuf<T> {
    pub(crate) memory: Arc<Allocation>,
    /// In bytes, from the start of the memory.
    pub(crate) offset: usize,
    pub(crate) len: usize,
    element: PhantomData<T>,
}

impl<T: Element> CudaBuf<T> {
    pub(crate) fn over(memory: Arc<Allocation>, offset: usize, len: usize) -> Self {
        CudaBuf {
            memory,
            offset,
            len,
            element: PhantomData,
        }
    }

    pub fn ptr(&self) -> u64 {
        self.memory.ptr + self.offset as u64
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A queue of launches, with the scratch of its ops.
pub struct CudaStream {
    pub(crate) id: StreamId,
    workspace: Mutex<Option<Allocation>>,
    /// cuBLASLt's.
    pub(crate) products: Allocation,
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

    fn name(&self) -> String {
        let info = self.driver.info();
        format!("{} (sm_{}, bf16)", info.name, info.arch)
    }

    fn form() -> Form {
        Form {
            act: <bf16 as Float>::NAME,
            act_bytes: size_of::<bf16>(),
            alignment: ALIGNMENT,
            device_memory: true,
        }
    }

    fn begin_role(&self, role: Option<(Role, u64)>) -> Result<()> {
        let arena = match role {
            Some((role, bytes)) if bytes > 0 => {
                let memory = Allocation::new(self, bytes as usize)
                    .with_context(|| format!("{} MiB for {}", bytes >> 20, role.name()))?;
                Some((role, (Arc::new(memory), 0)))
            }
            _ => None,
        };
        let mut arenas = lock(&self.memory.arenas);
        arenas.current = role.map(|r| r.0);
        let old = arena.and_then(|(role, arena)| arenas.of_role.insert(role, arena));
        drop(arenas);
        drop(old);
        Ok(())
    }

    fn reserve_scratch(&self, ctx: &Ctx<Self>, bytes: u64) -> Result<()> {
        self.workspace(ctx, bytes as usize).map(|_| ())
    }

    fn available_memory(&self) -> Option<u64> {
        self.driver.available_memory()
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
        Ok(())
    }

    fn new_stream(&self) -> Result<CudaStream> {
        Ok(CudaStream {
            id: self.driver.new_stream()?,
            workspace: Mutex::default(),
            products: Allocation::new(self, PRODUCT_WORKSPACE)?,
        })
    }

    fn alloc<T: Element>(&self, len: usize) -> Result<CudaBuf<T>> {
        let buf = self.alloc_raw(len)?;
        if len > 0 {
            let stream = StreamId::DEFAULT;
            self.driver.zero(stream, buf.ptr(), len * size_of::<T>())?;
            self.driver.synchronize(stream)?;
        }
        Ok(buf)
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
}
