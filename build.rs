//! Compiles `cuda/*.cu`: with nvcc to fatbins that the binary embeds, and with
//! the feature `emulator` with g++ for the CPU.
//!
//! Without nvcc the crate builds all the same, with one warning; `--device
//! cuda` then says how to get the kernels. A file whose text, headers, flags
//! and compiler are as before is not compiled again.
//!
//! Environment: `CUDA_HOME` (where nvcc is), `ARCA_CUDA_ARCHS` (`all`, or a
//! list such as `sm_80,sm_100a`), `ARCA_NO_NVCC=1`, `CXX`.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What runs everywhere that is likely: Ampere and Hopper natively, later
/// chips from PTX.
const DEFAULT_ARCHS: &[&str] = &["sm_80", "sm_90a", "compute_90"];
const ALL_ARCHS: &[&str] = &["sm_80", "sm_90a", "sm_100a", "sm_120a", "compute_90"];

/// Kernels in which a register spill is a defect worth a warning.
const HOT: &[&str] = &[
    "attention",
    "attention_wgmma",
    "lora",
    "lora_backward",
    "logprob",
    "decode",
];

fn main() {
    for name in [
        "CUDA_HOME",
        "ARCA_CUDA_ARCHS",
        "ARCA_NO_NVCC",
        "CXX",
        "PATH",
    ] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cuda");
    // A path that is not there would have the script, and with it the crate, run
    // anew every time; tools/cuda_toolchain.sh touches this file.
    if Path::new(".cuda-toolchain").exists() {
        println!("cargo:rerun-if-changed=.cuda-toolchain");
    }
    commit();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let sources = files(Path::new("cuda"), "cu");
    fatbins(&sources, &out);
    if env::var_os("CARGO_FEATURE_EMULATOR").is_some() {
        emulator(&sources, &out);
    }
}

/// What the binary is made of: changes elsewhere do not make it another one.
const PARTS: [&str; 6] = [
    "src",
    "cuda",
    "assets",
    "build.rs",
    "Cargo.toml",
    "Cargo.lock",
];

/// Hands the commit to the program as `ARCA_COMMIT`.
fn commit() {
    let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let git = |args: &[&str]| -> Option<String> {
        // Not to touch the index, whose owner may be at work.
        let done = Command::new("git")
            .args(["--no-optional-locks", "-C", &root])
            .args(args)
            .output()
            .ok()?;
        let text = String::from_utf8(done.stdout).ok()?;
        done.status.success().then(|| text.trim().to_string())
    };
    let same = |top: &str| matches!((fs::canonicalize(top), fs::canonicalize(&root)), (Ok(a), Ok(b)) if a == b);
    // Unpacked within a checkout of something else, it is not of that commit.
    let own = git(&["rev-parse", "--show-toplevel"]).is_some_and(|top| same(&top));
    let hash = own.then(|| git(&["rev-parse", "HEAD"])).flatten();
    let commit = match hash {
        None => "unknown".to_string(),
        Some(hash) => {
            let mut status = vec!["status", "--porcelain", "--"];
            status.extend(PARTS);
            match git(&status) {
                Some(changes) if changes.is_empty() => hash,
                _ => hash + "+changes",
            }
        }
    };
    println!("cargo:rustc-env=ARCA_COMMIT={commit}");
    if own {
        // A commit moves the branch, a checkout HEAD; where branches are packed
        // into one file, a commit shows in the log. A worktree has its HEAD
        // elsewhere than its branches.
        let branch = git(&["symbolic-ref", "-q", "HEAD"]);
        let names = ["HEAD", "logs/HEAD", "packed-refs"].into_iter();
        for name in names.chain(branch.as_deref()) {
            let path = git(&["rev-parse", "--git-path", name]);
            // A missing file would have the script run every time.
            if let Some(path) = path.filter(|path| Path::new(path).exists()) {
                println!("cargo:rerun-if-changed={path}");
            }
        }
    }
    for part in PARTS {
        println!("cargo:rerun-if-changed={part}");
    }
}

/// Files of a folder with this extension, sorted.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    found
}

