//! Guards the kernels of `cuda/adamw.cu`: the update has the CPU's bits, the
//! norm is f64 in a fixed order.

use arca::device::cpu::Cpu;
use arca::ops::adamw::{AdamW, AdamWStep};

use super::{On, Tensor, random, test_device};

test_device!(update);
test_device!(norm);

fn run<D: AdamW>(on: &On<D>, n: usize, steps: u64) -> Vec<f32> {
    let state = |seed| -> Tensor<D, f32> { on.float(&random(n, seed)) };
    let (mut params, mut m) = (state(1), on.float::<f32>(&vec![0.0; n]));
    let mut v = on.float::<f32>(&vec![0.0; n]);
    for step in 1..=steps {
        let grads = state(10 + step);
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
                grads.slice(),
                params.slice_mut(),
                m.slice_mut(),
                v.slice_mut(),
            )
            .unwrap();
    }
    [on.get(&params), on.get(&m), on.get(&v)].concat()
}

fn update<D: AdamW>(on: &On<D>) {
    let cpu = On::new(Cpu::<f32>::new());
    for n in [1, 31, 1000, 9001] {
        assert_eq!(run(on, n, 3), run(&cpu, n, 3), "{n} parameters");
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
    }
}
