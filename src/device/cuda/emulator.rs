//! The emulator as a driver: the same kernels, compiled by g++, on the CPU.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use super::driver::{
    DeviceInfo, Driver, EventId, Extent, Gemm, LaunchArgs, ProductWorkspace, StreamId,
};
use super::host_gemm::host_gemm;
use super::{Cuda, lock};
use crate::model::plan::available_memory;

/// How the emulator runs kernels.
#[derive(Clone, Copy, Debug)]
pub struct EmulatorSettings {
    /// Order in which threads run: 0 in order, 1 in reverse, else random.
    pub seed: u64,
    /// Judge every access (slow).
    pub checked: bool,
    /// Count bytes, sectors and bank conflicts (with `checked`, slower).
    pub statistics: bool,
    /// Compute capability to pretend, 10 * major + minor.
    pub arch: u32,
    /// OS threads that blocks are spread over.
    pub threads: usize,
}

impl Default for EmulatorSettings {
    fn default() -> Self {
        EmulatorSettings {
            seed: 0,
            checked: false,
            statistics: false,
            arch: 80,
            threads: 1,
        }
    }
}

/// `ArcaEmuSettings` of cuda/emulator/emulator.h.
#[repr(C)]
struct RawSettings {
    seed: u64,
    checked: i32,
    arch: i32,
    threads: i32,
}

/// What launches of one kernel did: `ArcaEmuStats` of emulator.h, and their
/// number. All but blocks, barriers and mma are counted with
/// [`EmulatorSettings::statistics`] only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelStats {
    pub global_bytes_read: u64,
    pub global_bytes_written: u64,
    /// Distinct bytes, by launch.
    pub unique_bytes_read: u64,
    pub unique_bytes_written: u64,
    /// Warps' global accesses, and the 32-byte sectors they touched.
    pub requests: u64,
    pub sectors: u64,
    /// Warps' shared accesses, and passes beyond one each.
    pub shared_requests: u64,
    pub bank_conflicts: u64,
    pub mma: u64,
    pub blocks: u64,
    pub barriers: u64,
}

unsafe extern "C" {
    fn arca_emu_launch(
        kernel: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared: u32,
        args: *mut *mut c_void,
        sizes: *const u64,
        count: u32,
        settings: *const RawSettings,
        stats: *mut KernelStats,
        error: *mut c_char,
        capacity: u64,
    ) -> c_int;
    fn arca_emu_alloc(bytes: u64) -> *mut c_void;
    fn arca_emu_free(pointer: *mut c_void, error: *mut c_char, capacity: u64) -> c_int;
    fn arca_emu_mark_written(pointer: *mut c_void, bytes: u64);
}

/// Room for the runtime's error texts.
type ErrorText = [u8; 2048];

fn text(error: &ErrorText) -> String {
    let end = error.iter().position(|&b| b == 0).unwrap_or(error.len());
    String::from_utf8_lossy(&error[..end]).into_owned()
}

/// Executes launches at once, on the calling thread and its helpers.
struct Emulator {
    info: DeviceInfo,
    settings: EmulatorSettings,
    /// Sizes by address.
    allocations: Mutex<BTreeMap<u64, usize>>,
    streams: AtomicU64,
    events: Mutex<Events>,
    stats: Mutex<BTreeMap<&'static str, KernelStats>>,
}

impl Emulator {
    /// Refuses a range that is not within one allocation.
    fn check(&self, what: &str, ptr: u64, bytes: usize) -> Result<()> {
        let allocations = lock(&self.allocations);
        let Some((start, size)) = allocations.range(..=ptr).next_back() else {
            bail!("{what} at {ptr:#x}, which is in no allocation");
        };
        ensure!(
            ptr + bytes as u64 <= start + *size as u64,
            "{what} of {bytes} bytes at offset {} of an allocation of {size}",
            ptr - start
        );
        Ok(())
    }

    fn written(&self, ptr: u64, bytes: usize) {
        if self.settings.checked {
            // SAFETY: a range that `check` found in an allocation.
            unsafe { arca_emu_mark_written(ptr as *mut c_void, bytes as u64) }
        }
    }
}

/// Events recorded and not given up.
#[derive(Default)]
struct Events {
    at: HashMap<u64, Instant>,
    recorded: u64,
}

