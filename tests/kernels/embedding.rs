//! Guards the kernels of `cuda/embedding.cu`: rows of a bf16 table are exact.

use arca::model::batch::Batch;
use arca::ops::embedding::Embedding;
use half::bf16;

use super::{On, random, test_device, weight};

test_device!(rows);

fn rows<D: Embedding>(on: &On<D>) {
    for (vocab, hidden) in [(7, 16), (61, 128), (13, 1040)] {
        let table = on.device.load_table(weight(vocab, hidden, 1)).unwrap();
        let values = random(vocab * hidden, 1);
        let tokens: Vec<u32> = (0..35).map(|i| (i * 5 % vocab) as u32).collect();
        let want: Vec<f32> = tokens
            .iter()
            .flat_map(|&t| values[t as usize * hidden..][..hidden].to_vec())
            .collect();
        let mut batch = Batch::default();
        batch.push_segment(&tokens, &[], None);
        let batch = on.batch(&batch);
        let mut narrow = on.dirty::<bf16>(want.len());
        on.device
            .embedding_forward(&on.ctx(), &batch, &table, narrow.slice_mut())
            .unwrap();
        assert_eq!(on.get(&narrow), want, "bf16 stream, {vocab} x {hidden}");
        let mut wide = on.dirty::<f32>(want.len());
        on.device
            .embedding_forward(&on.ctx(), &batch, &table, wide.slice_mut())
            .unwrap();
        assert_eq!(on.get(&wide), want, "f32 stream, {vocab} x {hidden}");
    }
}
