//! Guards the code that drives a GPU, where there is none: the tests' `cuda`
//! stamps run over a CUDA driver and a cuBLASLt that stand on the emulator, and
//! each fault of a machine gets its own message.
#![cfg(all(feature = "emulator", target_os = "linux"))]

use std::path::Path;
use std::process::{Command, Output};

use arca::device::{Ctx, Device, Slice, SliceMut};
use arca::model::batch::{Batch, Pair};
use arca::ops::linear::Linear;
use arca::ops::logprob::LogProb;
use half::bf16;

use crate::common::{arca, root};
use crate::kernels::{On, random, weight};

/// The libraries in a folder that LD_LIBRARY_PATH may name.
fn libraries() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("libcuda.so");
    let done = Command::new(env!("ARCA_EMULATOR_CXX"))
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Werror"])
        .arg("-I")
        .arg(root().join("cuda/emulator"))
        .arg(root().join("tests/fake_gpu/libcuda.cpp"))
        .arg("-o")
        .arg(&library)
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{log}");
    // One library under two names: what is under way is known to both.
    std::os::unix::fs::symlink(&library, dir.path().join("libcublasLt.so")).unwrap();
    dir
}

fn on_fake(program: &Path, libraries: &Path, fault: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .env("LD_LIBRARY_PATH", libraries)
        .env("REQUIRE_CUDA", "1")
        .env("FAKE_GPU", fault)
        .output()
        .unwrap()
}

/// `arca` with a fault, in a folder of its own: exit code and message.
fn refused(libraries: &Path, fault: &str) -> String {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("run").display().to_string();
    let args = ["train", "--device", "cuda", "--run", &folder];
    let done = on_fake(&arca(), libraries, fault, &args);
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{fault}: {text}");
    assert!(!text.contains("panicked"), "{fault}: {text}");
    text
}

/// Whether this build has kernels for a GPU; without nvcc it has none, and then
/// every use of one ends there.
fn has_kernels(libraries: &Path) -> bool {
    let none = refused(libraries, "no_device").contains("no CUDA kernels");
    if none {
        eprintln!("skipped: this build has no CUDA kernels (tools/cuda_toolchain.sh)");
    }
    !none
}

#[test]
fn ops_run_through_the_gpu_driver() {
    let libraries = libraries();
    if !has_kernels(libraries.path()) {
        return;
    }
    let tests = std::env::current_exe().unwrap();
    let args = [
        "kernels::",
        "long_copies",
        "--skip",
        "::emulator",
        "--skip",
        "::cpu",
        "--skip",
        "selftest",
    ];
    let done = on_fake(&tests, libraries.path(), "none", &args);
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{text}");
}

/// A Hopper GPU tries its own attention against the other, and then uses it.
#[test]
fn hopper_has_attention_of_its_own() {
    let libraries = libraries();
    if !has_kernels(libraries.path()) {
        return;
    }
    let tests = std::env::current_exe().unwrap();
    let args = [
        "kernels::attention",
        "kernels::model",
        "--skip",
        "::emulator",
        "--skip",
        "::cpu",
    ];
    let done = on_fake(&tests, libraries.path(), "hopper", &args);
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{text}");
    let done = on_fake(
        &arca(),
        libraries.path(),
        "hopper",
        &[
            "bench", "kernels", "--device", "cuda", "--shape", "demo", "--rows", "18",
        ],
    );
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(done.status.success(), "{text}");
    assert!(!text.contains("differs"), "{text}");
}

#[test]
fn each_fault_has_its_message() {
    let libraries = libraries();
    if !has_kernels(libraries.path()) {
        return;
    }
    for (fault, says) in [
        ("no_device", "no GPU that it may use"),
        ("old_driver", "driver is too old: it supports CUDA 11.4"),
        ("old_gpu", "compute capability 7.0"),
        ("wrong_image", "not supported by the kernels in this build"),
        ("no_memory", "out of GPU memory"),
        ("lost", "the GPU context is lost"),
    ] {
        let text = refused(libraries.path(), fault);
        assert!(text.contains(says), "{fault}: {text}");
    }
}

