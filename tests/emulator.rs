//! Guards the verbs on `--device emulator`: the same runs as on the CPU, up to
//! what bf16 rounds, through the real binary and through the library.
#![cfg(feature = "emulator")]

use std::process::Command;
use std::sync::Arc;

use arca::device::cpu::Cpu;
use arca::device::cuda::Cuda;
use arca::device::cuda::emulator::EmulatorSettings;
use arca::model::buffers::KvCache;
use arca::model::engine::Engine;
use arca::model::half_layer::HalfLayers;
use arca::model::plan::Capacity;
use arca::rng::{Purpose, open_unit, philox, split_key, stream_key};
use arca::rollout::{self, Completion, KvStore, Request, Rollout, Sampling};
use serde_json::Value;

use crate::common::{arca, root};
use crate::run::Bench;

/// How far two scores (logits over the temperature) of the demo may be apart in
/// bf16 and in f32: logits up to 16 have steps of 2^-4 in bf16, and a few of
/// those may add up.
const TOLERANCE: f32 = 0.25;

/// A few prompts of the demo's kind.
fn requests() -> Vec<Request> {
    let sampling = Arc::new(Sampling {
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        max_tokens: 40,
        stop_ids: vec![509],
        stop: Arc::new([]),
    });
    (0..4u64)
        .map(|problem| Request {
            adapter: None,
            prompt_ids: (0..20 + problem as u32)
                .map(|i| (i * 37 + problem as u32 * 11) % 500)
                .collect(),
            samples: 0..4,
            sampling: sampling.clone(),
            seed: 3,
            purpose: Purpose::Rollout,
            step: 0,
            problem,
        })
        .collect()
}

fn engine<D: HalfLayers>(device: D) -> Engine<D> {
    let capacity = Capacity {
        rows: 512,
        segments: 64,
        pairs: 512,
        pages: 128,
        positions: 128,
        ..Capacity::default()
    };
    Engine::load(device, &root().join("assets/demo"), capacity, false).unwrap()
}

fn sample<D: HalfLayers>(engine: &mut Engine<D>) -> Vec<Completion> {
    sample_in(engine, requests(), 128).0
}

/// Completions, and how often somebody stepped back, in so many pages, all of
/// which must come back.
fn sample_in<D: HalfLayers>(
    engine: &mut Engine<D>,
    requests: Vec<Request>,
    pages: usize,
) -> (Vec<Completion>, usize) {
    let shape = engine.shape().clone();
    let cache = KvCache::new(&engine.device, &shape, pages).unwrap();
    let mut store = KvStore::new(cache);
    let mut rollout = Rollout::new(engine, &mut store, None);
    let done = rollout::generate(&mut rollout, requests, &mut |_| Ok(())).unwrap();
    let stats = rollout.stats().clone();
    drop(rollout);
    assert!(stats.peak_pages() <= pages);
    store.pages.prefixes.clear();
    assert_eq!(store.pages.pool.free(), pages, "pages were lost");
    (done, stats.preemptions)
}

/// Greedy samples in a pool that is too small for all of them: the emulator
/// takes the tokens that the CPU takes, but where the two best logits are
/// closer than the tolerance.
#[test]
fn greedy_tokens_with_a_margin() {
    let greedy: Vec<Request> = requests()
        .into_iter()
        .map(|r| Request {
            samples: 0..2,
            sampling: Arc::new(Sampling {
                temperature: 0.0,
                max_tokens: 40,
                stop_ids: Vec::new(),
                ..(*r.sampling).clone()
            }),
            ..r
        })
        .collect();
    let mut exact = engine(Cpu::<f32>::new());
    let (want, _) = sample_in(&mut exact, greedy.clone(), 128);
    let mut emulated = engine(Cuda::emulator(EmulatorSettings::default()).unwrap());
    let (got, preemptions) = sample_in(&mut emulated, greedy.clone(), 9);
    assert!(preemptions > 0);
    assert_eq!(want.len(), got.len());
    let mut same = 0;
    for (want, got) in want.iter().zip(&got) {
        let first = (0..want.ids.len().min(got.ids.len())).find(|&i| want.ids[i] != got.ids[i]);
        same += first.unwrap_or(want.ids.len());
        let Some(i) = first else {
            assert_eq!(want.ids.len(), got.ids.len());
            continue;
        };
        let mut batch = arca::model::batch::Batch::default();
        let context = [&greedy[want.request].prompt_ids[..], &want.ids[..i]].concat();
        batch.push_segment(&context, &[], None);
        let vocab = exact.shape().vocab_size;
        let (_, logits) = exact.logits(batch).unwrap();
        let logits = &logits[(context.len() - 1) * vocab..];
        let gap = logits[want.ids[i] as usize] - logits[got.ids[i] as usize];
        assert!((0.0..TOLERANCE).contains(&gap), "token {i}: a gap of {gap}");
    }
    let all: usize = want.iter().map(|c| c.ids.len()).sum();
    assert!(2 * same > all, "{same} of {all} tokens are the same");
}

