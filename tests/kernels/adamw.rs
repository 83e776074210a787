//! Guards the kernels of `cuda/adamw.cu`: the update has the CPU's bits, the
//! norm is f64 in a fixed order.

use arca::device::cpu::Cpu;
use arca::ops::adamw::{AdamW, AdamWStep};

use arca::device::{Slice, SliceMut};

use super::{On, Tensor, random, test_device};

test_device!(update);
test_device!(norm);

/// Elements of a tensor from `start` on.
fn from<D: AdamW>(t: &Tensor<D, f32>, start: usize) -> Slice<'_, D, f32> {
    Slice {
        buf: &t.buf,
        start,
        len: t.len - start,
    }
}

fn from_mut<D: AdamW>(t: &mut Tensor<D, f32>, start: usize) -> SliceMut<'_, D, f32> {
    SliceMut {
        buf: &mut t.buf,
        start,
        len: t.len - start,
    }
}

/// `n` parameters; gradients, parameters and moments begin so many elements
/// into their buffers.
fn run<D: AdamW>(on: &On<D>, n: usize, starts: [usize; 4], steps: u64) -> Vec<f32> {
    let state = |seed, start| -> Tensor<D, f32> { on.float(&random(start + n, seed)) };
    let mut params = state(1, starts[1]);
    let mut m = on.float::<f32>(&vec![0.0; starts[2] + n]);
    let mut v = on.float::<f32>(&vec![0.0; starts[3] + n]);
    for step in 1..=steps {
        let grads = state(10 + step, starts[0]);
        let constants = AdamWStep {
            learning_rate: 3e-3,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step,
            clip: 0.37,
        };
        on.device
            .adamw(
                &on.ctx(),
                &constants,
                from(&grads, starts[0]),
                from_mut(&mut params, starts[1]),
                from_mut(&mut m, starts[2]),
                from_mut(&mut v, starts[3]),
            )
            .unwrap();
    }
    [on.get(&params), on.get(&m), on.get(&v)].concat()
}

fn update<D: AdamW>(on: &On<D>) {
    let cpu = On::new(Cpu::<f32>::new());
    // At 16-byte boundaries, beside them together, and never together.
    for starts in [[0; 4], [1; 4], [3; 4], [0, 0, 1, 0]] {
        for n in [1, 2, 31, 1000, 9001] {
            assert_eq!(
                run(on, n, starts, 3),
                run(&cpu, n, starts, 3),
                "{n} parameters from {starts:?}"
            );
        }
    }
}

fn norm<D: AdamW>(on: &On<D>) {
    for n in [0, 1, 33, 8192, 8193, 20_000] {
        let x = random(n, 5);
        let want: f64 = x.iter().map(|&x| x as f64 * x as f64).sum();
        let x = on.float::<f32>(&x);
        let norm = || on.device.squared_norm(&on.ctx(), x.slice()).unwrap();
        assert!((norm() - want).abs() <= 1e-12 * want, "{n} elements");
        assert_eq!(norm().to_bits(), norm().to_bits(), "two runs");
        // The order of the sum is that of the elements, wherever they lie.
        let shifted = on.float::<f32>(&[&[7.0], &random(n, 5)[..]].concat());
        let again = on.device.squared_norm(&on.ctx(), from(&shifted, 1));
        assert_eq!(norm().to_bits(), again.unwrap().to_bits(), "{n} elements");
    }
}
