//! A GPU as a driver, through cudarc's raw bindings of the CUDA driver, which
//! are loaded at run time: one binary runs with and without a GPU.
//!
//! cudarc panics where a library is absent, so presence is asked first.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, bail, ensure};
use cudarc::driver::sys::{self, CUcontext, CUevent, CUfunction, CUmodule, CUresult, CUstream};

use super::cublaslt::CublasLt;
use super::driver::{
    DeviceInfo, Driver, EventId, Extent, Gemm, LaunchArgs, ProductWorkspace, StreamId,
};
use super::{Cuda, STAGING, lock};

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// What a driver must support: the major version of the nvcc that compiled the
/// kernels (older drivers refuse its images), and the calls made here, of which
/// the last came with 12.8.
const LEAST_DRIVER: i32 = if 1000 * NVCC_MAJOR > 12080 {
    1000 * NVCC_MAJOR
} else {
    12080
};

/// One GPU. All handles live until the process ends.
struct Gpu {
    info: DeviceInfo,
    context: CUcontext,
    modules: Vec<CUmodule>,
    functions: Mutex<HashMap<&'static str, Function>>,
    streams: Mutex<Vec<CUstream>>,
    upload: Mutex<Staging>,
    download: Mutex<Staging>,
    events: Mutex<HashMap<u64, CUevent>>,
    blas: Mutex<Option<CublasLt>>,
}

// SAFETY: driver handles may be used from any thread; what is mutable is behind
// locks, and the context is made current on the calling thread by every call.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

#[derive(Clone)]
struct Function {
    handle: CUfunction,
    /// Sizes of its parameters.
    sizes: Arc<[u64]>,
    /// Dynamic shared memory that it has been allowed so far.
    shared: u32,
}

/// Page-locked host memory, filled from the start; `used` since the device was
/// last waited for.
struct Staging {
    ptr: *mut u8,
    used: usize,
}

/// A failed call with what it means.
fn check(result: CUresult, what: &str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: writes a pointer to a static string, or leaves null.
    unsafe { sys::cuGetErrorString(result, &mut text) };
    let text = match text.is_null() {
        true => "unknown error".into(),
        // SAFETY: the driver's strings are static and end with a zero.
        false => unsafe { CStr::from_ptr(text) }.to_string_lossy(),
    };
    use CUresult::*;
    match result {
        CUDA_ERROR_OUT_OF_MEMORY => bail!("{what}: out of GPU memory"),
        CUDA_ERROR_NO_DEVICE => bail!(
            "{what}: there is an NVIDIA driver, but no GPU that it may use (see nvidia-smi and CUDA_VISIBLE_DEVICES): \
             use --device cpu, or emulator"
        ),
        CUDA_ERROR_INVALID_IMAGE
        | CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUDA_ERROR_INVALID_PTX
        | CUDA_ERROR_INVALID_SOURCE => bail!(
            "{what}: this GPU's architecture or driver is not supported by the kernels in this build ({ARCHS}): {text}; \
             update the driver, or build with ARCA_CUDA_ARCHS naming the architecture"
        ),
        CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_LAUNCH_FAILED
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_LAUNCH_TIMEOUT
        | CUDA_ERROR_ECC_UNCORRECTABLE
        | CUDA_ERROR_ASSERT => bail!(
            "{what}: {text} ({result:?}), here or in a launch before; the GPU context is lost. \
             CUDA_LAUNCH_BLOCKING=1 or compute-sanitizer names the launch"
        ),
        _ => bail!("{what}: {text} ({result:?})"),
    }
}

/// Calls into the driver library with what is being done as the error's text.
macro_rules! cuda {
    ($what:expr, $call:expr) => {
        // SAFETY: the library is present (see `Gpu::open`), handles are this
        // driver's own, and out-pointers are to live locals; what a call needs
        // beyond that stands where it is made.
        check(unsafe { $call }, $what)
    };
}