/// Where the emulator draws another token than the CPU, the two best perturbed
/// logits were closer than the tolerance.
#[test]
fn other_tokens_only_at_near_ties() {
    let mut exact = engine(Cpu::<f32>::new());
    let want = sample(&mut exact);
    let got = sample(&mut engine(
        Cuda::emulator(EmulatorSettings::default()).unwrap(),
    ));
    assert_eq!(want.len(), got.len());
    let mut same = 0;
    for (want, got) in want.iter().zip(&got) {
        let request = &requests()[want.request];
        let first = (0..want.ids.len().min(got.ids.len())).find(|&i| want.ids[i] != got.ids[i]);
        same += first.unwrap_or(want.ids.len());
        for (a, b) in want
            .logprobs
            .iter()
            .zip(&got.logprobs)
            .take(first.unwrap_or(usize::MAX))
        {
            assert!((a - b).abs() < TOLERANCE, "log-probs {a} and {b}");
        }
        let Some(i) = first else { continue };
        let mut batch = arca::model::batch::Batch::default();
        let context = [&request.prompt_ids[..], &want.ids[..i]].concat();
        batch.push_segment(&context, &[], None);
        let vocab = exact.shape().vocab_size;
        let (_, logits) = exact.logits(batch).unwrap();
        let logits = &logits[(context.len() - 1) * vocab..];
        let key = stream_key(
            request.seed,
            request.purpose,
            request.step,
            request.problem,
            want.sample as u64,
        );
        let score = |token: u32| {
            let block = philox([token / 4, i as u32, 0, 0], split_key(key));
            logits[token as usize] - (-open_unit(block[token as usize % 4]).ln()).ln()
        };
        let gap = score(want.ids[i]) - score(got.ids[i]);
        assert!((0.0..TOLERANCE).contains(&gap), "token {i}: a gap of {gap}");
    }
    // Most of what is drawn is the same, or the above proves little.
    let all: usize = want.iter().map(|c| c.ids.len()).sum();
    assert!(
        2 * same > all,
        "{same} of {all} tokens before the first difference"
    );
}

#[test]
fn train_eval_and_generate_run() {
    let bench = Bench::new();
    let device = ["train.device=emulator"];
    let run = bench.train("emulated", &device);
    assert_eq!(run.metrics().len(), 2);
    for key in ["loss", "grad_norm"] {
        let name = run.metrics()[0].keys().find(|k| k.ends_with(key)).cloned();
        let name = name.unwrap_or_else(|| panic!("no {key} in the metrics"));
        assert!(run.series(&name).iter().all(|x| x.is_finite()), "{key}");
    }
    // The same again has the same bits: no reduction depends on a schedule.
    bench.train("again", &device).assert_same(&run, 2);
}

/// The rows' numbers on one device.
fn inspect(bench: &Bench, device: &str, input: &str) -> Vec<Value> {
    std::fs::write(bench.path().join("rows.jsonl"), input).unwrap();
    let done = Command::new(arca())
        .args([
            "inspect",
            "--input",
            "rows.jsonl",
            "--json",
            "-",
            "--device",
            device,
        ])
        .args([
            "--method",
            "surprisal,arca,k3,gradient_norm,contrast,delta",
            "--adapter",
            "emulated/adapter",
        ])
        .current_dir(bench.path())
        .output()
        .unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    text.lines()
        .filter(|l| l.starts_with('{'))
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

/// Largest difference of the numbers at equal places of two values.
fn distance(a: &Value, b: &Value) -> f64 {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => (a.as_f64().unwrap() - b.as_f64().unwrap()).abs(),
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len());
            a.iter()
                .zip(b)
                .map(|(a, b)| distance(a, b))
                .fold(0.0, f64::max)
        }
        (Value::Object(a), Value::Object(b)) => {
            assert!(a.keys().eq(b.keys()));
            a.values()
                .zip(b.values())
                .map(|(a, b)| distance(a, b))
                .fold(0.0, f64::max)
        }
        _ => 0.0,
    }
}

