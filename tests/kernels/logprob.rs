//! Guards the kernels of `cuda/logprob.cu`: vocabularies that are no multiple of
//! a vector, rows with several pairs, pairs without gradient, several chunks;
//! and rows of chosen logits, against float64.

use arca::device::cpu::Cpu;
use arca::device::cuda::Cuda;
use arca::model::batch::{Batch, Pair};
use arca::ops::logprob::LogProb;

use super::{On, assert_close, random, references, test_cuda, test_device, weight, weight_of};

test_device!(forward);
test_cuda!(chosen_rows);
test_device!(backward);
test_device!(logits);
test_device!(nan_is_not_hidden);

fn batch(rows: usize, pairs: usize, grad_pairs: usize, vocab: usize) -> Batch {
    let mut batch = Batch::default();
    batch.push_segment(&vec![0; rows], &[], None);
    batch.saved_rows = rows;
    batch.pairs = (0..pairs)
        .map(|i| Pair {
            row: (i * 5 % rows) as u32,
            target: (i * 11 % vocab) as u32,
        })
        .collect();
    batch.grad_pairs = grad_pairs;
    batch
}

fn run<D: LogProb>(
    on: &On<D>,
    batch: &Batch,
    vocab: usize,
    hidden: usize,
    with_u: bool,
) -> [Vec<f32>; 3] {
    let head = on
        .device
        .load_matrix(&[weight(vocab, hidden, 1)], None, true, 0)
        .unwrap();
    let x = on.act(&random(batch.rows() * hidden, 2));
    let n = batch.pairs.len();
    let (mut logprobs, mut entropies) = (on.dirty::<f32>(n), on.dirty::<f32>(n));
    let mut u = on.dirty::<D::Act>(batch.grad_pairs * hidden);
    on.device
        .logprob_forward(
            &on.ctx(),
            &on.ctx(),
            &on.batch(batch),
            &head,
            0.8,
            x.slice(),
            logprobs.slice_mut(),
            entropies.slice_mut(),
            with_u.then(|| u.slice_mut()),
        )
        .unwrap();
    let u = if with_u { on.get(&u) } else { Vec::new() };
    [on.get(&logprobs), on.get(&entropies), u]
}

fn forward<D: LogProb>(on: &On<D>) {
    let (exact, plain) = references();
    for (rows, pairs, grad_pairs, vocab, hidden) in [
        (1, 1, 1, 16, 16),
        (7, 12, 5, 517, 64),
        (9, 20, 20, 1003, 128),
        // Two chunks, the second without gradient.
        (50, 4100, 30, 21, 16),
    ] {
        let batch = batch(rows, pairs, grad_pairs, vocab);
        let got = run(on, &batch, vocab, hidden, true);
        let plain = run(&plain, &batch, vocab, hidden, true);
        let want = run(&exact, &batch, vocab, hidden, true);
        let what = format!("{pairs} pairs, vocabulary {vocab}");
        // Logits are f32 sums on both; exponentials differ by an ulp or two.
        assert_close(
            &format!("log-probs, {what}"),
            &got[0],
            &plain[0],
            &want[0],
            4e-6,
        );
        assert_close(
            &format!("entropies, {what}"),
            &got[1],
            &plain[1],
            &want[1],
            4e-6,
        );
        // Probabilities are rounded to bf16 for the second product.
        assert_close(&format!("u, {what}"), &got[2], &plain[2], &want[2], 1e-3);
        if pairs < 1000 {
            let without = run(on, &batch, vocab, hidden, false);
            assert_eq!(without[0], got[0], "scoring alone has the same bits");
        }
    }
}

fn run_backward<D: LogProb>(on: &On<D>, batch: &Batch, hidden: usize) -> Vec<f32> {
    let n = batch.grad_pairs;
    let coefficients = on.float::<f32>(&random(n, 4));
    let u = on.act(&random(n * hidden, 5));
    let mut dx = on.dirty::<D::Act>(batch.saved_rows * hidden);
    on.device
        .logprob_backward(
            &on.ctx(),
            &on.batch(batch),
            hidden,
            coefficients.slice(),
            u.slice(),
            dx.slice_mut(),
        )
        .unwrap();
    on.get(&dx)
}

