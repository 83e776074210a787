//! AdamW (arXiv 1711.05101) over the flat adapter arena, and its global norm.
//!
//! PyTorch's arithmetic: p -= lr wd p; m += (g - m)(1 - b1);
//! v = b2 v + (1 - b2) g^2; p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps),
//! where g is the gradient times the clip coefficient.

use anyhow::Result;

use crate::device::cpu::simd::vectorized;
use crate::device::cpu::{Cpu, pool};
use crate::device::{Ctx, Device, Float, Slice, SliceMut};

/// One step's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
    /// Factor on every gradient (global-norm clipping), 1 = none.
    pub clip: f32,
}

/// The step's constants as the update uses them, in f32.
pub(crate) struct Constants {
    pub decay: f32,
    pub keep1: f32,
    pub keep2: f32,
    /// Learning rate over the first moment's bias correction.
    pub size: f32,
    /// Root of the second moment's bias correction.
    pub root: f32,
}

impl AdamWStep {
    pub(crate) fn constants(&self) -> Constants {
        let t = self.step as f64;
        Constants {
            decay: (1.0 - self.learning_rate * self.weight_decay) as f32,
            keep1: (1.0 - self.beta1) as f32,
            keep2: (1.0 - self.beta2) as f32,
            size: (self.learning_rate / (1.0 - self.beta1.powf(t))) as f32,
            root: (1.0 - self.beta2.powf(t)).sqrt() as f32,
        }
    }
}

pub trait AdamW: Device {
    /// Sum of squares in f64, in one fixed order.
    fn squared_norm(&self, ctx: &Ctx<Self>, x: Slice<Self, f32>) -> Result<f64>;

    /// Update params, m and v in place from grads.
    fn adamw(
        &self,
        ctx: &Ctx<Self>,
        step: &AdamWStep,
        grads: Slice<Self, f32>,
        params: SliceMut<Self, f32>,
        m: SliceMut<Self, f32>,
        v: SliceMut<Self, f32>,
    ) -> Result<()>;
}

vectorized! {
    fn update(step: &AdamWStep, constants: &Constants, g: &[f32], p: &mut [f32], m: &mut [f32], v: &mut [f32]) -> () {
        let Constants { decay, keep1, keep2, size, root } = *constants;
        let (beta2, epsilon) = (step.beta2 as f32, step.epsilon as f32);
        let n = g.len();
        let (p, m, v) = (&mut p[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let g = g[i] * step.clip;
            m[i] += (g - m[i]) * keep1;
            v[i] = v[i] * beta2 + keep2 * g * g;
            p[i] = p[i] * decay - size * m[i] / (v[i].sqrt() / root + epsilon);
        }
    }
}

/// Elements of one partial sum and of one task.
const CHUNK: usize = 4096;

impl<A: Float> AdamW for Cpu<A> {
    fn squared_norm(&self, _: &Ctx<Self>, x: Slice<Self, f32>) -> Result<f64> {
        Ok(x.host()
            .chunks(CHUNK)
            .map(|c| c.iter().map(|&x| x as f64 * x as f64).sum::<f64>())
            .sum())
    }

    fn adamw(
        &self,
        _: &Ctx<Self>,
        step: &AdamWStep,
        grads: Slice<Self, f32>,
        mut params: SliceMut<Self, f32>,
        mut m: SliceMut<Self, f32>,
        mut v: SliceMut<Self, f32>,
    ) -> Result<()> {
        let n = grads.len;
        let constants = step.constants();
        let (params, m, v) = (params.shared(), m.shared(), v.shared());
        pool::parallel(n.div_ceil(CHUNK), n, |i| {
            let (at, len) = (i * CHUNK, CHUNK.min(n - i * CHUNK));
            // SAFETY: one chunk each.
            let (p, m, v) = unsafe {
                (
                    params.slice_mut(at, len),
                    m.slice_mut(at, len),
                    v.slice_mut(at, len),
                )
            };
            let g = &grads.host()[at..at + len];
            update(step, &constants, g, p, m, v);
        });
        Ok(())
    }
}
