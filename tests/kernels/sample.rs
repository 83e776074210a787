//! Guards the kernel of `cuda/sample.cu`: equal logits give the CPU's token,
//! with every way of truncation, and bad logits are reported.

use arca::device::cpu::Cpu;
use arca::ops::sample::{Sample, SampleRequest, Sampled};

use super::{On, test_device, weight_of};

test_device!(tokens_are_the_cpus);
test_device!(bad_logits_are_reported);

const HIDDEN: usize = 16;

/// Small integers over powers of two: every product and sum is exact in f32,
/// and ties are many.
fn exact(n: usize, seed: u64) -> Vec<f32> {
    super::random(n, seed)
        .into_iter()
        .map(|x| (x * 8.0).round() / 8.0)
        .collect()
}

fn draw<D: Sample>(
    on: &On<D>,
    vocab: usize,
    x: &[f32],
    requests: &[SampleRequest],
) -> Vec<Sampled> {
    let weights = exact(vocab * HIDDEN, 1);
    let head = on
        .device
        .load_matrix(&[weight_of(&weights, vocab, HIDDEN)], None, false, 0)
        .unwrap();
    let x = on.act(x);
    on.device
        .sample(&on.ctx(), &head, x.slice(), requests)
        .unwrap()
}

fn tokens_are_the_cpus<D: Sample>(on: &On<D>) {
    let plain = SampleRequest {
        row: 0,
        key: 0,
        position: 0,
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
    };
    let kinds = [
        plain,
        SampleRequest {
            temperature: 0.7,
            ..plain
        },
        SampleRequest {
            temperature: 0.0,
            ..plain
        },
        SampleRequest { top_k: 1, ..plain },
        SampleRequest { top_k: 9, ..plain },
        SampleRequest {
            top_p: 0.9,
            ..plain
        },
        SampleRequest {
            top_p: 0.05,
            temperature: 1.3,
            ..plain
        },
        SampleRequest {
            min_p: 0.1,
            ..plain
        },
        SampleRequest {
            top_k: 40,
            top_p: 0.8,
            min_p: 0.02,
            temperature: 0.9,
            ..plain
        },
    ];
    let rows = 6;
    let x = exact(rows * HIDDEN, 2);
    for vocab in [61, 517] {
        let requests: Vec<SampleRequest> = (0..72)
            .map(|i| SampleRequest {
                row: (i % rows) as u32,
                key: 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(i as u64 + 1),
                position: i as u32 * 3,
                ..kinds[i % kinds.len()]
            })
            .collect();
        let got = draw(on, vocab, &x, &requests);
        let want = draw(&On::new(Cpu::<f32>::new()), vocab, &x, &requests);
        for ((got, want), request) in got.iter().zip(&want).zip(&requests) {
            assert_eq!(got.token, want.token, "vocabulary {vocab}, {request:?}");
            assert!(!got.invalid);
            let error = (got.logprob - want.logprob).abs();
            assert!(error < 1e-5, "log-prob off by {error}: {request:?}");
        }
    }
}

fn bad_logits_are_reported<D: Sample>(on: &On<D>) {
    let mut x = exact(3 * HIDDEN, 2);
    x[HIDDEN] = f32::NAN;
    x[2 * HIDDEN..].fill(f32::INFINITY);
    let requests: Vec<SampleRequest> = (0..3)
        .map(|row| SampleRequest {
            row,
            key: 1,
            position: 0,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
        })
        .collect();
    let drawn = draw(on, 40, &x, &requests);
    let invalid: Vec<bool> = drawn.iter().map(|s| s.invalid).collect();
    assert_eq!(invalid, [false, true, true]);
}
