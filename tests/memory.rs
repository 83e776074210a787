//! Guards the memory plan: what is allocated is what was planned, phases that
//! share memory do not disturb each other, and `arca plan` says what fits.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arca::config::{Config, OptimizerConfig};
use arca::device::cpu::Cpu;
use arca::device::memory::{Dtype, MemoryKind, Role};
use arca::episode::AdapterId;
use arca::model::batch::Batch;
use arca::model::config::{ModelShape, Module};
use arca::model::half_layer::HalfLayers;
use arca::model::plan::{Capacity, Plan, WeightTypes};
use arca::rng::Purpose;
use arca::rollout::{Completion, Request};
use arca::train::optimizer::Optimizer;
use arca::train::packing::{PackGroup, PackSpec, pack};
use arca::train::session::{AdapterSource, Demand, Session, demo_dir};
use serde_json::Value;

const POLICY: AdapterId = AdapterId(0);

fn adapter(shape: &ModelShape, r: usize) -> AdapterSource {
    use arca::model::adapter::{AdapterLayout, LoraSettings};
    let settings = LoraSettings::uniform(shape, &Module::ALL, r, 2.0 * r as f32, 0.0, false);
    let layout = AdapterLayout::new(shape, settings).unwrap();
    let params = layout.initial(1);
    AdapterSource { layout, params }
}

/// Everything a training run allocates, for the demo's model.
struct Small<D: HalfLayers> {
    session: Session<D>,
    optimizer: Optimizer<D>,
}

const PROMPTS: [&[u32]; 2] = [&[3, 5, 7, 11, 13], &[2, 4, 8, 16, 32, 64, 128]];
const NEW_TOKENS: usize = 6;

fn open<D: HalfLayers>(device: D) -> Small<D> {
    let config = Config::demo_defaults().unwrap();
    let dir = demo_dir().unwrap();
    let shape = ModelShape::load(&dir).unwrap();
    let demand = Demand {
        longest_prompt: 8,
        longest_completion: NEW_TOKENS,
        step_groups: 2,
        step_sequences: 4,
        group: 2,
        sampled: 4,
        reference_rows: true,
        contrast_rows: false,
        trained: 1,
        tokens_per_batch: 64,
        pages: None,
    };
    // Two, as a run with a reference adapter has; of unequal ranks.
    let adapters = vec![adapter(&shape, 4), adapter(&shape, 20)];
    let layout = adapters[0].layout.clone();
    let session = Session::open(device, &config, &dir, &demand, adapters).unwrap();
    let device = &session.engine.device;
    let optimizer = Optimizer::new(device, &layout, &OptimizerConfig::default()).unwrap();
    Small { session, optimizer }
}

impl<D: HalfLayers> Small<D> {
    fn rollout(&mut self) -> Vec<Completion> {
        let config = Config::demo_defaults().unwrap();
        let mut sampling = self.session.sampling(&config);
        sampling.max_tokens = NEW_TOKENS;
        sampling.stop_ids = Vec::new();
        let sampling = Arc::new(sampling);
        let requests: Vec<Request> = PROMPTS
            .iter()
            .enumerate()
            .map(|(i, prompt)| Request {
                adapter: Some(POLICY),
                prompt_ids: prompt.to_vec(),
                samples: 0..2,
                sampling: sampling.clone(),
                seed: 9,
                purpose: Purpose::Rollout,
                step: 0,
                problem: i as u64,
            })
            .collect();
        // As new to the model as in a step of its own.
        self.session.kv.pages.prefixes.clear();
        self.session.generate(requests, &mut |_| Ok(())).unwrap()
    }