fn backward<D: LogProb>(on: &On<D>) {
    let (exact, plain) = references();
    for (rows, pairs, grad_pairs, hidden) in [(1, 3, 2, 16), (11, 14, 9, 128), (5, 5, 0, 1040)] {
        let batch = batch(rows, pairs, grad_pairs, 50);
        let (got, plain) = (
            run_backward(on, &batch, hidden),
            run_backward(&plain, &batch, hidden),
        );
        let want = run_backward(&exact, &batch, hidden);
        assert_close(&format!("dx of {rows} rows"), &got, &plain, &want, 1e-6);
    }
}

fn logits<D: LogProb>(on: &On<D>) {
    let (exact, _) = references();
    fn run<D: LogProb>(on: &On<D>) -> Vec<f32> {
        let head = on
            .device
            .load_matrix(&[weight(61, 48, 1)], None, false, 0)
            .unwrap();
        let x = on.act(&random(9 * 48, 2));
        on.device
            .logits(&on.ctx(), &head, x.slice(), &[8, 0, 3])
            .unwrap()
    }
    let want = run(&exact);
    assert_eq!(want.len(), 3 * 61);
    let (got, plain) = (run(on), run(&references().1));
    assert_close("logits", &got, &plain, &want, 2e-6);
}

fn nan_is_not_hidden<D: LogProb>(on: &On<D>) {
    let batch = batch(2, 2, 0, 40);
    let head = on
        .device
        .load_matrix(&[weight(40, 16, 1)], None, true, 0)
        .unwrap();
    let mut values = random(2 * 16, 2);
    values[16 + 3] = f32::NAN;
    let x = on.act(&values);
    let (mut logprobs, mut entropies) = (on.dirty::<f32>(2), on.dirty::<f32>(2));
    on.device
        .logprob_forward(
            &on.ctx(),
            &on.ctx(),
            &on.batch(&batch),
            &head,
            1.0,
            x.slice(),
            logprobs.slice_mut(),
            entropies.slice_mut(),
            None,
        )
        .unwrap();
    let got = on.get(&logprobs);
    assert!(got[0].is_finite() && got[1].is_nan(), "{got:?}");
}

/// Hidden size of [`Chosen`]: a dimension for each row's logits, and one more.
const HIDDEN: usize = 16;

/// A state of x that has a logit overflow at a weight of 256: 2^120.
const HUGE: f32 = (1u128 << 120) as f32;

/// Rows of x and a head that give chosen logits: row i sees column i of the
/// weight alone, but for the row with a NaN.
struct Chosen {
    vocab: usize,
    names: Vec<&'static str>,
    logits: Vec<Vec<f32>>,
    x: Vec<f32>,
    weight: Vec<f32>,
}