impl Gpu {
    fn open(ordinal: usize) -> Result<Gpu> {
        let driver = Cuda::has_driver();
        ensure!(
            !FATBINS.is_empty(),
            "this build has no CUDA kernels, because nvcc was not there: run tools/cuda_toolchain.sh (or set CUDA_HOME) and build again{}",
            if driver {
                ""
            } else {
                ". There is no NVIDIA driver (libcuda) on this machine either: use --device cpu, or emulator"
            }
        );
        ensure!(
            driver,
            "no NVIDIA driver (libcuda) on this machine: use --device cpu, or emulator"
        );
        cuda!("starting the CUDA driver", sys::cuInit(0))?;
        let mut version = 0;
        cuda!(
            "asking the driver's version",
            sys::cuDriverGetVersion(&mut version)
        )?;
        ensure!(
            version >= LEAST_DRIVER,
            "the NVIDIA driver is too old: it supports CUDA {}.{}, the kernels need {}.{} or later",
            version / 1000,
            version % 1000 / 10,
            LEAST_DRIVER / 1000,
            LEAST_DRIVER % 1000 / 10
        );
        let mut count = 0;
        cuda!("counting GPUs", sys::cuDeviceGetCount(&mut count))?;
        ensure!(
            (ordinal as i32) < count,
            "no GPU number {ordinal}: the driver sees {count}"
        );
        let mut device = 0;
        cuda!(
            "opening the GPU",
            sys::cuDeviceGet(&mut device, ordinal as i32)
        )?;
        let mut name = [0i8; 128];
        cuda!(
            "asking the GPU's name",
            sys::cuDeviceGetName(name.as_mut_ptr().cast(), 128, device)
        )?;
        let mut total = 0;
        cuda!(
            "asking the GPU's memory",
            sys::cuDeviceTotalMem_v2(&mut total, device)
        )?;
        let attribute = |which| -> Result<u32> {
            let mut value = 0;
            cuda!(
                "asking an attribute of the GPU",
                sys::cuDeviceGetAttribute(&mut value, which, device)
            )?;
            Ok(value as u32)
        };
        use sys::CUdevice_attribute as A;
        let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        // SAFETY: the name is zero-terminated within the buffer.
        let name = unsafe { CStr::from_ptr(name.as_ptr().cast()) };
        let info = DeviceInfo {
            name: name.to_string_lossy().into_owned(),
            arch: 10 * major + minor,
            wgmma: (major, minor) == (9, 0) && ARCHS.contains("sm_90a"),
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            total_memory: total as u64,
        };
        ensure!(
            info.arch >= 80,
            "{} has compute capability {major}.{minor}: the kernels need 8.0 or later (bf16 tensor cores)",
            info.name
        );
        let mut context = std::ptr::null_mut();
        cuda!(
            "making a GPU context",
            sys::cuDevicePrimaryCtxRetain(&mut context, device)
        )?;
        cuda!("making a GPU context", sys::cuCtxSetCurrent(context))?;
        let mut modules = Vec::new();
        for (stem, image) in FATBINS {
            let mut module = std::ptr::null_mut();
            // The image is static and the driver reads its length from it.
            cuda!(
                &format!("loading the kernels of {stem}.cu"),
                sys::cuModuleLoadData(&mut module, image.as_ptr().cast())
            )?;
            modules.push(module);
        }
        let staging = || -> Result<Mutex<Staging>> {
            let mut ptr = std::ptr::null_mut();
            cuda!(
                "allocating page-locked memory",
                sys::cuMemAllocHost_v2(&mut ptr, STAGING)
            )?;
            Ok(Mutex::new(Staging {
                ptr: ptr.cast(),
                used: 0,
            }))
        };
        let gpu = Gpu {
            info,
            context,
            modules,
            functions: Mutex::default(),
            streams: Mutex::default(),
            upload: staging()?,
            download: staging()?,
            events: Mutex::default(),
            blas: Mutex::default(),
        };
        gpu.new_stream()?;
        Ok(gpu)
    }