    /// Log-probs of the completions, and the gradients of their sum.
    fn update(&mut self, completions: &[Completion]) -> (Vec<f32>, Vec<f32>) {
        let engine = &mut self.session.engine;
        self.optimizer.zero_grads(engine).unwrap();
        let groups: Vec<PackGroup> = PROMPTS
            .iter()
            .enumerate()
            .map(|(g, prompt)| PackGroup {
                prompt,
                key: 0,
                completions: completions
                    .iter()
                    .enumerate()
                    .filter(|(_, c)| c.request == g)
                    .map(|(i, c)| (i, &c.ids[..]))
                    .collect(),
            })
            .collect();
        let spec = PackSpec {
            policy: Some(POLICY),
            reference: Some(None),
            reference_logprobs: true,
            residuals: false,
            contrast: None,
            training: true,
            dropout: 0.0,
            policy_rows: engine.capacity.saved_rows,
        };
        let mut logprobs = Vec::new();
        for packed in pack(&groups, &spec).unwrap() {
            let out = engine
                .run_packed(packed.batch.clone(), 1.0, true, None)
                .unwrap();
            logprobs.extend(out.logprobs);
            let coefficients = vec![1.0; packed.grad_pairs];
            engine
                .backward(POLICY, &coefficients, &mut *self.optimizer.gradients.lock())
                .unwrap();
        }
        (logprobs, self.optimizer.download_grads(engine).unwrap())
    }

    fn noise_floor(&mut self) -> f64 {
        let mut batch = Batch::default();
        batch.push_segment(PROMPTS[1], &[], None);
        self.session.engine.noise_floor(batch).unwrap()
    }

    /// A little of everything that a run does.
    fn step(&mut self) {
        self.noise_floor();
        let completions = self.rollout();
        self.update(&completions);
        let engine = &mut self.session.engine;
        self.optimizer.apply(engine, POLICY, 1e-3).unwrap();
        self.rollout();
    }
}

fn on_cpu<A: arca::device::Float>() {
    let mut small = open(Cpu::<A>::new());
    let engine = &small.session.engine;
    let planned: u64 = Role::ALL
        .into_iter()
        .filter(|r| !matches!(r, Role::Mapped | Role::Workspace))
        .map(|r| engine.plan().role_bytes(r))
        .sum();
    assert_eq!(
        engine.device.allocated(),
        planned,
        "{}",
        engine.plan().table()
    );
    small.step();
    let after = small.session.engine.device.allocated();
    assert_eq!(after, planned, "something was allocated in the loop");
}

#[test]
fn the_cpu_allocates_what_is_planned() {
    on_cpu::<f32>();
    on_cpu::<half::bf16>();
}

fn on_cuda(device: arca::device::cuda::Cuda) {
    let before = device.memory().now;
    let mut small = open(device.clone());
    let plan = small.session.engine.plan().clone();
    let check = |when: &str| {
        let peak = device.memory().peak - before;
        assert_eq!(peak, plan.total(), "{when}: {}", plan.table());
        assert_eq!(device.unclaimed(), 0, "{when}: planned, but not used");
    };
    check("after loading");
    small.step();
    check("after a step");
    drop(small);
    assert_eq!(device.memory().now, before, "memory that is not given back");
}

#[cfg(feature = "emulator")]
fn emulator(checked: bool) -> arca::device::cuda::Cuda {
    use arca::device::cuda::Cuda;
    use arca::device::cuda::emulator::EmulatorSettings;
    let settings = EmulatorSettings {
        checked,
        ..EmulatorSettings::default()
    };
    Cuda::emulator(settings).unwrap()
}

#[cfg(feature = "emulator")]
#[test]
fn the_emulator_s_peak_is_the_plan() {
    on_cuda(emulator(false));
}

#[test]
fn the_gpu_s_peak_is_the_plan() {
    if let Some(device) = crate::kernels::gpu() {
        on_cuda(device);
    }
}

