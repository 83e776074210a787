//! AdamW on one adapter: state, schedule, clipping, and its file.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use safetensors::tensor::{Dtype, TensorView};

use crate::config::{OptimizerConfig, Schedule};
use crate::device::memory::Role;
use crate::device::{Ctx, slice, slice_mut};
use crate::episode::AdapterId;
use crate::model::adapter::AdapterLayout;
use crate::model::engine::Engine;
use crate::model::half_layer::HalfLayers;
use crate::model::peft::decimal;
use crate::model::weights::map_file;
use crate::ops::adamw::AdamWStep;
use crate::ops::cost::{self, Cost};
use crate::profile::{self, op};

/// Where gradients are summed. Adapters that are updated one after another
/// share it: each zeroes it before its update and is done with it after its step.
pub struct Gradients<D: HalfLayers>(Arc<Mutex<D::Buf<f32>>>);

impl<D: HalfLayers> Gradients<D> {
    /// Room for the gradients of each of these adapters in turn.
    pub fn new<'a>(
        device: &D,
        layouts: impl IntoIterator<Item = &'a AdapterLayout>,
    ) -> Result<Self> {
        let longest = layouts.into_iter().map(AdapterLayout::len).max();
        let buf = device.alloc_for(Role::Adapters, longest.unwrap_or(0))?;
        Ok(Gradients(Arc::new(Mutex::new(buf))))
    }

    /// The buffer. No two adapters are updated at once, so nobody waits.
    pub fn lock(&self) -> MutexGuard<'_, D::Buf<f32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// AdamW's state for one adapter, on the device.
pub struct Optimizer<D: HalfLayers> {
    config: OptimizerConfig,
    pub gradients: Gradients<D>,
    m: D::Buf<f32>,
    v: D::Buf<f32>,
    /// Steps taken.
    pub step: u64,
    layout: AdapterLayout,
}

/// The moments on the host.
pub struct Moments {
    pub m: Vec<f32>,
    pub v: Vec<f32>,
    pub step: u64,
}

impl<D: HalfLayers> Optimizer<D> {
    /// With gradients of its own.
    pub fn new(device: &D, layout: &AdapterLayout, config: &OptimizerConfig) -> Result<Self> {
        let gradients = Gradients::new(device, [layout])?;
        Optimizer::sharing(device, layout, config, &gradients)
    }

    /// With gradients that other adapters use in their turn.
    pub fn sharing(
        device: &D,
        layout: &AdapterLayout,
        config: &OptimizerConfig,
        gradients: &Gradients<D>,
    ) -> Result<Self> {
        Ok(Optimizer {
            config: config.clone(),
            gradients: Gradients(gradients.0.clone()),
            m: device.alloc_for(Role::Adapters, layout.len())?,
            v: device.alloc_for(Role::Adapters, layout.len())?,
            step: 0,
            layout: layout.clone(),
        })
    }

    pub fn zero_grads(&mut self, engine: &Engine<D>) -> Result<()> {
        let n = self.layout.len();
        let (device, ctx) = (&engine.device, engine.ctx());
        op(
            device,
            &ctx,
            "zero",
            || Cost::of_bytes(4 * n),
            || device.zero(&ctx, slice_mut(&mut *self.gradients.lock(), n)),
        )
    }

    /// Global L2 norm of the gradients, before clipping.
    pub fn grad_norm(&self, engine: &Engine<D>) -> Result<f64> {
        let gradients = self.gradients.lock();
        let grads = slice(&*gradients, self.layout.len());
        let (device, ctx) = (&engine.device, engine.ctx());
        let cost = || cost::squared_norm(grads.len);
        let squared = op(device, &ctx, "squared_norm", cost, || {
            device.squared_norm(&ctx, grads)
        })?;
        Ok(squared.sqrt())
    }

    /// Clip and take one step at this learning rate; returns the norm before
    /// clipping. Nothing is changed if the norm is not finite.
    pub fn apply(
        &mut self,
        engine: &mut Engine<D>,
        adapter: AdapterId,
        learning_rate: f64,
    ) -> Result<f64> {
        let _range = profile::phase("optimizer");
        let norm = self.grad_norm(engine)?;
        ensure!(
            norm.is_finite(),
            "the gradient norm is {norm}: the step is not applied (lower optimizer.learning_rate, or look at the rewards)"
        );
        let most = decimal(self.config.max_grad_norm);
        let clip = match most > 0.0 {
            // PyTorch's clip_grad_norm_.
            true => (most / (norm + 1e-6)).min(1.0),
            false => 1.0,
        };
        self.step += 1;
        let step = AdamWStep {
            learning_rate,
            beta1: decimal(self.config.beta1),
            beta2: decimal(self.config.beta2),
            epsilon: decimal(self.config.epsilon),
            weight_decay: decimal(self.config.weight_decay),
            step: self.step,
            clip: clip as f32,
        };
        let n = self.layout.len();
        let (m, v) = (&mut self.m, &mut self.v);
        let gradients = self.gradients.lock();
        engine.update_params(adapter, |device: &D, ctx: &Ctx<D>, params| {
            op(
                device,
                ctx,
                "adamw",
                || cost::adamw(n),
                || {
                    device.adamw(
                        ctx,
                        &step,
                        slice(&*gradients, n),
                        slice_mut(params, n),
                        slice_mut(m, n),
                        slice_mut(v, n),
                    )
                },
            )
        })?;
        engine.device.wait(&engine.ctx())?;
        Ok(norm)
    }