impl Driver for Emulator {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn available_memory(&self) -> Option<u64> {
        available_memory()
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        // SAFETY: any size may be asked for.
        let ptr = unsafe { arca_emu_alloc(bytes as u64) } as u64;
        ensure!(
            ptr != 0,
            "out of memory: {bytes} bytes for the emulator's device"
        );
        lock(&self.allocations).insert(ptr, bytes);
        Ok(ptr)
    }

    fn free(&self, ptr: u64) {
        lock(&self.allocations).remove(&ptr);
        let mut error: ErrorText = [0; 2048];
        // SAFETY: the error buffer has the stated size.
        let bad = unsafe {
            arca_emu_free(
                ptr as *mut c_void,
                error.as_mut_ptr().cast(),
                error.len() as u64,
            )
        };
        if bad != 0 && !std::thread::panicking() {
            panic!("emulator: {}", text(&error));
        }
    }

    fn new_stream(&self) -> Result<StreamId> {
        Ok(StreamId(1 + self.streams.fetch_add(1, Ordering::Relaxed)))
    }

    /// Whatever a stream was given has been done.
    fn follow(&self, _: StreamId, _: StreamId) -> Result<()> {
        Ok(())
    }

    fn upload(&self, _: StreamId, to: u64, from: &[u8]) -> Result<()> {
        self.check("a copy to the device", to, from.len())?;
        // SAFETY: the range is in an allocation, and host memory is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        self.written(to, from.len());
        Ok(())
    }

    fn download(&self, _: StreamId, from: u64, to: &mut [u8]) -> Result<()> {
        self.check("a copy from the device", from, to.len())?;
        // SAFETY: as for uploads.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, _: StreamId, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.check("a copy on the device", to, bytes)?;
        self.check("a copy on the device", from, bytes)?;
        // SAFETY: both ranges are in allocations; they may overlap.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        self.written(to, bytes);
        Ok(())
    }

    fn zero(&self, _: StreamId, ptr: u64, bytes: usize) -> Result<()> {
        self.check("clearing", ptr, bytes)?;
        // SAFETY: the range is in an allocation.
        unsafe { std::ptr::write_bytes(ptr as *mut u8, 0, bytes) };
        self.written(ptr, bytes);
        Ok(())
    }

    fn launch(
        &self,
        _: StreamId,
        kernel: &'static str,
        extent: Extent,
        args: LaunchArgs,
    ) -> Result<()> {
        let name = CString::new(kernel).context("a kernel's name holds a zero byte")?;
        let mut pointers: Vec<*mut c_void> = args
            .values
            .iter()
            .map(|v| std::ptr::from_ref(v).cast_mut().cast())
            .collect();
        let settings = RawSettings {
            seed: self.settings.seed,
            checked: i32::from(self.settings.checked)
                + i32::from(self.settings.checked && self.settings.statistics),
            arch: self.settings.arch as i32,
            threads: self.settings.threads as i32,
        };
        let mut stats = KernelStats::default();
        let mut error: ErrorText = [0; 2048];
        // SAFETY: arguments are passed with their sizes, which the runtime
        // compares with the kernel's parameters (values are little-endian u64,
        // so the first 4 bytes of each are its u32); all buffers have the
        // stated lengths.
        let failed = unsafe {
            arca_emu_launch(
                name.as_ptr(),
                extent.grid.as_ptr(),
                extent.block.as_ptr(),
                extent.shared,
                pointers.as_mut_ptr(),
                args.sizes.as_ptr(),
                pointers.len() as u32,
                &settings,
                &mut stats,
                error.as_mut_ptr().cast(),
                error.len() as u64,
            )
        };
        if failed != 0 {
            bail!("emulator: {}", text(&error));
        }
        lock(&self.stats).entry(kernel).or_default().add(&stats);
        Ok(())
    }

