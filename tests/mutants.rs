//! Guards the net itself: kernels with a fault planted in their text must fail
//! the very tests that guard them.
//!
//! A mutant is compiled as the build compiles kernels, loaded in place of the
//! built-in ones, and the kernel's own tests are run on it in a process of their
//! own. `tools/mutate_kernels.sh` takes out each barrier, wait and fence in turn.
#![cfg(feature = "emulator")]

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::root;

/// Compiles a kernel file's text to a library with its fast and checked builds.
fn compile(dir: &Path, stem: &str, text: &str) -> PathBuf {
    let source = dir.join(format!("{stem}.cu"));
    std::fs::write(&source, text).unwrap();
    let wrapper = dir.join("wrapper.cpp");
    let include = format!("{:?}", source.display().to_string());
    std::fs::write(
        &wrapper,
        format!("#include \"emulator/shim.h\"\nnamespace {{\n#include {include}\n}}\n"),
    )
    .unwrap();
    let run = |args: Vec<&str>| {
        let done = Command::new(env!("ARCA_EMULATOR_CXX"))
            .args(&args)
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.success(),
            "a mutant of {stem} does not compile: {log}"
        );
    };
    let mut objects = Vec::new();
    for (name, flags) in [
        ("fast.o", env!("ARCA_EMULATOR_FLAGS")),
        ("checked.o", env!("ARCA_EMULATOR_CHECKED_FLAGS")),
    ] {
        let object = dir.join(name).display().to_string();
        let wrapper = wrapper.display().to_string();
        let mut args: Vec<&str> = flags.split_whitespace().collect();
        args.extend(["-c", &wrapper, "-o", &object]);
        run(args);
        objects.push(object);
    }
    let library = dir.join("mutant.so");
    let path = library.display().to_string();
    run(vec!["-shared", "-o", &path, &objects[0], &objects[1]]);
    library
}

/// Whether the kernel's emulator tests fail with these kernels in place of the
/// built-in ones, and what they said.
fn caught(stem: &str, text: &str) -> (bool, String) {
    caught_by(&format!("kernels::{stem}::"), stem, text)
}

/// The same of some of its tests.
fn caught_by(tests: &str, stem: &str, text: &str) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let library = compile(dir.path(), stem, text);
    let done = Command::new(std::env::current_exe().unwrap())
        .args([tests, "--skip", "::cpu", "--skip", "::cuda"])
        .env("ARCA_EMULATOR_KERNELS", &library)
        .env("RUST_BACKTRACE", "0")
        .current_dir(root())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(text.contains("running "), "no tests were run: {text}");
    assert!(
        !text.contains("running 0 tests"),
        "{stem} has no emulator tests"
    );
    (!done.status.success(), text)
}

fn kernel(stem: &str) -> String {
    std::fs::read_to_string(root().join(format!("cuda/{stem}.cu"))).unwrap()
}

/// The text with the `nth` occurrence of `find` replaced.
fn replace_nth(text: &str, find: &str, nth: usize, replace: &str) -> String {
    let (at, _) = text
        .match_indices(find)
        .nth(nth)
        .unwrap_or_else(|| panic!("{find:?} is not there {} times", nth + 1));
    [&text[..at], replace, &text[at + find.len()..]].concat()
}

/// A kernel compiled again as it is passes: what fails below is the fault.
#[test]
fn an_unchanged_kernel_passes() {
    let (failed, log) = caught("residual", &kernel("residual"));
    assert!(!failed, "{log}");
}

