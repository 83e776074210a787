//! Guards the kernels of `cuda/swiglu.cu`.

use arca::device::cuda::Cuda;
use arca::ops::swiglu::SwiGlu;

use super::{On, ROOM, assert_close, narrow, random, references, test_cuda, test_device};

/// More rows than are taken at a time, and rows of more than one block.
const SHAPES: [(usize, usize); 5] = [(1, 16), (7, 48), (65, 256), (150, 40), (3, 2064)];

test_device!(forward);
test_device!(backward);
test_cuda!(wide_rows);

/// Values up to 8, so that the sigmoid is seen from flat to flat.
fn wide(n: usize, seed: u64) -> Vec<f32> {
    random(n, seed).into_iter().map(|x| 8.0 * x).collect()
}

fn run_forward<D: SwiGlu>(on: &On<D>, (rows, width): (usize, usize), room: usize) -> Vec<f32> {
    let gate_up = on.act(&wide(rows * 2 * width, 1));
    let mut act = on.dirty::<D::Act>(rows * (width + room));
    on.device
        .swiglu_forward(&on.ctx(), rows, width, gate_up.slice(), act.slice_mut())
        .unwrap();
    narrow(&on.get(&act), width, room)
}

fn forward<D: SwiGlu>(on: &On<D>) {
    let (exact, plain) = references();
    for shape in SHAPES {
        let what = format!("act of {shape:?}");
        let (got, plain) = (run_forward(on, shape, 0), run_forward(&plain, shape, 0));
        assert_close(&what, &got, &plain, &run_forward(&exact, shape, 0), 1e-6);
    }
}

fn run_backward<D: SwiGlu>(on: &On<D>, (rows, width): (usize, usize), room: usize) -> Vec<f32> {
    let gate_up = on.act(&wide(rows * 2 * width, 1));
    let d_act = on.act(&random(rows * width, 2));
    let mut d_gate_up = on.dirty::<D::Act>(rows * (2 * width + room));
    on.device
        .swiglu_backward(
            &on.ctx(),
            rows,
            width,
            gate_up.slice(),
            d_act.slice(),
            d_gate_up.slice_mut(),
        )
        .unwrap();
    narrow(&on.get(&d_gate_up), 2 * width, room)
}

fn backward<D: SwiGlu>(on: &On<D>) {
    let (exact, plain) = references();
    for shape in SHAPES {
        let what = format!("d_gate_up of {shape:?}");
        let (got, plain) = (run_backward(on, shape, 0), run_backward(&plain, shape, 0));
        assert_close(&what, &got, &plain, &run_backward(&exact, shape, 0), 1e-6);
    }
}

/// Rows with room behind them: the same bits, the room untouched.
fn wide_rows(on: &On<Cuda>) {
    for shape in SHAPES {
        let wide = run_forward(on, shape, ROOM);
        assert_eq!(wide, run_forward(on, shape, 0), "forward of {shape:?}");
        let wide = run_backward(on, shape, ROOM);
        assert_eq!(wide, run_backward(on, shape, 0), "backward of {shape:?}");
    }
}