/// Text of what kernel files include.
fn headers() -> String {
    let found = files(Path::new("cuda"), "cuh");
    read(&found.iter().map(PathBuf::as_path).collect::<Vec<_>>())
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// A build step: run unless its output is there and was made of the same.
struct Step {
    output: PathBuf,
    program: PathBuf,
    args: Vec<String>,
    /// Everything else that the output depends on.
    inputs: String,
}

impl Step {
    fn fingerprint(&self) -> String {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let text = format!("{} {:?} {}", self.program.display(), self.args, self.inputs);
        for b in text.bytes() {
            hash = (hash ^ b as u64).wrapping_mul(0x0000_0100_0000_01b3);
        }
        format!("{hash:016x}")
    }

    /// The log of what was run, now or before.
    fn run(&self) -> Result<String, String> {
        let (stamp, log) = (
            self.output.with_extension("stamp"),
            self.output.with_extension("log"),
        );
        let fingerprint = self.fingerprint();
        if self.output.exists() && fs::read_to_string(&stamp).is_ok_and(|s| s == fingerprint) {
            return Ok(fs::read_to_string(&log).unwrap_or_default());
        }
        let done = Command::new(&self.program)
            .args(&self.args)
            .output()
            .map_err(|e| format!("cannot run {}: {e}", self.program.display()))?;
        let mut text = String::from_utf8_lossy(&done.stderr).into_owned();
        text += &String::from_utf8_lossy(&done.stdout);
        if !done.status.success() {
            return Err(format!(
                "{} {}\n{text}",
                self.program.display(),
                self.args.join(" ")
            ));
        }
        fs::write(&log, &text).map_err(|e| e.to_string())?;
        fs::write(&stamp, fingerprint).map_err(|e| e.to_string())?;
        Ok(text)
    }
}

/// All steps, over the cores; the first failure ends the build.
fn run_all(what: &str, steps: &[Step]) -> Vec<String> {
    let jobs = env::var("NUM_JOBS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2usize);
    let next = AtomicUsize::new(0);
    let mut results: Vec<Option<Result<String, String>>> = steps.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.clamp(1, steps.len().max(1)))
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(step) = steps.get(i) else {
                            return mine;
                        };
                        mine.push((i, step.run()));
                    }
                })
            })
            .collect();
        for worker in workers {
            for (i, result) in worker.join().expect("a build thread") {
                results[i] = Some(result);
            }
        }
    });
    results
        .into_iter()
        .flatten()
        .map(|r| match r {
            Ok(log) => log,
            Err(e) => {
                eprintln!("{what} failed:\n{e}");
                std::process::exit(1);
            }
        })
        .collect()
}

fn read(paths: &[&Path]) -> String {
    paths
        .iter()
        .map(|p| fs::read_to_string(p).unwrap_or_default())
        .collect()
}

// ---------------------------------------------------------------- for GPUs

/// CUDA_HOME, the folder that tools/cuda_toolchain.sh fills, the system's.
fn find_nvcc() -> Option<PathBuf> {
    if env::var("ARCA_NO_NVCC").is_ok_and(|v| v == "1") {
        return None;
    }
    let mut places = Vec::new();
    if let Some(home) = env::var_os("CUDA_HOME") {
        places.push(PathBuf::from(home).join("bin"));
    }
    for version in fs::read_dir(".cuda-toolchain/lib")
        .into_iter()
        .flatten()
        .flatten()
    {
        places.push(version.path().join("site-packages/nvidia/cu13/bin"));
    }
    places.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    places.push(PathBuf::from("/usr/local/cuda/bin"));
    places
        .into_iter()
        .map(|p| p.join("nvcc"))
        .find(|p| p.is_file())
}

fn archs() -> Vec<String> {
    match env::var("ARCA_CUDA_ARCHS").as_deref() {
        Ok("all") => ALL_ARCHS.iter().map(|s| s.to_string()).collect(),
        Ok(list) if !list.trim().is_empty() => {
            list.split(',').map(|s| s.trim().to_string()).collect()
        }
        _ => DEFAULT_ARCHS.iter().map(|s| s.to_string()).collect(),
    }
}

