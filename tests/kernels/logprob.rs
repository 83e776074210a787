//! Guards the kernels of `cuda/logprob.cu`: vocabularies that are no multiple of
//! a vector, rows with several pairs, pairs without gradient, several chunks.

use arca::model::batch::{Batch, Pair};
use arca::ops::logprob::LogProb;

use super::{On, assert_close, random, references, test_device, weight};

test_device!(forward);
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
        let without = run(on, &batch, vocab, hidden, false);
        assert_eq!(without[0], got[0], "scoring alone has the same bits");
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