impl Chosen {
    fn new(vocab: usize) -> Self {
        // Behind what the kernel looks at for its reference, if there is more.
        let late = vocab - 3;
        let noise = |scale: f32, seed| -> Vec<f32> {
            random(vocab, seed).iter().map(|x| x * scale).collect()
        };
        let with = |mut z: Vec<f32>, changes: &[(usize, f32)]| {
            changes.iter().for_each(|&(v, x)| z[v] = x);
            z
        };
        // Multiples of a quarter, which remain normal numbers when divided by HUGE.
        let coarse: Vec<f32> = noise(16.0, 9).iter().map(|x| x.round() / 4.0).collect();
        let masked = |keep: &dyn Fn(usize) -> bool| -> Vec<f32> {
            let each = coarse.iter().enumerate();
            each.map(|(v, &x)| if keep(v) { x } else { f32::NEG_INFINITY })
                .collect()
        };
        // In steps that are the same thread's, each far above the last.
        let steps: Vec<(usize, f32)> = (0..4)
            .map(|i| (100 + 4096 * i, 70.0 * (i + 1) as f32))
            .filter(|&(v, _)| v < vocab)
            .collect();
        let rows = [
            ("noise", noise(8.0, 1)),
            ("flat noise", noise(0.5, 2)),
            ("all equal", vec![-2.5; vocab]),
            ("30 above", with(noise(1.0, 3), &[(late, 30.0)])),
            ("200 above", with(noise(1.0, 4), &[(late, 200.0)])),
            ("steps", with(noise(1.0, 5), &steps)),
            (
                "two peaks far above",
                with(noise(1.0, 6), &[(late - 17, 130.0), (late, 129.0)]),
            ),
            (
                "all far below the first",
                noise(2.0, 7)
                    .iter()
                    .enumerate()
                    .map(|(v, &x)| {
                        if v < 5 {
                            100.0 + v as f32
                        } else {
                            x.round() - 100.0
                        }
                    })
                    .collect(),
            ),
            (
                "all far below 0",
                noise(4.0, 8).iter().map(|x| x.round() - 200.0).collect(),
            ),
            ("every third ruled out", masked(&|v| v % 3 == 0)),
            ("the last are left", masked(&|v| v + 7 >= vocab)),
            ("one is left", masked(&|v| v == late)),
            ("+inf", with(coarse.clone(), &[(late, f32::INFINITY)])),
            ("NaN", with(coarse.clone(), &[(late, f32::NAN)])),
        ];
        let n = rows.len();
        assert!(n < HIDDEN);
        let mut x = vec![0f32; n * HIDDEN];
        let mut weight = vec![0f32; vocab * HIDDEN];
        for (i, (_, logits)) in rows.iter().enumerate() {
            let huge = logits.iter().any(|x| !x.is_finite());
            let scale = if huge { HUGE } else { 1.0 };
            x[i * HIDDEN + i] = scale;
            for (v, &z) in logits.iter().enumerate() {
                // NaN is inf - inf, of two dimensions.
                let w = if z.is_finite() {
                    z / scale
                } else {
                    256.0 * if z < 0.0 { -1.0 } else { 1.0 }
                };
                weight[v * HIDDEN + i] = w;
                if z.is_nan() {
                    x[i * HIDDEN + HIDDEN - 1] = scale;
                    weight[v * HIDDEN + HIDDEN - 1] = -256.0;
                }
            }
        }
        let (names, logits) = rows.into_iter().unzip();
        Chosen {
            vocab,
            names,
            logits,
            x,
            weight,
        }
    }

    /// Three targets for each row, `grad_pairs` of them with gradient.
    fn batch(&self, grad_pairs: usize) -> Batch {
        let rows = self.names.len();
        let mut batch = Batch::default();
        batch.push_segment(&vec![0; rows], &[], None);
        batch.saved_rows = rows;
        let targets = [0, self.vocab - 3, self.vocab - 1];
        batch.pairs = (0..3 * rows)
            .map(|i| Pair {
                row: (i / 3) as u32,
                target: targets[i % 3] as u32,
            })
            .collect();
        batch.grad_pairs = grad_pairs;
        batch
    }

    /// Log-probs, entropies and u, at temperature 1/2.
    fn run<D: LogProb>(&self, on: &On<D>, grad_pairs: usize) -> [Vec<f32>; 3] {
        let view = weight_of(&self.weight, self.vocab, HIDDEN);
        let head = on.device.load_matrix(&[view], None, true, 0).unwrap();
        let x = on.act(&self.x);
        let batch = self.batch(grad_pairs);
        let n = batch.pairs.len();
        let (mut logprobs, mut entropies) = (on.dirty::<f32>(n), on.dirty::<f32>(n));
        let mut u = on.dirty::<D::Act>(grad_pairs * HIDDEN);
        on.device
            .logprob_forward(
                &on.ctx(),
                &on.ctx(),
                &on.batch(&batch),
                &head,
                0.5,
                x.slice(),
                logprobs.slice_mut(),
                entropies.slice_mut(),
                Some(u.slice_mut()),
            )
            .unwrap();
        [on.get(&logprobs), on.get(&entropies), on.get(&u)]
    }