    /// Every call may come from another thread than the one before.
    fn enter(&self) -> Result<()> {
        cuda!(
            "entering the GPU context",
            sys::cuCtxSetCurrent(self.context)
        )
    }

    fn stream(&self, id: StreamId) -> Result<CUstream> {
        let streams = lock(&self.streams);
        let stream = streams.get(id.0 as usize);
        stream.copied().context("a stream that was never made")
    }

    /// Finds a kernel, and lets it have the shared memory it asks for.
    fn function(&self, name: &'static str, shared: u32) -> Result<Function> {
        let mut functions = lock(&self.functions);
        if !functions.contains_key(name) {
            functions.insert(name, self.load(name)?);
        }
        let function = functions.get_mut(name).context("just inserted")?;
        // Beyond 48 KiB, the static part counted in, permission is needed.
        if shared > function.shared {
            cuda!(
                "asking for shared memory",
                sys::cuFuncSetAttribute(
                    function.handle,
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared as i32
                )
            )?;
            function.shared = shared;
        }
        Ok(function.clone())
    }

    fn load(&self, name: &'static str) -> Result<Function> {
        let text = CString::new(name).context("a kernel's name holds a zero byte")?;
        for &module in &self.modules {
            let mut handle = std::ptr::null_mut();
            // SAFETY: the module is loaded and the name ends with a zero.
            match unsafe { sys::cuModuleGetFunction(&mut handle, module, text.as_ptr()) } {
                CUresult::CUDA_ERROR_NOT_FOUND => continue,
                result => check(result, &format!("finding the kernel {name}"))?,
            }
            return Ok(Function {
                handle,
                sizes: parameter_sizes(handle).into(),
                shared: 0,
            });
        }
        bail!("there is no kernel {name} in this build")
    }
}

/// A kernel's parameter sizes.
fn parameter_sizes(handle: CUfunction) -> Vec<u64> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the handle is valid; an index beyond the last parameter is
        // answered with an error.
        let result =
            unsafe { sys::cuFuncGetParamInfo(handle, sizes.len(), &mut offset, &mut size) };
        if result != CUresult::CUDA_SUCCESS {
            return sizes;
        }
        sizes.push(size as u64);
    }
}

