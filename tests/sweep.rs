//! Guards that a sweep gives every arm what `arca train` with the arm's own
//! configuration gives, to the last bit, whatever trains beside it, was
//! interrupted or fails; and that the presets are the sweeps they say.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use arca::config::Config;
use arca::study::arms::Arms;
use serde_json::Value;
use tempfile::TempDir;

use crate::run::{Run, expect};

/// Arms of different rank, method, dropout and seed; the last steps have
/// everything that a step can have.
const ARMS: &str = r#"
[train]
steps = 3
prompts_per_step = 2
save_every = 2
eval_every = 2
[rollout]
group_size = 4
[eval]
limit = 4
samples = 2
[sweep]
[[sweep.arm]]
name = "plain"
lora.r = 4
[[sweep.arm]]
name = "arca"
credit.method = "arca"
credit.exponent = 2
lora.r = 20
train.seed = 5
[[sweep.arm]]
name = "dropped"
credit.method = "divergence"
lora.dropout = 0.1
loss.inner_iterations = 2
loss.beta = 0.05
train.seed = 5
[[sweep.arm]]
name = "narrow"
credit.method = "surprisal"
lora.target_modules = ["q_proj", "down_proj"]
optimizer.learning_rate = 3e-3
train.tokens_per_batch = 300
"#;

const NAMES: [&str; 4] = ["plain", "arca", "dropped", "narrow"];

struct Study {
    dir: TempDir,
}

