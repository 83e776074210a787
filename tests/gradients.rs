//! Guards every backward against difference quotients of its own forward, on
//! random shapes (odd widths among them), and what has no backward against a
//! plain float64 restatement.
//!
//! For a random direction v the quotient J v is taken with the fourth-order
//! central stencil in f32; then <dy, J v> must be <J^T dy, v>. dy is made half
//! of J v itself, so that the products are of the size of |dy| |J v| and the
//! relative bound is sharp. With h = 0.02 and values near 1 the stencil's own
//! error is about h^4 = 2e-7 and rounding 6e-8 / h = 3e-6 per element; bounds
//! allow 100 times that.

use arca::device::cpu::{Cpu, CpuBuf};
use arca::device::{BatchCapacity, Ctx, Device, Slice, SliceMut};
use arca::episode::AdapterId;
use arca::model::adapter::{AdapterLayout, LoraSettings, Target};
use arca::model::batch::{Batch, Dropout, Pair};
use arca::model::config::{Group, ModelShape, Module};
use arca::model::weights::map_file;
use arca::ops::adamw::{AdamW, AdamWStep};
use arca::ops::attention::Attention;
use arca::ops::linear::{Linear, WeightView};
use arca::ops::logprob::LogProb;
use arca::ops::lora::{Lora, LoraCall};
use arca::ops::qknorm_rope::{QkNormRope, QkNormWeights, RopeTable};
use arca::ops::residual::Residual;
use arca::ops::rmsnorm::{NormShape, RmsNorm};
use arca::ops::swiglu::SwiGlu;
use arca::rng::Stream;
use proptest::prelude::*;

use crate::common::{
    Packing, SmallModel, Tensor, engine, gradients, logprobs, pack, random_groups, small_shape,
    with_dropout, write_f32,
};

type Device32 = Cpu<f32>;
const CTX: Ctx<'static, Device32> = Ctx { stream: &() };
const BOUND: f64 = 3e-4;

/// Few cases; a failure prints its seed and writes no file.
fn cases(n: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(n)
    }
}

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut stream = Stream::new(seed);
    (0..n).map(|_| 2.0 * stream.unit() - 1.0).collect()
}

/// Magnitudes from 0.5 to 1.5: a norm's input far from its singularity at 0.
fn away_from_zero(n: usize, seed: u64) -> Vec<f32> {
    let away = |x: f32| x + 0.5f32.copysign(x);
    random(n, seed).into_iter().map(away).collect()
}

fn buf(data: &[f32]) -> CpuBuf<f32> {
    CpuBuf {
        data: data.to_vec(),
    }
}

fn zeros(n: usize) -> CpuBuf<f32> {
    buf(&vec![0.0; n])
}

/// Stale contents: what an op must overwrite.
fn dirty(n: usize) -> CpuBuf<f32> {
    buf(&vec![f32::NAN; n])
}

fn all(buf: &CpuBuf<f32>) -> Slice<'_, Device32, f32> {
    let len = buf.data.len();
    Slice { buf, start: 0, len }
}

fn all_mut(buf: &mut CpuBuf<f32>) -> SliceMut<'_, Device32, f32> {
    let len = buf.data.len();
    SliceMut { buf, start: 0, len }
}

fn dot(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| *x as f64 * y).sum()
}

