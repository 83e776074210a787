//! Device memory: allocations, counted; arenas that a plan reserves; buffers.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};

use super::driver::Driver;
use super::{Cuda, lock};
use crate::device::Element;
use crate::device::memory::{CUDA_ALIGNMENT, Role};

/// Bytes that a device has allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    pub now: u64,
    /// Most at any time so far.
    pub peak: u64,
}

/// Counters behind [`MemoryUse`].
#[derive(Default)]
pub(super) struct Usage {
    now: AtomicU64,
    peak: AtomicU64,
}

/// Arenas not yet used up, by role.
pub(super) type Arenas = Mutex<BTreeMap<Role, Arena>>;

/// One allocation that is handed out from its start.
pub(super) struct Arena {
    memory: Arc<Allocation>,
    used: usize,
}

/// Device memory, freed on drop.
pub struct Allocation {
    driver: Arc<dyn Driver>,
    usage: Arc<Usage>,
    pub(crate) ptr: u64,
    pub(crate) bytes: usize,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.ptr != 0 {
            self.driver.free(self.ptr);
            self.usage
                .now
                .fetch_sub(self.bytes as u64, Ordering::Relaxed);
        }
    }
}

impl Cuda {
    /// Memory of its own, with undefined contents.
    pub(crate) fn allocation(&self, bytes: usize) -> Result<Allocation> {
        let ptr = match bytes {
            0 => 0,
            _ => self.driver.alloc(bytes)?,
        };
        let now = self.usage.now.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        self.usage.peak.fetch_max(now, Ordering::Relaxed);
        Ok(Allocation {
            driver: self.driver.clone(),
            usage: self.usage.clone(),
            ptr,
            bytes,
        })
    }

    /// Memory for `len` elements with undefined contents: from the role's
    /// arena while that has room, else an allocation of its own.
    pub(crate) fn alloc_raw<T: Element>(&self, role: Role, len: usize) -> Result<CudaBuf<T>> {
        let bytes = len * size_of::<T>();
        if bytes > 0 {
            let mut arenas = lock(&self.arenas);
            if let Some(arena) = arenas.get_mut(&role)
                && arena.used + aligned(bytes) <= arena.memory.bytes
            {
                let buf = CudaBuf::over(arena.memory.clone(), arena.used, len);
                arena.used += aligned(bytes);
                // Kept by its buffers from now on, and freed with the last.
                if arena.used == arena.memory.bytes {
                    arenas.remove(&role);
                }
                return Ok(buf);
            }
        }
        Ok(CudaBuf::over(Arc::new(self.allocation(bytes)?), 0, len))
    }

    /// One allocation from which the role's next `bytes` come. An earlier
    /// arena of the role is handed out no further.
    pub(super) fn reserve_arena(&self, role: Role, bytes: u64) -> Result<()> {
        let mut arenas = lock(&self.arenas);
        arenas.remove(&role);
        if bytes > 0 {
            let memory = Arc::new(self.allocation(bytes as usize)?);
            arenas.insert(role, Arena { memory, used: 0 });
        }
        Ok(())
    }

    /// What is allocated now, and the most that was.
    pub fn memory(&self) -> MemoryUse {
        MemoryUse {
            now: self.usage.now.load(Ordering::Relaxed),
            peak: self.usage.peak.load(Ordering::Relaxed),
        }
    }

    /// Bytes of arenas that nobody has asked for yet.
    pub fn unclaimed(&self) -> u64 {
        lock(&self.arenas)
            .values()
            .map(|a| (a.memory.bytes - a.used) as u64)
            .sum()
    }
}

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(CUDA_ALIGNMENT)
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

    /// The same, checked against the memory's size.
    pub(super) fn within(memory: &Arc<Allocation>, offset: u64, len: usize) -> Result<Self> {
        let end = offset + (len * size_of::<T>()) as u64;
        ensure!(
            end <= memory.bytes as u64,
            "a buffer up to byte {end} of {} bytes of device memory",
            memory.bytes
        );
        Ok(CudaBuf::over(memory.clone(), offset as usize, len))
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