impl Driver for Gpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn available_memory(&self) -> Option<u64> {
        self.enter().ok()?;
        let (mut free, mut total) = (0, 0);
        cuda!(
            "asking for free memory",
            sys::cuMemGetInfo_v2(&mut free, &mut total)
        )
        .ok()?;
        Some(free as u64)
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.enter()?;
        let mut ptr = 0;
        // SAFETY: writes the address.
        let result = unsafe { sys::cuMemAlloc_v2(&mut ptr, bytes) };
        ensure!(
            result != CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            "out of GPU memory: {} MiB asked of {}, where {} of {} MiB are free; lower train.tokens_per_batch",
            bytes.div_ceil(1 << 20),
            self.info.name,
            self.available_memory().unwrap_or(0) >> 20,
            self.info.total_memory >> 20
        );
        check(result, "allocating")?;
        Ok(ptr)
    }

    fn free(&self, ptr: u64) {
        // A failure here follows one that has been reported already.
        if self.enter().is_ok() {
            // SAFETY: the pointer came from `alloc`; the call waits for work.
            unsafe { sys::cuMemFree_v2(ptr) };
        }
    }

    fn new_stream(&self) -> Result<StreamId> {
        self.enter()?;
        let mut stream = std::ptr::null_mut();
        // Not in order with the legacy default stream, which nobody uses.
        cuda!("making a stream", sys::cuStreamCreate(&mut stream, 1))?;
        let mut streams = lock(&self.streams);
        streams.push(stream);
        Ok(StreamId(streams.len() as u64 - 1))
    }

    fn follow(&self, stream: StreamId, other: StreamId) -> Result<()> {
        self.enter()?;
        let (stream, other) = (self.stream(stream)?, self.stream(other)?);
        let mut event = std::ptr::null_mut();
        let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        cuda!("making an event", sys::cuEventCreate(&mut event, untimed))?;
        cuda!("recording an event", sys::cuEventRecord(event, other))?;
        cuda!(
            "ordering two streams",
            sys::cuStreamWaitEvent(stream, event, 0)
        )?;
        // Who waits for it still does.
        cuda!("giving an event up", sys::cuEventDestroy_v2(event))
    }

    fn upload(&self, stream: StreamId, to: u64, from: &[u8]) -> Result<()> {
        self.enter()?;
        let stream = self.stream(stream)?;
        let mut staging = lock(&self.upload);
        let mut done = 0;
        while done < from.len() {
            if staging.used == STAGING {
                // Copies under way, on any stream, still read from here.
                cuda!("waiting for copies", sys::cuCtxSynchronize())?;
                staging.used = 0;
            }
            let n = (STAGING - staging.used).min(from.len() - done);
            // SAFETY: `used + n` is within the staging memory, and nobody reads
            // that part of it.
            let at = unsafe { staging.ptr.add(staging.used) };
            // SAFETY: as above; the source has n bytes from `done` on.
            unsafe { std::ptr::copy_nonoverlapping(from[done..].as_ptr(), at, n) };
            cuda!(
                "copying to the GPU",
                sys::cuMemcpyHtoDAsync_v2(to + done as u64, at.cast_const().cast(), n, stream)
            )?;
            staging.used += n;
            done += n;
        }
        Ok(())
    }

    fn download(&self, stream: StreamId, from: u64, to: &mut [u8]) -> Result<()> {
        self.enter()?;
        let stream = self.stream(stream)?;
        let staging = lock(&self.download);
        for (i, part) in to.chunks_mut(STAGING).enumerate() {
            cuda!(
                "copying from the GPU",
                sys::cuMemcpyDtoHAsync_v2(
                    staging.ptr.cast(),
                    from + (i * STAGING) as u64,
                    part.len(),
                    stream
                )
            )?;
            cuda!("waiting for the GPU", sys::cuStreamSynchronize(stream))?;
            // SAFETY: the copy of `part.len()` bytes has arrived, and the lock
            // keeps others from the staging memory.
            unsafe {
                std::ptr::copy_nonoverlapping(staging.ptr, part.as_mut_ptr(), part.len());
            }
        }
        Ok(())
    }

    fn copy(&self, stream: StreamId, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        let stream = self.stream(stream)?;
        cuda!(
            "copying on the GPU",
            sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream)
        )
    }

    fn zero(&self, stream: StreamId, ptr: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        let stream = self.stream(stream)?;
        cuda!(
            "clearing GPU memory",
            sys::cuMemsetD8Async(ptr, 0, bytes, stream)
        )
    }

    fn launch(
        &self,
        stream: StreamId,
        kernel: &'static str,
        extent: Extent,
        args: LaunchArgs,
    ) -> Result<()> {
        self.enter()?;
        let stream = self.stream(stream)?;
        let function = self.function(kernel, extent.shared)?;
        ensure!(
            function.sizes[..] == *args.sizes,
            "{kernel} has parameters of {:?} bytes, the arguments have {:?}",
            function.sizes,
            args.sizes
        );
        let mut pointers: Vec<*mut c_void> = args
            .values
            .iter()
            .map(|v| std::ptr::from_ref(v).cast_mut().cast())
            .collect();
        let ([gx, gy, gz], [bx, by, bz]) = (extent.grid, extent.block);
        // Arguments are copied by the call; their sizes are the kernel's.
        cuda!(
            "launching",
            sys::cuLaunchKernel(
                function.handle,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                extent.shared,
                stream,
                pointers.as_mut_ptr(),
                std::ptr::null_mut()
            )
        )
    }

    fn gemm(&self, stream: StreamId, gemm: &Gemm, workspace: ProductWorkspace) -> Result<()> {
        self.enter()?;
        let mut blas = lock(&self.blas);
        if blas.is_none() {
            *blas = Some(CublasLt::new()?);
        }
        let blas = blas.as_mut().context("just made")?;
        blas.multiply(self.stream(stream)?, workspace, gemm)
    }

    fn synchronize(&self, stream: StreamId) -> Result<()> {
        self.enter()?;
        let stream = self.stream(stream)?;
        cuda!("waiting for the GPU", sys::cuStreamSynchronize(stream))
    }

    fn record(&self, stream: StreamId) -> Result<EventId> {
        self.enter()?;
        let stream = self.stream(stream)?;
        let mut event = std::ptr::null_mut();
        cuda!("making an event", sys::cuEventCreate(&mut event, 0))?;
        cuda!("recording an event", sys::cuEventRecord(event, stream))?;
        let id = event as u64;
        lock(&self.events).insert(id, event);
        Ok(EventId(id))
    }

    fn elapsed(&self, from: EventId, to: EventId) -> Result<f64> {
        self.enter()?;
        let mut events = lock(&self.events);
        let (from, to) = events
            .remove(&from.0)
            .zip(events.remove(&to.0))
            .context("an event that was never recorded")?;
        cuda!("waiting for an event", sys::cuEventSynchronize(to))?;
        let mut milliseconds = 0f32;
        cuda!(
            "reading events",
            sys::cuEventElapsedTime_v2(&mut milliseconds, from, to)
        )?;
        for event in [from, to] {
            cuda!("giving an event up", sys::cuEventDestroy_v2(event))?;
        }
        Ok(milliseconds as f64 * 1e-3)
    }

    fn times(&self, events: &[EventId]) -> Result<Vec<f64>> {
        self.enter()?;
        let mut recorded = lock(&self.events);
        let handles = events
            .iter()
            .map(|id| recorded.get(&id.0).copied())
            .collect::<Option<Vec<CUevent>>>()
            .context("an event that was never recorded")?;
        if handles.is_empty() {
            return Ok(Vec::new());
        }
        for &event in &handles {
            cuda!("waiting for an event", sys::cuEventSynchronize(event))?;
        }
        // From event to event: an f32 of milliseconds from the first would lose
        // microseconds after some seconds.
        let mut times = vec![0.0];
        let mut at = 0.0;
        for pair in handles.windows(2) {
            let mut milliseconds = 0f32;
            cuda!(
                "reading events",
                sys::cuEventElapsedTime_v2(&mut milliseconds, pair[0], pair[1])
            )?;
            at += f64::from(milliseconds) * 1e-3;
            times.push(at);
        }
        for id in &events[..events.len() - 1] {
            if let Some(event) = recorded.remove(&id.0) {
                cuda!("giving an event up", sys::cuEventDestroy_v2(event))?;
            }
        }
        Ok(times)
    }

    fn collect(&self, on: bool) -> Result<()> {
        self.enter()?;
        match on {
            true => cuda!("starting the profiler", sys::cuProfilerStart()),
            false => cuda!("stopping the profiler", sys::cuProfilerStop()),
        }
    }
}

impl Cuda {
    /// The GPU of that number.
    ///
    /// # Errors
    /// Without a driver, a GPU, kernels for it or memory, each by name.
    pub fn gpu(ordinal: usize) -> Result<Cuda> {
        Ok(Cuda::new(Arc::new(Gpu::open(ordinal)?)))
    }

    /// Whether this machine has an NVIDIA driver, and so perhaps a GPU.
    pub fn has_driver() -> bool {
        // SAFETY: only tries to open the library.
        unsafe { sys::is_culib_present() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where there is no GPU, the reason is an error and says what to do.
    #[test]
    fn absence_is_an_error() {
        if let Err(e) = Cuda::gpu(0) {
            let text = format!("{e:#}");
            assert!(
                ["driver", "kernels", "GPU"]
                    .iter()
                    .any(|w| text.contains(w)),
                "{text}"
            );
        }
        assert!(Cuda::gpu(1000).is_err());
    }
}
