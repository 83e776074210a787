//! LoRA adapters: one flat f32 arena of all A and B, and its place in it.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::model::config::{Group, ModelShape, Module};
use crate::rng::{Purpose, Stream, mix, stream_key};

/// What an adapter is made of, in PEFT's terms.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSettings {
    pub r: usize,
    pub alpha: f32,
    pub dropout: f32,
    pub use_rslora: bool,
    /// Rank and alpha of each adapted (layer, module), in canonical order.
    pub targets: Vec<Target>,
}

/// One adapted linear layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    pub layer: usize,
    pub module: Module,
    pub r: usize,
    pub alpha: f32,
}

impl LoraSettings {
    /// The same rank everywhere, on the named modules of every layer.
    pub fn uniform(
        shape: &ModelShape,
        modules: &[Module],
        r: usize,
        alpha: f32,
        dropout: f32,
        use_rslora: bool,
    ) -> Self {
        let targets = (0..shape.num_layers)
            .flat_map(|layer| {
                Module::ALL
                    .into_iter()
                    .filter(|m| modules.contains(m))
                    .map(move |module| Target {
                        layer,
                        module,
                        r,
                        alpha,
                    })
            })
            .collect();
        LoraSettings {
            r,
            alpha,
            dropout,
            use_rslora,
            targets,
        }
    }
}

/// Where one module's A and B lie in the arena.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factor {
    pub r: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// alpha / r, or alpha / sqrt(r) with rsLoRA.
    pub scale: f32,
    /// Offset of A, `[r, in]`.
    pub a: usize,
    /// Offset of B, `[out, r]`.
    pub b: usize,
}

/// The arena's map: factors in order of layer, then module; A before B.
#[derive(Clone, Debug)]
pub struct AdapterLayout {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shape: ModelShape,
    settings: LoraSettings,
    factors: Vec<Option<Factor>>,
    len: usize,
}

impl AdapterLayout {
    pub fn new(shape: &ModelShape, settings: LoraSettings) -> Result<Self> {
        ensure!(
            !settings.targets.is_empty(),
            "the adapter has no target module"
        );
        let mut factors = vec![None; shape.num_layers * Module::ALL.len()];
        let mut len = 0;
        let mut targets = settings.targets.clone();
        targets.sort_by_key(|t| (t.layer, t.module));
        for t in &targets {
            ensure!(
                t.layer < shape.num_layers,
                "the adapter has layer {}, the model only {} layers",
                t.layer,
                shape.num_layers
            );
            ensure!(t.r > 0, "rank 0 for layer {} {}", t.layer, t.module.name());
            let (inputs, outputs) = t.module.features(shape);
            let scale = if settings.use_rslora {
                t.alpha as f64 / (t.r as f64).sqrt()
            } else {
                t.alpha as f64 / t.r as f64
            };
            let (a, b) = (len, len + t.r * inputs);
            len = b + outputs * t.r;
            factors[t.layer * Module::ALL.len() + t.module as usize] = Some(Factor {
                r: t.r,
                inputs,
                outputs,
                scale: scale as f32,
                a,
                b,
            });
        }
        Ok(AdapterLayout {
            inner: Arc::new(Inner {
                shape: shape.clone(),
                settings,
                factors,
                len,
            }),
        })
    }

    pub fn shape(&self) -> &ModelShape {
        &self.inner.shape
    }

    pub fn settings(&self) -> &LoraSettings {
        &self.inner.settings
    }

    /// Number of trainable parameters.
    pub fn len(&self) -> usize {
        self.inner.len
    }

    pub fn is_empty(&self) -> bool {
        self.inner.len == 0
    }

    pub fn factor(&self, layer: usize, module: Module) -> Option<&Factor> {
        self.inner.factors[layer * Module::ALL.len() + module as usize].as_ref()
    }

    /// All factors with their places, in arena order.
    pub fn factors(&self) -> impl Iterator<Item = (usize, Module, &Factor)> {
        self.inner.factors.iter().enumerate().filter_map(|(i, f)| {
            let n = Module::ALL.len();
            Some((i / n, Module::ALL[i % n], f.as_ref()?))
        })
    }

    /// Where a group's factors lie in the arena: one behind the other.
    pub fn group(&self, layer: usize, group: Group) -> Range<usize> {
        let mut factors = group
            .modules()
            .iter()
            .filter_map(|&m| self.factor(layer, m));
        let Some(first) = factors.next() else {
            return 0..0;
        };
        let last = factors.next_back().unwrap_or(first);
        first.a..last.b + last.outputs * last.r
    }

    /// Tensor names and shapes in PEFT's scheme: (name, offset, rows, cols).
    pub fn tensors(&self) -> Vec<(String, usize, usize, usize)> {
        self.factors()
            .flat_map(|(layer, module, f)| {
                let base = format!("base_model.model.model.layers.{layer}.{}", module.path());
                [
                    (format!("{base}.lora_A.weight"), f.a, f.r, f.inputs),
                    (format!("{base}.lora_B.weight"), f.b, f.outputs, f.r),
                ]
            })
            .collect()
    }

    /// Columns of s that this adapter needs for a group, each part padded to
    /// whole panels of 16.
    pub fn s_width(&self, group: Group) -> usize {
        (0..self.inner.shape.num_layers)
            .map(|layer| {
                group
                    .modules()
                    .iter()
                    .filter_map(|&m| self.factor(layer, m))
                    .map(|f| f.r.next_multiple_of(16))
                    .sum()
            })
            .max()
            .unwrap_or(0)
    }

    /// PEFT's initialisation: A uniform in +-1/sqrt(in) (Kaiming with
    /// a = sqrt 5), B zero. Keyed by seed and module, so that adapters of one
    /// seed agree wherever their shapes do.
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let mut params = vec![0f32; self.len()];
        for (layer, module, f) in self.factors() {
            let place = mix((layer as u64) << 8 | module as u64);
            let mut stream = Stream::new(stream_key(seed, Purpose::LoraInit, 0, place, 0));
            let bound = 1.0 / (f.inputs as f32).sqrt();
            for x in &mut params[f.a..f.b] {
                *x = (stream.unit() * 2.0 - 1.0) * bound;
            }
        }
        params
    }
}
