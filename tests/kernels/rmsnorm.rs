//! Guards the kernels of `cuda/rmsnorm.cu`: both residual types, with and
//! without the addition, rows from one vector to beyond what registers keep.

use arca::device::Float;
use arca::device::cuda::Cuda;
use arca::ops::rmsnorm::{NormShape, RmsNorm};
use half::bf16;

use super::{On, ROOM, assert_close, narrow, random, references, test_cuda, test_device};

const SHAPES: [(usize, usize); 6] = [(1, 16), (3, 48), (33, 128), (5, 1024), (2, 2064), (2, 8208)];

test_device!(forward);
test_device!(backward);
test_cuda!(wide_rows);

fn run_forward<D: RmsNorm, R: Float>(
    on: &On<D>,
    (rows, hidden): (usize, usize),
    add: bool,
    room: usize,
) -> [Vec<f32>; 3] {
    let n = rows * hidden;
    let (previous, y) = (on.float::<R>(&random(n, 1)), on.act(&random(n, 2)));
    let mut h = match add {
        true => on.dirty::<R>(n),
        false => on.float::<R>(&random(n, 3)),
    };
    let weight = on.float::<f32>(&random(hidden, 4));
    let mut x = on.dirty::<D::Act>(rows * (hidden + room));
    let mut rstd = on.dirty::<f32>(rows);
    let shape = NormShape {
        rows,
        hidden,
        eps: 1e-6,
    };
    let added = add.then_some((previous.slice(), y.slice()));
    on.device
        .rmsnorm_forward(
            &on.ctx(),
            shape,
            added,
            h.slice_mut(),
            &weight.buf,
            x.slice_mut(),
            rstd.slice_mut(),
        )
        .unwrap();
    [on.get(&h), narrow(&on.get(&x), hidden, room), on.get(&rstd)]
}

fn forward<D: RmsNorm>(on: &On<D>) {
    let (exact, plain) = references();
    for shape in SHAPES {
        for add in [false, true] {
            for (got, plain, want) in [
                (
                    run_forward::<D, bf16>(on, shape, add, 0),
                    run_forward::<_, bf16>(&plain, shape, add, 0),
                    run_forward::<_, f32>(&exact, shape, add, 0),
                ),
                (
                    run_forward::<D, f32>(on, shape, add, 0),
                    run_forward::<_, f32>(&plain, shape, add, 0),
                    run_forward::<_, f32>(&exact, shape, add, 0),
                ),
            ] {
                for (i, name) in ["h", "x", "rstd"].iter().enumerate() {
                    let what = format!("{name} of {shape:?}, add {add}");
                    assert_close(&what, &got[i], &plain[i], &want[i], 1e-6);
                }
            }
        }
    }
}

fn run_backward<D: RmsNorm, R: Float>(
    on: &On<D>,
    (rows, hidden): (usize, usize),
    room: usize,
) -> [Vec<f32>; 2] {
    let n = rows * hidden;
    let h = on.float::<R>(&random(n, 5));
    let weight = on.float::<f32>(&random(hidden, 6));
    let rstd = on.float::<f32>(&random(rows, 7));
    let dx = on.act(&random(n, 8));
    let mut dh = on.float::<f32>(&random(n, 9));
    let mut dy = on.dirty::<D::Act>(rows * (hidden + room));
    let shape = NormShape {
        rows,
        hidden,
        eps: 1e-6,
    };
    on.device
        .rmsnorm_backward(
            &on.ctx(),
            shape,
            h.slice(),
            &weight.buf,
            rstd.slice(),
            dx.slice(),
            dh.slice_mut(),
            dy.slice_mut(),
        )
        .unwrap();
    [on.get(&dh), narrow(&on.get(&dy), hidden, room)]
}

fn backward<D: RmsNorm>(on: &On<D>) {
    let (exact, plain) = references();
    for shape in SHAPES {
        for (got, plain, want) in [
            (
                run_backward::<D, bf16>(on, shape, 0),
                run_backward::<_, bf16>(&plain, shape, 0),
                run_backward::<_, f32>(&exact, shape, 0),
            ),
            (
                run_backward::<D, f32>(on, shape, 0),
                run_backward::<_, f32>(&plain, shape, 0),
                run_backward::<_, f32>(&exact, shape, 0),
            ),
        ] {
            // f32 sums of up to 8208 terms: a few of their ulps.
            assert_close(
                &format!("dh of {shape:?}"),
                &got[0],
                &plain[0],
                &want[0],
                2e-6,
            );
            assert_close(
                &format!("dy of {shape:?}"),
                &got[1],
                &plain[1],
                &want[1],
                2e-6,
            );
        }
    }
}

/// Rows with room behind them: the same bits, the room untouched.
fn wide_rows(on: &On<Cuda>) {
    for shape in SHAPES {
        assert_eq!(
            run_forward::<_, bf16>(on, shape, true, ROOM),
            run_forward::<_, bf16>(on, shape, true, 0),
            "forward of {shape:?}"
        );
        assert_eq!(
            run_backward::<_, bf16>(on, shape, ROOM),
            run_backward::<_, bf16>(on, shape, 0),
            "backward of {shape:?}"
        );
    }
}
