//! Guards the whole tiny model on each device: forward, head, residuals,
//! backward, paged decode and sampling against the exact CPU.

use arca::credit::HiddenChoice;
use arca::device::Slice;
use arca::device::cpu::Cpu;
use arca::episode::AdapterId;
use arca::model::adapter::AdapterLayout;
use arca::model::batch::{Batch, PageTable};
use arca::model::buffers::KvCache;
use arca::model::config::{Group, ModelShape, Module};
use arca::model::engine::Engine;
use arca::model::half_layer::HalfLayers;
use arca::model::plan::Capacity;
use arca::ops::decode::PAGE;
use arca::ops::sample::SampleRequest;
use half::bf16;

use super::{On, assert_close, test_device};
use crate::common::{Packing, SmallModel, pack, random_groups, small_shape, with_dropout};

test_device!(packed);
test_device!(recomputed);
test_device!(paged);
test_device!(refused_shapes);

fn shape(head_dim: usize) -> ModelShape {
    ModelShape {
        hidden_size: 48,
        intermediate_size: 80,
        head_dim,
        num_heads: 2,
        num_kv_heads: 1,
        ..small_shape(false)
    }
}

fn engine<D: HalfLayers>(
    device: D,
    model: &SmallModel,
    layout: &AdapterLayout,
    params: &[f32],
) -> Engine<D> {
    engine_that(device, model, layout, params, false)
}

fn engine_that<D: HalfLayers>(
    device: D,
    model: &SmallModel,
    layout: &AdapterLayout,
    params: &[f32],
    recompute: bool,
) -> Engine<D> {
    let capacity = Capacity {
        rows: 256,
        saved_rows: 128,
        segments: 32,
        pairs: 256,
        grad_pairs: 128,
        s_width: Group::ALL.map(|g| layout.s_width(g)),
        pages: 32,
        sequences: 0,
        positions: 64,
        recompute,
    };
    let mut engine = Engine::load(device, model.path(), capacity, true).unwrap();
    engine.add_adapter(layout.clone(), params).unwrap();
    engine
}

/// Log-probs, entropies, residuals and gradients of a step with base rows.
fn step<D: HalfLayers>(
    engine: &mut Engine<D>,
    batch: &Batch,
    hidden: HiddenChoice,
) -> [Vec<f32>; 4] {
    let out = engine
        .run_packed(batch.clone(), 0.9, true, Some(hidden))
        .unwrap();
    let id = AdapterId(0);
    let n = engine.adapter(id).layout.len();
    let mut grads = engine.device.alloc::<f32>(n).unwrap();
    let coefficients: Vec<f32> = (0..batch.grad_pairs)
        .map(|i| (i as f32 * 0.7).sin())
        .collect();
    engine.backward(id, &coefficients, &mut grads).unwrap();
    let mut host = vec![0f32; n];
    let all = Slice {
        buf: &grads,
        start: 0,
        len: n,
    };
    engine
        .device
        .download(&engine.ctx(), all, &mut host)
        .unwrap();
    [out.logprobs, out.entropies, out.residuals, host]
}

/// A backward that computes each layer again has the bits of one that kept
/// everything: beside base rows, under dropout, with some modules only, and in
/// less memory.
fn recomputed<D: HalfLayers + Reopen>(on: &On<D>) {
    let model = SmallModel::in_bf16(shape(64), 5);
    let how = Packing {
        share: 8,
        base: true,
        training: true,
    };
    let groups = random_groups(model.shape.vocab_size, 2, &[(7, &[5, 1, 9])]);
    let some = [Module::K, Module::Down];
    for (modules, dropout) in [(&Module::ALL[..], 0.3), (&some, 0.0)] {
        let (layout, params) = model.adapter(modules, 4, 3);
        let mut packed = pack(&groups[0], Some(AdapterId(0)), how);
        if dropout > 0.0 {
            with_dropout(&mut packed, dropout, |s, i| (100 * s + i) as u64);
        }
        let run = |recompute| {
            let device = on.device.reopen();
            let mut engine = engine_that(device, &model, &layout, &params, recompute);
            let numbers = step(&mut engine, &packed.batch, HiddenChoice::PostNorm);
            (numbers, engine.plan().total())
        };
        let ((kept, most), (again, least)) = (run(false), run(true));
        assert!(kept[3].iter().any(|g| *g != 0.0));
        for (kept, again) in kept.iter().zip(&again) {
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(kept), bits(again), "dropout {dropout}");
        }
        assert!(least < most, "{least} of {most} bytes");
    }
}

fn packed<D: HalfLayers + Reopen>(on: &On<D>) {
    for (head_dim, r) in [(64, 4), (128, 16)] {
        let model = SmallModel::in_bf16(shape(head_dim), 5);
        let (layout, params) = model.adapter(&Module::ALL, r, 3);
        let groups = random_groups(model.shape.vocab_size, 2, &[(7, &[5, 1, 9])]);
        let how = Packing {
            share: 8,
            base: true,
            training: true,
        };
        let batch = pack(&groups[0], Some(AdapterId(0)), how).batch;
        for hidden in [HiddenChoice::PostNorm, HiddenChoice::Layer(0)] {
            let got = step(
                &mut engine(on.device.reopen(), &model, &layout, &params),
                &batch,
                hidden,
            );
            let plain = step(
                &mut engine(Cpu::<bf16>::new(), &model, &layout, &params),
                &batch,
                hidden,
            );
            let want = step(
                &mut engine(Cpu::<f32>::new(), &model, &layout, &params),
                &batch,
                hidden,
            );
            for (i, name) in ["log-probs", "entropies", "residuals", "gradients"]
                .iter()
                .enumerate()
            {
                let size =
                    want[i].iter().map(|x| x.abs() as f64).sum::<f64>() / want[i].len() as f64;
                let what = format!("{name} at head_dim {head_dim}, {hidden:?}");
                // Factors, probabilities and finished products are rounded to
                // bf16 where the plain run on the CPU keeps f32.
                assert_close(&what, &got[i], &plain[i], &want[i], size / 100.0);
            }
        }
    }
}