fn fatbins(sources: &[PathBuf], out: &Path) {
    let nvcc = find_nvcc();
    if nvcc.is_none() {
        println!(
            "cargo:warning=no nvcc: built without CUDA kernels (tools/cuda_toolchain.sh installs one)"
        );
    }
    let archs = archs();
    let mut images = String::new();
    let mut major = 0;
    let mut table = String::from(
        "/// Kernel files by stem, as fatbins.\nstatic FATBINS: &[(&str, &[u8])] = &[\n",
    );
    if let Some(nvcc) = &nvcc {
        images += "/// Kernel images, aligned as the driver reads them.\n#[repr(C, align(16))]\nstruct Aligned<T>(T);\n";
        let version = Command::new(nvcc)
            .arg("--version")
            .output()
            .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
            .unwrap_or_default();
        // "Cuda compilation tools, release 13.0, V13.0.88"
        let release = version.split("release ").nth(1).unwrap_or_default();
        major = release
            .split('.')
            .next()
            .map_or(0, |n| n.parse().unwrap_or(0));
        let headers = headers();
        let steps: Vec<Step> = sources
            .iter()
            .map(|source| {
                let output = out.join(format!("{}.fatbin", stem(source)));
                let mut args: Vec<String> = [
                    "-std=c++17",
                    "-O3",
                    "-lineinfo",
                    "-Icuda",
                    "-Xptxas",
                    "-v",
                    "--fatbin",
                ]
                .map(String::from)
                .to_vec();
                for arch in &archs {
                    let compute = arch.replace("sm_", "compute_");
                    args.extend(["-gencode".into(), format!("arch={compute},code={arch}")]);
                }
                args.extend([
                    "-o".into(),
                    output.display().to_string(),
                    source.display().to_string(),
                ]);
                Step {
                    output,
                    program: nvcc.clone(),
                    args,
                    inputs: format!("{version}{headers}{}", read(&[source])),
                }
            })
            .collect();
        let logs = run_all("compiling the CUDA kernels", &steps);
        for (step, source) in steps.iter().zip(sources) {
            let (name, path) = (stem(source), step.output.display().to_string());
            let bytes = fs::metadata(&step.output).map_or(0, |m| m.len());
            let upper = name.to_uppercase();
            let _ = writeln!(
                images,
                "static {upper}: Aligned<[u8; {bytes}]> = Aligned(*include_bytes!({path:?}));"
            );
            let _ = writeln!(table, "    ({name:?}, &{upper}.0),");
        }
        report(sources, &logs, out);
    }
    let _ = writeln!(
        table,
        "];\n/// What they were compiled for.\nconst ARCHS: &str = {:?};\n/// By which nvcc.\nconst NVCC_MAJOR: i32 = {major};",
        archs.join(", ")
    );
    fs::write(out.join("fatbins.rs"), images + &table).expect("OUT_DIR can be written");
}

/// ptxas's figures by kernel, in a file; spills in hot kernels as warnings.
fn report(sources: &[PathBuf], logs: &[String], out: &Path) {
    let mut text = format!(
        "{:<34} {:<9} {:>9} {:>8} {:>7} {:>12} {:>11}\n",
        "kernel", "arch", "registers", "shared", "stack", "spill stores", "spill loads"
    );
    for (source, log) in sources.iter().zip(logs) {
        let (mut kernel, mut arch, mut frame) = (String::new(), String::new(), [0u64; 3]);
        for line in log.lines() {
            let number_before = |what: &str| -> u64 {
                let Some(at) = line.find(what) else { return 0 };
                let digits = line[..at]
                    .trim_end()
                    .rsplit(|c: char| !c.is_ascii_digit())
                    .next();
                digits.and_then(|d| d.parse().ok()).unwrap_or(0)
            };
            if let Some(rest) = line.split("Compiling entry function '").nth(1) {
                let mut parts = rest.split('\'');
                kernel = parts.next().unwrap_or_default().to_string();
                arch = parts.nth(1).unwrap_or_default().to_string();
            } else if line.contains("(C75") {
                // Products of warpgroups that ptxas puts one behind another, or
                // that it mends.
                println!("cargo:warning={}.cu: {line}", stem(source));
                let _ = writeln!(text, "{}.cu: {line}", stem(source));
            } else if line.contains("bytes stack frame") {
                frame = [
                    number_before(" bytes stack frame"),
                    number_before(" bytes spill stores"),
                    number_before(" bytes spill loads"),
                ];
            } else if line.contains("Used ") && line.contains(" registers") {
                let [stack, stores, loads] = frame;
                let _ = writeln!(
                    text,
                    "{kernel:<34} {arch:<9} {:>9} {:>8} {stack:>7} {stores:>12} {loads:>11}",
                    number_before(" registers"),
                    number_before(" bytes smem"),
                );
                if stores + loads > 0 && HOT.contains(&stem(source).as_str()) {
                    println!(
                        "cargo:warning=kernel {kernel} ({arch}) spills {stores} bytes of registers"
                    );
                }
            }
        }
    }
    fs::write(out.join("kernels.txt"), &text).expect("OUT_DIR can be written");
    // target/<profile>/build/<package>/out: the report stands beside <profile>.
    if let Some(target) = out.ancestors().nth(4) {
        let _ = fs::write(target.join("kernels.txt"), text);
    }
}

// ----------------------------------------------------------- for the CPU

