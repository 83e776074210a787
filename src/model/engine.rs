//! A loaded model with its adapters and buffers, ready to run batches.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::credit::HiddenChoice;
use crate::device::{BatchCapacity, Ctx, Element, Float, Slice, SliceMut};
use crate::episode::AdapterId;
use crate::model::adapter::AdapterLayout;
use crate::model::backward::backward;
use crate::model::batch::Batch;
use crate::model::config::{Group, ModelShape, Module};
use crate::model::forward::{ResidualProbe, forward};
use crate::model::half_layer::{Context, GradientArena, HalfLayers, Pass, slice, slice_mut};
use crate::model::plan::{Capacity, Stack, stacks};
use crate::model::weights::Checkpoint;
use crate::ops::Ops;
use crate::ops::decode::page_elements;
use crate::ops::linear::{Linear, WeightView};
use crate::ops::qknorm_rope::{QkNormWeights, RopeTable};
use crate::ops::sample::{SampleRequest, Sampled};

/// The frozen base model.
pub struct Model<D: Ops> {
    pub shape: ModelShape,
    pub embedding: <D as Linear>::Table,
    pub layers: Vec<Layer<D>>,
    pub final_norm: D::Buf<f32>,
    pub head: <D as Linear>::Matrix,
    pub rope: RopeTable<D>,
    /// Bytes of the weights as loaded.
    pub bytes: u64,
}

/// One decoder layer's weights.
pub struct Layer<D: Ops> {
    pub norm1: D::Buf<f32>,
    pub qkv: <D as Linear>::Matrix,
    pub qk_norm: QkNormWeights<D>,
    pub o: <D as Linear>::Matrix,
    pub norm2: D::Buf<f32>,
    pub gate_up: <D as Linear>::Matrix,
    pub down: <D as Linear>::Matrix,
}

impl<D: Ops> Model<D> {
    /// Load a folder. `backward` makes room for training; `positions` is the
    /// longest context that will be run.
    pub fn load(
        device: &D,
        ctx: &Ctx<D>,
        dir: &Path,
        backward: bool,
        positions: usize,
    ) -> Result<Self> {
        let shape = ModelShape::load(dir)?;
        ensure!(
            positions <= shape.max_position_embeddings,
            "contexts of up to {positions} tokens are asked for; {} has max_position_embeddings {}",
            dir.display(),
            shape.max_position_embeddings
        );
        let checkpoint = Checkpoint::open(dir)?;
        let mut bytes = 0u64;
        let vector = |name: &str, n: usize| -> Result<D::Buf<f32>> {
            let values = checkpoint.vector(name, n)?;
            let mut buf = device.alloc(n)?;
            device.upload(ctx, slice_mut(&mut buf, n), &values)?;
            Ok(buf)
        };
        let mut matrix = |layer: usize, group: Group| -> Result<<D as Linear>::Matrix> {
            let mut parts: Vec<WeightView> = Vec::new();
            let mut bias = Vec::new();
            for m in group.modules() {
                let (inputs, outputs) = m.features(&shape);
                let name = format!("model.layers.{layer}.{}", m.path());
                parts.push(checkpoint.matrix(&format!("{name}.weight"), outputs, inputs)?);
                if shape.attention_bias
                    && matches!(m, Module::Q | Module::K | Module::V | Module::O)
                {
                    bias.extend(checkpoint.vector(&format!("{name}.bias"), outputs)?);
                }
            }
            bytes += parts.iter().map(|p| p.bytes.len() as u64).sum::<u64>()
                * if backward { 2 } else { 1 };
            device.load_matrix(&parts, (!bias.is_empty()).then_some(bias), backward)
        };
        let (h, v) = (shape.hidden_size, shape.vocab_size);
        let mut layers = Vec::new();
        for i in 0..shape.num_layers {
            let name = |suffix: &str| format!("model.layers.{i}.{suffix}.weight");
            layers.push(Layer {
                norm1: vector(&name("input_layernorm"), h)?,
                qkv: matrix(i, Group::Qkv)?,
                qk_norm: QkNormWeights {
                    q: vector(&name("self_attn.q_norm"), shape.head_dim)?,
                    k: vector(&name("self_attn.k_norm"), shape.head_dim)?,
                },
                o: matrix(i, Group::O)?,
                norm2: vector(&name("post_attention_layernorm"), h)?,
                gate_up: matrix(i, Group::GateUp)?,
                down: matrix(i, Group::Down)?,
            });
        }
        let embedding = checkpoint.matrix("model.embed_tokens.weight", v, h)?;
        // A head stored although tied is the embedding again; transformers
        // ties regardless.
        let head = if shape.tie_word_embeddings {
            embedding.clone()
        } else {
            checkpoint.matrix("lm_head.weight", v, h)?
        };
        bytes += head.bytes.len() as u64 * if backward { 3 } else { 2 };
        let final_norm = vector("model.norm.weight", h)?;
        Ok(Model {
            rope: RopeTable::new(device, ctx, &shape, positions)?,
            embedding: device.load_table(embedding)?,
            head: device.load_matrix(&[head], None, backward)?,
            final_norm,
            layers,
            bytes,
            shape,
        })
    }
}

