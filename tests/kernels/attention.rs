//! Guards the kernels of `cuda/attention.cu`: ragged segments around tile
//! borders, prefixes of every kind, both head dimensions, grouped queries.

use arca::model::batch::Batch;
use arca::model::config::ModelShape;
use arca::ops::attention::Attention;

use super::{On, assert_close, random, references, shape, test_device};

test_device!(forward);
test_device!(backward);
test_device!(rows_do_not_depend_on_neighbours);

/// (batch, shape) with one-row segments, prefixes of 0 and 1 row, a chain of
/// two prefixes, and segments that end at, before and behind a tile's border.
fn cases() -> Vec<(Batch, ModelShape)> {
    let ids = |n: usize| vec![0u32; n];
    let mut small = Batch::default();
    let one = small.push_segment(&ids(1), &[], None);
    small.push_segment(&ids(1), &[one], None);
    small.push_segment(&ids(5), &[one], None);
    small.push_segment(&ids(2), &[], None);
    let mut shared = Batch::default();
    let prompt = shared.push_segment(&ids(63), &[], None);
    shared.push_segment(&ids(3), &[prompt], None);
    shared.push_segment(&ids(65), &[prompt], None);
    shared.push_segment(&ids(64), &[], None);
    let mut chain = Batch::default();
    let first = chain.push_segment(&ids(33), &[], None);
    let second = chain.push_segment(&ids(40), &[first], None);
    chain.push_segment(&ids(9), &[first, second], None);
    chain.push_segment(&ids(1), &[first, second], None);
    // Three tiles of keys: both buffers are used twice.
    let mut long = Batch::default();
    let first = long.push_segment(&ids(70), &[], None);
    long.push_segment(&ids(75), &[first], None);
    let mut batches = vec![
        (long, shape(64, 1, 1)),
        (small.clone(), shape(64, 4, 2)),
        (small, shape(128, 2, 2)),
        (shared, shape(64, 2, 1)),
        (chain, shape(128, 4, 1)),
    ];
    for (batch, _) in &mut batches {
        batch.saved_rows = batch.rows();
    }
    batches
}

struct Result {
    out: Vec<f32>,
    lse: Vec<f32>,
}

fn run_forward<D: Attention>(on: &On<D>, batch: &Batch, shape: &ModelShape) -> Result {
    let rows = batch.rows();
    let loaded = on.batch(batch);
    // Twice the range, so that the softmax is neither flat nor a maximum.
    let scaled: Vec<f32> = random(rows * (shape.q_width() + shape.kv_width()), 1)
        .iter()
        .map(|x| 2.0 * x)
        .collect();
    let qk = on.act(&scaled);
    let qkv = on.act(&random(rows * shape.qkv_width(), 2));
    let mut out = on.dirty::<D::Act>(rows * shape.q_width());
    let mut lse = on.dirty::<f32>(rows * shape.num_heads);
    on.device
        .attention_forward(
            &on.ctx(),
            &loaded,
            shape,
            qk.slice(),
            qkv.slice(),
            out.slice_mut(),
            lse.slice_mut(),
        )
        .unwrap();
    Result {
        out: on.get(&out),
        lse: on.get(&lse),
    }
}

pub fn forward<D: Attention>(on: &On<D>) {
    forward_of(on, cases());
}

pub fn forward_of<D: Attention>(on: &On<D>, cases: Vec<(Batch, ModelShape)>) {
    let (exact, plain) = references();
    for (batch, shape) in cases {
        let got = run_forward(on, &batch, &shape);
        let plain = run_forward(&plain, &batch, &shape);
        let want = run_forward(&exact, &batch, &shape);
        let what = format!("head_dim {}, {} rows", shape.head_dim, batch.rows());
        // The kernel rounds the probabilities to bf16 for the tensor cores,
        // plain bf16 on the CPU does not: half an ulp of each weight.
        assert_close(
            &format!("out, {what}"),
            &got.out,
            &plain.out,
            &want.out,
            1e-3,
        );
        assert_close(
            &format!("lse, {what}"),
            &got.lse,
            &plain.lse,
            &want.lse,
            2e-6,
        );
    }
}

fn run_backward<D: Attention>(on: &On<D>, batch: &Batch, shape: &ModelShape) -> [Vec<f32>; 2] {
    let rows = batch.rows();
    let loaded = on.batch(batch);
    let (q, qk_width) = (shape.q_width(), shape.q_width() + shape.kv_width());
    let qk = on.act(&random(rows * qk_width, 1));
    let qkv = on.act(&random(rows * shape.qkv_width(), 2));
    let d_out = on.act(&random(rows * q, 3));
    let mut out = on.dirty::<D::Act>(rows * q);
    let mut lse = on.dirty::<f32>(rows * shape.num_heads);
    let mut d_qk = on.dirty::<D::Act>(rows * qk_width);
    // Its q and k columns are qknorm_rope's: they must stay.
    let mut d_qkv = on.act(&random(rows * shape.qkv_width(), 4));
    on.device
        .attention_forward(
            &on.ctx(),
            &loaded,
            shape,
            qk.slice(),
            qkv.slice(),
            out.slice_mut(),
            lse.slice_mut(),
        )
        .unwrap();
    on.device
        .attention_backward(
            &on.ctx(),
            &loaded,
            shape,
            qk.slice(),
            qkv.slice(),
            out.slice(),
            lse.slice(),
            d_out.slice(),
            d_qk.slice_mut(),
            d_qkv.slice_mut(),
        )
        .unwrap();
    [on.get(&d_qk), on.get(&d_qkv)]
}

pub fn backward<D: Attention>(on: &On<D>) {
    backward_of(on, cases());
}

pub fn backward_of<D: Attention>(on: &On<D>, cases: Vec<(Batch, ModelShape)>) {
    let (exact, plain) = references();
    for (batch, shape) in cases {
        let got = run_backward(on, &batch, &shape);
        let again = run_backward(on, &batch, &shape);
        assert_eq!(got, again, "two runs");
        let plain = run_backward(&plain, &batch, &shape);
        let want = run_backward(&exact, &batch, &shape);
        let what = format!("head_dim {}, {} rows", shape.head_dim, batch.rows());
        // P and dS are rounded to bf16 for the tensor cores.
        assert_close(&format!("d_qk, {what}"), &got[0], &plain[0], &want[0], 3e-3);
        assert_close(
            &format!("d_qkv, {what}"),
            &got[1],
            &plain[1],
            &want[1],
            3e-3,
        );
    }
}

/// The bits of a sequence are its own, whatever stands beside it.
pub fn rows_do_not_depend_on_neighbours<D: Attention>(on: &On<D>) {
    let shape = shape(64, 2, 1);
    let mut alone = Batch::default();
    let prompt = alone.push_segment(&[0; 37], &[], None);
    alone.push_segment(&[0; 30], &[prompt], None);
    let mut company = alone.clone();
    company.push_segment(&[0; 70], &[], None);
    let few = run_forward(on, &alone, &shape);
    // The same values for the same rows: `random` is a stream.
    let many = run_forward(on, &company, &shape);
    assert_eq!(few.out, many.out[..few.out.len()]);
    assert_eq!(few.lse, many.lse[..few.lse.len()]);
}