    /// In float64: log-prob, entropy, u, and for each element of u the size of
    /// what it is the difference of.
    fn exact(&self, row: usize, target: usize) -> (f64, f64, [f64; HIDDEN], [f64; HIDDEN]) {
        let z: Vec<f64> = self.logits[row].iter().map(|&z| 2.0 * z as f64).collect();
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = z.iter().map(|z| (z - top).exp()).sum();
        let mut entropy = 0.0;
        let weights = |v: usize| {
            self.weight[v * HIDDEN..][..HIDDEN]
                .iter()
                .map(|&w| w as f64)
        };
        let (mut u, mut size) = ([0f64; HIDDEN], [0f64; HIDDEN]);
        for (v, z) in z.iter().enumerate() {
            let log_p = z - top - sum.ln();
            let p = log_p.exp();
            if p > 0.0 {
                entropy -= p * log_p;
            }
            for (i, w) in weights(v).enumerate() {
                u[i] -= 2.0 * p * w;
                size[i] += 2.0 * p * w.abs();
            }
        }
        for (i, w) in weights(target).enumerate() {
            u[i] += 2.0 * w;
            size[i] += 2.0 * w.abs();
        }
        (z[target] - top - sum.ln(), entropy, u, size)
    }
}

/// More columns than are in flight at once, and than their first barriers are
/// for; rows whose largest logit is nowhere near what was seen before it.
fn chosen_rows(on: &On<Cuda>) {
    check_chosen_rows(on, &[151, 5003, 20_011, 50_003], 4.0);
}

mod chosen_rows_in_long_sums {
    /// The CPU adds in 16 lanes where a block has 512 threads.
    #[test]
    fn cpu() {
        let on = super::On::new(super::Cpu::<half::bf16>::new());
        super::check_chosen_rows(&on, &[151, 5003, 20_011], 64.0);
    }
}

/// The logarithm of a sum may be so many ulps of 1 off, beside the rounding of
/// the result.
fn check_chosen_rows<D: LogProb>(on: &On<D>, vocabularies: &[usize], ulps: f64) {
    for &vocab in vocabularies {
        let chosen = Chosen::new(vocab);
        let batch = chosen.batch(0);
        let n = batch.pairs.len();
        let got = chosen.run(on, n);
        for (i, pair) in batch.pairs.iter().enumerate() {
            let (row, target) = (pair.row as usize, pair.target as usize);
            let name = chosen.names[row];
            let what = format!("{name}, target {target} of {vocab}");
            let (logprob, entropy) = (got[0][i], got[1][i]);
            let u = &got[2][i * HIDDEN..][..HIDDEN];
            if ["NaN", "+inf"].contains(&name) {
                let all = [&[logprob, entropy], u].concat();
                assert!(all.iter().all(|x| x.is_nan()), "{what}: {all:?}");
                continue;
            }
            let want = chosen.exact(row, target);
            let close = |got: f32, want: f64, tolerance: f64| {
                got as f64 == want || (got as f64 - want).abs() <= tolerance
            };
            let ulp = 2f64.powi(-23);
            assert!(
                close(logprob, want.0, ulp * (ulps + want.0.abs())),
                "{what}: log-prob {logprob}, not {}",
                want.0
            );
            assert!(
                close(entropy, want.1, ulp * (2.0 * ulps + 4.0 * want.1)),
                "{what}: entropy {entropy}, not {}",
                want.1
            );
            // Probabilities are rounded to bf16, twice at most, and so is u.
            for (j, &got) in u.iter().enumerate() {
                let (want, size) = (want.2[j], want.3[j]);
                assert!(
                    close(got, want, 0.006 * size + 1e-30),
                    "{what}: u[{j}] is {got}, not {want}"
                );
            }
        }
        // Rows without u beside it have the same bits.
        let some = n / 2;
        let fewer = chosen.run(on, some);
        let bits = |x: &[f32]| -> Vec<u32> { x.iter().map(|x| x.to_bits()).collect() };
        assert_eq!(bits(&fewer[0]), bits(&got[0]));
        assert_eq!(bits(&fewer[1]), bits(&got[1]));
        assert_eq!(bits(&fewer[2]), bits(&got[2][..some * HIDDEN]));
    }
}

/// Whatever the order in which threads run.
#[cfg(feature = "emulator")]
#[test]
fn the_bits_are_the_same_in_any_order() {
    let chosen = Chosen::new(20_011);
    let pairs = chosen.batch(0).pairs.len();
    let all: Vec<Vec<u32>> = super::emulators()
        .map(|device| chosen.run(&On::new(device), pairs).concat())
        .map(|x| x.iter().map(|x| x.to_bits()).collect())
        .collect();
    assert!(all.iter().all(|x| *x == all[0]));
}
