//! What the CUDA device asks of whoever executes it: a GPU through the CUDA
//! driver, or the emulator. Everything above this trait is the same code.

use anyhow::Result;

/// What a driver says of the machine behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    pub name: String,
    /// Compute capability, 10 * major + minor.
    pub arch: u32,
    /// It has Hopper's products of warpgroups, and kernels that use them.
    pub wgmma: bool,
    pub multiprocessors: u32,
    /// Most dynamic shared memory a block may ask for, in bytes.
    pub shared_memory: u32,
    pub total_memory: u64,
}

/// A position in a stream's work, for timing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventId(pub u64);

/// A stream of work in launch order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId(pub u64);

impl StreamId {
    /// Exists from the start.
    pub const DEFAULT: StreamId = StreamId(0);
}

/// A kernel's arguments in order, as cuLaunchKernel takes them.
pub struct LaunchArgs<'a> {
    pub values: &'a [u64],
    /// Size of each in bytes: 4 or 8. A driver that knows a kernel's parameters
    /// refuses a launch whose sizes differ.
    pub sizes: &'a [u64],
}

/// Extent of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared: u32,
}

/// C `[m, n]` (+)= op(A) op(B), all row-major, A and B bf16, sums in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// `[m, k]`, or `[k, m]` if transposed.
    pub a: u64,
    pub lda: usize,
    pub transpose_a: bool,
    /// `[k, n]`, or `[n, k]` if transposed.
    pub b: u64,
    pub ldb: usize,
    pub transpose_b: bool,
    pub c: u64,
    pub ldc: usize,
    /// C is f32, else bf16.
    pub c_f32: bool,
    /// Add to what C holds.
    pub accumulate: bool,
}

/// Scratch for a product: the stream's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductWorkspace {
    pub ptr: u64,
    pub bytes: usize,
}

/// Executes copies, kernels and products, in order per stream.
///
/// Pointers are device addresses as numbers; callers pass only such as came
/// from [`Driver::alloc`] and are still allocated.
pub trait Driver: Send + Sync {
    fn info(&self) -> &DeviceInfo;
    /// Bytes that could be allocated now, where the driver tells.
    fn available_memory(&self) -> Option<u64>;
    /// Contents are undefined. 256-byte aligned.
    fn alloc(&self, bytes: usize) -> Result<u64>;
    /// Waits for work under way.
    fn free(&self, ptr: u64);
    fn new_stream(&self) -> Result<StreamId>;
    /// What `stream` is given from now on waits for what `other` was given so far.
    fn follow(&self, stream: StreamId, other: StreamId) -> Result<()>;
    /// `from` may be reused when this returns.
    fn upload(&self, stream: StreamId, to: u64, from: &[u8]) -> Result<()>;
    /// Waits for the stream's work before it and for the copy.
    fn download(&self, stream: StreamId, from: u64, to: &mut [u8]) -> Result<()>;
    fn copy(&self, stream: StreamId, to: u64, from: u64, bytes: usize) -> Result<()>;
    fn zero(&self, stream: StreamId, ptr: u64, bytes: usize) -> Result<()>;
    fn launch(
        &self,
        stream: StreamId,
        kernel: &'static str,
        extent: Extent,
        args: LaunchArgs,
    ) -> Result<()>;
    fn gemm(&self, stream: StreamId, gemm: &Gemm, workspace: ProductWorkspace) -> Result<()>;
    fn synchronize(&self, stream: StreamId) -> Result<()>;
    /// Marks the stream's present end.
    fn record(&self, stream: StreamId) -> Result<EventId>;
    /// Seconds between two recorded events, waiting for the later; both are
    /// given up.
    fn elapsed(&self, from: EventId, to: EventId) -> Result<f64>;
    /// Seconds from the first of these events to each, waiting for all; all but
    /// the last are given up.
    fn times(&self, events: &[EventId]) -> Result<Vec<f64>>;
    /// Let a profiler begin or end what it collects, where one may be there.
    fn collect(&self, _on: bool) -> Result<()> {
        Ok(())
    }
    /// What each kernel did since this was asked last, where somebody counts.
    #[cfg(feature = "emulator")]
    fn kernel_stats(
        &self,
    ) -> Option<std::collections::BTreeMap<&'static str, super::emulator::KernelStats>> {
        None
    }
}
