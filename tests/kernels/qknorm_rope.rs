//! Guards the kernels of `cuda/qknorm_rope.cu`.

use arca::device::cuda::Cuda;
use arca::model::batch::Batch;
use arca::model::config::ModelShape;
use arca::ops::qknorm_rope::{QkNormRope, QkNormWeights, RopeTable};

use super::{
    On, ROOM, assert_close, narrow, random, references, shape, test_cuda, test_device, widen,
};

test_device!(forward);
test_device!(backward);
test_cuda!(wide_rows);

/// Heads that fill a warp and that do not; more than a block holds at a time.
fn shapes() -> [ModelShape; 3] {
    [shape(64, 4, 2), shape(128, 3, 1), shape(128, 66, 3)]
}

struct Bed<D: QkNormRope> {
    batch: D::Batch,
    rope: RopeTable<D>,
    weights: QkNormWeights<D>,
    rows: usize,
}

impl<D: QkNormRope> Bed<D> {
    fn new(on: &On<D>, shape: &ModelShape) -> Self {
        let mut batch = Batch::default();
        let first = batch.push_segment(&[0; 5], &[], None);
        batch.push_segment(&[0; 3], &[first], None);
        batch.push_segment(&[0; 1], &[], None);
        Bed {
            rows: batch.rows(),
            batch: on.batch(&batch),
            rope: RopeTable::new(&on.device, &on.ctx(), shape, 16).unwrap(),
            weights: QkNormWeights {
                q: on.float::<f32>(&random(shape.head_dim, 1)).buf,
                k: on.float::<f32>(&random(shape.head_dim, 2)).buf,
            },
        }
    }
}

fn run_forward<D: QkNormRope>(on: &On<D>, shape: &ModelShape) -> Vec<f32> {
    let bed = Bed::new(on, shape);
    let qkv = on.act(&random(bed.rows * shape.qkv_width(), 3));
    let mut qk = on.dirty::<D::Act>(bed.rows * (shape.q_width() + shape.kv_width()));
    on.device
        .qknorm_rope_forward(
            &on.ctx(),
            &bed.batch,
            shape,
            bed.rows,
            &bed.weights,
            &bed.rope,
            qkv.slice(),
            qk.slice_mut(),
        )
        .unwrap();
    on.get(&qk)
}

fn forward<D: QkNormRope>(on: &On<D>) {
    let (exact, plain) = references();
    for shape in shapes() {
        let what = format!("qk at head_dim {}", shape.head_dim);
        let (got, plain) = (run_forward(on, &shape), run_forward(&plain, &shape));
        assert_close(&what, &got, &plain, &run_forward(&exact, &shape), 1e-6);
    }
}

fn run_backward<D: QkNormRope>(on: &On<D>, shape: &ModelShape, room: usize) -> Vec<f32> {
    let bed = Bed::new(on, shape);
    let qkv = on.act(&random(bed.rows * shape.qkv_width(), 3));
    let d_qk = on.act(&random(bed.rows * (shape.q_width() + shape.kv_width()), 4));
    // The v columns are attention's: they must stay.
    let before = random(bed.rows * shape.qkv_width(), 5);
    let mut d_qkv = on.act(&widen(&before, shape.qkv_width(), room));
    on.device
        .qknorm_rope_backward(
            &on.ctx(),
            &bed.batch,
            shape,
            bed.rows,
            &bed.weights,
            &bed.rope,
            qkv.slice(),
            d_qk.slice(),
            d_qkv.slice_mut(),
        )
        .unwrap();
    narrow(&on.get(&d_qkv), shape.qkv_width(), room)
}

fn backward<D: QkNormRope>(on: &On<D>) {
    let (exact, plain) = references();
    for shape in shapes() {
        let what = format!("d_qkv at head_dim {}", shape.head_dim);
        let (got, plain) = (run_backward(on, &shape, 0), run_backward(&plain, &shape, 0));
        assert_close(&what, &got, &plain, &run_backward(&exact, &shape, 0), 1e-6);
    }
}

/// Rows of d_qkv with room behind them: the same bits, the room untouched.
fn wide_rows(on: &On<Cuda>) {
    for shape in shapes() {
        let wide = run_backward(on, &shape, ROOM);
        assert_eq!(
            wide,
            run_backward(on, &shape, 0),
            "head_dim {}",
            shape.head_dim
        );
    }
}