/// What a rollout and an update give does not depend on who had the memory
/// before.
fn phases_do_not_disturb(device: arca::device::cuda::Cuda) {
    let mut fresh = open(device.clone());
    assert!(fresh.session.engine.plan().shared_bytes() > 0);
    let completions = fresh.rollout();
    let mut other = open(device.clone());
    let first = other.update(&completions);
    let floor = open(device).noise_floor();

    for used in [&mut fresh, &mut other] {
        assert_eq!(used.noise_floor(), floor);
        assert_eq!(used.update(&completions), first);
        assert_eq!(used.rollout(), completions);
        assert_eq!(used.update(&completions), first);
        assert_eq!(used.noise_floor(), floor);
        assert_eq!(used.rollout(), completions);
    }
    assert!(first.1.iter().any(|&g| g != 0.0));
}

#[cfg(feature = "emulator")]
#[test]
fn phases_share_memory_undisturbed() {
    phases_do_not_disturb(emulator(false));
}

#[test]
fn phases_share_memory_undisturbed_on_a_gpu() {
    if let Some(device) = crate::kernels::gpu() {
        phases_do_not_disturb(device);
    }
}

/// A 1.7B shape, as a plan without files.
fn large(kind: MemoryKind, tokens_per_batch: usize, training: bool) -> Plan {
    let shape = ModelShape {
        vocab_size: 151_936,
        hidden_size: 2048,
        intermediate_size: 6144,
        num_layers: 28,
        num_heads: 16,
        num_kv_heads: 8,
        head_dim: 128,
        max_position_embeddings: 40_960,
        tie_word_embeddings: true,
        attention_bias: false,
        ..crate::common::small_shape(false)
    };
    let layouts = [adapter(&shape, 16).layout];
    let demand = Demand {
        longest_prompt: 256,
        longest_completion: 512,
        step_groups: 16,
        step_sequences: 128,
        group: 8,
        sampled: 128,
        reference_rows: true,
        contrast_rows: false,
        trained: usize::from(training),
        tokens_per_batch,
        pages: None,
    };
    let capacity: Capacity = demand.capacity(&layouts);
    let types = WeightTypes::bf16(&shape);
    Plan::new(
        kind,
        &types,
        &shape,
        &capacity,
        &layouts,
        usize::from(training),
    )
}

const GPU: MemoryKind = MemoryKind::Cuda;

#[test]
fn totals_are_the_sum_of_the_rows() {
    for kind in [GPU, MemoryKind::Cpu { act: Dtype::F32 }] {
        let plan = large(kind, 16_384, true);
        let rows: u64 = plan
            .entries
            .iter()
            .filter(|e| !e.host)
            .map(|e| e.bytes)
            .sum();
        let roles: u64 = Role::ALL.map(|r| plan.role_bytes(r)).iter().sum();
        assert_eq!(rows, roles);
        assert_eq!(plan.total(), rows - plan.shared_bytes());
        for e in &plan.entries {
            let elements: usize = e.shape.iter().product();
            assert!(e.bytes >= (elements * e.dtype.size()) as u64, "{e:?}");
        }
        let names: Vec<_> = plan
            .entries
            .iter()
            .map(|e| (&e.what, e.dtype.name()))
            .collect();
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name), "{name:?} twice");
        }
    }
}

/// The pages of a step lie in what the update saves, so that a GPU holds the
/// larger of the two and not their sum.
#[test]
fn pages_lie_in_what_the_update_saves() {
    let plan = large(GPU, 16_384, true);
    let pages = plan.role_bytes(Role::Kv);
    assert!(pages > 8 << 30, "{}", plan.table());
    assert!(
        plan.shared_bytes() as f64 > 0.9 * pages as f64,
        "{} of {pages}\n{}",
        plan.shared_bytes(),
        plan.table()
    );
    let cpu = large(MemoryKind::Cpu { act: Dtype::F32 }, 16_384, true);
    assert_eq!(cpu.shared_bytes(), 0);
}

#[test]
fn more_tokens_need_no_less() {
    for kind in [GPU, MemoryKind::Cpu { act: Dtype::Bf16 }] {
        let mut last = 0;
        for tokens in (1..=32).map(|i| i * 4096) {
            let total = large(kind, tokens, true).total();
            assert!(total >= last, "{tokens} tokens: {total} after {last}");
            last = total;
        }
    }
    let training = large(GPU, 16_384, true).total();
    assert!(large(GPU, 16_384, false).total() < training);
}

