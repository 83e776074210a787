//! NVIDIA's tools extension (NVTX 3): names for what profilers show.
//!
//! NVTX has no library of its own. A profiler sets `NVTX_INJECTION64_PATH` to
//! its library; the program loads it, calls its `InitializeInjectionNvtx2`, and
//! hands it tables of function pointers, which the profiler fills. That is what
//! NVTX's C header does (`nvtxDetail/nvtxInit.h`), and what is done here, so that
//! nothing is linked and nothing happens without a profiler. All ranges are in
//! the domain `arca`.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::{Library, Symbol};

/// Version of the interface that is spoken.
const VERSION: u32 = 3;
/// Modules of functions, and most functions of one; 0 is none in both.
const MODULES: usize = 7;
const MOST: usize = 18;
/// Functions of each module (`NVTX_CBID_*_SIZE`): core, CUDA, OpenCL, CUDA
/// runtime, core 2, sync.
const SIZES: [usize; MODULES] = [0, 16, 9, 15, 7, 16, 7];
/// Those called here are of the module core 2.
const CORE2: usize = 5;
const DOMAIN_RANGE_PUSH_EX: usize = 4;
const DOMAIN_RANGE_POP: usize = 5;
const DOMAIN_CREATE_A: usize = 12;
const MESSAGE_ASCII: i32 = 1;

type Slot = AtomicPtr<c_void>;

/// Where the profiler writes its functions.
static FUNCTIONS: [[Slot; MOST]; MODULES] =
    [const { [const { Slot::new(std::ptr::null_mut()) }; MOST] }; MODULES];

/// Pointers to those places by module, as the profiler is handed them: none
/// stands first, and none ends a table.
struct Tables([[*const Slot; MOST]; MODULES]);
// SAFETY: pointers to statics.
unsafe impl Send for Tables {}
// SAFETY: as above.
unsafe impl Sync for Tables {}
static TABLES: OnceLock<Tables> = OnceLock::new();

/// `nvtxEventAttributes_t`, version 2 and later.
#[repr(C)]
struct Attributes {
    version: u16,
    size: u16,
    category: u32,
    color_type: i32,
    color: u32,
    payload_type: i32,
    reserved: i32,
    payload: u64,
    message_type: i32,
    message: *const c_char,
}

#[repr(C)]
struct Callbacks {
    size: usize,
    function_table: unsafe extern "C" fn(c_int, *mut *const *const Slot, *mut c_uint) -> c_int,
}

#[repr(C)]
struct VersionInfo {
    size: usize,
    version: u32,
    reserved: u32,
    set_version: unsafe extern "C" fn(u32),
}

static CALLBACKS: Callbacks = Callbacks {
    size: size_of::<Callbacks>(),
    function_table,
};
static VERSION_INFO: VersionInfo = VersionInfo {
    size: size_of::<VersionInfo>(),
    version: VERSION,
    reserved: 0,
    set_version,
};

unsafe extern "C" fn set_version(_: u32) {}

unsafe extern "C" fn function_table(
    module: c_int,
    table: *mut *const *const Slot,
    size: *mut c_uint,
) -> c_int {
    let Some(index @ 1..MODULES) = usize::try_from(module).ok() else {
        return 0;
    };
    let tables = TABLES.get_or_init(|| {
        let mut tables = [[std::ptr::null::<Slot>(); MOST]; MODULES];
        for (module, slots) in FUNCTIONS.iter().enumerate() {
            for (i, slot) in slots.iter().enumerate().take(SIZES[module]).skip(1) {
                tables[module][i] = slot;
            }
        }
        Tables(tables)
    });
    // SAFETY: the profiler passes places to write to, or null.
    unsafe {
        if !table.is_null() {
            *table = tables.0[index].as_ptr();
        }
        if !size.is_null() {
            *size = SIZES[index] as c_uint;
        }
    }
    1
}

unsafe extern "C" fn export_table(id: u32) -> *const c_void {
    match id {
        1 => std::ptr::from_ref(&CALLBACKS).cast(),
        3 => std::ptr::from_ref(&VERSION_INFO).cast(),
        _ => std::ptr::null(),
    }
}

/// A profiler that listens.
pub struct Tool {
    domain: *mut c_void,
    push: unsafe extern "C" fn(*mut c_void, *const Attributes) -> c_int,
    pop: unsafe extern "C" fn(*mut c_void) -> c_int,
    _library: Library,
}

// SAFETY: NVTX's functions may be called from any thread.
unsafe impl Send for Tool {}
// SAFETY: as above.
unsafe impl Sync for Tool {}

impl Tool {
    /// The profiler that `NVTX_INJECTION64_PATH` names, if any.
    ///
    /// # Errors
    /// What is wrong with the library that it names: ranges are off then.
    pub fn from_environment() -> Result<Option<Tool>, String> {
        let Some(path) = std::env::var_os("NVTX_INJECTION64_PATH").filter(|p| !p.is_empty()) else {
            return Ok(None);
        };
        let shown = path.to_string_lossy().into_owned();
        let failed = |what: String| format!("NVTX_INJECTION64_PATH={shown}: {what}");
        // SAFETY: whoever set the variable vouches for the library.
        let library = unsafe { Library::new(&path) }.map_err(|e| failed(e.to_string()))?;
        type Initialize = unsafe extern "C" fn(unsafe extern "C" fn(u32) -> *const c_void) -> c_int;
        // SAFETY: the type is NVTX's.
        let begun = unsafe {
            let initialize: Symbol<Initialize> = library
                .get(b"InitializeInjectionNvtx2")
                .map_err(|e| failed(e.to_string()))?;
            initialize(export_table)
        };
        if begun == 0 {
            return Err(failed("the profiler would not begin".into()));
        }
        let function = |id: usize| {
            let pointer = FUNCTIONS[CORE2][id].load(Ordering::Acquire);
            match pointer.is_null() {
                true => Err(failed("the profiler takes no ranges of a domain".into())),
                false => Ok(pointer),
            }
        };
        let create = function(DOMAIN_CREATE_A)?;
        let (push, pop) = (function(DOMAIN_RANGE_PUSH_EX)?, function(DOMAIN_RANGE_POP)?);
        // SAFETY: the profiler has filled these places with functions of the
        // types that NVTX gives them; they live as long as its library.
        unsafe {
            let create = std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*const c_char) -> *mut c_void,
            >(create);
            Ok(Some(Tool {
                domain: create(c"arca".as_ptr()),
                push: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut c_void, *const Attributes) -> c_int,
                >(push),
                pop: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void) -> c_int>(
                    pop,
                ),
                _library: library,
            }))
        }
    }

    /// Begin a range within the thread's innermost one.
    pub fn push(&self, name: &str) {
        // A name with a zero byte in it is none of ours.
        let name = CString::new(name).unwrap_or_default();
        let attributes = Attributes {
            version: VERSION as u16,
            size: size_of::<Attributes>() as u16,
            category: 0,
            color_type: 0,
            color: 0,
            payload_type: 0,
            reserved: 0,
            payload: 0,
            message_type: MESSAGE_ASCII,
            message: name.as_ptr(),
        };
        // SAFETY: the profiler copies what it keeps.
        unsafe { (self.push)(self.domain, &attributes) };
    }

    /// End the thread's innermost range.
    pub fn pop(&self) {
        // SAFETY: the domain is the profiler's own.
        unsafe { (self.pop)(self.domain) };
    }
}