/// More than the page-locked memory holds, both ways, and again at once.
#[test]
fn long_copies_arrive() {
    let Some(device) = crate::kernels::gpu() else {
        return;
    };
    let stream = device.new_stream().unwrap();
    let ctx = Ctx { stream: &stream };
    let n = 5 << 20;
    let parts: Vec<Vec<u32>> = (0..2u32)
        .map(|part| {
            (0..n)
                .map(|i: u32| i.wrapping_mul(2654435761) ^ part)
                .collect()
        })
        .collect();
    let mut buf = device.alloc::<u32>(2 * n as usize).unwrap();
    for (i, part) in parts.iter().enumerate() {
        let (start, len) = (i * part.len(), part.len());
        let to = SliceMut {
            buf: &mut buf,
            start,
            len,
        };
        device.upload(&ctx, to, part).unwrap();
    }
    let mut back = vec![0u32; 2 * n as usize];
    let from = Slice {
        buf: &buf,
        start: 0,
        len: back.len(),
    };
    device.download(&ctx, from, &mut back).unwrap();
    assert!(back == parts.concat());
}

/// In a process of its own: freeing memory waits for all streams of a process.
#[test]
fn the_host_reads_while_the_device_works() {
    let libraries = libraries();
    if !has_kernels(libraries.path()) {
        return;
    }
    let tests = std::env::current_exe().unwrap();
    let name = "fake_gpu::scalars_come_before_the_last_u";
    let done = on_fake(&tests, libraries.path(), "none", &[name, "--exact"]);
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

/// Log-probs can be read before the last product with u is done, though pairs
/// without u come behind. Only where a device does nothing before somebody waits
/// for it can this be told from luck.
#[test]
fn scalars_come_before_the_last_u() {
    if std::env::var_os("FAKE_GPU").is_none() {
        return;
    }
    let on = On::new(crate::kernels::gpu().unwrap());
    let device = &on.device;
    let streams = [(); 2].map(|()| device.new_copy_stream().unwrap());
    let [reader, third] = [0, 1].map(|i| Ctx {
        stream: &streams[i],
    });
    // Two chunks, of which the second is without gradient.
    let (rows, pairs, grad_pairs, vocab, hidden) = (50, 4100, 3000, 21, 16);
    let mut batch = Batch::default();
    batch.push_segment(&vec![0; rows], &[], None);
    batch.saved_rows = rows;
    let pair = |i: usize| Pair {
        row: (i * 5 % rows) as u32,
        target: (i * 11 % vocab) as u32,
    };
    batch.pairs = (0..pairs).map(pair).collect();
    batch.grad_pairs = grad_pairs;
    let batch = on.batch(&batch);
    let head = device
        .load_matrix(&[weight(vocab, hidden, 1)], None, true, 0)
        .unwrap();
    let x = on.act(&random(rows * hidden, 2));
    let (mut logprobs, mut entropies) = (on.dirty::<f32>(pairs), on.dirty::<f32>(pairs));
    let mut u = on.dirty::<bf16>(grad_pairs * hidden);
    device.wait(&on.ctx()).unwrap();
    device
        .logprob_forward(
            &on.ctx(),
            &reader,
            &batch,
            &head,
            0.8,
            x.slice(),
            logprobs.slice_mut(),
            entropies.slice_mut(),
            Some(u.slice_mut()),
        )
        .unwrap();
    let mut early = vec![0f32; pairs];
    device
        .download(&reader, logprobs.slice(), &mut early)
        .unwrap();
    let mut not_yet = vec![bf16::ZERO; u.len];
    device.download(&third, u.slice(), &mut not_yet).unwrap();
    assert!(not_yet.iter().all(|u| u.is_nan()), "u was waited for");
    assert!(early.iter().all(|x| x.is_finite()));
    assert_eq!(early, on.get(&logprobs));
    assert!(on.get(&u).iter().all(|u| u.is_finite()));
}

/// The vendor's profiler is told to begin and to end around the asked steps.
#[test]
fn a_profiler_collects_the_asked_steps() {
    let libraries = libraries();
    if !has_kernels(libraries.path()) {
        return;
    }
    let run = tempfile::tempdir().unwrap();
    let out = run.path().join("trace.json").display().to_string();
    let args = [
        "bench",
        "update",
        "--shape",
        "demo",
        "--device",
        "cuda",
        "--prompts",
        "1",
        "--group-size",
        "2",
        "--prompt-length",
        "4",
        "--new-tokens",
        "8",
        "--repeats",
        "2",
        "--profile-steps",
        "2",
        "--out",
        &out,
    ];
    let done = on_fake(&arca(), libraries.path(), "none", &args);
    let text = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{text}");
    let told: Vec<&str> = text.lines().filter(|l| l.starts_with("profiler")).collect();
    assert_eq!(told, ["profiler started", "profiler stopped"]);
    assert!(Path::new(&out).exists());
}
