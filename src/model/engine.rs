//! A loaded model with its adapters and buffers, ready to run batches.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::credit::HiddenChoice;
use crate::device::memory::Role;
use crate::device::{Ctx, Float, slice, slice_mut};
use crate::episode::AdapterId;
use crate::model::adapter::AdapterLayout;
use crate::model::backward::backward;
use crate::model::batch::Batch;
use crate::model::buffers::{Activations, KvCache, Scratch};
use crate::model::config::{Group, ModelShape};
use crate::model::forward::{ResidualProbe, forward};
use crate::model::half_layer::{Context, GradientArena, HalfLayers, Pass};
use crate::model::plan::{Capacity, EXACT, Phase, Plan, Planned, WeightTypes, noise_floor_rows};
use crate::model::qwen3::Model;
use crate::ops::Ops;
use crate::ops::cost::{self, Cost};
use crate::ops::sample::{SampleRequest, Sampled};
use crate::profile::{beside, op};

/// An adapter on the device: its map and its f32 master copy.
pub struct Resident<D: Ops> {
    pub layout: AdapterLayout,
    pub params: D::Buf<f32>,
    /// How often the parameters were set.
    version: u64,
}

/// What keys and values were computed with. Where it differs, they are void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvVersion {
    /// How often other phases had the pages' memory.
    pub epoch: u64,
    /// State of the adapter.
    pub adapter: u64,
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
    /// What the host reads while the other stream goes on.
    reader: D::Stream,
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
    /// For the noise floor: a residual stream in f32.
    exact: Option<Activations<D, f32>>,
    plan: Plan,
    region: D::Region,
    /// Whose contents the overlaid buffers hold.
    phase: Phase,
    /// See [`KvVersion`].
    kv_epoch: u64,
}

impl<D: HalfLayers> Engine<D> {
    /// Load the model in `dir` and make room for `capacity`; `training` also
    /// for backwards. Adapters come on top of it: see [`Engine::with_plan`].
    pub fn load(device: D, dir: &Path, capacity: Capacity, training: bool) -> Result<Self> {
        let shape = ModelShape::load(dir)?;
        let types = WeightTypes::read(dir, &shape)?;
        let kind = device.memory_kind();
        let plan = Plan::new(kind, &types, &shape, &capacity, &[], usize::from(training));
        Engine::with_plan(device, dir, plan)
    }

