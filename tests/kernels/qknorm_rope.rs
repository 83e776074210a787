//! Guards the kernels of `cuda/qknorm_rope.cu`.

use arca::model::batch::Batch;
use arca::model::config::ModelShape;
use arca::ops::qknorm_rope::{QkNormRope, QkNormWeights, RopeTable};

use super::{On, assert_close, random, references, shape, test_device};

test_device!(forward);
test_device!(backward);

fn shapes() -> [ModelShape; 2] {
    [shape(64, 4, 2), shape(128, 3, 1)]
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

fn run_backward<D: QkNormRope>(on: &On<D>, shape: &ModelShape) -> Vec<f32> {
    let bed = Bed::new(on, shape);
    let qkv = on.act(&random(bed.rows * shape.qkv_width(), 3));
    let d_qk = on.act(&random(bed.rows * (shape.q_width() + shape.kv_width()), 4));
    // The v columns are attention's: they must stay.
    let mut d_qkv = on.act(&random(bed.rows * shape.qkv_width(), 5));
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
    on.get(&d_qkv)
}

fn backward<D: QkNormRope>(on: &On<D>) {
    let (exact, plain) = references();
    for shape in shapes() {
        let what = format!("d_qkv at head_dim {}", shape.head_dim);
        let (got, plain) = (run_backward(on, &shape), run_backward(&plain, &shape));
        assert_close(&what, &got, &plain, &run_backward(&exact, &shape), 1e-6);
    }
}
