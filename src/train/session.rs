//! A model loaded for a verb: engine, KV pages, tokenizer, stop ids.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use half::bf16;

use crate::config::GradientCheckpointing::{Always, Auto};
use crate::config::{ComputeDtype, Config, UsageError};
use crate::device::cpu::Cpu;
use crate::device::cuda::Cuda;
#[cfg(feature = "emulator")]
use crate::device::cuda::emulator::EmulatorSettings;
use crate::device::memory::{Dtype, MemoryKind};
use crate::device::{Device as _, Float};
use crate::episode::AdapterId;
use crate::model::adapter::AdapterLayout;
use crate::model::config::{Group, ModelShape};
use crate::model::engine::Engine;
use crate::model::half_layer::HalfLayers;
use crate::model::peft;
use crate::model::plan::{Capacity, Plan, WeightTypes, available_memory, parse_bytes};
use crate::model::weights::resolve_model;
use crate::ops::decode::{PAGE, page_elements};
use crate::rollout::scheduler::PREFILL_ROWS;
use crate::rollout::{self, Completion, Event, KvStore, Request, Rollout, Sampling, pages_of};
use crate::tokenizer::{Tokenizer, stop_ids};
use crate::train::packing::Packed;

/// Work to do on whichever device the configuration names.
pub trait OnDevice {
    type Output;
    fn run<D: HalfLayers>(self, device: D) -> Result<Self::Output>;
}

/// Pick the device of `train.device` and the activations of
/// `model.compute_dtype`, and do the work there. `auto` is the GPU where there
/// is one that this build has kernels for, unless f32 is asked for.
pub fn on_device<T: OnDevice>(config: &Config, work: T) -> Result<T::Output> {
    let dtype = config.model.compute_dtype;
    let device = config.train.device.as_str();
    match device {
        "auto" if dtype != Some(ComputeDtype::F32) => match Cuda::gpu(0) {
            Ok(gpu) => work.run(gpu),
            Err(e) => {
                if Cuda::has_driver() {
                    eprintln!("warning: the GPU is not used: {e:#}");
                }
                on_cpu(dtype, work)
            }
        },
        "auto" | "cpu" => on_cpu(dtype, work),
        "cuda" | "emulator" if dtype == Some(ComputeDtype::F32) => Err(computes_in_bf16(device)),
        "cuda" => work.run(Cuda::gpu(0)?),
        "emulator" => on_emulator(work),
        other => Err(UsageError::new(format!(
            "train.device = \"{other}\": it must be auto, cpu, cuda or emulator"
        ))
        .into()),
    }
}

fn on_cpu<T: OnDevice>(dtype: Option<ComputeDtype>, work: T) -> Result<T::Output> {
    match dtype {
        None | Some(ComputeDtype::F32) => work.run(Cpu::<f32>::new()),
        Some(ComputeDtype::Bf16) => work.run(Cpu::<bf16>::new()),
    }
}

#[cfg(feature = "emulator")]
fn on_emulator<T: OnDevice>(work: T) -> Result<T::Output> {
    work.run(Cuda::emulator(EmulatorSettings::default())?)
}

#[cfg(not(feature = "emulator"))]
fn on_emulator<T: OnDevice>(_: T) -> Result<T::Output> {
    Err(UsageError::new(
        "train.device = \"emulator\": this build has none; build with --features emulator (it needs g++)",
    )
    .into())
}

/// How the memory of `train.device` is planned, and how much of it could be had
/// now, where that can be known: planning needs no GPU.
pub fn device_memory(config: &Config) -> Result<(MemoryKind, Option<u64>)> {
    let dtype = config.model.compute_dtype;
    let cpu = MemoryKind::Cpu {
        act: match dtype {
            None | Some(ComputeDtype::F32) => Dtype::F32,
            Some(ComputeDtype::Bf16) => Dtype::Bf16,
        },
    };
    let gpu = MemoryKind::Cuda;
    let free = |gpu: Cuda| gpu.available_memory();
    let device = config.train.device.as_str();
    Ok(match device {
        "cpu" => (cpu, available_memory()),
        "cuda" | "emulator" if dtype == Some(ComputeDtype::F32) => {
            return Err(computes_in_bf16(device));
        }
        "cuda" => (gpu, Cuda::gpu(0).ok().and_then(free)),
        "emulator" => (gpu, available_memory()),
        // Auto, as `on_device` has it; a name that is none is refused there.
        _ => match (dtype, Cuda::gpu(0)) {
            (None | Some(ComputeDtype::Bf16), Ok(found)) => (gpu, free(found)),
            _ => (cpu, available_memory()),
        },
    })
}

fn computes_in_bf16(device: &str) -> anyhow::Error {
    UsageError::new(format!(
        "model.compute_dtype = \"f32\": the device {device} computes in bf16; leave it out, or use --device cpu"
    ))
    .into()
}

