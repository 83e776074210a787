//! Building one launch: named arguments, extent, declared cost.

use anyhow::{Context as _, Result};

use super::driver::{Extent, Gemm, LaunchArgs, ProductWorkspace};
use super::{Cuda, CudaBuf, PRODUCT_WORKSPACE};
use crate::device::{Ctx, Element, Slice, SliceMut};

/// Most arguments of a kernel.
const MOST: usize = 32;

/// Something with a device address.
pub trait Address {
    fn address(&self) -> u64;
}

impl<T: Element> Address for CudaBuf<T> {
    fn address(&self) -> u64 {
        self.ptr()
    }
}
impl<T: Element> Address for Slice<'_, Cuda, T> {
    fn address(&self) -> u64 {
        self.buf.ptr() + (self.start * size_of::<T>()) as u64
    }
}
impl<T: Element> Address for SliceMut<'_, Cuda, T> {
    fn address(&self) -> u64 {
        self.as_const().address()
    }
}
impl Address for u64 {
    fn address(&self) -> u64 {
        *self
    }
}

/// A launch in the making; arguments are added in the kernel's order.
pub struct Launch {
    kernel: &'static str,
    extent: Extent,
    values: [u64; MOST],
    sizes: [u64; MOST],
    names: [&'static str; MOST],
    len: usize,
}

impl Launch {
    /// `grid` blocks of `block` threads.
    pub fn new(kernel: &'static str, grid: [u32; 3], block: u32) -> Self {
        Launch {
            kernel,
            extent: Extent {
                grid,
                block: [block, 1, 1],
                shared: 0,
            },
            values: [0; MOST],
            sizes: [0; MOST],
            names: [""; MOST],
            len: 0,
        }
    }

    /// Dynamic shared memory in bytes.
    pub fn shared(mut self, bytes: u32) -> Self {
        self.extent.shared = bytes;
        self
    }

    fn push(mut self, name: &'static str, value: u64, size: u64) -> Self {
        assert!(self.len < MOST, "{} has too many arguments", self.kernel);
        self.values[self.len] = value;
        self.sizes[self.len] = size;
        self.names[self.len] = name;
        self.len += 1;
        self
    }

    /// A pointer.
    pub fn ptr(self, name: &'static str, to: &impl Address) -> Self {
        self.push(name, to.address(), 8)
    }

    /// A pointer that may be null.
    pub fn maybe(self, name: &'static str, to: Option<u64>) -> Self {
        self.push(name, to.unwrap_or(0), 8)
    }

    pub fn u32(self, name: &'static str, x: usize) -> Self {
        debug_assert!(x <= u32::MAX as usize, "{name} = {x}");
        self.push(name, x as u64, 4)
    }

    pub fn u64(self, name: &'static str, x: u64) -> Self {
        self.push(name, x, 8)
    }

    pub fn f32(self, name: &'static str, x: f32) -> Self {
        self.push(name, x.to_bits() as u64, 4)
    }

    /// What failed, for an error message.
    fn describe(&self) -> String {
        let args: Vec<String> = (0..self.len)
            .map(|i| match self.sizes[i] {
                4 => format!("{}={}", self.names[i], self.values[i]),
                _ => format!("{}={:#x}", self.names[i], self.values[i]),
            })
            .collect();
        let Extent {
            grid,
            block,
            shared,
        } = self.extent;
        format!(
            "kernel {}({}), grid {grid:?}, block {block:?}, {shared} bytes of shared memory",
            self.kernel,
            args.join(", ")
        )
    }
}

impl Cuda {
    /// A base product.
    ///
    /// # Errors
    /// Names its sizes.
    pub(crate) fn gemm(&self, ctx: &Ctx<Self>, gemm: &Gemm) -> Result<()> {
        let products = ctx.stream.products.as_ref();
        let products = products.context("a product on a stream for copies")?;
        let workspace = ProductWorkspace {
            ptr: products.ptr,
            bytes: PRODUCT_WORKSPACE,
        };
        let done = self.driver.gemm(ctx.stream.id, gemm, workspace);
        done.with_context(|| {
            format!(
                "product [{}, {}] x [{}, {}]",
                gemm.m, gemm.k, gemm.k, gemm.n
            )
        })
    }

    /// Launch, unless the grid is empty.
    ///
    /// # Errors
    /// Names the kernel, its arguments and its extent.
    pub fn launch(&self, ctx: &Ctx<Self>, launch: Launch) -> Result<()> {
        if launch.extent.grid.contains(&0) {
            return Ok(());
        }
        let args = LaunchArgs {
            values: &launch.values[..launch.len],
            sizes: &launch.sizes[..launch.len],
        };
        self.driver
            .launch(ctx.stream.id, launch.kernel, launch.extent, args)
            .with_context(|| launch.describe())
    }
}