#[test]
fn inspect_and_replay_agree_with_the_cpu() {
    let bench = Bench::new();
    bench.train(
        "emulated",
        &["train.device=emulator", "optimizer.learning_rate=0.01"],
    );
    let ids = |n: u32, k: u32| (0..n).map(|i| (i * k + 5) % 500).collect::<Vec<_>>();
    let row = |prompt: &[u32], completion: &[u32], advantage: f32| {
        serde_json::json!({
            "group": "a", "prompt_ids": prompt, "completion_ids": completion, "advantage": advantage,
        })
        .to_string()
    };
    let prompt = ids(30, 7);
    let rows = [
        row(&prompt, &ids(17, 13), 1.0),
        row(&prompt, &ids(9, 29), -0.5),
    ]
    .join("\n");
    let (cpu, emulated) = (
        inspect(&bench, "cpu", &rows),
        inspect(&bench, "emulator", &rows),
    );
    assert_eq!(cpu.len(), 2);
    for (a, b) in cpu.iter().zip(&emulated) {
        assert!(distance(a, b) < 2.0 * TOLERANCE as f64, "{a}\n{b}");
    }
    std::fs::write(bench.path().join("episodes.jsonl"), rows).unwrap();
    let replay = |out: &str, device: &str, dtype: &[&str]| {
        let done = Command::new(arca())
            .args([
                "replay",
                "--episodes",
                "episodes.jsonl",
                "--out",
                out,
                "--device",
                device,
            ])
            .args(["--adapter", "emulated/adapter"])
            .args(dtype)
            .current_dir(bench.path())
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        let bytes = std::fs::read(bench.path().join(out).join("gradients.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut names: Vec<_> = tensors.names().iter().map(|n| n.to_string()).collect();
        names.sort();
        let values = names.iter().flat_map(|n| {
            let data = tensors.tensor(n).unwrap().data().to_vec();
            bytemuck::pod_collect_to_vec::<u8, f32>(&data)
        });
        values.collect::<Vec<f32>>()
    };
    let exact = replay("exact", "cpu", &[]);
    let plain = replay("plain", "cpu", &["--set", "model.compute_dtype=bf16"]);
    let emulated = replay("emulated-replay", "emulator", &[]);
    // Relative L2 over all gradients, against that of plain bf16 on the CPU
    // (measured: 0.018 and 0.026).
    let error = crate::common::rel_l2(&emulated, &exact);
    let bound = 2.0 * crate::common::rel_l2(&plain, &exact);
    println!("gradients: {error} of {bound}");
    assert!(
        error < bound,
        "gradients differ by {error}, {bound} is allowed"
    );
}

/// Without a GPU or kernels, `cuda` says so and what to do; f32 is refused.
#[test]
fn cuda_without_a_gpu_is_an_error() {
    if Cuda::gpu(0).is_ok() {
        return;
    }
    let bench = Bench::new();
    let message = bench.refused(1, &["train.device=cuda"]);
    assert!(
        message.contains("driver") || message.contains("nvcc"),
        "{message}"
    );
    let message = bench.refused(2, &["train.device=emulator", "model.compute_dtype=f32"]);
    assert!(message.contains("bf16"), "{message}");
}

/// Attention kernels that a device lacks, or that nobody has, are refused by
/// name before anything runs.
#[test]
fn attention_kernels_that_are_not_there() {
    for (wish, says) in [
        ("wgmma", "they are for sm_90"),
        ("fast", "it may be mma or wgmma"),
    ] {
        let done = Command::new(arca())
            .args(["bench", "kernels", "--device", "emulator"])
            .env("ARCA_ATTENTION", wish)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success(), "{wish}");
        assert!(
            text.contains("ARCA_ATTENTION") && text.contains(says),
            "{text}"
        );
    }
}