/// A prompt in two chunks, then ten greedy tokens, each with its log-prob.
fn decode<D: HalfLayers>(engine: &mut Engine<D>, prompt: &[u32]) -> Vec<(u32, f32)> {
    let shape = engine.shape().clone();
    let mut cache = KvCache::new(&engine.device, &shape, 4).unwrap();
    let table = PageTable {
        group: [3].into(),
        own: vec![1, 0],
    };
    let mut drawn = Vec::new();
    let mut rows = 0;
    let mut ids = prompt.to_vec();
    for (i, n) in [PAGE + 2, prompt.len() - PAGE - 2]
        .into_iter()
        .chain([1; 9])
        .enumerate()
    {
        let mut batch = Batch::default();
        batch.push_segment(&ids[rows..rows + n], &[], Some(AdapterId(0)));
        for (k, p) in batch.positions.iter_mut().enumerate() {
            *p = (rows + k) as u32;
        }
        batch.pages.push(table.clone());
        rows += n;
        let request = SampleRequest {
            row: n as u32 - 1,
            key: 7,
            position: i as u32,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
        };
        let requests = if i == 0 { vec![] } else { vec![request] };
        for s in engine.run_paged(batch, &mut cache, &requests).unwrap() {
            assert!(!s.invalid);
            drawn.push((s.token, s.logprob));
            ids.push(s.token);
        }
    }
    drawn
}

/// What was sampled over pages has the log-prob that a packed forward gives it,
/// within bf16; greedy tokens are those of the exact model up to near ties.
fn paged<D: HalfLayers + Reopen>(on: &On<D>) {
    let model = SmallModel::in_bf16(shape(64), 5);
    let (layout, params) = model.adapter(&Module::ALL, 4, 3);
    let prompt: Vec<u32> = (0..21).map(|i| (i * 17 % 61) as u32).collect();
    let mut tested = engine(on.device.reopen(), &model, &layout, &params);
    let drawn = decode(&mut tested, &prompt);
    let sequence = crate::common::Sequence {
        prompt: prompt.clone(),
        completion: drawn.iter().map(|d| d.0).collect(),
    };
    let how = Packing {
        share: 1,
        base: false,
        training: false,
    };
    let batch = pack(&[sequence], Some(AdapterId(0)), how).batch;
    let packed = tested
        .run_packed(batch.clone(), 1.0, false, None)
        .unwrap()
        .logprobs;
    let mut exact = engine(Cpu::<f32>::new(), &model, &layout, &params);
    let want = exact
        .run_packed(batch.clone(), 1.0, false, None)
        .unwrap()
        .logprobs;
    let (_, logits) = exact.logits(batch).unwrap();
    for (i, (token, logprob)) in drawn.iter().enumerate() {
        // A few steps of bf16 at logits of this size, not a measured floor.
        assert!(
            (logprob - packed[i]).abs() < 0.1,
            "token {i}: {logprob}, packed {}",
            packed[i]
        );
        assert!(
            (logprob - want[i]).abs() < 0.15,
            "token {i}: {logprob}, exact {}",
            want[i]
        );
        let row = &logits[(prompt.len() - 1 + i) * 61..][..61];
        let best = row.iter().copied().fold(f32::MIN, f32::max);
        assert!(
            best - row[*token as usize] < 0.15,
            "token {i} is not near the best"
        );
    }
}

/// A shape that the kernels do not take is refused by name, not computed wrong.
fn refused_shapes<D: HalfLayers + Reopen>(on: &On<D>) {
    if on.device.takes_any_shape() {
        return;
    }
    for (shape, word) in [
        (
            ModelShape {
                head_dim: 32,
                ..shape(64)
            },
            "head_dim 32",
        ),
        (
            ModelShape {
                hidden_size: 40,
                ..shape(64)
            },
            "multiples of 16",
        ),
        (
            ModelShape {
                intermediate_size: 24,
                ..shape(64)
            },
            "multiples of 16",
        ),
    ] {
        let model = SmallModel::in_bf16(shape, 5);
        let capacity = Capacity {
            rows: 16,
            segments: 4,
            pairs: 16,
            positions: 64,
            ..Capacity::default()
        };
        let Err(error) = Engine::load(on.device.reopen(), model.path(), capacity, false) else {
            panic!("a shape was not refused: {word}");
        };
        assert!(format!("{error:#}").contains(word), "{error:#}");
    }
}

/// An engine owns its device; a test has a borrowed one.
pub trait Reopen {
    fn reopen(&self) -> Self;
    fn takes_any_shape(&self) -> bool;
}

impl<A: arca::device::Float> Reopen for Cpu<A> {
    fn reopen(&self) -> Self {
        Cpu::new()
    }
    fn takes_any_shape(&self) -> bool {
        true
    }
}

impl Reopen for arca::device::cuda::Cuda {
    fn reopen(&self) -> Self {
        self.clone()
    }
    fn takes_any_shape(&self) -> bool {
        false
    }
}