/// The folder of the configured model; empty means the bundled demo.
pub fn model_dir(config: &Config) -> Result<PathBuf> {
    match config.model.path.as_str() {
        "" => demo_dir(),
        path => resolve_model(path),
    }
}

/// Where the bundled demo lies: beside the sources that this binary was built
/// from, in the working directory, or above the binary.
pub fn demo_dir() -> Result<PathBuf> {
    let binary = std::env::current_exe().unwrap_or_default();
    [Path::new(env!("CARGO_MANIFEST_DIR")), Path::new("")]
        .into_iter()
        .chain(binary.ancestors().skip(1))
        .map(|p| p.join("assets/demo"))
        .find(|p| p.join("config.json").exists())
        .context(
            "the bundled demo (assets/demo) is not here: run from a checkout, or set model.path",
        )
}

/// How many of what a verb will run at most, from which buffers are planned.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    pub longest_prompt: usize,
    pub longest_completion: usize,
    /// Completions of one update step (0: nothing is trained or scored).
    pub step_groups: usize,
    pub step_sequences: usize,
    /// Largest group (completions of one prompt).
    pub group: usize,
    /// Sequences that may be sampled side by side (0: nothing is sampled).
    pub sampled: usize,
    pub reference_rows: bool,
    /// Completions are scored under a contrast prompt too (no longer than
    /// `longest_prompt`).
    pub contrast_rows: bool,
    /// How many of the resident adapters train: the first ones, one after another.
    pub trained: usize,
    pub tokens_per_batch: usize,
    /// Most KV pages (none: as many as all samples side by side may need). See
    /// [`kv_pages`].
    pub pages: Option<usize>,
}

/// Most sequences decoded in one batch.
pub const DECODE_ROWS: usize = 256;

impl Demand {
    /// The buffers this needs, with the resident adapters' widths.
    pub fn capacity(&self, layouts: &[AdapterLayout]) -> Capacity {
        self.capacity_with(layouts, DECODE_ROWS)
    }

    /// The same with so many sequences decoded in one batch at most.
    pub fn capacity_with(&self, layouts: &[AdapterLayout], decode_rows: usize) -> Capacity {
        let copies = self.copies();
        let contrast = self.contrast_prompt_rows();
        let limit = self.policy_rows();
        let training = self.trained > 0;
        let decode = self.sampled.min(decode_rows.max(self.group));
        // The prompts of all groups that are decoded, or what a forward takes
        // of them.
        let groups = self.sampled.div_ceil(self.group.max(1)).min(decode);
        let prefill = (groups * self.longest_prompt).min(PREFILL_ROWS);
        let rows = (limit * copies + contrast).max(decode + prefill);
        let sequences = self.step_sequences + self.step_groups;
        let pages = self.pages_each() * decode;
        Capacity {
            rows,
            saved_rows: if training { limit } else { 0 },
            // A group cut over batches repeats its prompt.
            segments: (2 * copies * sequences).max(decode),
            pairs: copies * (limit + sequences),
            grad_pairs: if training { limit + sequences } else { 0 },
            s_width: widths(layouts),
            pages: self.pages.map_or(pages, |most| most.min(pages)),
            sequences: decode,
            positions: self.longest_prompt + self.longest_completion,
            recompute: false,
        }
    }

    /// How often a completion's rows stand in a batch of the update: under the
    /// policy, the reference, the contrast prompt.
    fn copies(&self) -> usize {
        1 + usize::from(self.reference_rows) + usize::from(self.contrast_rows)
    }

    /// Rows of the contrast prompt, once a batch.
    fn contrast_prompt_rows(&self) -> usize {
        usize::from(self.contrast_rows) * self.longest_prompt
    }

    /// Most rows under the trained adapter in one batch of the update; those of
    /// the reference and of the contrast prompt come on top.
    pub fn policy_rows(&self) -> usize {
        let context = self.longest_prompt + self.longest_completion;
        let whole_step =
            self.step_groups * self.longest_prompt + self.step_sequences * self.longest_completion;
        match self.step_sequences {
            0 => 0,
            // One sequence must fit whatever the limit says.
            _ => (self
                .tokens_per_batch
                .saturating_sub(self.contrast_prompt_rows())
                / self.copies())
            .clamp(context.min(whole_step), whole_step),
        }
    }