    fn gemm(&self, _: StreamId, g: &Gemm, _: ProductWorkspace) -> Result<()> {
        let last = |rows: usize, columns: usize, ld: usize| (rows - 1) * ld + columns;
        if g.m == 0 || g.n == 0 {
            return Ok(());
        }
        let (a_rows, a_columns) = if g.transpose_a {
            (g.k, g.m)
        } else {
            (g.m, g.k)
        };
        let (b_rows, b_columns) = if g.transpose_b {
            (g.n, g.k)
        } else {
            (g.k, g.n)
        };
        let c_size = if g.c_f32 { 4 } else { 2 };
        let c_bytes = c_size * last(g.m, g.n, g.ldc);
        self.check(
            "a product's left operand",
            g.a,
            2 * last(a_rows, a_columns, g.lda),
        )?;
        self.check(
            "a product's right operand",
            g.b,
            2 * last(b_rows, b_columns, g.ldb),
        )?;
        self.check("a product's result", g.c, c_bytes)?;
        // What cuBLASLt's fast kernels ask for; a GPU would be slow or refuse.
        let aligned = g.a.is_multiple_of(16) && g.b.is_multiple_of(16) && g.c.is_multiple_of(16);
        ensure!(
            aligned
                && g.lda.is_multiple_of(8)
                && g.ldb.is_multiple_of(8)
                && (g.ldc * c_size).is_multiple_of(16),
            "a product's operands and rows must be 16-byte aligned: {g:?}"
        );
        // SAFETY: the three ranges were found in allocations just now.
        unsafe { host_gemm(g) };
        for row in 0..g.m {
            self.written(g.c + (row * g.ldc * c_size) as u64, g.n * c_size);
        }
        Ok(())
    }

    fn synchronize(&self, _: StreamId) -> Result<()> {
        Ok(())
    }

    fn record(&self, _: StreamId) -> Result<EventId> {
        let mut events = lock(&self.events);
        let id = events.recorded;
        events.recorded += 1;
        events.at.insert(id, Instant::now());
        Ok(EventId(id))
    }

    fn elapsed(&self, from: EventId, to: EventId) -> Result<f64> {
        let mut events = lock(&self.events);
        let (from, to) = events
            .at
            .remove(&from.0)
            .zip(events.at.remove(&to.0))
            .context("an event that was never recorded")?;
        Ok(to.duration_since(from).as_secs_f64())
    }

    fn times(&self, events: &[EventId]) -> Result<Vec<f64>> {
        let mut recorded = lock(&self.events);
        let at = events
            .iter()
            .map(|id| recorded.at.get(&id.0).copied())
            .collect::<Option<Vec<Instant>>>()
            .context("an event that was never recorded")?;
        for id in events.iter().take(events.len().saturating_sub(1)) {
            recorded.at.remove(&id.0);
        }
        let from_first = |t: &Instant| t.duration_since(at[0]).as_secs_f64();
        Ok(at.iter().map(from_first).collect())
    }

    fn kernel_stats(&self) -> Option<BTreeMap<&'static str, KernelStats>> {
        Some(std::mem::take(&mut *lock(&self.stats)))
    }
}

impl KernelStats {
    fn add(&mut self, o: &KernelStats) {
        self.global_bytes_read += o.global_bytes_read;
        self.global_bytes_written += o.global_bytes_written;
        self.unique_bytes_read += o.unique_bytes_read;
        self.unique_bytes_written += o.unique_bytes_written;
        self.requests += o.requests;
        self.sectors += o.sectors;
        self.shared_requests += o.shared_requests;
        self.bank_conflicts += o.bank_conflicts;
        self.mma += o.mma;
        self.blocks += o.blocks;
        self.barriers += o.barriers;
    }
}

impl Cuda {
    /// The device in the emulator. `ARCA_EMULATOR_KERNELS` names a shared
    /// library whose kernels replace the built-in ones of the same names.
    pub fn emulator(settings: EmulatorSettings) -> Result<Cuda> {
        if let Some(path) = std::env::var_os("ARCA_EMULATOR_KERNELS") {
            // SAFETY: the library's static objects register its kernels; it is
            // never unloaded, so that they stay valid.
            let library = unsafe { libloading::Library::new(&path) }
                .with_context(|| format!("cannot load kernels from {}", path.display()))?;
            std::mem::forget(library);
        }
        let memory = available_memory().unwrap_or(1 << 40);
        Ok(Cuda::new(Arc::new(Emulator {
            info: DeviceInfo {
                name: match settings.checked {
                    true => "emulator, checked".into(),
                    false => "emulator".into(),
                },
                arch: settings.arch,
                wgmma: settings.arch == 90,
                multiprocessors: settings.threads as u32,
                shared_memory: 99 << 10,
                total_memory: memory,
            },
            settings,
            allocations: Mutex::default(),
            streams: AtomicU64::new(0),
            events: Mutex::default(),
            stats: Mutex::default(),
        })))
    }

    /// What each kernel did since this was asked last; none on a GPU.
    pub fn kernel_stats(&self) -> Option<BTreeMap<&'static str, KernelStats>> {
        self.driver.kernel_stats()
    }
}
