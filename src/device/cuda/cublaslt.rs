//! Base products through cuBLASLt, with one plan per shape.
//!
//! cuBLASLt is column-major: a row-major C [m, n] is its C^T [n, m], so the
//! product is run as C^T = op(B)^T op(A)^T, which only swaps the operands.

use std::collections::HashMap;
use std::ffi::c_void;

use anyhow::{Result, bail, ensure};
use cudarc::cublaslt::sys::{self as lt, cublasStatus_t};
use cudarc::driver::sys::CUstream;

use super::driver::{Gemm, ProductWorkspace};

/// What a plan depends on: all but the addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    sizes: [usize; 6],
    /// Of A, B and C in bytes, up to 256: an algorithm chosen for more may
    /// fault, and one chosen for less is slower.
    alignments: [u32; 3],
    transpose_a: bool,
    transpose_b: bool,
    c_f32: bool,
    accumulate: bool,
}

struct Plan {
    description: lt::cublasLtMatmulDesc_t,
    left: lt::cublasLtMatrixLayout_t,
    right: lt::cublasLtMatrixLayout_t,
    result: lt::cublasLtMatrixLayout_t,
    algorithm: lt::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by the library and used by this plan alone; a product
        // under way does not need them any more. There is nobody to tell of a
        // failure, and nothing to do about it.
        unsafe {
            lt::cublasLtMatrixLayoutDestroy(self.left);
            lt::cublasLtMatrixLayoutDestroy(self.right);
            lt::cublasLtMatrixLayoutDestroy(self.result);
            lt::cublasLtMatmulDescDestroy(self.description);
        }
    }
}

/// Plans that are kept. Batches of an update differ in their rows from step to
/// step, so a long run would gather more of them than it uses again.
const MOST_PLANS: usize = 4096;

/// The library with its plans.
pub struct CublasLt {
    handle: lt::cublasLtHandle_t,
    plans: HashMap<Key, Plan>,
}

fn check(status: cublasStatus_t, what: &str) -> Result<()> {
    match status {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED => {
            bail!("{what}: cuBLASLt has no product for these sizes and alignments")
        }
        other => bail!("{what}: {other:?}"),
    }
}

/// As [`super::gpu`]'s macro: handles are this object's own, out-pointers are to
/// live locals, attributes have the sizes that the library documents.
macro_rules! cublas {
    ($what:expr, $call:expr) => {
        // SAFETY: see above.
        check(unsafe { $call }, $what)
    };
}

impl CublasLt {
    pub fn new() -> Result<Self> {
        // SAFETY: only tries to open the library.
        ensure!(
            unsafe { lt::is_culib_present() },
            "no cuBLASLt (libcublasLt.so, .so.13 or .so.12) on this machine: install the CUDA toolkit's cuBLAS, or add the folder that has it \
             (PyTorch brings one: nvidia/cublas/lib or nvidia/cu13/lib in site-packages) to LD_LIBRARY_PATH"
        );
        let mut handle = std::ptr::null_mut();
        cublas!("starting cuBLASLt", lt::cublasLtCreate(&mut handle))?;
        Ok(CublasLt {
            handle,
            plans: HashMap::new(),
        })
    }

    /// Run a product; `workspace` is that stream's.
    pub fn multiply(
        &mut self,
        stream: CUstream,
        workspace: ProductWorkspace,
        g: &Gemm,
    ) -> Result<()> {
        if g.m == 0 || g.n == 0 {
            return Ok(());
        }
        let key = Key {
            sizes: [g.m, g.n, g.k, g.lda, g.ldb, g.ldc],
            alignments: [g.a, g.b, g.c].map(|p| 1 << p.trailing_zeros().min(8)),
            transpose_a: g.transpose_a,
            transpose_b: g.transpose_b,
            c_f32: g.c_f32,
            accumulate: g.accumulate,
        };
        if !self.plans.contains_key(&key) {
            if self.plans.len() >= MOST_PLANS {
                self.plans.clear();
            }
            let plan = self.plan(g, workspace.bytes, key.alignments)?;
            self.plans.insert(key, plan);
        }
        let plan = &self.plans[&key];
        let (one, beta) = (1f32, if g.accumulate { 1f32 } else { 0f32 });
        let scalar = |x: &f32| -> *const c_void { std::ptr::from_ref(x).cast() };
        // The operands' extents are the caller's promise.
        cublas!(
            "a product",
            lt::cublasLtMatmul(
                self.handle,
                plan.description,
                scalar(&one),
                g.b as *const c_void,
                plan.left,
                g.a as *const c_void,
                plan.right,
                scalar(&beta),
                g.c as *const c_void,
                plan.result,
                g.c as *mut c_void,
                plan.result,
                &plan.algorithm,
                workspace.ptr as *mut c_void,
                workspace.bytes,
                stream.cast()
            )
        )
    }

