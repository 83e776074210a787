//! Guards the emulator: correct kernels pass under every schedule, and each
//! planted fault of `cuda/emulator/selftest.cu` is reported, or shows in the
//! result.
#![cfg(feature = "emulator")]

use arca::device::cuda::emulator::EmulatorSettings;
use arca::device::cuda::{Cuda, Launch};

use super::{On, random};

fn device(seed: u64, checked: bool) -> On<Cuda> {
    let settings = EmulatorSettings {
        seed,
        checked,
        arch: 90,
        ..EmulatorSettings::default()
    };
    On::new(Cuda::emulator(settings).unwrap())
}

fn schedules() -> impl Iterator<Item = (u64, bool)> {
    (0..5).flat_map(|seed| [(seed, false), (seed, true)])
}

/// Error text, or the result.
fn reduce(on: &On<Cuda>, bug: usize) -> Result<bool, String> {
    let (n, blocks) = (300, 5);
    let data = random(n * blocks, 3);
    let input = on.put(&data);
    let out = on.dirty::<f32>(blocks);
    let launch = Launch::new("selftest_reduce", [blocks as u32, 1, 1], 128)
        .ptr("in", &input.slice())
        .ptr("out", &out.slice())
        .u32("n", n)
        .u32("bug", bug);
    on.device
        .launch(&on.ctx(), launch)
        .map_err(|e| format!("{e:#}"))?;
    let sums = on.get(&out);
    Ok(sums.iter().zip(data.chunks(n)).all(|(s, row)| {
        let want: f64 = row.iter().map(|&x| x as f64).sum();
        (*s as f64 - want).abs() < 1e-4
    }))
}

/// c `[m, n]` = a `[m, depth]` b `[n, depth]`^T, with a depth of five tiles.
fn multiply(
    on: &On<Cuda>,
    launch: Launch,
    (m, n, tile): (usize, usize, usize),
    bug: usize,
) -> Result<bool, String> {
    let k = 5;
    let depth = tile * k;
    let (a, b) = (random(m * depth, 5), random(n * depth, 6));
    let (left, right) = (on.act(&a), on.act(&b));
    let out = on.dirty::<f32>(m * n);
    let launch = launch
        .ptr("a", &left.slice())
        .ptr("b", &right.slice())
        .ptr("c", &out.slice())
        .u32("k", k)
        .u32("bug", bug);
    on.device
        .launch(&on.ctx(), launch)
        .map_err(|e| format!("{e:#}"))?;
    let c = on.get(&out);
    Ok((0..m * n).all(|i| {
        let (row, column) = (i / n, i % n);
        let want: f64 = (0..depth)
            .map(|x| a[row * depth + x] as f64 * b[column * depth + x] as f64)
            .sum();
        (c[i] as f64 - want).abs() < 1e-4
    }))
}

fn product(on: &On<Cuda>, bug: usize) -> Result<bool, String> {
    let launch = Launch::new("selftest_product", [1, 1, 1], 32);
    multiply(on, launch, (16, 8, 16), bug)
}

fn warpgroup_product(on: &On<Cuda>, bug: usize) -> Result<bool, String> {
    // Two stages of two tiles from a boundary of 1,024 bytes on, and barriers.
    let shared = 1024 + 4 * 64 * 64 * 2 + 4 * 8;
    let launch = Launch::new("selftest_wgmma", [1, 1, 1], 256).shared(shared);
    multiply(on, launch, (64, 64, 64), bug)
}

#[test]
fn correct_kernels_pass_under_every_schedule() {
    for (seed, checked) in schedules() {
        let on = device(seed, checked);
        assert_eq!(reduce(&on, 0), Ok(true), "seed {seed} checked {checked}");
        assert_eq!(product(&on, 0), Ok(true), "seed {seed} checked {checked}");
        let large = warpgroup_product(&on, 0);
        assert_eq!(large, Ok(true), "seed {seed} checked {checked}");
    }
}

/// The checked build names the fault whatever the schedule.
#[test]
fn planted_faults_are_named() {
    let faults = [
        (1, "nobody has written|written by thread"),
        (2, "barrier divergence"),
        (3, "of an allocation of"),
        (4, "out of its bounds|shared"),
        (5, "nobody has written"),
        (6, "race: write of global memory"),
        (7, "barrier divergence"),
    ];
    let copies = [
        (1, "before the cp.async"),
        (2, "before the cp.async"),
        (4, "race: ldmatrix"),
        (5, "is under way|race"),
    ];
    let warpgroups = [
        (1, "without a fence_async_shared"),
        (2, "nobody has written|before the cp.async|race: wgmma"),
        (3, "race|is under way|arrivals are missing"),
        (4, "that a wgmma under way reads|reads with no barrier"),
        (5, "without wgmma_fence"),
        (7, "an accumulator was written"),
        (8, "that nobody has waited for"),
        (10, "arrivals are missing"),
        (11, "swizzled panel"),
        (12, "before the cp.async"),
        (13, "that a wgmma under way reads|reads with no barrier"),
    ];
    for seed in 0..5 {
        let on = device(seed, true);
        type Run = fn(&On<Cuda>, usize) -> Result<bool, String>;
        let all = faults
            .iter()
            .map(|f| (reduce as Run, f))
            .chain(copies.iter().map(|f| (product as Run, f)))
            .chain(warpgroups.iter().map(|f| (warpgroup_product as Run, f)));
        for (run, (bug, words)) in all {
            let error =
                run(&on, *bug).expect_err(&format!("seed {seed}: fault {bug} must be reported"));
            assert!(
                words.split('|').any(|w| error.contains(w)),
                "seed {seed} bug {bug}: {error}"
            );
            assert!(
                error.contains("thread") && error.contains("selftest_"),
                "{error}"
            );
        }
        assert_eq!(product(&on, 3), Ok(false), "a wrong fragment row");
        for (bug, what) in [(6, "read before the wait"), (9, "not swizzled")] {
            assert_eq!(warpgroup_product(&on, bug), Ok(false), "{what}");
        }
    }
}

/// Arguments that do not fit the kernel's parameters never reach it.
#[test]
fn wrong_arguments_are_refused() {
    let on = device(0, false);
    let x = on.put(&[0f32; 8]);
    let launch = |l: Launch| format!("{:#}", on.device.launch(&on.ctx(), l).unwrap_err());
    let short = Launch::new("selftest_reduce", [1, 1, 1], 128).ptr("in", &x.slice());
    assert!(launch(short).contains("4 parameters"));
    let swapped = Launch::new("selftest_reduce", [1, 1, 1], 128)
        .ptr("in", &x.slice())
        .u32("n", 8)
        .ptr("out", &x.slice())
        .u32("bug", 0);
    let error = launch(swapped);
    assert!(
        error.contains("parameter 1 has 8 bytes, the argument 4"),
        "{error}"
    );
    assert!(
        error.contains("selftest_reduce(in=0x") && error.contains("n=8"),
        "{error}"
    );
    let huge = Launch::new("selftest_reduce", [1, 1, 1], 128).shared(200 << 10);
    assert!(launch(huge).contains("parameters"));
    let none = Launch::new("no_such_kernel", [1, 1, 1], 32);
    assert!(launch(none).contains("no kernel of this name"));
}
