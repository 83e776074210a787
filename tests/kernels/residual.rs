//! Guards the kernels of `cuda/residual.cu`: the residual extraction.

use arca::device::Float;
use arca::model::batch::Batch;
use arca::ops::residual::Residual;
use half::bf16;

use super::{On, assert_close, random, references, test_device};

test_device!(norms);

fn run<D: Residual, R: Float>(on: &On<D>, rows: usize, hidden: usize) -> Vec<f32> {
    let mut batch = Batch::default();
    batch.push_segment(&vec![0; rows], &[], None);
    // Some rows twice, some never; a row against itself is 0.
    batch.residual_pairs = (0..rows as u32 + 2)
        .map(|i| (i * 7 % rows as u32, i * 3 % rows as u32))
        .collect();
    let pairs = batch.residual_pairs.len();
    let h = on.float::<R>(&random(rows * hidden, 3));
    let mut norms = on.dirty::<f32>(pairs);
    on.device
        .residual_norms(
            &on.ctx(),
            &on.batch(&batch),
            hidden,
            h.slice(),
            norms.slice_mut(),
        )
        .unwrap();
    on.get(&norms)
}

fn norms<D: Residual>(on: &On<D>) {
    let (exact, _) = references();
    for (rows, hidden) in [(1, 16), (5, 128), (9, 1040)] {
        let want = run::<_, f32>(&exact, rows, hidden);
        // Inputs are exact in both types, so that only f32 sums differ.
        for got in [
            run::<D, bf16>(on, rows, hidden),
            run::<D, f32>(on, rows, hidden),
        ] {
            assert_close(&format!("{rows} x {hidden}"), &got, &want, &want, 4e-6);
        }
    }
}
