//! Launches of `cuda/swiglu.cu`: see [`crate::ops::swiglu`] for the contract.

use anyhow::Result;
use half::bf16;

use super::stride_grid;
use crate::device::cuda::{Cuda, Launch};
use crate::device::{Ctx, Slice, SliceMut};
use crate::ops::swiglu::SwiGlu;

impl SwiGlu for Cuda {
    fn swiglu_forward(
        &self,
        ctx: &Ctx<Self>,
        rows: usize,
        width: usize,
        gate_up: Slice<Self, bf16>,
        act: SliceMut<Self, bf16>,
    ) -> Result<()> {
        self.launch(
            ctx,
            Launch::new(
                "swiglu_forward",
                stride_grid(self, rows * (width / 8), 256),
                256,
            )
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
        self.launch(
            ctx,
            Launch::new(
                "swiglu_backward",
                stride_grid(self, rows * (width / 8), 256),
                256,
            )
            .ptr("gate_up", &gate_up)
            .ptr("d_act", &d_act)
            .ptr("d_gate_up", &d_gate_up)
            .u32("rows", rows)
            .u32("width", width)
            .u32("d_stride", d_gate_up.stride(rows)),
        )
    }
}