    /// What adapters need that train together: they sample side by side and
    /// are updated one after another. With `inspects` there is room for every
    /// credit method's signals, whatever the adapters ask for.
    pub fn together(each: &[Demand], inspects: bool) -> Demand {
        let most = |f: fn(&Demand) -> usize| each.iter().map(f).max().unwrap_or(0);
        let mut together = Demand {
            longest_prompt: most(|d| d.longest_prompt),
            longest_completion: most(|d| d.longest_completion),
            step_groups: most(|d| d.step_groups),
            step_sequences: most(|d| d.step_sequences),
            group: most(|d| d.group),
            sampled: each.iter().fold(0, |sum, d| sum.saturating_add(d.sampled)),
            reference_rows: inspects || each.iter().any(|d| d.reference_rows),
            contrast_rows: inspects || each.iter().any(|d| d.contrast_rows),
            trained: each.iter().map(|d| d.trained).sum(),
            tokens_per_batch: 0,
            pages: None,
        };
        // An adapter's batches are cut as if it trained alone: those without
        // reference rows may have twice the rows of the others.
        together.tokens_per_batch =
            together.copies() * most(Demand::policy_rows) + together.contrast_prompt_rows();
        together
    }

    /// Pages of the longest sample. Its last token is drawn but never computed.
    fn pages_each(&self) -> usize {
        pages_of((self.longest_prompt + self.longest_completion).saturating_sub(1))
    }

    /// Refuse pages that are too few for one sample.
    pub fn check_pages(&self, config: &Config) -> Result<(), UsageError> {
        let each = self.pages_each();
        match self.pages {
            Some(pages) if self.sampled > 0 && pages < each => Err(UsageError::new(format!(
                "rollout.kv_memory = {:?} holds {pages} KV pages of {PAGE} positions, and one sample of {} + {} \
                 tokens needs {each}: raise it, or lower rollout.max_completion_length or data.max_prompt_length",
                config.rollout.kv_memory, self.longest_prompt, self.longest_completion
            ))),
            _ => Ok(()),
        }
    }
}

/// KV pages that `rollout.kv_memory` holds, where it is set.
pub fn kv_pages(
    config: &Config,
    shape: &ModelShape,
    kind: MemoryKind,
) -> Result<Option<usize>, UsageError> {
    match config.rollout.kv_memory.as_str() {
        "" => Ok(None),
        text => {
            let bytes = parse_bytes(text)
                .map_err(|e| UsageError::new(format!("rollout.kv_memory: {e}")))?;
            let page = page_elements(shape) * shape.num_layers * kind.act().size();
            Ok(Some((bytes / page as u64) as usize))
        }
    }
}

/// Completions as long as the model's context allows beside the longest
/// prompt, where `rollout.max_completion_length` asks for more: said once.
pub fn fit_context(config: &Config, shape: &ModelShape, longest_prompt: usize) -> Config {
    let mut fitting = config.clone();
    let room = shape.max_position_embeddings.saturating_sub(longest_prompt);
    if room > 0 && config.rollout.max_completion_length > room {
        eprintln!(
            "warning: completions end at {room} tokens, where the model's context of {} is full",
            shape.max_position_embeddings
        );
        fitting.rollout.max_completion_length = room;
    }
    fitting
}

/// The buffers that these batches need.
pub fn capacity_of(batches: &[Packed], layouts: &[AdapterLayout]) -> Capacity {
    let most = |f: &dyn Fn(&Packed) -> usize| batches.iter().map(f).max().unwrap_or(0);
    Capacity {
        rows: most(&|p| p.batch.rows()),
        saved_rows: most(&|p| p.batch.saved_rows),
        segments: most(&|p| p.batch.segments.len()),
        pairs: most(&|p| p.batch.pairs.len().max(p.batch.residual_pairs.len())),
        grad_pairs: most(&|p| p.batch.grad_pairs),
        s_width: widths(layouts),
        pages: 0,
        sequences: 0,
        positions: most(&|p| {
            p.batch
                .positions
                .iter()
                .max()
                .map_or(0, |&x| x as usize + 1)
        }),
        recompute: false,
    }
}

/// Columns of s that the widest adapter needs, by group.
fn widths(layouts: &[AdapterLayout]) -> [usize; 4] {
    Group::ALL.map(|g| layouts.iter().map(|l| l.s_width(g)).max().unwrap_or(0))
}

/// A model with everything to run it.
pub struct Session<D: HalfLayers> {
    pub engine: Engine<D>,
    pub kv: KvStore<D>,
    pub tokenizer: Option<Arc<Tokenizer>>,
    pub stop_ids: Vec<u32>,
    /// As adapters name their base model.
    pub base_name: String,
}

/// An adapter to make resident.
pub struct AdapterSource {
    pub layout: AdapterLayout,
    pub params: Vec<f32>,
}

impl AdapterSource {
    pub fn load(dir: &Path, shape: &ModelShape) -> Result<Self> {
        let (layout, params) = peft::load(dir, shape)?;
        Ok(AdapterSource { layout, params })
    }
}