    fn plan(&self, g: &Gemm, bytes: usize, [a, b, c]: [u32; 3]) -> Result<Plan> {
        use lt::cublasLtMatmulDescAttributes_t as Attribute;
        use lt::cublasLtMatmulPreferenceAttributes_t as Preference;
        use lt::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        let mut description = std::ptr::null_mut();
        cublas!(
            "planning a product",
            lt::cublasLtMatmulDescCreate(
                &mut description,
                lt::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                CUDA_R_32F
            )
        )?;
        // CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
        for (attribute, transposed) in [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, g.transpose_b),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, g.transpose_a),
        ] {
            let operation = i32::from(transposed);
            cublas!(
                "planning a product",
                lt::cublasLtMatmulDescSetAttribute(
                    description,
                    attribute,
                    std::ptr::from_ref(&operation).cast(),
                    size_of::<i32>()
                )
            )?;
        }
        let layout = |kind, rows: usize, columns: usize, ld: usize| -> Result<_> {
            let mut layout = std::ptr::null_mut();
            cublas!(
                "planning a product",
                lt::cublasLtMatrixLayoutCreate(
                    &mut layout,
                    kind,
                    rows as u64,
                    columns as u64,
                    ld as i64
                )
            )?;
            Ok(layout)
        };
        // As they are stored, in columns.
        let (rows, columns) = if g.transpose_b {
            (g.k, g.n)
        } else {
            (g.n, g.k)
        };
        let left = layout(CUDA_R_16BF, rows, columns, g.ldb)?;
        let (rows, columns) = if g.transpose_a {
            (g.m, g.k)
        } else {
            (g.k, g.m)
        };
        let right = layout(CUDA_R_16BF, rows, columns, g.lda)?;
        let kind = if g.c_f32 { CUDA_R_32F } else { CUDA_R_16BF };
        let result = layout(kind, g.n, g.m, g.ldc)?;
        let mut preference = std::ptr::null_mut();
        cublas!(
            "planning a product",
            lt::cublasLtMatmulPreferenceCreate(&mut preference)
        )?;
        cublas!(
            "planning a product",
            lt::cublasLtMatmulPreferenceSetAttribute(
                preference,
                Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                std::ptr::from_ref(&bytes).cast(),
                size_of::<usize>()
            )
        )?;
        for (attribute, value) in [
            // Where the reduction is split, partial sums stay f32.
            (
                Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                lt::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32,
            ),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ] {
            cublas!(
                "planning a product",
                lt::cublasLtMatmulPreferenceSetAttribute(
                    preference,
                    attribute,
                    std::ptr::from_ref(&value).cast(),
                    size_of::<u32>()
                )
            )?;
        }
        // SAFETY: plain numbers, of which all-zero bits are a value.
        let mut best: lt::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        let mut found = 0;
        let asked = cublas!(
            "choosing a product",
            lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                description,
                left,
                right,
                result,
                result,
                preference,
                1,
                &mut best,
                &mut found
            )
        );
        cublas!(
            "planning a product",
            lt::cublasLtMatmulPreferenceDestroy(preference)
        )?;
        asked?;
        ensure!(
            found > 0,
            "cuBLASLt has no product for these sizes and alignments"
        );
        Ok(Plan {
            description,
            left,
            right,
            result,
            algorithm: best.algo,
        })
    }
}
