//! Factors as the CPU multiplies by them: in panels.

use crate::device::cpu::gemm::LANES;
use crate::model::adapter::Factor;

/// The compute form of one module's A and B.
pub(super) struct FactorPack {
    pub r: usize,
    /// c A in panels over r: `[in, LANES]` each.
    pub shrink: Vec<f32>,
    /// B in panels over the outputs: `[r, LANES]` each.
    pub expand: Vec<f32>,
    /// c B in panels over r: `[out, LANES]` each.
    pub shrink_backward: Vec<f32>,
    /// A in panels over the inputs: `[r, LANES]` each.
    pub expand_backward: Vec<f32>,
}

impl FactorPack {
    pub fn new(f: &Factor, params: &[f32]) -> Self {
        let (r, n_in, n_out) = (f.r, f.inputs, f.outputs);
        let a = &params[f.a..f.a + r * n_in];
        let b = &params[f.b..f.b + n_out * r];
        let rp = r.div_ceil(LANES);
        let mut shrink = vec![0.0; rp * n_in * LANES];
        let mut expand_backward = vec![0.0; n_in.div_ceil(LANES) * r * LANES];
        for i in 0..r {
            for k in 0..n_in {
                let x = a[i * n_in + k];
                shrink[((i / LANES) * n_in + k) * LANES + i % LANES] = f.scale * x;
                expand_backward[((k / LANES) * r + i) * LANES + k % LANES] = x;
            }
        }
        let mut expand = vec![0.0; n_out.div_ceil(LANES) * r * LANES];
        let mut shrink_backward = vec![0.0; rp * n_out * LANES];
        for o in 0..n_out {
            for i in 0..r {
                let x = b[o * r + i];
                expand[((o / LANES) * r + i) * LANES + o % LANES] = x;
                shrink_backward[((i / LANES) * n_out + o) * LANES + i % LANES] = f.scale * x;
            }
        }
        FactorPack {
            r,
            shrink,
            expand,
            shrink_backward,
            expand_backward,
        }
    }

    pub fn elements(&self) -> usize {
        self.shrink.len()
            + self.expand.len()
            + self.shrink_backward.len()
            + self.expand_backward.len()
    }

    pub fn width(&self) -> usize {
        self.r.next_multiple_of(LANES)
    }
}

/// f32 elements of a factor's compute form on the CPU.
pub(crate) fn packed_elements(f: &Factor) -> usize {
    let padded = |n: usize| n.next_multiple_of(LANES);
    padded(f.r) * (f.inputs + f.outputs) + (padded(f.inputs) + padded(f.outputs)) * f.r
}