    /// Load the model in `dir` into memory as the plan has it.
    pub fn with_plan(device: D, dir: &Path, plan: Plan) -> Result<Self> {
        let (capacity, training) = (plan.capacity, plan.training);
        let stream = device.new_stream()?;
        let reader = device.new_copy_stream()?;
        let ctx = Ctx { stream: &stream };
        for role in [Role::Weights, Role::Adapters, Role::Staging] {
            device.reserve(role, plan.role_bytes(role))?;
        }
        let (positions, lora) = (capacity.positions, capacity.s_width);
        let model = Model::load(&device, &ctx, dir, training, positions, lora)?;
        device.reserve_workspace(&stream, plan.workspace_bytes())?;
        let adapters = device.new_adapters(&model.shape)?;
        let batch = device.new_batch(capacity.batch())?;
        let region = device.region(plan.region_bytes())?;
        let planned = Planned {
            device: &device,
            plan: &plan,
            region: &region,
        };
        let bf16 = size_of::<D::Act>() == 2;
        Ok(Engine {
            acts: Activations::new(&planned, "")?,
            logprobs: planned.buffer("logprobs")?.0,
            entropies: planned.buffer("entropies")?.0,
            norms: planned.buffer("norms")?.0,
            scratch: match training {
                true => Some(Scratch::new(&planned)?),
                false => None,
            },
            exact: match training && bf16 {
                true => Some(Activations::new(&planned, EXACT)?),
                false => None,
            },
            batch,
            adapters,
            residents: Vec::new(),
            model,
            capacity,
            stream,
            reader,
            plan,
            region,
            phase: Phase::Forward,
            kv_epoch: 0,
            device,
        })
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The plan's KV pages, to be asked for once. What they hold lasts until
    /// the next update.
    pub fn new_cache(&self) -> Result<KvCache<D>> {
        KvCache::planned(&Planned {
            device: &self.device,
            plan: &self.plan,
            region: &self.region,
        })
    }

    /// Let a phase have the buffers that phases share. Its own are zero then,
    /// as if they had never been another's: what a kernel reads beyond a
    /// context's end and multiplies by nothing must at least be finite.
    fn enter(&mut self, phase: Phase) -> Result<()> {
        if self.phase == phase {
            return Ok(());
        }
        self.phase = phase;
        if self.plan.kind.overlays() {
            self.kv_epoch += u64::from(phase != Phase::Forward);
            for (offset, bytes) in self.plan.cleared(phase) {
                self.device
                    .clear(&self.ctx(), &self.region, offset, bytes)?;
            }
        }
        Ok(())
    }

    /// Void all keys and values. After logits that are no numbers: a kernel
    /// may read a page beyond a context's end, and multiply by nothing what it
    /// finds there.
    pub fn discard_kv(&mut self) -> Result<()> {
        self.kv_epoch += 1;
        if self.plan.kind.overlays() {
            for (offset, bytes) in self.plan.cleared(Phase::Forward) {
                self.device
                    .clear(&self.ctx(), &self.region, offset, bytes)?;
            }
        }
        Ok(())
    }

    /// What keys and values computed now under an adapter are good for.
    pub fn kv_version(&self, adapter: Option<AdapterId>) -> KvVersion {
        let resident = adapter.map(|id| &self.residents[id.0 as usize]);
        KvVersion {
            epoch: self.kv_epoch,
            adapter: resident.map_or(0, |r| r.version),
        }
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
        let mut buf = self.device.alloc_for(Role::Adapters, layout.len())?;
        let ctx = Ctx {
            stream: &self.stream,
        };
        self.device
            .upload(&ctx, slice_mut(&mut buf, layout.len()), params)?;
        self.residents.push(Resident {
            layout,
            params: buf,
            version: 0,
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
        let resident = &mut self.residents[id.0 as usize];
        resident.version += 1;
        let ctx = Ctx {
            stream: &self.stream,
        };
        op(
            &self.device,
            &ctx,
            "sync_adapter",
            || Cost::of_bytes(resident.layout.len() * (4 + size_of::<D::Act>())),
            || {
                self.device.sync_adapter(
                    &ctx,
                    &mut self.adapters,
                    id,
                    &resident.layout,
                    slice(&resident.params, resident.layout.len()),
                )
            },
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
        let rows = batch.rows();
        let ctx = Ctx {
            stream: &self.stream,
        };
        op(
            &self.device,
            &ctx,
            "load_batch",
            || Cost::of_bytes(8 * rows),
            || self.device.load_batch(&ctx, &mut self.batch, batch),
        )
    }

    /// Forward and head of a packed batch. With `training`, u is kept for
    /// [`Engine::backward`]; a device may still be at work on it on return.
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
        let reader = Ctx {
            stream: &self.reader,
        };
        let u_pairs = if training { grad_pairs } else { 0 };
        let u = match (&mut self.scratch, training) {
            (Some(s), true) => Some(slice_mut(&mut s.u, grad_pairs * hidden_size)),
            _ => None,
        };
        op(
            &self.device,
            &ctx,
            "logprob_forward",
            || {
                cost::logprob_forward(
                    pairs,
                    u_pairs,
                    hidden_size,
                    self.model.shape.vocab_size,
                    size_of::<D::Act>(),
                )
            },
            || {
                self.device.logprob_forward(
                    &ctx,
                    &reader,
                    &self.batch,
                    &self.model.head,
                    temperature,
                    slice(&self.acts.x_final, rows * hidden_size),
                    slice_mut(&mut self.logprobs, pairs),
                    slice_mut(&mut self.entropies, pairs),
                    u,
                )
            },
        )?;
        let mut out = HeadOutput {
            logprobs: vec![0.0; pairs],
            entropies: vec![0.0; pairs],
            residuals: vec![0.0; if hidden.is_some() { residuals } else { 0 }],
        };
        let n = out.residuals.len();
        let bytes = 4 * (2 * pairs + n);
        beside(
            &self.device,
            &reader,
            "download",
            || Cost::of_bytes(bytes),
            || {
                for (buf, host) in [
                    (&self.logprobs, &mut out.logprobs),
                    (&self.entropies, &mut out.entropies),
                ] {
                    self.device.download(&reader, slice(buf, pairs), host)?;
                }
                self.device
                    .download(&reader, slice(&self.norms, n), &mut out.residuals)
            },
        )?;
        Ok(out)
    }

    /// Post-norm states (the head's input) of the first `rows` rows of the batch
    /// that [`Engine::run_packed`] ran last, `[rows, hidden]` on the host.
    pub fn final_states(&self, rows: usize) -> Result<Vec<f32>> {
        let x = slice(&self.acts.x_final, rows * self.model.shape.hidden_size);
        let mut states = vec![D::Act::default(); x.len];
        let reader = Ctx {
            stream: &self.reader,
        };
        self.device.download(&reader, x, &mut states)?;
        Ok(states.into_iter().map(Float::to_f32).collect())
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
            again: false,
            ctx: &ctx,
            model: &self.model,
            adapters: &self.adapters,
            s_width,
            rows: host.rows(),
            saved_rows: host.saved_rows,
            batch: &self.batch,
            layout: Some(&self.residents[adapter.0 as usize].layout),
        };
        let mut arena = GradientArena {
            layout: &self.residents[adapter.0 as usize].layout,
            grads,
        };
        let recompute = self.capacity.recompute;
        backward(
            &self.device,
            &pass,
            &mut self.acts,
            scratch,
            &mut arena,
            recompute,
        )
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
        op(
            &self.device,
            &ctx,
            "sample",
            || {
                cost::sample(
                    requests.len(),
                    self.model.shape.hidden_size,
                    self.model.shape.vocab_size,
                    size_of::<D::Act>(),
                )
            },
            || self.device.sample(&ctx, &self.model.head, x, requests),
        )
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
        let all: Vec<u32> = (0..rows as u32).collect();
        let logits = self.device.logits(&ctx, &self.model.head, x, &all)?;
        let reader = Ctx {
            stream: &self.reader,
        };
        self.device.follow(&reader, &ctx)?;
        Ok((self.final_states(rows)?, logits))
    }

    /// Mean over rows of ||h - h with an f32 residual stream||, post-norm: how
    /// much of a residual norm is rounding. The batch must be small; it is run
    /// twice. In f32 the two are the same by definition.
    pub fn noise_floor(&mut self, batch: Batch) -> Result<f64> {
        if size_of::<D::Act>() == 4 {
            return Ok(0.0);
        }
        ensure!(
            batch.rows() <= noise_floor_rows(&self.capacity),
            "a noise floor of {} rows is over its plan",
            batch.rows()
        );
        self.load_batch(batch)?;
        self.forward_loaded(Context::Packed, None)?;
        let count = self.device.batch(&self.batch).rows() * self.model.shape.hidden_size;
        let mut states = vec![D::Act::default(); count];
        let from = slice(&self.acts.x_final, count);
        self.device.download(&self.ctx(), from, &mut states)?;
        self.enter(Phase::NoiseFloor)?;
        let s_width = self.s_width();
        let exact = self
            .exact
            .as_mut()
            .context("the engine was loaded without room for training")?;
        let ctx = Ctx {
            stream: &self.stream,
        };
        let host = self.device.batch(&self.batch);
        let pass = Pass {
            again: false,
            ctx: &ctx,
            model: &self.model,
            adapters: &self.adapters,
            s_width,
            batch: &self.batch,
            rows: host.rows(),
            saved_rows: 0,
            layout: adapted_layout(host, &self.residents),
        };
        forward(&self.device, &pass, exact, Context::Packed, None)?;
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
                    .map(|(x, y)| (x.to_f32() as f64 - y.to_f32() as f64).powi(2))
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
        self.enter(match self.device.batch(&self.batch).saved_rows {
            0 => Phase::Forward,
            _ => Phase::Update,
        })?;
        let ctx = Ctx {
            stream: &self.stream,
        };
        let s_width = self.s_width();
        let host = self.device.batch(&self.batch);
        let pass = Pass {
            again: false,
            ctx: &ctx,
            model: &self.model,
            adapters: &self.adapters,
            s_width,
            rows: host.rows(),
            saved_rows: host.saved_rows,
            batch: &self.batch,
            layout: adapted_layout(host, &self.residents),
        };
        let pairs = host.residual_pairs.len();
        let probe = hidden.map(|hidden| ResidualProbe {
            hidden,
            norms: slice_mut(&mut self.norms, pairs),
        });
        forward(&self.device, &pass, &mut self.acts, context, probe)
    }
}

/// The layout that the batch's first adapted rows go through.
fn adapted_layout<'a, D: Ops>(
    batch: &Batch,
    residents: &'a [Resident<D>],
) -> Option<&'a AdapterLayout> {
    let id = batch.segments.iter().find_map(|s| s.adapter)?;
    Some(&residents.get(id.0 as usize)?.layout)
}
