//! Guards the base products: several parts, bias, both directions.

use arca::model::batch::Batch;
use arca::ops::linear::Linear;

use super::{On, assert_close, random, references, test_device, weight};

test_device!(forward);
test_device!(backward);

const SHAPES: [(usize, usize, &[usize]); 3] = [
    (1, 16, &[16]),
    (33, 48, &[32, 16, 16]),
    (70, 128, &[256, 256]),
];

fn matrix<D: Linear>(on: &On<D>, inputs: usize, parts: &[usize], bias: bool) -> D::Matrix {
    let views: Vec<_> = parts
        .iter()
        .enumerate()
        .map(|(i, &n)| weight(n, inputs, 7 + i as u64))
        .collect();
    let bias = bias.then(|| random(parts.iter().sum(), 6));
    on.device.load_matrix(&views, bias, true, 0).unwrap()
}

fn run<D: Linear>(
    on: &On<D>,
    (rows, inputs, parts): (usize, usize, &[usize]),
    bias: bool,
    back: bool,
) -> Vec<f32> {
    let outputs: usize = parts.iter().sum();
    let matrix = matrix(on, inputs, parts, bias);
    let mut batch = Batch::default();
    batch.push_segment(&vec![0; rows], &[], None);
    let batch = on.batch(&batch);
    let (n_in, n_out) = if back {
        (outputs, inputs)
    } else {
        (inputs, outputs)
    };
    let x = on.act(&random(rows * n_in, 1));
    let mut y = on.dirty::<D::Act>(rows * n_out);
    let run = if back {
        D::linear_backward
    } else {
        D::linear_forward
    };
    run(
        &on.device,
        &on.ctx(),
        &batch,
        rows,
        &matrix,
        x.slice(),
        None,
        y.slice_mut(),
    )
    .unwrap();
    on.get(&y)
}

fn forward<D: Linear>(on: &On<D>) {
    let (exact, plain) = references();
    for shape in SHAPES {
        for bias in [false, true] {
            let what = format!("y of {shape:?}, bias {bias}");
            let (got, plain) = (run(on, shape, bias, false), run(&plain, shape, bias, false));
            assert_close(&what, &got, &plain, &run(&exact, shape, bias, false), 1e-6);
        }
    }
}

fn backward<D: Linear>(on: &On<D>) {
    let (exact, plain) = references();
    for shape in SHAPES {
        let what = format!("dx of {shape:?}");
        let (got, plain) = (run(on, shape, false, true), run(&plain, shape, false, true));
        assert_close(&what, &got, &plain, &run(&exact, shape, false, true), 1e-6);
    }
}