fn norm(a: &[f64]) -> f64 {
    a.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// J v by the fourth-order central stencil.
fn quotient(x: &[f32], v: &[f32], h: f32, forward: &mut dyn FnMut(&[f32]) -> Vec<f32>) -> Vec<f64> {
    let mut at = |t: f32| -> Vec<f64> {
        let moved: Vec<f32> = x.iter().zip(v).map(|(x, v)| x + t * v).collect();
        forward(&moved).into_iter().map(f64::from).collect()
    };
    let (a, b, c, d) = (at(h), at(-h), at(2.0 * h), at(-2.0 * h));
    (0..a.len())
        .map(|i| (8.0 * (a[i] - b[i]) - (c[i] - d[i])) / (12.0 * h as f64))
        .collect()
}

/// `backward(dy)` against difference quotients of `forward`, see the module.
fn check(
    what: &str,
    x: &[f32],
    seed: u64,
    mut forward: impl FnMut(&[f32]) -> Vec<f32>,
    backward: impl FnOnce(&[f32]) -> Vec<f32>,
) -> Result<(), TestCaseError> {
    let v = random(x.len(), seed ^ 0x5eed);
    let jv = quotient(x, &v, 0.02, &mut forward);
    let size = norm(&jv).max(1e-12);
    let noise = random(jv.len(), seed ^ 0xd1);
    let noise_size = norm(&noise.iter().map(|n| *n as f64).collect::<Vec<_>>()).max(1e-12);
    let dy: Vec<f32> = jv
        .iter()
        .zip(&noise)
        .map(|(j, n)| (j / size + *n as f64 / noise_size) as f32)
        .collect();
    let dx = backward(&dy);
    prop_assert_eq!(dx.len(), x.len());
    let expected = dot(&dy, &jv);
    let got: f64 = dx.iter().zip(&v).map(|(d, v)| *d as f64 * *v as f64).sum();
    // A quotient near 0 by chance is judged by what it usually is, and by the
    // rounding of the values it is a difference of.
    let usual = norm(&dx.iter().map(|d| *d as f64).collect::<Vec<_>>()) / 3f64.sqrt();
    let largest = forward(x).into_iter().fold(0f32, |m, y| m.max(y.abs())) as f64;
    let error = (got - expected).abs() / size.max(usual).max(0.1 * largest);
    prop_assert!(
        error <= BOUND,
        "{what}: {got} against {expected}, relative {error:.1e}"
    );
    Ok(())
}

fn load_batch(batch: Batch) -> <Device32 as Device>::Batch {
    let device = Device32::new();
    let capacity = BatchCapacity {
        rows: batch.rows(),
        segments: batch.segments.len(),
        pairs: batch.pairs.len(),
        ..BatchCapacity::default()
    };
    let mut loaded = device.new_batch(capacity).unwrap();
    device.load_batch(&CTX, &mut loaded, batch).unwrap();
    loaded
}

/// A prompt that several segments share, one that none does, and one whose
/// context is a chain; all saved.
fn ragged_batch(prompt: usize, lengths: &[usize], adapter: Option<AdapterId>) -> Batch {
    let mut batch = Batch::default();
    let shared = batch.push_segment(&vec![0; prompt], &[], adapter);
    let mut last = shared;
    for &n in lengths {
        last = batch.push_segment(&vec![0; n], &[shared], adapter);
    }
    batch.push_segment(&[0; 2], &[shared, last], adapter);
    batch.push_segment(&[0; 3], &[], adapter);
    batch.saved_rows = batch.rows();
    batch
}

/// Matrices as a mapped checkpoint has them.
fn views(tensors: &[(usize, usize, Vec<f32>)]) -> Vec<WeightView> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let named: Vec<(String, Tensor)> = tensors
        .iter()
        .enumerate()
        .map(|(i, (rows, cols, data))| {
            let (shape, data) = (vec![*rows, *cols], data.clone());
            (format!("{i}"), Tensor { shape, data })
        })
        .collect();
    write_f32(&path, &named);
    let mut loaded = map_file(&path).unwrap();
    loaded.sort_by_key(|(name, _)| name.parse::<usize>().unwrap());
    loaded.into_iter().map(|(_, (view, _))| view).collect()
}