/// A buffer of `[rows, width]` for every level (see [`Stack`]).
pub struct Stacked<D: Ops, T: Element> {
    buf: D::Buf<T>,
    width: usize,
}

impl<D: Ops, T: Element> Stacked<D, T> {
    fn new(device: &D, stack: Stack, capacity: &Capacity) -> Result<Self> {
        Ok(Stacked {
            buf: device.alloc(stack.elements(capacity))?,
            width: stack.width,
        })
    }

    /// The first `rows` rows of a level, when every level saves `saved`.
    pub fn get(&self, level: usize, saved: usize, rows: usize) -> Slice<'_, D, T> {
        Slice {
            buf: &self.buf,
            start: level * saved * self.width,
            len: rows * self.width,
        }
    }

    pub fn get_mut(&mut self, level: usize, saved: usize, rows: usize) -> SliceMut<'_, D, T> {
        SliceMut {
            buf: &mut self.buf,
            start: level * saved * self.width,
            len: rows * self.width,
        }
    }
}

/// All activations of one forward. `R` is the residual stream's type.
pub struct Activations<D: Ops, R: Float> {
    /// Residual stream entering each layer, and the final one.
    pub h_in: Stacked<D, R>,
    pub xn1: Stacked<D, D::Act>,
    pub rstd1: Stacked<D, f32>,
    pub s_qkv: Stacked<D, D::Act>,
    pub qkv: Stacked<D, D::Act>,
    pub qk: Stacked<D, D::Act>,
    pub attended: Stacked<D, D::Act>,
    pub lse: Stacked<D, f32>,
    pub s_o: Stacked<D, D::Act>,
    /// Residual stream between the halves.
    pub h_mid: Stacked<D, R>,
    pub xn2: Stacked<D, D::Act>,
    pub rstd2: Stacked<D, f32>,
    pub s_gate_up: Stacked<D, D::Act>,
    pub gate_up: Stacked<D, D::Act>,
    pub act: Stacked<D, D::Act>,
    pub s_down: Stacked<D, D::Act>,
    /// What the last half-layer adds to the stream.
    pub y: D::Buf<D::Act>,
    /// The head's input: post-norm states.
    pub x_final: D::Buf<D::Act>,
    pub rstd_final: D::Buf<f32>,
}

impl<D: Ops, R: Float> Activations<D, R> {
    pub fn new(device: &D, shape: &ModelShape, capacity: &Capacity) -> Result<Self> {
        let list = stacks(shape, capacity.s_width);
        let find = |name: &str| {
            list.iter()
                .find(|s| s.0 == name)
                .map(|s| s.1)
                .with_context(|| format!("no activation {name} in the plan"))
        };
        let act = |name: &str| -> Result<Stacked<D, D::Act>> {
            Stacked::new(device, find(name)?, capacity)
        };
        let statistic =
            |name: &str| -> Result<Stacked<D, f32>> { Stacked::new(device, find(name)?, capacity) };
        let residual =
            |name: &str| -> Result<Stacked<D, R>> { Stacked::new(device, find(name)?, capacity) };
        let n = capacity.rows * shape.hidden_size;
        Ok(Activations {
            h_in: residual("h_in")?,
            xn1: act("xn1")?,
            rstd1: statistic("rstd1")?,
            s_qkv: act("s_qkv")?,
            qkv: act("qkv")?,
            qk: act("qk")?,
            attended: act("attended")?,
            lse: statistic("lse")?,
            s_o: act("s_o")?,
            h_mid: residual("h_mid")?,
            xn2: act("xn2")?,
            rstd2: statistic("rstd2")?,
            s_gate_up: act("s_gate_up")?,
            gate_up: act("gate_up")?,
            act: act("act")?,
            s_down: act("s_down")?,
            y: device.alloc(n)?,
            x_final: device.alloc(n)?,
            rstd_final: device.alloc(capacity.rows)?,
        })
    }
}