#[test]
fn a_refusal_names_rows_and_settings() {
    let plan = large(GPU, 65_536, true);
    assert_eq!(plan.refusal(plan.total()), None);
    let text = plan.refusal(plan.total() - 1).unwrap();
    assert!(text.starts_with("would not fit: "), "{text}");
    assert!(
        text.contains("gate_up") && text.contains("train.tokens_per_batch"),
        "{text}"
    );
    // With few tokens in a batch the pages are what is large.
    let text = large(GPU, 1024, true).refusal(0).unwrap();
    assert!(
        text.contains("KV pages") && text.contains("rollout.max_completion_length"),
        "{text}"
    );
}

fn arca_plan(folder: &Path, args: &[&str]) -> std::process::Output {
    Command::new(crate::common::arca())
        .arg("plan")
        .args(args)
        .current_dir(folder)
        .output()
        .expect("the binary starts")
}

fn json(args: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let output = arca_plan(dir.path(), &[&["--json"], args].concat());
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_largest_batch_fits_and_one_more_does_not() {
    for (device, checkpointing) in [
        ("cpu", "never"),
        ("cpu", "always"),
        ("cuda", "never"),
        ("cuda", "always"),
    ] {
        let with = |memory: u64, tokens: u64| {
            let memory = memory.to_string();
            let tokens = format!("train.tokens_per_batch={tokens}");
            let checkpointing = format!("train.gradient_checkpointing={checkpointing}");
            let memory = ["--device", device, "--memory", &memory];
            json(&[&memory[..], &["--set", &tokens, "--set", &checkpointing]].concat())
        };
        let small = with(1 << 40, 1)["total_bytes"].as_u64().unwrap();
        let whole = with(1 << 40, 1 << 20)["total_bytes"].as_u64().unwrap();
        assert!(small < whole);
        let memory = (small + whole) / 2;
        let plan = with(memory, 1024);
        let largest = plan["largest_tokens_per_batch"].as_u64().unwrap();
        assert_eq!(plan["largest_is_whole_step"], false);
        assert_eq!(with(memory, largest)["fits"], true, "{device}: {largest}");
        assert_eq!(
            with(memory, largest + 1)["fits"],
            false,
            "{device}: {largest}"
        );
        let none = with(small / 2, 1024);
        assert!(none["largest_tokens_per_batch"].is_null());
        assert_eq!(with(1 << 40, 1024)["largest_is_whole_step"], true);
    }
}

/// Where a step's activations would not fit, auto has the backward compute
/// layers again, and only there; a user can have either.
#[test]
fn checkpointing_is_the_plan_s_fallback() {
    for device in ["cpu", "cuda"] {
        let with = |memory: u64, choice: &str| {
            let memory = memory.to_string();
            let set = format!("train.gradient_checkpointing={choice}");
            json(&["--device", device, "--memory", &memory, "--set", &set])
        };
        let total = |plan: &Value| plan["total_bytes"].as_u64().unwrap();
        let (never, always) = (with(1 << 40, "never"), with(1 << 40, "always"));
        assert!(total(&always) < total(&never) * 3 / 4, "{device}");
        let between = (total(&always) + total(&never)) / 2;
        for (memory, choice, recomputes, fits) in [
            (1 << 40, "auto", false, true),
            (between, "auto", true, true),
            (between, "never", false, false),
            (between, "always", true, true),
            (total(&never), "auto", false, true),
            (total(&never) - 1, "auto", true, true),
            (total(&always) - 1, "auto", true, false),
        ] {
            let plan = with(memory, choice);
            assert_eq!(
                plan["gradient_checkpointing"], recomputes,
                "{device} {choice} {memory}"
            );
            assert_eq!(plan["fits"], fits, "{device} {choice} {memory}");
        }
    }
}

/// A machine without a GPU can plan for one.
#[test]
fn a_plan_for_a_gpu_needs_none() {
    let plan = json(&["--device", "cuda", "--memory", "80G"]);
    assert_eq!(plan["device"], "cuda");
    assert_eq!(plan["available_bytes"], 80u64 << 30);
    assert_eq!(plan["fits"], true);
    assert_eq!(plan["blame"], serde_json::json!([]));
    let entries = plan["entries"].as_array().unwrap();
    for entry in entries {
        for field in [
            "what", "role", "shape", "dtype", "phases", "bytes", "shrink",
        ] {
            assert!(!entry[field].is_null(), "{field} in {entry}");
        }
        assert_ne!(entry["role"], "mapped");
    }
    let of = |what: &str| entries.iter().find(|e| e["what"] == what).unwrap();
    assert_eq!(of("embedding = head")["dtype"], "bf16");
    assert_eq!(
        of("embedding = head")["shape"],
        serde_json::json!([512, 128])
    );
    let sum: u64 = plan["roles"]
        .as_object()
        .unwrap()
        .values()
        .map(|v| v.as_u64().unwrap())
        .sum();
    let shared = plan["shared_bytes"].as_u64().unwrap();
    assert_eq!(plan["total_bytes"].as_u64().unwrap(), sum - shared);
    assert!(plan["largest_decode_rows"].as_u64().unwrap() > 1);
}

#[test]
fn what_would_not_fit_is_named_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let output = arca_plan(dir.path(), &["--memory", "1M"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("would not fit: "), "{text}");
    assert!(text.contains("train.tokens_per_batch"), "{text}");
    assert!(text.contains("no train.tokens_per_batch fits"), "{text}");
    let plan = json(&["--memory", "1M"]);
    assert_eq!(plan["fits"], false);
    assert!(!plan["blame"].as_array().unwrap().is_empty());

    let output = arca_plan(dir.path(), &["--memory", "much"]);
    assert_eq!(output.status.code(), Some(2));
}

/// Adapters that train together: the widest batch of each fits, all are
/// sampled side by side, and each has moments of its own, while the gradients
/// are the longest's, used in turn.
#[test]
fn arms_are_planned_together() {
    let plain = Demand {
        longest_prompt: 64,
        longest_completion: 128,
        step_groups: 8,
        step_sequences: 64,
        group: 8,
        sampled: 64,
        reference_rows: false,
        contrast_rows: false,
        trained: 1,
        tokens_per_batch: 4096,
        pages: None,
    };
    let with_reference = Demand {
        reference_rows: true,
        sampled: 100,
        ..plain
    };
    let both = Demand::together(&[plain, with_reference], false);
    assert_eq!((both.sampled, both.trained), (164, 2));
    let shape = crate::common::small_shape(false);
    let layouts = [adapter(&shape, 4).layout, adapter(&shape, 20).layout];
    let capacity = both.capacity(&layouts);
    for each in [&plain, &with_reference] {
        let copies = 1 + usize::from(each.reference_rows);
        assert!(capacity.saved_rows >= each.policy_rows());
        assert!(capacity.rows >= copies * each.policy_rows());
        let own = each.capacity(&layouts);
        assert!(capacity.pairs >= own.pairs && capacity.grad_pairs >= own.grad_pairs);
        assert!(capacity.segments >= own.segments && capacity.pages >= own.pages);
    }
    let types = WeightTypes::bf16(&shape);
    let bytes = |trained| {
        let plan = Plan::new(GPU, &types, &shape, &capacity, &layouts, trained);
        plan.role_bytes(Role::Adapters)
    };
    let (short, long) = (layouts[0].len(), layouts[1].len());
    let more = ((long * 3 - short) * 4) as u64;
    assert!(bytes(2) - bytes(1) >= more && bytes(2) - bytes(1) < more + 4096);
}
