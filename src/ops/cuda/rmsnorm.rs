//! Launches of `cuda/rmsnorm.cu`: see [`crate::ops::rmsnorm`] for the contract.

use anyhow::Result;
use half::bf16;

use super::by_type;
use crate::device::cuda::{Address, Cuda, CudaBuf, Launch};
use crate::device::{Ctx, Float, Slice, SliceMut};
use crate::ops::rmsnorm::{NormShape, ResidualAdd, RmsNorm};

/// Elements of a row for each thread of its block: what the kernel keeps in
/// registers.
const EACH: usize = 16;
/// Most threads of a block: longer rows are read twice.
const MOST: usize = 512;

fn threads(hidden: usize) -> u32 {
    hidden.div_ceil(EACH).next_multiple_of(32).min(MOST) as u32
}

impl RmsNorm for Cuda {
    fn rmsnorm_forward<R: Float>(
        &self,
        ctx: &Ctx<Self>,
        shape: NormShape,
        add: Option<ResidualAdd<Self, R>>,
        h: SliceMut<Self, R>,
        weight: &CudaBuf<f32>,
        x: SliceMut<Self, bf16>,
        rstd: SliceMut<Self, f32>,
    ) -> Result<()> {
        let kernel = by_type::<R>("rmsnorm_forward_bf16", "rmsnorm_forward_f32")?;
        self.launch(
            ctx,
            Launch::new(kernel, [shape.rows as u32, 1, 1], threads(shape.hidden))
                .maybe("previous", add.as_ref().map(|a| a.0.address()))
                .maybe("y", add.as_ref().map(|a| a.1.address()))
                .ptr("h", &h)
                .ptr("weight", weight)
                .ptr("x", &x)
                .ptr("rstd", &rstd)
                .u32("hidden", shape.hidden)
                .u32("x_stride", x.stride(shape.rows))
                .f32("eps", shape.eps),
        )
    }

    fn rmsnorm_backward<R: Float>(
        &self,
        ctx: &Ctx<Self>,
        shape: NormShape,
        h: Slice<Self, R>,
        weight: &CudaBuf<f32>,
        rstd: Slice<Self, f32>,
        dx: Slice<Self, bf16>,
        dh: SliceMut<Self, f32>,
        dy: SliceMut<Self, bf16>,
    ) -> Result<()> {
        let kernel = by_type::<R>("rmsnorm_backward_bf16", "rmsnorm_backward_f32")?;
        self.launch(
            ctx,
            Launch::new(kernel, [shape.rows as u32, 1, 1], threads(shape.hidden))
                .ptr("h", &h)
                .ptr("weight", weight)
                .ptr("rstd", &rstd)
                .ptr("dx", &dx)
                .ptr("dh", &dh)
                .ptr("dy", &dy)
                .u32("hidden", shape.hidden)
                .u32("dy_stride", dy.stride(shape.rows)),
        )
    }
}