/// What only a backward needs.
pub struct Scratch<D: Ops> {
    /// Gradient of the residual stream, f32.
    pub dh: D::Buf<f32>,
    /// The same, rounded: the gradient of what a half-layer added.
    pub dy: D::Buf<D::Act>,
    pub dx: D::Buf<D::Act>,
    pub d_act: D::Buf<D::Act>,
    pub d_gate_up: D::Buf<D::Act>,
    pub d_attended: D::Buf<D::Act>,
    pub d_qk: D::Buf<D::Act>,
    pub d_qkv: D::Buf<D::Act>,
    pub ds: D::Buf<D::Act>,
    /// d log pi / d x of each grad pair.
    pub u: D::Buf<D::Act>,
    pub coefficients: D::Buf<f32>,
}

impl<D: Ops> Scratch<D> {
    fn new(device: &D, shape: &ModelShape, capacity: &Capacity) -> Result<Self> {
        let rows = capacity.saved_rows;
        let (h, i) = (shape.hidden_size, shape.intermediate_size);
        let widest = capacity.s_width.into_iter().max().unwrap_or(0);
        Ok(Scratch {
            dh: device.alloc(rows * h)?,
            dy: device.alloc(rows * h)?,
            dx: device.alloc(rows * h)?,
            d_act: device.alloc(rows * i)?,
            d_gate_up: device.alloc(rows * 2 * i)?,
            d_attended: device.alloc(rows * shape.q_width())?,
            d_qk: device.alloc(rows * (shape.q_width() + shape.kv_width()))?,
            d_qkv: device.alloc(rows * shape.qkv_width())?,
            ds: device.alloc(rows * widest)?,
            u: device.alloc(capacity.grad_pairs * h)?,
            coefficients: device.alloc(capacity.grad_pairs)?,
        })
    }
}

/// Keys and values of sampled sequences, in pages, for all layers.
pub struct KvCache<D: Ops> {
    layers: Vec<D::Buf<D::Act>>,
    len: usize,
    pub pages: usize,
}

impl<D: Ops> KvCache<D> {
    pub fn new(device: &D, shape: &ModelShape, pages: usize) -> Result<Self> {
        let len = pages * page_elements(shape);
        let layers = (0..shape.num_layers)
            .map(|_| device.alloc(len))
            .collect::<Result<_>>()?;
        Ok(KvCache { layers, len, pages })
    }

    pub fn layer_mut(&mut self, layer: usize) -> SliceMut<'_, D, D::Act> {
        slice_mut(&mut self.layers[layer], self.len)
    }
}

/// An adapter on the device: its map and its f32 master copy.
pub struct Resident<D: Ops> {
    pub layout: AdapterLayout,
    pub params: D::Buf<f32>,
}

/// What the head says of a batch's pairs, and the residual norms of its
/// residual pairs (empty without a probe).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadOutput {
    pub logprobs: Vec<f32>,
    pub entropies: Vec<f32>,
    pub residuals: Vec<f32>,
}

/// A device with a model, its adapters and one set of buffers.
pub struct Engine<D: HalfLayers> {
    pub device: D,
    stream: D::Stream,
    pub model: Model<D>,
    pub capacity: Capacity,
    adapters: D::Adapters,
    residents: Vec<Resident<D>>,
    batch: D::Batch,
    acts: Activations<D, D::Act>,
    scratch: Option<Scratch<D>>,
    logprobs: D::Buf<f32>,
    entropies: D::Buf<f32>,
    norms: D::Buf<f32>,
}