/// Flags of the runtime, of the kernels' fast build and of the checked one.
const RUNTIME_FLAGS: &str = "-std=c++17 -O3 -fPIC -g1 -Icuda/emulator";
const KERNEL_FLAGS: &str = "-std=c++17 -O2 -fPIC -g1 -Icuda -fno-strict-aliasing -ffp-contract=off \
     -ftrivial-auto-var-init=pattern -fsanitize=bounds-strict,shift -fsanitize-undefined-trap-on-error";
const CHECKED_FLAGS: &str =
    "-fsanitize=thread --param tsan-instrument-func-entry-exit=0 -DARCA_EMU_CHECKED";

fn emulator(sources: &[PathBuf], out: &Path) {
    let compiler = PathBuf::from(env::var_os("CXX").unwrap_or_else(|| "g++".into()));
    if Command::new(&compiler).arg("--version").output().is_err() {
        eprintln!(
            "the feature emulator compiles the kernels with {}, which is not here: install g++, or name it in CXX",
            compiler.display()
        );
        std::process::exit(1);
    }
    let folder = Path::new("cuda/emulator");
    let runtime = files(folder, "cpp");
    let runtime_headers = read(
        &[
            "emulator.h",
            "shim.h",
            "shim_wgmma.h",
            "runtime.h",
            "checker.h",
        ]
        .map(|n| folder.join(n))
        .each_ref()
        .map(|p| p.as_path()),
    );
    let words = |s: &str| s.split_whitespace().map(String::from).collect::<Vec<_>>();
    let object = |name: &str, source: &Path, flags: Vec<String>, inputs: String| {
        let output = out.join(format!("{name}.o"));
        let mut args = flags;
        args.extend([
            "-c".into(),
            source.display().to_string(),
            "-o".into(),
            output.display().to_string(),
        ]);
        Step {
            output,
            program: compiler.clone(),
            args,
            inputs,
        }
    };
    let mut steps: Vec<Step> = runtime
        .iter()
        .map(|p| {
            object(
                &format!("emulator_{}", stem(p)),
                p,
                words(RUNTIME_FLAGS),
                runtime_headers.clone() + &read(&[p]),
            )
        })
        .collect();
    let headers = runtime_headers + &headers();
    let selftest = folder.join("selftest.cu");
    for source in sources.iter().chain([&selftest]) {
        let wrapper = out.join(format!("{}.cpp", stem(source)));
        // Rewriting an equal file would only touch its time; the text is hashed.
        let absolute = fs::canonicalize(source).unwrap_or_else(|_| source.clone());
        fs::write(&wrapper, wrapped(&absolute)).expect("OUT_DIR can be written");
        let inputs = headers.clone() + &read(&[source]);
        steps.push(object(
            &format!("fast_{}", stem(source)),
            &wrapper,
            words(KERNEL_FLAGS),
            inputs.clone(),
        ));
        let mut checked = words(KERNEL_FLAGS);
        checked.extend(words(CHECKED_FLAGS));
        steps.push(object(
            &format!("checked_{}", stem(source)),
            &wrapper,
            checked,
            inputs,
        ));
    }
    run_all("compiling the kernels for the emulator", &steps);
    let archive = out.join("libarca_emulator.a");
    let _ = fs::remove_file(&archive);
    let objects: Vec<String> = steps
        .iter()
        .map(|s| s.output.display().to_string())
        .collect();
    let packed = Command::new("ar")
        .arg("crs")
        .arg(&archive)
        .args(&objects)
        .status();
    if !packed.is_ok_and(|s| s.success()) {
        eprintln!("ar could not make {}", archive.display());
        std::process::exit(1);
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    // Kernels register themselves by static objects that nothing refers to.
    println!("cargo:rustc-link-lib=static:+whole-archive=arca_emulator");
    println!("cargo:rustc-link-lib=dylib=stdc++");
    // Kernels loaded at run time find the runtime in the executable.
    println!("cargo:rustc-link-arg=-rdynamic");
    let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let flags = KERNEL_FLAGS.replace("-Icuda", &format!("-I{root}/cuda"));
    println!("cargo:rustc-env=ARCA_EMULATOR_CXX={}", compiler.display());
    println!("cargo:rustc-env=ARCA_EMULATOR_FLAGS={flags}");
    println!("cargo:rustc-env=ARCA_EMULATOR_CHECKED_FLAGS={flags} {CHECKED_FLAGS}");
}

/// A kernel file as a unit of its own: equal names in two files stay apart.
fn wrapped(source: &Path) -> String {
    format!(
        "#include \"emulator/shim.h\"\nnamespace {{\n#include {:?}\n}}\n",
        source.display().to_string()
    )
}
