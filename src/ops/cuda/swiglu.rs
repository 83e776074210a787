//! Launches of `cuda/swiglu.cu`: see [`crate::ops::swiglu`] for the contract.

use anyhow::Result;
use half::bf16;

use crate::device::cuda::{Cuda, Launch};
use crate::device::{Ctx, Slice, SliceMut};
use crate::ops::swiglu::SwiGlu;

/// Grid and block: blocks of up to 256 threads, eight columns each, that divide
/// a row evenly, and as many rows at a time as keep the device busy.
fn extent(device: &Cuda, rows: usize, width: usize) -> ([u32; 3], u32) {
    let groups = width / 8;
    let blocks = groups.div_ceil(256).max(1);
    let threads = groups.div_ceil(blocks).next_multiple_of(32);
    let most = 16 * device.driver.info().multiprocessors.max(1) as usize * 256 / threads;
    let at_a_time = rows.min(most.div_ceil(blocks));
    ([blocks as u32, at_a_time as u32, 1], threads as u32)
}

impl SwiGlu for Cuda {
    fn swiglu_forward(
        &self,
        ctx: &Ctx<Self>,
        rows: usize,
        width: usize,
        gate_up: Slice<Self, bf16>,
        act: SliceMut<Self, bf16>,
    ) -> Result<()> {
        let (grid, block) = extent(self, rows, width);
        self.launch(
            ctx,
            Launch::new("swiglu_forward", grid, block)
                .ptr("gate_up", &gate_up)
                .ptr("act", &act)
                .u32("rows", rows)
                .u32("width", width)
                .u32("act_stride", act.stride(rows)),
        )
    }

    fn swiglu_backward(
        &self,
        ctx: &Ctx<Self>,
        rows: usize,
        width: usize,
        gate_up: Slice<Self, bf16>,
        d_act: Slice<Self, bf16>,
        d_gate_up: SliceMut<Self, bf16>,
    ) -> Result<()> {
        let (grid, block) = extent(self, rows, width);
        self.launch(
            ctx,
            Launch::new("swiglu_backward", grid, block)
                .ptr("gate_up", &gate_up)
                .ptr("d_act", &d_act)
                .ptr("d_gate_up", &d_gate_up)
                .u32("rows", rows)
                .u32("width", width)
                .u32("d_stride", d_gate_up.stride(rows)),
        )
    }
}
