//! Guards the kernels of `cuda/attention_wgmma.cu`: what guards those of
//! `attention.cu`, and batches of several of their larger tiles.

use arca::device::cuda::{AttentionKernels, Cuda};
use arca::model::batch::Batch;
use arca::model::config::ModelShape;

use super::{On, attention, gpu, shape};

/// Each body on the emulated Hopper, and on a GPU that is one, where the other
/// kernels are run as well.
macro_rules! test_hopper {
    ($($name:ident),*) => {$(
        mod $name {
            #[cfg(feature = "emulator")]
            #[test]
            fn emulator() {
                for device in crate::kernels::emulators_of(90) {
                    super::$name(&super::forced(device, super::AttentionKernels::Wgmma));
                }
            }

            #[test]
            fn cuda() {
                use super::AttentionKernels::{Mma, Wgmma};
                let Some(device) = super::gpu() else { return };
                if !device.name().contains("sm_90") {
                    return;
                }
                for kernels in [Mma, Wgmma] {
                    super::$name(&super::forced(device.clone(), kernels));
                }
            }

            use arca::device::Device as _;
        }
    )*};
}

test_hopper!(forward, backward, large_tiles, neighbours, agreement);

fn forced(device: Cuda, kernels: AttentionKernels) -> On<Cuda> {
    On::new(device.with_attention(kernels))
}

fn forward(on: &On<Cuda>) {
    attention::forward(on);
}

fn backward(on: &On<Cuda>) {
    attention::backward(on);
}

fn neighbours(on: &On<Cuda>) {
    attention::rows_do_not_depend_on_neighbours(on);
}

/// Both stages of tiles of 128 keys are used twice, and prefixes end within
/// them; odd groups leave a warpgroup without a head.
fn large_tiles(on: &On<Cuda>) {
    let ids = |n: usize| vec![0u32; n];
    let mut shared = Batch::default();
    let prompt = shared.push_segment(&ids(200), &[], None);
    shared.push_segment(&ids(230), &[prompt], None);
    let mut odd = Batch::default();
    let first = odd.push_segment(&ids(128), &[], None);
    let second = odd.push_segment(&ids(1), &[first], None);
    odd.push_segment(&ids(130), &[first, second], None);
    let mut cases: Vec<(Batch, ModelShape)> =
        vec![(shared, shape(128, 2, 1)), (odd, shape(64, 3, 1))];
    for (batch, _) in &mut cases {
        batch.saved_rows = batch.rows();
    }
    attention::forward_of(on, cases.clone());
    attention::backward_of(on, cases);
}

/// What a device asks before it uses these kernels: they agree with the others.
/// Measured: 0.0030 with head_dim 64, 0.0056 with 128 (bf16 has steps of 2^-8).
fn agreement(on: &On<Cuda>) {
    for head_dim in [64, 128] {
        let difference = on.device.attention_difference(head_dim).unwrap();
        println!("head_dim {head_dim}: {difference}");
        assert!(difference < 0.01, "head_dim {head_dim}: {difference}");
    }
}