impl Study {
    fn new(config: &str) -> Study {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("sweep.toml"), config).unwrap();
        Study { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(crate::common::arca());
        command
            .args(args)
            .current_dir(self.path())
            .env("NO_COLOR", "1")
            .env("RAYON_NUM_THREADS", "1");
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn sweep(&self, run: &str, code: i32, more: &[&str]) -> Output {
        let args = [&["sweep", "--config", "sweep.toml", "--run", run], more].concat();
        let output = self.output(&args);
        expect(&output, code, &format!("sweep {more:?}"));
        output
    }

    fn arm(&self, run: &str, name: &str) -> Run {
        Run {
            root: self.path().join(run).join("arms").join(name),
        }
    }

    fn json(&self, run: &str, file: &str) -> Value {
        let text = fs::read(self.path().join(run).join(file)).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// Trains each arm alone with the configuration that its folder holds.
    fn train_alone(&self, run: &str, name: &str) -> Run {
        let config = format!("{run}/arms/{name}/config.toml");
        let alone = format!("alone-{name}");
        let output = self.output(&["train", "--config", &config, "--run", &alone]);
        expect(&output, 0, name);
        Run {
            root: self.path().join(alone),
        }
    }
}

#[test]
fn every_arm_equals_its_own_run() {
    let study = Study::new(ARMS);
    let output = study.sweep("s", 0, &[]);
    let table = String::from_utf8(output.stdout).unwrap();
    for name in NAMES {
        let alone = study.train_alone("s", name);
        study.arm("s", name).assert_same(&alone, 3);
        assert!(table.contains(&format!("\n{name} ")), "{table}");
    }
    let [plain, arca, dropped, narrow] = NAMES.map(|name| asked(&study, "s", name));
    assert!(plain == narrow && arca == dropped && plain != arca);
    check_files(&study, "s");
}

#[test]
fn the_bench_measures_both_ways() {
    let study = Study::new("");
    let sizes = "--arms 3 --prompts 1 --group-size 2 --prompt-length 4 --new-tokens 4 --repeats 1";
    let args: Vec<&str> = ["bench", "sweep", "--json"]
        .into_iter()
        .chain(sizes.split(' '))
        .collect();
    let output = study.output(&args);
    expect(&output, 0, "bench sweep");
    let text = String::from_utf8(output.stdout).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    // Three arms with the same two lengths, of 1 to 4 tokens.
    let tokens = last["tokens"].as_u64().unwrap();
    assert!(
        tokens.is_multiple_of(3) && (6..=24).contains(&tokens),
        "{last}"
    );
    let seconds = |key: &str| last[key].as_f64().unwrap();
    let ratio = seconds("seconds_in_turn") / seconds("seconds_together");
    assert!((ratio - seconds("ratio")).abs() < 1e-9 && ratio > 0.0);
}

/// Arms of one seed are asked the same problems in the same order, those of
/// another seed others.
fn asked(study: &Study, run: &str, name: &str) -> Vec<Value> {
    let run = study.arm(run, name);
    let rows = (1..=3).flat_map(|step| run.completions(step));
    rows.map(|row| row["problem"].clone()).collect()
}

/// The files that reports read, and that they agree with one another.
fn check_files(study: &Study, run: &str) {
    let record = study.json(run, "sweep.json");
    let arms = record["arms"].as_array().unwrap();
    let of = |key: &str| -> Vec<&Value> { arms.iter().map(|a| &a[key]).collect() };
    assert_eq!(of("name"), NAMES);
    assert_eq!(of("status"), ["done"; 4]);
    assert_eq!(of("r"), [4, 20, 16, 16]);
    assert_eq!(of("seed"), [0, 5, 5, 0]);
    // Equal budgets: 3 steps of 2 prompts with 4 completions.
    assert_eq!(of("completions"), [24; 4]);
    assert!(record["rollout_seconds"].as_f64().unwrap() > 0.0);

    let evaluation = study.json(run, "evaluation.json");
    assert_eq!(evaluation["problems"].as_array().unwrap().len(), 4);
    assert!(evaluation["problems"][0]["level"].is_string());
    let rows = evaluation["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, [&["base"], &NAMES[..]].concat());
    let evals = [&record["base"]]
        .into_iter()
        .chain(arms.iter().map(|a| &a["evaluation"]));
    for (row, eval) in rows.iter().zip(evals) {
        let mean = |list: &Value| {
            let list = list.as_array().unwrap();
            list.iter().map(|x| x.as_f64().unwrap()).sum::<f64>() / list.len() as f64
        };
        assert_eq!(mean(&row["greedy"]), eval["greedy_accuracy"]);
        assert_eq!(mean(&row["maj"]), eval["maj_at_k"]);
        let samples: Vec<f64> = row["samples"]
            .as_array()
            .unwrap()
            .iter()
            .map(mean)
            .collect();
        assert_eq!(samples.len(), 4);
        assert_eq!(mean(&Value::from(samples)), eval["sampled_accuracy"]);
    }
    for name in NAMES {
        let text = String::from_utf8(study.arm(run, name).bytes("inspect.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 4);
        for line in text.lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let n = row["completion_ids"].as_array().unwrap().len();
            for key in ["tokens", "residuals", "reference_logprobs", "entropies"] {
                assert_eq!(row[key].as_array().unwrap().len(), n, "{key}");
            }
            for method in arca::credit::METHODS {
                let weights = row["weights"][method.name()].as_array().unwrap();
                let sum: f64 = weights.iter().map(|w| w.as_f64().unwrap()).sum();
                assert!((sum - 1.0).abs() < 1e-9, "{}", method.name());
            }
            assert!(row["reward"].is_number() && row["text"].is_string());
        }
    }
}

/// The power goes between the saves of two arms, and in the middle of a step.
#[test]
fn a_resumed_sweep_equals_an_uninterrupted_one() {
    let study = Study::new(ARMS);
    study.sweep("straight", 0, &[]);
    study.sweep("died", 0, &["--set", "train.steps=2"]);
    // As if it had died before two arms' first checkpoint was written.
    for name in ["arca", "narrow"] {
        fs::remove_dir_all(study.arm("died", name).root.join("checkpoints")).unwrap();
    }
    let resume = [
        "sweep",
        "--run",
        "died",
        "--resume",
        "--set",
        "train.steps=3",
    ];
    expect(&study.output(&resume), 0, "resume");
    for name in NAMES {
        let (one, other) = (study.arm("straight", name), study.arm("died", name));
        one.assert_same(&other, 3);
    }
    let evaluation = |run: &str| study.json(run, "evaluation.json");
    assert_eq!(evaluation("straight"), evaluation("died"));
    let record = study.json("died", "sweep.json");
    assert_eq!(record["arms"][1]["completions"], 24);
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_every_arm() {
    let study = Study::new(ARMS);
    let args = ["sweep", "--config", "sweep.toml", "--run", "s"];
    let long = ["--set", "train.steps=100000", "--set", "train.eval_every=0"];
    let child = study
        .command(&[&args[..], &long].concat())
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let metrics = study.arm("s", "narrow").root.join("metrics.jsonl");
    let start = Instant::now();
    while fs::read_to_string(&metrics)
        .unwrap_or_default()
        .lines()
        .count()
        < 1
    {
        assert!(
            start.elapsed() < Duration::from_secs(300),
            "no step in five minutes"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    let message = expect(&child.wait_with_output().unwrap(), 130, "SIGINT");
    assert!(message.contains("arca sweep --run s --resume"), "{message}");
    let done = *study.arm("s", "plain").checkpoints().last().unwrap();
    for name in NAMES {
        assert_eq!(study.arm("s", name).metrics().len(), done, "{name}");
        assert_eq!(*study.arm("s", name).checkpoints().last().unwrap(), done);
    }

    let steps = format!("train.steps={}", done + 1);
    let resume = ["sweep", "--run", "s", "--resume", "--set", &steps];
    expect(&study.output(&resume), 0, "resume");
    let settings = ["--set", &steps, "--set", "train.eval_every=0"];
    study.sweep("straight", 0, &settings);
    for name in NAMES {
        let (one, other) = (study.arm("straight", name), study.arm("s", name));
        assert_eq!(one.timeless(), other.timeless(), "{name}");
        assert!(one.adapter() == other.adapter(), "{name}");
    }
}

/// One arm's first step makes its adapter so large that no logits are numbers:
/// the others' joint rollout is drawn again without it.
#[test]
fn an_arm_that_dies_leaves_the_others_alone() {
    let bad = "[[sweep.arm]]\nname = \"bad\"\noptimizer.learning_rate = 1e30\n\
               optimizer.max_grad_norm = 0.0\ncredit.method = \"surprisal\"\n";
    let study = Study::new(&format!("{ARMS}{bad}"));
    let message = expect(
        &study.output(&["sweep", "--config", "sweep.toml", "--run", "s"]),
        1,
        "one arm failed",
    );
    assert!(message.contains("bad failed after step"), "{message}");
    assert!(message.contains("1 of 5 arms failed: bad"), "{message}");
    let record = study.json("s", "sweep.json");
    let of = |name: &str| {
        let arms = record["arms"].as_array().unwrap();
        arms.iter().find(|a| a["name"] == name).unwrap().clone()
    };
    assert_eq!(of("bad")["status"], "failed");
    assert!(
        of("bad")["error"].as_str().unwrap().contains("NaN"),
        "{record}"
    );
    for name in NAMES {
        assert_eq!(of(name)["status"], "done");
        let alone = study.train_alone("s", name);
        study.arm("s", name).assert_same(&alone, 3);
    }

    // Resumed, it stays failed, and its folder as it was.
    let metrics = study.arm("s", "bad").bytes("metrics.jsonl");
    let output = study.output(&["sweep", "--run", "s", "--resume"]);
    expect(&output, 1, "resume");
    assert_eq!(study.arm("s", "bad").bytes("metrics.jsonl"), metrics);
    assert_eq!(study.json("s", "sweep.json")["arms"][4], of("bad"));
}

#[test]
fn what_would_not_fit_or_cannot_be_meant_is_refused_before_anything_is_written() {
    let study = Study::new(ARMS);
    for (settings, code, part) in [
        (&["rollout.kv_memory=1K"][..], 2, "KV pages"),
        (
            &[
                "train.tokens_per_batch=100000000000",
                "train.prompts_per_step=100000000",
            ],
            1,
            "MiB",
        ),
        (&["sweep.ranks=[0]"], 2, "lora.r"),
    ] {
        let mut args = vec!["sweep", "--config", "sweep.toml", "--run", "s"];
        for setting in settings {
            args.extend(["--set", setting]);
        }
        let message = expect(&study.output(&args), code, part);
        assert!(message.contains(part), "{message}");
        assert!(!study.path().join("s").exists());
    }
    let used = study.path().join("used");
    fs::create_dir(&used).unwrap();
    fs::write(used.join("file"), "").unwrap();
    let args = ["sweep", "--config", "sweep.toml", "--run", "used"];
    let message = expect(&study.output(&args), 2, "a used folder");
    assert!(message.contains("never overwritten"), "{message}");
    let message = expect(
        &study.output(&["sweep", "--run", "used", "--resume"]),
        2,
        "no sweep",
    );
    assert!(message.contains("sweep.toml"), "{message}");
}

fn preset(name: &str) -> Arms {
    Arms::load(&crate::common::root().join("presets").join(name), &[]).unwrap()
}

fn names(arms: &Arms) -> Vec<&str> {
    arms.plans.iter().map(|p| &p.name[..]).collect()
}

#[test]
fn the_paper_s_preset_is_its_seven_runs() {
    let arms = preset("paper.toml");
    assert_eq!(
        names(&arms),
        [
            "uniform-r64-s1337",
            "surprisal-r64-p2-s1337",
            "entropy_reduction-r64-p2-s1337",
            "divergence-r64-p2-s1337",
            "arca-r4-p2-s1337",
            "arca-r16-p2-s1337",
            "arca-r64-p2-s1337",
        ]
    );
    for plan in &arms.plans {
        let c = &plan.config;
        assert_eq!(c.lora.alpha, 2.0 * c.lora.r as f32);
        assert_eq!((c.lora.dropout, c.rollout.top_p), (0.05, 0.95));
        assert_eq!((c.rollout.group_size, c.train.prompts_per_step), (4, 8));
        assert_eq!(
            (c.train.steps, c.optimizer.warmup_steps, c.eval.limit),
            (100, 10, 200)
        );
        assert_eq!((c.optimizer.learning_rate, c.advantage.ddof), (5e-6, 1));
    }
}

#[test]
fn the_clean_preset_has_every_control() {
    let arms = preset("clean.toml");
    // 3 seeds x 3 ranks x (uniform, 3 signals x 2 exponents, ARCA x 2 x 2 states).
    assert_eq!(arms.plans.len(), 99);
    let names = names(&arms);
    for r in [4, 16, 64] {
        for seed in 0..3 {
            for name in [
                "uniform-r#",
                "arca-r#-p1",
                "arca-r#-p2-pre-norm",
                "surprisal-r#-p2",
            ] {
                let name = format!("{}-s{seed}", name.replace('#', &r.to_string()));
                assert!(names.contains(&&name[..]), "{name}");
            }
        }
    }
    assert!(arms.plans.iter().all(|p| p.config.lora.dropout == 0.0));
}

#[test]
fn the_demo_s_preset_is_sixteen_arms() {
    let arms = preset("demo.toml");
    let of_seed = [
        "uniform-r4",
        "uniform-r16",
        "surprisal-r16-p1",
        "entropy_reduction-r16-p1",
        "divergence-r16-p1",
        "arca-r4-p1",
        "arca-r16-p1",
        "arca-r16-p2",
    ];
    let expected: Vec<String> = (0..2)
        .flat_map(|seed| of_seed.map(|name| format!("{name}-s{seed}")))
        .collect();
    assert_eq!(names(&arms), expected);
    assert_eq!(arms.base.model, Config::demo_defaults().unwrap().model);
}