fn shape(
    heads_per_kv: usize,
    kv: usize,
    half_dim: usize,
    hidden: usize,
    width: usize,
) -> ModelShape {
    ModelShape {
        hidden_size: hidden,
        intermediate_size: width,
        num_layers: 1,
        num_heads: heads_per_kv * kv,
        num_kv_heads: kv,
        head_dim: 2 * half_dim,
        ..small_shape(false)
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn rmsnorm(rows in 1usize..9, hidden in 4usize..70, seed: u64) {
        let device = Device32::new();
        let shape = NormShape { rows, hidden, eps: 1e-6 };
        let n = rows * hidden;
        let weight = buf(&random(hidden, seed ^ 1));
        let x = away_from_zero(n, seed);
        // h = previous + y, as between the halves of a layer.
        let y: Vec<f32> = random(n, seed ^ 2).iter().map(|y| 0.1 * y).collect();
        let run = |previous: &[f32]| {
            let (mut h, mut out, mut rstd) = (dirty(n), dirty(n), dirty(rows));
            let (previous, y) = (buf(previous), buf(&y));
            device.rmsnorm_forward::<f32>(&CTX, shape, Some((all(&previous), all(&y))),
                all_mut(&mut h), &weight, all_mut(&mut out), all_mut(&mut rstd)).unwrap();
            (h, out.data, rstd)
        };
        let before = random(n, seed ^ 3);
        check("rmsnorm", &x, seed, |x| run(x).1, |dy| {
            let (h, _, rstd) = run(&x);
            let (mut dh, mut d_added) = (buf(&before), dirty(n));
            device.rmsnorm_backward::<f32>(&CTX, shape, all(&h), &weight, all(&rstd),
                all(&buf(dy)), all_mut(&mut dh), all_mut(&mut d_added)).unwrap();
            assert_eq!(dh.data, d_added.data);
            // What was there on entry is the residual path's own share.
            dh.data.iter().zip(&before).map(|(a, b)| a - b).collect()
        })?;
    }

    #[test]
    fn swiglu(rows in 1usize..9, width in 1usize..70, seed: u64) {
        let device = Device32::new();
        let x: Vec<f32> = random(rows * 2 * width, seed).iter().map(|x| 3.0 * x).collect();
        check("swiglu", &x, seed, |x| {
            let mut act = dirty(rows * width);
            device.swiglu_forward(&CTX, rows, width, all(&buf(x)), all_mut(&mut act)).unwrap();
            act.data
        }, |dy| {
            let mut dx = dirty(x.len());
            device.swiglu_backward(&CTX, rows, width, all(&buf(&x)), all(&buf(dy)), all_mut(&mut dx)).unwrap();
            dx.data
        })?;
    }

    #[test]
    fn qknorm_rope(heads_per_kv in 1usize..4, kv in 1usize..3, half in 2usize..18, rows in 1usize..9, seed: u64) {
        let device = Device32::new();
        let shape = shape(heads_per_kv, kv, half, 8, 8);
        let mut batch = Batch::default();
        batch.push_segment(&vec![0; rows], &[], None);
        let batch = load_batch(batch);
        let weights = QkNormWeights { q: buf(&random(2 * half, seed ^ 1)), k: buf(&random(2 * half, seed ^ 2)) };
        let rope = RopeTable::new(&device, &CTX, &shape, rows).unwrap();
        let (wide, narrow) = (shape.qkv_width(), shape.q_width() + shape.kv_width());
        let x = away_from_zero(rows * wide, seed);
        check("qknorm_rope", &x, seed, |x| {
            let mut qk = dirty(rows * narrow);
            device.qknorm_rope_forward(&CTX, &batch, &shape, rows, &weights, &rope, all(&buf(x)), all_mut(&mut qk)).unwrap();
            qk.data
        }, |dy| {
            // The v columns are attention's to write.
            let mut dx = zeros(x.len());
            device.qknorm_rope_backward(&CTX, &batch, &shape, rows, &weights, &rope, all(&buf(&x)), all(&buf(dy)), all_mut(&mut dx)).unwrap();
            dx.data
        })?;
    }

    #[test]
    fn attention(heads_per_kv in 1usize..4, kv in 1usize..3, half in 1usize..18,
                 prompt in 1usize..40, lengths in prop::collection::vec(1usize..30, 1..4), seed: u64) {
        let device = Device32::new();
        let shape = shape(heads_per_kv, kv, half, 8, 8);
        let host = ragged_batch(prompt, &lengths, None);
        let rows = host.rows();
        let batch = load_batch(host);
        let (q, qk_width, wide) = (shape.q_width(), shape.q_width() + shape.kv_width(), shape.qkv_width());
        // One input: all of qk, then all of qkv (of which only v is read).
        let x: Vec<f32> = random(rows * (qk_width + wide), seed).iter().map(|x| 1.5 * x).collect();
        let cut = rows * qk_width;
        let run = |x: &[f32]| {
            let (mut out, mut lse) = (dirty(rows * q), dirty(rows * shape.num_heads));
            device.attention_forward(&CTX, &batch, &shape, all(&buf(&x[..cut])), all(&buf(&x[cut..])),
                all_mut(&mut out), all_mut(&mut lse)).unwrap();
            (out, lse)
        };
        check("attention", &x, seed, |x| run(x).0.data, |dy| {
            let (out, lse) = run(&x);
            let (mut d_qk, mut d_qkv) = (dirty(cut), zeros(rows * wide));
            device.attention_backward(&CTX, &batch, &shape, all(&buf(&x[..cut])), all(&buf(&x[cut..])),
                all(&out), all(&lse), all(&buf(dy)), all_mut(&mut d_qk), all_mut(&mut d_qkv)).unwrap();
            [d_qk.data, d_qkv.data].concat()
        })?;
    }

    #[test]
    fn linear(rows in 1usize..40, inputs in 1usize..70, parts in prop::collection::vec(1usize..40, 1..4), bias: bool, seed: u64) {
        let device = Device32::new();
        let outputs: usize = parts.iter().sum();
        let tensors: Vec<(usize, usize, Vec<f32>)> = parts.iter().enumerate()
            .map(|(i, &n)| (n, inputs, random(n * inputs, seed ^ (i as u64 + 1)))).collect();
        let b = bias.then(|| random(outputs, seed ^ 9));
        let matrix = device.load_matrix(&views(&tensors), b.clone(), true, 0).unwrap();
        let mut batch = Batch::default();
        batch.push_segment(&vec![0; rows], &[], None);
        let batch = load_batch(batch);
        let x = random(rows * inputs, seed);
        let run = |x: &[f32]| {
            let mut y = dirty(rows * outputs);
            device.linear_forward(&CTX, &batch, rows, &matrix, all(&buf(x)), None, all_mut(&mut y)).unwrap();
            y.data
        };
        // The forward itself, against float64.
        let y = run(&x);
        let flat: Vec<&[f32]> = tensors.iter().flat_map(|t| t.2.chunks(inputs)).collect();
        for r in 0..rows {
            for (o, w) in flat.iter().enumerate() {
                let exact: f64 = w.iter().zip(&x[r * inputs..]).map(|(w, x)| *w as f64 * *x as f64).sum::<f64>()
                    + b.as_ref().map_or(0.0, |b| b[o] as f64);
                // A chain of at most 70 terms below 1.
                prop_assert!((y[r * outputs + o] as f64 - exact).abs() < 2e-5);
            }
        }
        check("linear", &x, seed, run, |dy| {
            let mut dx = dirty(x.len());
            device.linear_backward(&CTX, &batch, rows, &matrix, all(&buf(dy)), None, all_mut(&mut dx)).unwrap();
            dx.data
        })?;
    }

    /// A product with LoRA terms, by its input and by A and B, with and
    /// without dropout, ranks differing among the parts.
    #[test]
    fn lora(hidden in 2usize..40, width in 1usize..40, half in 1usize..10, ranks in prop::array::uniform3(0usize..20),
            which in 0usize..4, dropout in prop::option::of(0.1f32..0.6), seed: u64) {
        let device = Device32::new();
        let shape = shape(2, 1, half, hidden, width);
        let group = Group::ALL[which];
        let mut targets: Vec<Target> = group.modules().iter().zip(ranks)
            .filter(|(_, r)| *r > 0)
            .map(|(&module, r)| Target { layer: 0, module, r, alpha: 1.0 + r as f32 }).collect();
        if targets.is_empty() {
            targets.push(Target { layer: 0, module: group.modules()[0], r: 3, alpha: 4.0 });
        }
        let settings = LoraSettings { r: 4, alpha: 4.0, dropout: 0.0, use_rslora: false, targets };
        let layout = AdapterLayout::new(&shape, settings).unwrap();
        let (inputs, widths) = (group.inputs(&shape), group.outputs(&shape));
        let outputs: usize = widths.iter().sum();
        let tensors: Vec<(usize, usize, Vec<f32>)> = widths.iter().enumerate()
            .map(|(i, &n)| (n, inputs, random(n * inputs, seed ^ (i as u64 + 1)))).collect();
        let matrix = device.load_matrix(&views(&tensors), None, true, 0).unwrap();
        let id = AdapterId(0);
        let mut host = ragged_batch(5, &[3, 4], Some(id));
        let rows = host.rows();
        host.dropout = dropout.map(|p| Dropout { p, row_keys: (0..rows as u64).map(|r| seed ^ r).collect() });
        let batch = load_batch(host);
        let s_width = layout.s_width(group);

        // One input: x, then the parameters.
        let cut = rows * inputs;
        let x = random(cut + layout.len(), seed);
        let run = |x: &[f32]| {
            let mut adapters = device.new_adapters(&shape).unwrap();
            device.sync_adapter(&CTX, &mut adapters, id, &layout, all(&buf(&x[cut..]))).unwrap();
            let (mut s, mut y, x) = (dirty(rows * s_width), dirty(rows * outputs), buf(&x[..cut]));
            device.lora_shrink(&CTX, &batch, rows, &adapters, 0, group, all(&x), all_mut(&mut s)).unwrap();
            let call = LoraCall { adapters: &adapters, layer: 0, group, s: all(&s) };
            device.linear_forward(&CTX, &batch, rows, &matrix, all(&x), Some(call), all_mut(&mut y)).unwrap();
            (adapters, s, y.data)
        };
        check("lora", &x, seed, |x| run(x).2, |dy| {
            let (adapters, s, _) = run(&x);
            let (mut ds, mut dx, mut grads) = (dirty(rows * s_width), dirty(cut), zeros(layout.len()));
            let (dy, x) = (buf(dy), buf(&x[..cut]));
            device.lora_shrink_backward(&CTX, &batch, rows, &adapters, 0, group, all(&dy), all_mut(&mut ds)).unwrap();
            device.lora_gradients(&CTX, &batch, rows, &layout, 0, group, all(&x), all(&s), all(&dy), all(&ds), all_mut(&mut grads)).unwrap();
            let call = LoraCall { adapters: &adapters, layer: 0, group, s: all(&ds) };
            device.linear_backward(&CTX, &batch, rows, &matrix, all(&dy), Some(call), all_mut(&mut dx)).unwrap();
            [dx.data, grads.data].concat()
        })?;
    }

    /// Log-prob and entropy against float64, and the gradient by way of u,
    /// rows repeated among the pairs and base pairs after the grad pairs.
    #[test]
    fn logprob(rows in 1usize..9, hidden in 1usize..50, vocab in 2usize..90, temperature in 0.4f32..2.0,
               picks in prop::collection::vec((0usize..9, 0usize..90), 1..20), seed: u64) {
        let device = Device32::new();
        let weights = random(vocab * hidden, seed ^ 1);
        let head = device.load_matrix(&views(&[(vocab, hidden, weights.clone())]), None, true, 0).unwrap();
        let mut host = Batch::default();
        host.push_segment(&vec![0; rows], &[], None);
        host.saved_rows = rows;
        host.pairs = picks.iter()
            .map(|&(r, t)| Pair { row: (r % rows) as u32, target: (t % vocab) as u32 }).collect();
        let pairs = host.pairs.clone();
        host.grad_pairs = pairs.len().div_ceil(2);
        let grad_pairs = host.grad_pairs;
        let batch = load_batch(host);
        let x = random(rows * hidden, seed);
        let run = |x: &[f32]| {
            let (mut lp, mut h, mut u) = (dirty(pairs.len()), dirty(pairs.len()), dirty(grad_pairs * hidden));
            device.logprob_forward(&CTX, &CTX, &batch, &head, temperature, all(&buf(x)), all_mut(&mut lp), all_mut(&mut h), Some(all_mut(&mut u))).unwrap();
            (lp.data, h.data, u)
        };
        let (lp, entropy, _) = run(&x);
        for (i, pair) in pairs.iter().enumerate() {
            let state = &x[pair.row as usize * hidden..][..hidden];
            let z: Vec<f64> = weights.chunks(hidden)
                .map(|w| w.iter().zip(state).map(|(w, x)| *w as f64 * *x as f64).sum::<f64>() / temperature as f64).collect();
            let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
            let exact: f64 = -z.iter().map(|z| (z - log_sum).exp() * (z - log_sum)).sum::<f64>();
            prop_assert!((lp[i] as f64 - (z[pair.target as usize] - log_sum)).abs() < 2e-5);
            prop_assert!((entropy[i] as f64 - exact).abs() < 2e-5);
        }
        check("logprob", &x, seed, |x| run(x).0[..grad_pairs].to_vec(), |dy| {
            let u = run(&x).2;
            let mut dx = dirty(x.len());
            device.logprob_backward(&CTX, &batch, hidden, all(&buf(dy)), all(&u), all_mut(&mut dx)).unwrap();
            dx.data
        })?;
    }

    /// ||h_on - h_off|| against float64.
    #[test]
    fn residual(rows in 2usize..9, hidden in 1usize..70, picks in prop::collection::vec((0u32..9, 0u32..9), 1..20), seed: u64) {
        let device = Device32::new();
        let mut host = Batch::default();
        host.push_segment(&vec![0; rows], &[], None);
        let wrap = |r: u32| r % rows as u32;
        host.residual_pairs = picks.iter().map(|&(a, b)| (wrap(a), wrap(b))).collect();
        let pairs = host.residual_pairs.clone();
        let batch = load_batch(host);
        let h = random(rows * hidden, seed);
        let mut norms = dirty(pairs.len());
        device.residual_norms::<f32>(&CTX, &batch, hidden, all(&buf(&h)), all_mut(&mut norms)).unwrap();
        for ((a, b), got) in pairs.into_iter().zip(norms.data) {
            let row = |r: u32| h[r as usize * hidden..][..hidden].iter();
            let exact: f64 = row(a).zip(row(b)).map(|(x, y)| (*x as f64 - *y as f64).powi(2)).sum::<f64>().sqrt();
            prop_assert!((got as f64 - exact).abs() <= 1e-6 * exact.max(1.0));
        }
    }

    /// Several steps of AdamW and the global norm against float64.
    #[test]
    fn adamw(n in 1usize..10_000, weight_decay in 0f64..0.1, clip in 0.1f32..1.0, seed: u64) {
        let device = Device32::new();
        let (mut p, mut m, mut v) = (buf(&random(n, seed)), zeros(n), zeros(n));
        let mut exact: Vec<[f64; 3]> = p.data.iter().map(|p| [*p as f64, 0.0, 0.0]).collect();
        for step in 1..4u64 {
            let g = random(n, seed ^ step);
            let constants = AdamWStep { learning_rate: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay, step, clip };
            let grads = buf(&g);
            let sum: f64 = g.iter().map(|g| (*g as f64).powi(2)).sum();
            prop_assert!((device.squared_norm(&CTX, all(&grads)).unwrap() / sum - 1.0).abs() < 1e-12);
            device.adamw(&CTX, &constants, all(&grads), all_mut(&mut p), all_mut(&mut m), all_mut(&mut v)).unwrap();
            for (e, g) in exact.iter_mut().zip(&g) {
                let g = *g as f64 * clip as f64;
                e[0] *= 1.0 - 1e-2 * weight_decay;
                e[1] += (g - e[1]) * 0.1;
                e[2] = 0.999 * e[2] + 0.001 * g * g;
                let t = step as i32;
                let root = (e[2] / (1.0 - 0.999f64.powi(t))).sqrt();
                e[0] -= 1e-2 * e[1] / (1.0 - 0.9f64.powi(t)) / (root + 1e-8);
            }
        }
        for (got, e) in p.data.iter().zip(&exact) {
            // Half an ulp of values below 2 per operation, a few operations.
            prop_assert!((*got as f64 - e[0]).abs() < 1e-6);
        }
    }
}

proptest! {
    #![proptest_config(cases(6))]

    /// d(loss)/d(all of A and B) of a whole model: the gradient along itself
    /// and along a random direction. The step moves the loss by about 0.1:
    /// against it the rounding of some twenty f32 log-probs, 3e-6 each, is 1e-4.
    #[test]
    fn whole_model(odd: bool, layers in 1usize..4, r in 1usize..20, few: bool, dropout in prop::option::of(0.05f32..0.5),
                   temperature in 0.6f32..1.5, seed: u64) {
        let model = SmallModel::new(ModelShape { num_layers: layers, ..small_shape(odd) }, seed);
        let modules = if few { &[Module::K, Module::O, Module::Up][..] } else { &Module::ALL };
        let (layout, params) = model.adapter(modules, r, seed ^ 1);
        let mut engine = engine::<f32>(model.path(), &[&layout]);
        let id = engine.add_adapter(layout, &params).unwrap();
        let groups = random_groups(model.shape.vocab_size, seed ^ 2, &[(6, &[4, 7]), (3, &[5, 2])]);
        let how = Packing { share: 2, base: true, training: true };
        let mut packed = pack(&groups.concat(), Some(id), how);
        if let Some(p) = dropout {
            // As in training: the prompt's rows have one key for the group.
            with_dropout(&mut packed, p, |s, position| match position {
                p if p < groups.concat()[s % 4].prompt.len() => seed ^ (s % 4 / 2 * 100 + p) as u64,
                p => seed ^ (1000 + s * 100 + p) as u64,
            });
        }
        let batch = packed.batch;
        let n = batch.grad_pairs;
        // Any smooth loss of the log-probs; its slope is cos.
        let slope = |lp: &[f32]| lp[..n].iter().map(|x| x.cos()).collect();
        let (_, grads) = gradients(&mut engine, id, &batch, temperature, slope);
        let size = norm(&grads.iter().map(|g| *g as f64).collect::<Vec<_>>());
        prop_assert!(size > 1e-3);
        let noise = random(params.len(), seed ^ 3);
        let noise_size = norm(&noise.iter().map(|g| *g as f64).collect::<Vec<_>>());
        let v: Vec<f32> = grads.iter().zip(&noise)
            .map(|(g, n)| (*g as f64 / size + *n as f64 / noise_size) as f32).collect();
        let mut loss = |p: &[f32]| {
            engine.set_params(id, p).unwrap();
            let lp = logprobs(&mut engine, &batch, temperature);
            // Split, so that the sum does not round to f32 in one piece.
            let total: f64 = lp[..n].iter().map(|x| (*x as f64).sin()).sum();
            vec![total as f32, (total - total as f32 as f64) as f32]
        };
        let slope: f64 = quotient(&params, &v, 0.1 / size as f32, &mut loss).iter().sum();
        let got: f64 = grads.iter().zip(&v).map(|(g, v)| *g as f64 * *v as f64).sum();
        let error = (got - slope).abs() / size;
        println!("odd {odd} layers {layers} r {r} dropout {dropout:?}: {got:.5} against {slope:.5}, relative {error:.1e}");
        prop_assert!(error <= 1e-3, "{got} against {slope}, relative {error:.1e}");
    }
}