/// One fault of each kind.
#[test]
fn planted_faults_are_caught() {
    let planted = [
        ("a missing barrier", "rmsnorm", "  __syncthreads();", ""),
        (
            "a missing wait",
            "attention",
            "    cp_async_wait<1>();\n",
            "",
        ),
        (
            "a wait that leaves a copy open",
            "lora",
            "cp_async_wait<1>();",
            "cp_async_wait<2>();",
        ),
        (
            "a column of the next module",
            "lora",
            "column < column2 ? 1",
            "column <= column2 ? 1",
        ),
        (
            "a tile that is copied over while it is read",
            "lora_backward",
            "      __syncthreads();",
            "",
        ),
        (
            "a tile that is not there yet",
            "lora_backward",
            "cp_async_wait<kStages - 2>",
            "cp_async_wait<kStages - 1>",
        ),
        (
            "sums of another part",
            "lora_backward",
            "part.sums += size_t",
            "part.sums = 0 * size_t",
        ),
        (
            "a chunk's sums that are left out",
            "lora_backward",
            "chunk = 0; chunk < part.chunks",
            "chunk = 0; chunk < part.chunks - 1",
        ),
        ("a missing warp fence", "decode", "    __syncwarp();\n", ""),
        (
            "a wrong fragment row",
            "attention",
            "reach = tile.position + warp * 16 + half * 8 + lane / 4",
            "reach = tile.position + warp * 16 + half * 8 + lane / 8",
        ),
        (
            "tiles given up before they are read",
            "attention_wgmma",
            "    wgmma_wait<0>(dq);\n    mbarrier_arrive(&tiles.empty[stage]);",
            "    mbarrier_arrive(&tiles.empty[stage]);\n    wgmma_wait<0>(dq);",
        ),
        (
            "products of another head's queries",
            "attention_wgmma",
            "tiles.q[consumer()]",
            "tiles.q[0]",
        ),
        (
            "a tail that is one too long",
            "adamw",
            "; i < singles; i += stride",
            "; i <= singles; i += stride",
        ),
        (
            "elements beside a boundary that are left out",
            "adamw",
            "i < head ? i : i + 4 * fours",
            "i + 4 * fours",
        ),
        (
            "lanes beyond the last head that write",
            "qknorm_rope",
            "if (at.valid()) d.write",
            "d.write",
        ),
        (
            "wide rows that are taken for dense",
            "rmsnorm",
            "size_t(blockIdx.x) * x_stride",
            "size_t(blockIdx.x) * hidden",
        ),
        (
            "a mask that is off by one",
            "attention",
            "position <= reach ? x",
            "position < reach ? x",
        ),
        (
            "shared memory overrun",
            "rmsnorm",
            "part[threadIdx.x / WARP] = x",
            "part[threadIdx.x / WARP + 1] = x",
        ),
        (
            "arguments in another order",
            "swiglu",
            "const bf16* gate_up, const bf16* d_act,",
            "const bf16* d_act, const bf16* gate_up,",
        ),
        (
            "factors over another part's",
            "lora",
            "outputs + f.s_column + row",
            "outputs + row",
        ),
        (
            "a sum that loses a part",
            "logprob",
            "w = 0; w < kWarps",
            "w = 1; w < kWarps",
        ),
        (
            "exponentials over logits that others have yet to read",
            "logprob",
            "      __syncthreads();\n      writable",
            "      writable",
        ),
        (
            "a barrier that is taken to allow for too much",
            "logprob",
            "writable = 2 * (stripe",
            "writable = 4 * (stripe",
        ),
        (
            "exponentials of a new reference beside those of the old",
            "logprob",
            "stripe < from ? 0.0f : by",
            "by",
        ),
        (
            "references of threads that are taken for the block's",
            "logprob",
            "all.top - first_ref > kFar",
            "all.top - first_ref > 1e30f",
        ),
        (
            "a sum that is not moved to a new top",
            "logprob",
            "sum *= shrink;",
            "",
        ),
    ];
    for (what, stem, find, replace) in planted {
        let tests = match stem {
            // Where all of them take long.
            "attention_wgmma" => "kernels::attention_wgmma::backward".to_string(),
            "logprob" => "kernels::logprob::chosen_rows".to_string(),
            _ => format!("kernels::{stem}::"),
        };
        let text = replace_nth(&kernel(stem), find, 0, replace);
        let (failed, log) = caught_by(&tests, stem, &text);
        assert!(failed, "{what} in {stem}.cu went unnoticed:\n{log}");
    }
}

/// Each barrier, wait and fence of each kernel, taken out in turn. Minutes:
/// run by `tools/mutate_kernels.sh`.
#[test]
#[ignore = "takes minutes: tools/mutate_kernels.sh"]
fn every_barrier_matters() {
    let fences = [
        "__syncthreads();",
        "__syncwarp();",
        "cp_async_wait<",
        "cp_async_commit();",
        "mbarrier_wait(",
        "mbarrier_arrive(",
        "fence_async_shared();",
        "wgmma_fence();",
        "wgmma_commit();",
        "wgmma_wait<",
    ];
    // One kernel file, or all.
    let only = std::env::var("ARCA_MUTATE").ok();
    let mut files: Vec<String> = std::fs::read_dir(root().join("cuda"))
        .unwrap()
        .filter_map(|e| {
            e.unwrap()
                .file_name()
                .into_string()
                .ok()?
                .strip_suffix(".cu")
                .map(String::from)
        })
        .collect();
    files.sort();
    let (mut count, mut missed) = (0, Vec::new());
    files.retain(|stem| only.as_ref().is_none_or(|o| o == stem));
    for stem in files {
        let text = kernel(&stem);
        for (i, line) in text.lines().enumerate() {
            if !fences.iter().any(|f| line.trim_start().starts_with(f)) {
                continue;
            }
            let without: Vec<&str> = text
                .lines()
                .enumerate()
                .map(|(j, l)| if i == j { "" } else { l })
                .collect();
            let (failed, _) = caught(&stem, &without.join("\n"));
            let place = format!("{stem}.cu:{}: {}", i + 1, line.trim());
            println!("{} {place}", if failed { "caught  " } else { "NOT SEEN" });
            count += 1;
            if !failed {
                missed.push(place);
            }
        }
    }
    assert!(
        count > if only.is_some() { 0 } else { 20 },
        "only {count} fences found"
    );
    assert!(
        missed.is_empty(),
        "{} of {count} unnoticed: {missed:#?}",
        missed.len()
    );
}
