//! Guards the kernels of `cuda/decode.cu` and attention over pages: writes into
//! pages, single rows and prefill chunks, group and own pages, copies.

use arca::model::batch::{Batch, PageTable};
use arca::model::config::ModelShape;
use arca::ops::decode::{DecodeAttention, PAGE, page_elements};

use super::{On, assert_close, random, references, shape, test_device};

test_device!(chunks_then_rows);
test_device!(copied_pages);

/// A sequence: pages shared with a group, its own, and rows so far.
struct Sequence {
    table: PageTable,
    rows: usize,
}

/// A batch of the next `counts[i]` rows of each sequence (0: none).
fn advance(sequences: &mut [Sequence], counts: &[usize]) -> Batch {
    let mut batch = Batch::default();
    for (s, &n) in sequences.iter_mut().zip(counts) {
        if n == 0 {
            continue;
        }
        batch.push_segment(&vec![0; n], &[], None);
        let first = batch.rows() - n;
        for (i, p) in batch.positions[first..].iter_mut().enumerate() {
            *p = (s.rows + i) as u32;
        }
        s.rows += n;
        batch.pages.push(s.table.clone());
    }
    batch
}

struct Bed<D: DecodeAttention> {
    pages: super::Tensor<D, D::Act>,
    seed: u64,
}

impl<D: DecodeAttention> Bed<D> {
    fn step(&mut self, on: &On<D>, batch: &Batch, shape: &ModelShape) -> Vec<f32> {
        self.seed += 10;
        let rows = batch.rows();
        let qk = on.act(&random(
            rows * (shape.q_width() + shape.kv_width()),
            self.seed,
        ));
        let qkv = on.act(&random(rows * shape.qkv_width(), self.seed + 1));
        let mut out = on.dirty::<D::Act>(rows * shape.q_width());
        on.device
            .decode_attention(
                &on.ctx(),
                &on.batch(batch),
                shape,
                qk.slice(),
                qkv.slice(),
                self.pages.slice_mut(),
                out.slice_mut(),
            )
            .unwrap();
        on.get(&out)
    }
}

const PAGES: usize = 32;

fn run<D: DecodeAttention>(on: &On<D>, shape: &ModelShape) -> Vec<f32> {
    let mut bed = Bed {
        pages: on.dirty::<D::Act>(PAGES * page_elements(shape)),
        seed: 0,
    };
    let own = |pages: std::ops::Range<u32>| PageTable {
        group: [].into(),
        own: pages.rev().collect(),
    };
    // A prompt of 32 rows fills two pages, which two sequences then share.
    let mut prompt = [Sequence {
        table: own(0..2),
        rows: 0,
    }];
    let group: std::sync::Arc<[u32]> = prompt[0].table.own.clone().into();
    let mut all = Vec::new();
    for n in [19, 13] {
        let batch = advance(&mut prompt, &[n]);
        all.extend(bed.step(on, &batch, shape));
    }
    let member = |pages: std::ops::Range<u32>| Sequence {
        table: PageTable {
            group: group.clone(),
            own: pages.collect(),
        },
        rows: 2 * PAGE,
    };
    let mut sequences = vec![
        member(2..5),
        Sequence {
            table: own(5..12),
            rows: 0,
        },
        member(12..14),
        Sequence {
            table: own(14..32),
            rows: 0,
        },
    ];
    // Decode rows beside chunks of prefill, then decode rows alone; contexts
    // that end at a page's end, and one that the first of four warps has alone.
    // The last context is long enough for every warp to use its buffers twice.
    for counts in [
        [1, 70, 1, 1],
        [1, 1, 1, 1],
        [0, 1, 1, 66],
        [1, 1, 0, 130],
        [1, 0, 1, 1],
    ] {
        let batch = advance(&mut sequences, &counts);
        all.extend(bed.step(on, &batch, shape));
    }
    all
}

fn chunks_then_rows<D: DecodeAttention>(on: &On<D>) {
    let (exact, plain) = references();
    for shape in [
        shape(64, 4, 2),
        shape(128, 2, 1),
        shape(64, 8, 1),
        shape(128, 2, 2),
    ] {
        let what = format!("head_dim {}, {} heads", shape.head_dim, shape.num_heads);
        let (got, plain) = (run(on, &shape), run(&plain, &shape));
        // Probabilities are rounded to bf16 for the tensor cores.
        assert_close(&what, &got, &plain, &run(&exact, &shape), 1e-3);
    }
}

/// A copy of a page serves as the page.
fn copied_pages<D: DecodeAttention>(on: &On<D>) {
    let shape = shape(64, 4, 2);
    let run = |copy: bool| {
        let mut bed = Bed {
            pages: on.dirty::<D::Act>(4 * page_elements(&shape)),
            seed: 0,
        };
        let table = |page: u32| PageTable {
            group: [].into(),
            own: vec![page],
        };
        let mut first = [Sequence {
            table: table(1),
            rows: 0,
        }];
        let batch = advance(&mut first, &[9]);
        bed.step(on, &batch, &shape);
        if copy {
            on.device
                .copy_page(&on.ctx(), &shape, bed.pages.slice_mut(), 1, 3)
                .unwrap();
            first[0].table = table(3);
        }
        let batch = advance(&mut first, &[1]);
        bed.step(on, &batch, &shape)
    };
    assert_eq!(run(false), run(true));
}