impl<D: HalfLayers> Engine<D> {
    /// Load the model in `dir` and make room for `capacity`; `training` also
    /// for backwards.
    pub fn load(device: D, dir: &Path, capacity: Capacity, training: bool) -> Result<Self> {
        let stream = device.new_stream()?;
        let ctx = Ctx { stream: &stream };
        let model = Model::load(&device, &ctx, dir, training, capacity.positions)?;
        let adapters = device.new_adapters(&model.shape)?;
        let batch = device.new_batch(BatchCapacity {
            rows: capacity.rows,
            segments: capacity.segments,
            pairs: capacity.pairs,
        })?;
        let scratch = match training {
            true => Some(Scratch::new(&device, &model.shape, &capacity)?),
            false => None,
        };
        Ok(Engine {
            acts: Activations::new(&device, &model.shape, &capacity)?,
            logprobs: device.alloc(capacity.pairs)?,
            entropies: device.alloc(capacity.pairs)?,
            norms: device.alloc(capacity.pairs)?,
            scratch,
            batch,
            adapters,
            residents: Vec::new(),
            model,
            capacity,
            stream,
            device,
        })
    }

    pub fn shape(&self) -> &ModelShape {
        &self.model.shape
    }

    pub fn ctx(&self) -> Ctx<'_, D> {
        Ctx {
            stream: &self.stream,
        }
    }

    /// Make an adapter resident.
    pub fn add_adapter(&mut self, layout: AdapterLayout, params: &[f32]) -> Result<AdapterId> {
        for group in Group::ALL {
            ensure!(
                layout.s_width(group) <= self.capacity.s_width[group as usize],
                "the adapter's rank is over the plan's"
            );
        }
        let id = AdapterId(self.residents.len() as u32);
        let mut buf = self.device.alloc(layout.len())?;
        let ctx = Ctx {
            stream: &self.stream,
        };
        self.device
            .upload(&ctx, slice_mut(&mut buf, layout.len()), params)?;
        self.residents.push(Resident {
            layout,
            params: buf,
        });
        self.sync(id)?;
        Ok(id)
    }

    pub fn adapter(&self, id: AdapterId) -> &Resident<D> {
        &self.residents[id.0 as usize]
    }

    /// The adapter's parameters, on the host.
    pub fn params(&self, id: AdapterId) -> Result<Vec<f32>> {
        let resident = self.adapter(id);
        let mut out = vec![0f32; resident.layout.len()];
        let from = slice(&resident.params, out.len());
        self.device.download(&self.ctx(), from, &mut out)?;
        Ok(out)
    }

    /// Replace an adapter's parameters.
    pub fn set_params(&mut self, id: AdapterId, params: &[f32]) -> Result<()> {
        let resident = &mut self.residents[id.0 as usize];
        ensure!(
            params.len() == resident.layout.len(),
            "{} parameters for an adapter of {}",
            params.len(),
            resident.layout.len()
        );
        let buf = &mut resident.params;
        let ctx = Ctx {
            stream: &self.stream,
        };
        self.device
            .upload(&ctx, slice_mut(buf, params.len()), params)?;
        self.sync(id)
    }

    /// Let `f` change an adapter's master copy on the device, then bring its
    /// compute form up to date.
    pub fn update_params(
        &mut self,
        id: AdapterId,
        f: impl FnOnce(&D, &Ctx<D>, &mut D::Buf<f32>) -> Result<()>,
    ) -> Result<()> {
        let ctx = Ctx {
            stream: &self.stream,
        };
        f(
            &self.device,
            &ctx,
            &mut self.residents[id.0 as usize].params,
        )?;
        self.sync(id)
    }

    fn sync(&mut self, id: AdapterId) -> Result<()> {
        let resident = &self.residents[id.0 as usize];
        let ctx = Ctx {
            stream: &self.stream,
        };
        self.device.sync_adapter(
            &ctx,
            &mut self.adapters,
            id,
            &resident.layout,
            slice(&resident.params, resident.layout.len()),
        )
    }

    fn load_batch(&mut self, batch: Batch) -> Result<()> {
        let vocab = self.shape().vocab_size as u32;
        for (what, id) in batch
            .tokens
            .iter()
            .map(|t| ("token", *t))
            .chain(batch.pairs.iter().map(|p| ("target", p.target)))
        {
            ensure!(
                id < vocab,
                "{what} id {id} is outside the model's vocabulary of {vocab}"
            );
        }
        if let Some(&last) = batch.positions.iter().max() {
            ensure!(
                (last as usize) < self.model.rope.positions,
                "a context of {} tokens is over the planned {}",
                last + 1,
                self.model.rope.positions
            );
        }
        ensure!(
            batch.saved_rows <= self.capacity.saved_rows
                && batch.grad_pairs <= self.capacity.grad_pairs
                && batch.residual_pairs.len() <= self.capacity.pairs,
            "a batch is over its plan"
        );
        let ctx = Ctx {
            stream: &self.stream,
        };
        self.device.load_batch(&ctx, &mut self.batch, batch)
    }

    /// Forward and head of a packed batch. With `training`, u is kept for
    /// [`Engine::backward`].
    pub fn run_packed(
        &mut self,
        batch: Batch,
        temperature: f32,
        training: bool,
        hidden: Option<HiddenChoice>,
    ) -> Result<HeadOutput> {
        self.load_batch(batch)?;
        self.forward_loaded(Context::Packed, hidden)?;
        let host = self.device.batch(&self.batch);
        let (pairs, grad_pairs, residuals) =
            (host.pairs.len(), host.grad_pairs, host.residual_pairs.len());
        let rows = host.rows();
        let hidden_size = self.model.shape.hidden_size;
        let ctx = Ctx {
            stream: &self.stream,
        };
        let u = match (&mut self.scratch, training) {
            (Some(s), true) => Some(slice_mut(&mut s.u, grad_pairs * hidden_size)),
            _ => None,
        };
        self.device.logprob_forward(
            &ctx,
            &self.batch,
            &self.model.head,
            temperature,
            slice(&self.acts.x_final, rows * hidden_size),
            slice_mut(&mut self.logprobs, pairs),
            slice_mut(&mut self.entropies, pairs),
            u,
        )?;
        let mut out = HeadOutput {
            logprobs: vec![0.0; pairs],
            entropies: vec![0.0; pairs],
            residuals: vec![0.0; if hidden.is_some() { residuals } else { 0 }],
        };
        let n = out.residuals.len();
        for (buf, host) in [
            (&self.logprobs, &mut out.logprobs),
            (&self.entropies, &mut out.entropies),
        ] {
            self.device.download(&ctx, slice(buf, pairs), host)?;
        }
        self.device
            .download(&ctx, slice(&self.norms, n), &mut out.residuals)?;
        Ok(out)
    }

    /// Backward of the batch that [`Engine::run_packed`] ran last, adding to
    /// `grads` (laid out as `adapter`'s parameters).
    pub fn backward(
        &mut self,
        adapter: AdapterId,
        coefficients: &[f32],
        grads: &mut D::Buf<f32>,
    ) -> Result<()> {
        let ctx = Ctx {
            stream: &self.stream,
        };
        let s_width = self.s_width();
        let scratch = self
            .scratch
            .as_mut()
            .context("the engine was loaded without room for training")?;
        let host = self.device.batch(&self.batch);
        ensure!(
            coefficients.len() == host.grad_pairs,
            "one coefficient per grad pair"
        );
        self.device.upload(
            &ctx,
            slice_mut(&mut scratch.coefficients, coefficients.len()),
            coefficients,
        )?;
        let pass = Pass {
            ctx: &ctx,
            model: &self.model,
            adapters: &self.adapters,
            s_width,
            rows: host.rows(),
            saved_rows: host.saved_rows,
            batch: &self.batch,
        };
        let mut arena = GradientArena {
            layout: &self.residents[adapter.0 as usize].layout,
            grads,
        };
        backward(&self.device, &pass, &self.acts, scratch, &mut arena)
    }

    /// Forward of a paged batch, then one token per request.
    pub fn run_paged(
        &mut self,
        batch: Batch,
        cache: &mut KvCache<D>,
        requests: &[SampleRequest],
    ) -> Result<Vec<Sampled>> {
        self.load_batch(batch)?;
        self.forward_loaded(Context::Paged(cache), None)?;
        let rows = self.device.batch(&self.batch).rows();
        let ctx = Ctx {
            stream: &self.stream,
        };
        let x = slice(&self.acts.x_final, rows * self.model.shape.hidden_size);
        self.device.sample(&ctx, &self.model.head, x, requests)
    }

    /// The loaded batch's final states, post-norm, `[rows, hidden]`, and its
    /// raw logits `[rows, vocab]`: for tests and export's check.
    pub fn logits(&mut self, batch: Batch) -> Result<(Vec<f32>, Vec<f32>)> {
        self.load_batch(batch)?;
        self.forward_loaded(Context::Packed, None)?;
        let rows = self.device.batch(&self.batch).rows();
        let ctx = Ctx {
            stream: &self.stream,
        };
        let x = slice(&self.acts.x_final, rows * self.model.shape.hidden_size);
        let mut states = vec![D::Act::default(); x.len];
        self.device.download(&ctx, x, &mut states)?;
        let all: Vec<u32> = (0..rows as u32).collect();
        let logits = self.device.logits(&ctx, &self.model.head, x, &all)?;
        Ok((states.into_iter().map(Float::to_f32).collect(), logits))
    }

    /// Mean over rows of ||h - h with an f32 residual stream||, post-norm: how
    /// much of a residual norm is rounding. The batch must be small; it is run
    /// twice. In f32 the two are the same by definition.
    pub fn noise_floor(&mut self, batch: Batch) -> Result<f64> {
        if size_of::<D::Act>() == 4 {
            return Ok(0.0);
        }
        let capacity = Capacity {
            rows: batch.rows(),
            saved_rows: 0,
            ..self.capacity
        };
        let (states, _) = self.logits(batch)?;
        let mut exact: Activations<D, f32> =
            Activations::new(&self.device, &self.model.shape, &capacity)?;
        let ctx = Ctx {
            stream: &self.stream,
        };
        let s_width = self.s_width();
        let host = self.device.batch(&self.batch);
        let pass = Pass {
            ctx: &ctx,
            model: &self.model,
            adapters: &self.adapters,
            s_width,
            batch: &self.batch,
            rows: host.rows(),
            saved_rows: 0,
        };
        forward(&self.device, &pass, &mut exact, Context::Packed, None)?;
        let hidden = self.model.shape.hidden_size;
        let mut other = vec![D::Act::default(); states.len()];
        self.device
            .download(&ctx, slice(&exact.x_final, other.len()), &mut other)?;
        let rows = host.rows().max(1);
        let total: f64 = states
            .chunks(hidden)
            .zip(other.chunks(hidden))
            .map(|(a, b)| {
                a.iter()
                    .zip(b)
                    .map(|(x, y)| (*x as f64 - y.to_f32() as f64).powi(2))
                    .sum::<f64>()
                    .sqrt()
            })
            .sum();
        Ok(total / rows as f64)
    }

    /// Copy one KV page to another, in every layer.
    pub fn copy_page(&self, cache: &mut KvCache<D>, from: u32, to: u32) -> Result<()> {
        for layer in 0..self.model.shape.num_layers {
            self.device.copy_page(
                &self.ctx(),
                &self.model.shape,
                cache.layer_mut(layer),
                from,
                to,
            )?;
        }
        Ok(())
    }

    /// Columns of s for the loaded batch: none if no row is adapted.
    fn s_width(&self) -> [usize; 4] {
        let adapted = self
            .device
            .batch(&self.batch)
            .segments
            .iter()
            .any(|s| s.adapter.is_some());
        match adapted {
            true => self.capacity.s_width,
            false => [0; 4],
        }
    }

    fn forward_loaded(&mut self, context: Context<D>, hidden: Option<HiddenChoice>) -> Result<()> {
        let ctx = Ctx {
            stream: &self.stream,
        };
        let s_width = self.s_width();
        let host = self.device.batch(&self.batch);
        let pass = Pass {
            ctx: &ctx,
            model: &self.model,
            adapters: &self.adapters,
            s_width,
            rows: host.rows(),
            saved_rows: host.saved_rows,
            batch: &self.batch,
        };
        let pairs = host.residual_pairs.len();
        let probe = hidden.map(|hidden| ResidualProbe {
            hidden,
            norms: slice_mut(&mut self.norms, pairs),
        });
        forward(&self.device, &pass, &mut self.acts, context, probe)
    }
}