    /// The gradients on the host, in the layout's order.
    pub fn download_grads(&self, engine: &Engine<D>) -> Result<Vec<f32>> {
        download(engine, &*self.gradients.lock(), self.layout.len())
    }

    pub fn moments(&self, engine: &Engine<D>) -> Result<Moments> {
        Ok(Moments {
            m: download(engine, &self.m, self.layout.len())?,
            v: download(engine, &self.v, self.layout.len())?,
            step: self.step,
        })
    }

    pub fn set_moments(&mut self, engine: &Engine<D>, moments: &Moments) -> Result<()> {
        let n = self.layout.len();
        let ctx = engine.ctx();
        engine
            .device
            .upload(&ctx, slice_mut(&mut self.m, n), &moments.m)?;
        engine
            .device
            .upload(&ctx, slice_mut(&mut self.v, n), &moments.v)?;
        self.step = moments.step;
        Ok(())
    }
}

fn download<D: HalfLayers>(engine: &Engine<D>, buf: &D::Buf<f32>, n: usize) -> Result<Vec<f32>> {
    let mut out = vec![0f32; n];
    engine
        .device
        .download(&engine.ctx(), slice(buf, n), &mut out)?;
    Ok(out)
}

/// Learning rate of optimizer step `step` (from 0) of `total`: linear warm-up
/// from 0 over `warmup_steps`, then the schedule down to 0 (transformers'
/// get_*_schedule_with_warmup).
pub fn learning_rate(config: &OptimizerConfig, step: u64, total: u64) -> f64 {
    let base = decimal(config.learning_rate);
    let warmup = config.warmup_steps as u64;
    if step < warmup {
        return base * step as f64 / warmup.max(1) as f64;
    }
    let progress = (step - warmup) as f64 / (total.saturating_sub(warmup)).max(1) as f64;
    let progress = progress.min(1.0);
    base * match config.schedule {
        Schedule::Constant => 1.0,
        Schedule::Linear => 1.0 - progress,
        Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
    }
}

/// Write `<name>.exp_avg`, `<name>.exp_avg_sq` (PEFT's tensor names) and `step`.
pub fn save_moments(path: &Path, layout: &AdapterLayout, moments: &Moments) -> Result<()> {
    let step = [moments.step as f32];
    let mut named = vec![(
        "step".to_string(),
        TensorView::new(Dtype::F32, vec![], bytemuck::cast_slice(&step))?,
    )];
    for (name, offset, rows, cols) in layout.tensors() {
        for (suffix, data) in [("exp_avg", &moments.m), ("exp_avg_sq", &moments.v)] {
            let bytes = bytemuck::cast_slice(&data[offset..offset + rows * cols]);
            named.push((
                format!("{name}.{suffix}"),
                TensorView::new(Dtype::F32, vec![rows, cols], bytes)?,
            ));
        }
    }
    safetensors::serialize_to_file(named, None, path)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Read what [`save_moments`] wrote (or another tool, under the same names).
pub fn load_moments(path: &Path, layout: &AdapterLayout) -> Result<Moments> {
    let tensors = map_file(path)?;
    let find = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
        let (view, found) = tensors
            .iter()
            .find(|t| t.0 == name)
            .map(|t| &t.1)
            .with_context(|| format!("{name} is missing in {}", path.display()))?;
        ensure!(
            found.iter().product::<usize>() == shape.iter().product::<usize>(),
            "{name} in {} has shape {found:?}, expected {shape:?}",
            path.display()
        );
        Ok(view.to_vec())
    };
    let mut moments = Moments {
        m: vec![0.0; layout.len()],
        v: vec![0.0; layout.len()],
        step: find("step", &[])?[0] as u64,
    };
    for (name, offset, rows, cols) in layout.tensors() {
        for (suffix, data) in [("exp_avg", &mut moments.m), ("exp_avg_sq", &mut moments.v)] {
            let values = find(&format!("{name}.{suffix}"), &[rows, cols])?;
            data[offset..offset + rows * cols].copy_from_slice(&values);
        }
    }
    Ok(moments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_follow_transformers() {
        let mut config = OptimizerConfig {
            learning_rate: 1.0,
            warmup_steps: 10,
            schedule: Schedule::Cosine,
            ..OptimizerConfig::default()
        };
        assert_eq!(learning_rate(&config, 0, 110), 0.0);
        assert_eq!(learning_rate(&config, 5, 110), 0.5);
        assert_eq!(learning_rate(&config, 10, 110), 1.0);
        assert!((learning_rate(&config, 60, 110) - 0.5).abs() < 1e-12);
        assert!(learning_rate(&config, 110, 110) < 1e-12);
        config.schedule = Schedule::Linear;
        assert!((learning_rate(&config, 35, 110) - 0.75).abs() < 1e-12);
        config.schedule = Schedule::Constant;
        assert_eq!(learning_rate(&config, 109, 110), 1.0);
    }
}