impl<D: HalfLayers> Session<D> {
    /// Plan, refuse what would not fit, load, and make the adapters resident
    /// in order (the first is [`AdapterId`] 0).
    pub fn open(
        device: D,
        config: &Config,
        dir: &Path,
        demand: &Demand,
        adapters: Vec<AdapterSource>,
    ) -> Result<Self> {
        let layouts: Vec<AdapterLayout> = adapters.iter().map(|a| a.layout.clone()).collect();
        demand.check_pages(config)?;
        let capacity = demand.capacity(&layouts);
        Session::with_capacity(device, config, dir, capacity, demand.trained, adapters)
    }

    /// The same for batches whose sizes are known.
    pub fn with_capacity(
        device: D,
        config: &Config,
        dir: &Path,
        capacity: Capacity,
        trained: usize,
        adapters: Vec<AdapterSource>,
    ) -> Result<Self> {
        let shape = ModelShape::load(dir)?;
        let layouts: Vec<AdapterLayout> = adapters.iter().map(|a| a.layout.clone()).collect();
        let available = device.available_memory();
        let plan = plan(
            config,
            device.memory_kind(),
            &shape,
            &WeightTypes::read(dir, &shape)?,
            &capacity,
            &layouts,
            trained,
            available,
        );
        if let Some(refusal) = available.and_then(|a| plan.refusal(a)) {
            bail!("this {}", refusal.trim_end());
        }
        if plan.capacity.recompute && config.train.gradient_checkpointing == Auto {
            eprintln!(
                "note: the activations of an update would not fit: its backward computes each layer again \
                 (train.gradient_checkpointing)"
            );
        }
        let mut engine = Engine::with_plan(device, dir, plan)?;
        let kv = KvStore::new(engine.new_cache()?);
        for adapter in adapters {
            engine.add_adapter(adapter.layout, &adapter.params)?;
        }
        let tokenizer = match dir.join("tokenizer.json").exists() {
            true => Some(Arc::new(Tokenizer::load(dir)?)),
            false => None,
        };
        Ok(Session {
            engine,
            kv,
            tokenizer,
            stop_ids: stop_ids(dir, &shape.eos_ids)?,
            base_name: match config.model.path.as_str() {
                "" => dir.display().to_string(),
                path => path.to_string(),
            },
        })
    }

    /// The tokenizer, where a verb cannot do without.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        self.tokenizer.as_ref().with_context(|| {
            format!(
                "{} has no tokenizer.json: text cannot be read or written (give ids)",
                self.base_name
            )
        })
    }

    /// How `[rollout]` says tokens are drawn.
    pub fn sampling(&self, config: &Config) -> Sampling {
        sampling(config, self.stop_ids.clone())
    }

    /// A rollout on this model, to be given requests.
    pub fn rollout(&mut self) -> Rollout<'_, D> {
        Rollout::new(&mut self.engine, &mut self.kv, self.tokenizer.clone())
    }

    /// Draw completions; see [`rollout::generate`].
    pub fn generate(
        &mut self,
        requests: Vec<Request>,
        events: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<Vec<Completion>> {
        rollout::generate(&mut self.rollout(), requests, events)
    }

    /// Write an adapter in PEFT's format.
    pub fn save_adapter(&self, id: AdapterId, dir: &Path) -> Result<()> {
        let layout = &self.engine.adapter(id).layout;
        peft::save(dir, layout, &self.engine.params(id)?, &self.base_name)
    }
}

/// How `[rollout]` says tokens are drawn, with a model's stop ids.
pub fn sampling(config: &Config, stop_ids: Vec<u32>) -> Sampling {
    let r = &config.rollout;
    Sampling {
        temperature: r.temperature,
        top_p: r.top_p,
        top_k: r.top_k,
        min_p: r.min_p,
        max_tokens: r.max_completion_length,
        stop_ids,
        stop: r.stop.clone().into(),
    }
}

/// The memory of a run, with activations kept or computed again as
/// `train.gradient_checkpointing` says, where it says auto by what fits into
/// `available` bytes.
#[allow(clippy::too_many_arguments)]
pub fn plan(
    config: &Config,
    kind: MemoryKind,
    shape: &ModelShape,
    types: &WeightTypes,
    capacity: &Capacity,
    layouts: &[AdapterLayout],
    trained: usize,
    available: Option<u64>,
) -> Plan {
    let with = |recompute| {
        let capacity = Capacity {
            recompute,
            ..*capacity
        };
        Plan::new(kind, types, shape, &capacity, layouts, trained)
    };
    let choice = config.train.gradient_checkpointing;
    let kept = with(trained > 0 && choice == Always);
    match available {
        Some(a) if kept.total() > a && trained > 0 && choice == Auto => with(true),
        _ => kept,
    }
}

/// Name of the activations' type, for messages.
pub fn act_name<D: HalfLayers>() -> &'static str {
    <D::Act as Float>::NAME
}
