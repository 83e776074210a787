//! `arca report` through the real binary: every figure has its data, the
//! tables hold means worked out by hand, the page needs nothing from outside,
//! and damaged folders are named rather than fatal.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use roxmltree::{Document, Node, ParsingOptions};
use serde_json::json;

const STEPS: usize = 9;
const METHODS: [&str; 3] = ["uniform", "surprisal", "arca"];
const PROBLEMS: usize = 8;

fn report(folder: &Path, args: &[&str]) -> Output {
    Command::new(crate::common::arca())
        .arg("report")
        .args(args)
        .current_dir(folder)
        .output()
        .expect("the binary starts")
}

/// Standard output of a report that is made.
fn made(folder: &Path, args: &[&str]) -> String {
    let output = report(folder, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn parse(html: &str) -> Document<'_> {
    let options = ParsingOptions {
        allow_dtd: true,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(html, options).expect("well-formed")
}

fn texts(node: Node) -> String {
    node.descendants()
        .filter_map(|n| if n.is_text() { n.text() } else { None })
        .collect()
}

fn elements<'a, 'b>(node: Node<'a, 'b>, name: &'static str) -> impl Iterator<Item = Node<'a, 'b>> {
    node.descendants().filter(move |n| n.has_tag_name(name))
}

/// Reward of a step: a line that each method and seed shifts.
fn reward(method: usize, seed: usize, step: usize) -> f64 {
    0.1 + 0.01 * step as f64 + 0.1 * method as f64 + 0.02 * seed as f64
}

/// A run folder as training writes it.
fn run(dir: &Path, method: usize, seed: usize) {
    let name = METHODS[method];
    fs::create_dir_all(dir).unwrap();
    let set = |key: &str, value: &str| format!("{key}={value}");
    let settings = [
        set("credit.method", name),
        set("train.seed", &seed.to_string()),
        set("train.steps", &STEPS.to_string()),
    ];
    let config = arca::config::Config::load(None, &settings).unwrap();
    fs::write(dir.join("config.toml"), config.to_toml().unwrap()).unwrap();
    let mut lines = String::new();
    for step in 1..=STEPS {
        let concentration = [0.0, 0.9, 0.4][method];
        let mut line = json!({
            "step": step,
            "train/reward": reward(method, seed, step),
            "train/entropy": 0.3 - 0.01 * step as f64,
            "train/kl": 0.001 * step as f64,
            "train/grad_norm": 0.2,
            "train/learning_rate": 0.001,
            "train/completions/mean_length": 20.0 + seed as f64,
            "train/completions/clipped_ratio": 0.0,
            "train/frac_reward_zero_std": 0.25,
            "train/num_tokens": 1000 * step,
            "train/step_time": 2.0,
            "credit/gini": concentration,
            "credit/effective_token_ratio": 1.0 - concentration,
            "credit/max_weight": 0.1 + 0.5 * concentration,
            "credit/uniform_fallback_frac": 0.0,
            "credit/residual_noise_floor": 0.01,
            "credit/position/first": 0.1,
            "credit/position/last": 0.2,
            "credit/top_token_entropy": 0.6,
            "credit/alarm": if method == 1 && step > 3 { 2 } else { 0 },
            "perf/tokens_per_second": 500.0,
            "perf/rollout_tokens_per_second": 900.0,
            "perf/train_tokens_per_second": 800.0,
            "perf/peak_bytes": 3.0e9,
        });
        if method == 2 {
            line["credit/residual_norm_mean"] = json!(0.1 * step as f64);
        }
        for decile in 0..10 {
            line[format!("credit/position/decile_{decile}")] = json!(0.1);
        }
        for class in ["digits", "operators", "words", "box", "other"] {
            line[format!("credit/class/{class}")] = json!(0.2);
        }
        for other in METHODS.iter().filter(|m| **m != name) {
            line[format!("credit/correlation/{other}")] = json!(-0.5);
        }
        for phase in [
            "rollout",
            "reward",
            "score",
            "forward",
            "backward",
            "optimizer",
        ] {
            line[format!("time/{phase}")] = json!(0.25);
        }
        lines += &format!("{line}\n");
    }
    fs::write(dir.join("metrics.jsonl"), lines).unwrap();
    let evaluated = |greedy: f64| {
        json!({
            "greedy_accuracy": greedy, "greedy_standard_error": 0.05,
            "sampled_accuracy": 0.4, "standard_error": 0.05,
            "pass_at_k": 0.6, "pass_at_k_standard_error": 0.05,
            "maj_at_k": 0.5, "maj_at_k_standard_error": 0.05,
            "mean_length": 21.0, "truncated_rate": 0.125, "n": PROBLEMS, "samples": 2,
        })
    };
    let summary = json!({
        "base": evaluated(0.2), "final": evaluated(0.5), "steps": STEPS, "seconds": 18.0,
        "num_tokens": 9000, "peak_bytes": 3.0e9, "credit": name,
        "commit": "0123456789abcdef+changes", "command": "arca train <& \"quoted\">",
    });
    fs::write(dir.join("summary.json"), summary.to_string()).unwrap();
    let completion = json!({
        "completion_ids": [1, 2, 3, 4], "tokens": ["A <b>", " & ", "4\n", "</p>"],
        "logprobs": [-0.1, -0.2, -0.3, -0.4], "entropies": [0.1, 0.2, 0.3, 0.4],
        "residuals": [1.0, 2.0, 3.0, 4.0], "reward": 1.0,
        "weights": {"uniform": [0.25, 0.25, 0.25, 0.25], "arca": [0.1, 0.2, 0.3, 0.4]},
    });
    fs::write(
        dir.join("inspect.jsonl"),
        format!("{completion}\n{completion}\n"),
    )
    .unwrap();
}

/// Greedy marks of an arm: the first few problems are right.
fn right(method: usize, seed: usize) -> usize {
    [3, 2, 6][method] + seed
}

/// A sweep of three methods and two seeds, and an arm that failed.
fn sweep(root: &Path) {
    let (mut arms, mut rows) = (Vec::new(), Vec::new());
    let marks = |name: &str, right: usize| {
        let greedy: Vec<u8> = (0..PROBLEMS).map(|i| u8::from(i < right)).collect();
        let samples: Vec<[u8; 2]> = greedy.iter().map(|g| [*g, 0]).collect();
        json!({"name": name, "greedy": greedy, "samples": samples, "maj": greedy})
    };
    rows.push(marks("base", 1));
    for (m, method) in METHODS.iter().enumerate() {
        for seed in 0..2 {
            let name = format!("{method}-s{seed}");
            run(&root.join("arms").join(&name), m, seed);
            rows.push(marks(&name, right(m, seed)));
            arms.push(json!({"name": name, "dir": format!("arms/{name}"), "method": method,
                "r": 16, "exponent": 1.0, "hidden": "post-norm", "seed": seed, "status": "done", "error": null}));
        }
    }
    arms.push(json!({"name": "divergence-s0", "dir": "arms/divergence-s0", "method": "divergence",
        "r": 16, "seed": 0, "status": "failed", "error": "step 3: the gradient of <q_proj> is not finite"}));
    let problems: Vec<_> = (0..PROBLEMS)
        .map(|i| json!({"id": format!("p{i}")}))
        .collect();
    let listing = json!({"arms": arms, "seconds": 120.0, "rollout_seconds": 60.0, "update_seconds": 50.0, "commit": "fedcba9", "comparisons": [{"arm": "arca", "control": "uniform", "seeds": [0, 1],
        "greedy": {"difference": 0.375, "standard_error": 0.15, "interval": [0.125, 0.625], "p_value": 0.03}, "greedy_mcnemar": null,
        "sampled": {"difference": -0.01, "standard_error": 0.1, "interval": [-0.2, 0.2], "p_value": 0.9}}]});
    fs::write(root.join("sweep.json"), listing.to_string()).unwrap();
    let evaluation = json!({"problems": problems, "rows": rows});
    fs::write(root.join("evaluation.json"), evaluation.to_string()).unwrap();
}

/// A folder with a sweep, and its report as `out.html`.
fn reported() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("study");
    fs::create_dir(&root).unwrap();
    sweep(&root);
    let text = made(dir.path(), &["study", "--out", "out.html"]);
    (dir, text)
}

/// The study written down has the tables of the page, sentences that follow from
/// them, and links to figures that are there.
#[test]
fn the_study_is_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("study");
    fs::create_dir(&root).unwrap();
    sweep(&root);
    made(
        dir.path(),
        &["study", "--out", "out.html", "--markdown", "study.md"],
    );
    let text = read(dir.path().join("study.md"));
    for heading in [
        "## How it was made",
        "## Results",
        "## Against uniform credit of the same rank",
        "## Is the signal degenerate?",
        "## What this does not say",
    ] {
        assert!(text.contains(heading), "{heading} in\n{text}");
    }
    assert!(
        text.contains("arca report study --out out.html --markdown study.md"),
        "{text}"
    );
    assert!(
        text.contains("failed: step 3: the gradient of <q_proj> is not finite"),
        "{text}"
    );
    assert!(!text.contains("NaN") && !text.contains(&*dir.path().to_string_lossy()));
    let links: Vec<&str> = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .collect();
    assert!(links.len() > 5, "{links:?}");
    for link in links {
        assert!(dir.path().join(link).is_file(), "{link}");
    }
    // As many differences are counted as the table tests.
    let tested = text.matches("(p ").count();
    let said = text
        .lines()
        .find_map(|l| l.split_once(" differences in accuracy"))
        .and_then(|(before, _)| before.rsplit(' ').next()?.parse::<usize>().ok());
    let listed = text
        .lines()
        .filter(|l| l.starts_with("- ") && l.contains("(p "))
        .count();
    assert_eq!(said, Some(tested - listed), "{text}");
}

/// Every number among an element's attributes is one.
fn assert_finite(node: Node) {
    for n in node.descendants() {
        for attribute in n.attributes() {
            let value = attribute.value();
            assert!(
                !value.contains("NaN") && !value.contains("inf"),
                "{}: {value}",
                attribute.name()
            );
        }
    }
}

#[test]
fn every_figure_has_its_data() {
    let (dir, _) = reported();
    let html = read(dir.path().join("out.html"));
    let page = parse(&html);
    let figures: Vec<Node> = elements(page.root(), "figure").collect();
    let find = |name: &str| {
        let id = format!("figure-{name}");
        let figure = figures.iter().find(|f| f.attribute("id") == Some(&id));
        *figure.unwrap_or_else(|| panic!("no figure {name}"))
    };
    // Curves: a line per method, a point per step.
    for (name, lines, points) in [
        ("reward", 3, STEPS),
        ("entropy", 3, STEPS),
        ("kl", 3, STEPS),
        ("grad-norm", 3, STEPS),
        ("length", 3, STEPS),
        ("truncated", 3, STEPS),
        ("zero-variance", 3, STEPS),
        ("learning-rate", 3, STEPS),
        // The base at step 0 and the final evaluation.
        ("heldout-sampled", 3, 2),
        ("heldout-greedy", 3, 2),
        ("gini", 3, STEPS),
        ("effective-tokens", 3, STEPS),
        ("max-weight", 3, STEPS),
        ("fallback", 3, STEPS),
        // Of arca alone, with its noise floor.
        ("residual", 2, STEPS),
        ("deciles", 3, 10),
        // With the entropy of all tokens beside it.
        ("top-token-entropy", 6, STEPS),
        ("reward-tokens", 3, STEPS),
        ("reward-seconds", 3, STEPS),
    ] {
        let figure = find(name);
        let drawn: Vec<Node> = elements(figure, "polyline").collect();
        assert_eq!(drawn.len(), lines, "{name}");
        for line in drawn {
            let places = line.attribute("points").unwrap().split(' ').count();
            assert_eq!(places, points, "{name}");
        }
        if lines > 2 {
            for method in METHODS {
                assert!(texts(figure).contains(method), "{name} names {method}");
            }
        }
    }
    let count = |name: &str, class: &str| {
        let all = find(name).descendants();
        all.filter(|n| n.attribute("class") == Some(class)).count()
    };
    for accuracy in ["greedy", "sampled", "pass-at-k", "maj-at-k"] {
        assert_eq!(count(&format!("accuracy-{accuracy}"), "dot"), 3);
    }
    assert_eq!(count("gini", "band"), 1);
    assert_eq!(count("reward", "spread"), 3);
    assert_eq!(count("ends", "dot"), 2 * 3);
    assert_eq!(count("classes", "dot"), 5 * 3);
    assert_eq!(count("correlation", "cell"), 3 * 2);
    // Six parts and the rest, of three groups.
    assert_eq!(count("phases", "segment"), 7 * 3);
    // One stretch in each of surprisal's two runs.
    assert_eq!(count("alarms", "span"), 2);
    for figure in &figures {
        assert_finite(*figure);
    }
    // Four tokens, two methods, two completions, one run of each group.
    let tokens = page.root().descendants().filter(|n| {
        n.attribute("class") == Some("t")
            && n.attribute("data-tip")
                .is_some_and(|t| t.contains("log-prob"))
    });
    assert_eq!(tokens.count(), 4 * 2 * 2 * 3);
    for name in METHODS
        .iter()
        .flat_map(|m| [format!("{m}-s0"), format!("{m}-s1")])
    {
        assert!(html.contains(&name), "{name}");
    }
    assert!(html.contains("divergence-s0") && html.contains("the gradient of &lt;q_proj&gt;"));
    assert!(!html.contains("Not measured"), "all of it is there");
}

#[test]
fn figures_as_files_are_whole() {
    let (dir, _) = reported();
    let html = read(dir.path().join("out.html"));
    let page = parse(&html);
    let folder = dir.path().join("out-figures");
    let inline = elements(page.root(), "figure")
        .map(|f| f.attribute("id").unwrap()["figure-".len()..].to_string());
    let mut names: Vec<String> = inline.collect();
    names.extend(METHODS.iter().map(|m| format!("tokens-{m}-2")));
    for name in names {
        let svg = read(folder.join(format!("{name}.svg")));
        let drawing = Document::parse(&svg).unwrap();
        assert!(
            drawing
                .root_element()
                .has_tag_name(("http://www.w3.org/2000/svg", "svg"))
        );
        assert!(!svg.contains("var("), "{name}: colours of its own");
        assert_finite(drawing.root());
        let png = folder.join(format!("{name}.png"));
        // A system without fonts has no PNG files.
        if let Ok(bytes) = fs::read(&png) {
            assert!(
                bytes.starts_with(b"\x89PNG\r\n") && bytes.len() > 2000,
                "{name}"
            );
        }
    }
}

/// Cells of a table's rows, by the row's heading.
fn rows<'a>(table: Node<'a, 'a>) -> Vec<(String, Vec<String>)> {
    elements(table, "tr")
        .skip(1)
        .map(|row| {
            let heading = elements(row, "th").map(texts).collect::<String>();
            (heading, elements(row, "td").map(texts).collect())
        })
        .collect()
}

#[test]
fn tables_hold_what_is_worked_out_by_hand() {
    let (dir, text) = reported();
    let html = read(dir.path().join("out.html"));
    let page = parse(&html);
    let tables: Vec<Node> = elements(page.root(), "table").collect();
    let results = rows(tables[0]);
    let names: Vec<&str> = results.iter().map(|r| r.0.as_str()).collect();
    assert_eq!(names, ["base model", "uniform", "surprisal", "arca"]);
    // r, exponent, hidden, seeds, greedy, sampled, pass@2, maj@2, reward, Gini, ...
    let base = &results[0].1;
    // One of eight: error sqrt(.125 * .875 / 7) = .125.
    assert_eq!(base[4], ".125\u{b1}.125");
    for (m, method) in METHODS.iter().enumerate() {
        let cells = &results[m + 1].1;
        assert_eq!(cells[0], "16");
        assert_eq!(cells[3], "2", "{method}: seeds");
        // Two seeds a and b: mean (a + b) / 2, error |a - b| / 2.
        let (a, b) = (right(m, 0) as f64 / 8.0, right(m, 1) as f64 / 8.0);
        let short = |x: f64| format!("{x:.3}")[1..].to_string();
        assert_eq!(
            cells[4],
            format!("{}\u{b1}{}", short((a + b) / 2.0), short((b - a) / 2.0))
        );
        // Each problem has one right sample of two where greedy is right.
        assert_eq!(
            cells[5],
            format!("{}\u{b1}{}", short((a + b) / 4.0), short((b - a) / 4.0))
        );
        assert_eq!(cells[6], cells[4], "pass@2");
        // Mean over steps 1 to 9 is that of step 5; the seeds are .02 apart.
        let mean = reward(m, 0, 5) + 0.01;
        assert_eq!(cells[8], format!("{}\u{b1}.010", short(mean)));
        assert_eq!(
            cells[9],
            [".000\u{b1}.000", ".900\u{b1}.000", ".400\u{b1}.000"][m]
        );
        assert_eq!(cells[12], "21.0\u{b1}0.0");
        assert_eq!(cells[13], ".125\u{b1}.000");
    }
    let contrasts = rows(tables[1]);
    assert_eq!(contrasts.len(), 2);
    let (name, arca) = &contrasts[1];
    assert_eq!(name, "arca");
    assert_eq!(arca[1], "8 problems");
    // Marks over two seeds: uniform 3 ones and a half, arca 6 ones and a half.
    // Differences: .5 at the fourth, 1 at two, .5 at the seventh; sum 3.
    // Squares 2.5 - 9 / 8 over 7 and 8.
    let error = ((2.5 - 9.0 / 8.0) / 7.0 / 8.0f64).sqrt();
    let (gap, p) = arca[2].split_once(" p=").unwrap();
    assert_eq!(gap, format!("+.375\u{b1}{}", &format!("{error:.3}")[1..]));
    // Of 8 draws with replacement, sums of 0 or of 6 and more are as far from 3
    // as 0 is: 995 of 65,536 by counting. The bootstrap draws 10,000.
    let exact = 995.0 / 65_536.0;
    let p: f64 = format!("0{p}").parse().unwrap();
    assert!((p - exact).abs() < 4.0 * (exact / 1e4).sqrt(), "{p}");
    // Paired by seed the rewards are .2 apart.
    assert_eq!(arca[6], "+.200\u{b1}.000");

    // The sweep's own words.
    let own = rows(tables[2]);
    assert_eq!(own[0].0, "arca");
    assert_eq!(own[0].1[1], "+.375[+.125, +.625] p=.030");
    assert_eq!(own[0].1[3], "\u{2212}.010[\u{2212}.200, +.200] p=.900");

    let line = |name: &str| {
        text.lines()
            .find(|l| l.starts_with(name))
            .unwrap()
            .to_string()
    };
    assert!(line("arca ").contains("0.812 \u{b1} 0.062"), "{text}");
    assert!(line("base model").contains("0.125 \u{b1} 0.125*"), "{text}");
    assert!(
        text.contains("+0.375") && text.contains(&format!("p {p:.3}")),
        "{text}"
    );
    assert!(text.contains("divergence-s0: failed: step 3"), "{text}");
    assert!(
        text.contains("surprisal-s1: spuriously sparse in 6 of 9 steps"),
        "{text}"
    );
}

#[test]
fn the_page_needs_nothing_from_outside() {
    let (dir, _) = reported();
    let html = read(dir.path().join("out.html"));
    for outside in [
        "http:", "https:", "src=", "url(", "@import", "<link", "<iframe", "fetch(",
    ] {
        assert!(!html.contains(outside), "{outside}");
    }
    let page = parse(&html);
    for link in elements(page.root(), "a") {
        let target = link.attribute("href").unwrap();
        let id = target.strip_prefix('#').expect("a place in the page");
        let there = page.descendants().any(|n| n.attribute("id") == Some(id));
        assert!(there, "{target}");
    }
    // What runs say of themselves is text.
    assert!(html.contains("arca train &lt;&amp; &quot;quoted&quot;&gt;"));
    assert!(html.contains("A &lt;b&gt;") && !html.contains("A <b>"));
    assert!(html.contains("0123456789ab+changes"));
}

#[test]
fn damaged_and_partial_runs_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| -> PathBuf { dir.path().join(name) };
    run(&folder("whole"), 0, 0);
    run(&folder("torn"), 2, 0);
    fs::remove_file(folder("torn/summary.json")).unwrap();
    fs::write(
        folder("torn/inspect.jsonl"),
        "{\"tokens\": [\"a\"], \"weights\": {\"arca\": [0.5, 0.5]}}\n",
    )
    .unwrap();
    let metrics = read(folder("torn/metrics.jsonl"));
    fs::write(folder("torn/metrics.jsonl"), &metrics[..metrics.len() - 30]).unwrap();
    run(&folder("bad"), 1, 0);
    fs::write(folder("bad/config.toml"), "not = [toml").unwrap();
    fs::write(
        folder("bad/summary.json"),
        "{\"final\": 3, \"credit\": \"<script>\"}",
    )
    .unwrap();
    fs::create_dir(folder("bare")).unwrap();
    fs::write(folder("bare/metrics.jsonl"), "").unwrap();

    let text = made(
        dir.path(),
        &["whole", "torn", "bad", "bare", "--out", "r.html"],
    );
    for note in [
        "torn/metrics.jsonl:9: the last line is torn",
        "torn/inspect.jsonl:1: `arca` has 2 values for 1 tokens",
        "bad/config.toml: no TOML",
        "bare/config.toml: missing",
        "torn: unfinished after 8 steps (no summary.json)",
    ] {
        assert!(text.contains(note), "{note}:\n{text}");
    }
    let html = read(folder("r.html"));
    parse(&html);
    assert!(!html.contains("<script>\"") && html.contains("&lt;script&gt;"));

    // One run alone; and one of which nothing is there yet.
    made(dir.path(), &["whole", "--out", "one.html"]);
    parse(&read(folder("one.html")));
    let text = made(dir.path(), &["bare", "--out", "bare.html"]);
    assert!(text.contains("no run has metrics"), "{text}");
    let html = read(folder("bare.html"));
    parse(&html);
    assert!(html.contains("Not measured"));
}

#[test]
fn only_the_named_file_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    run(&dir.path().join("a"), 0, 0);
    fs::write(dir.path().join("report.html"), "mine").unwrap();
    let refused = report(dir.path(), &["a"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("report.html is there already"));
    assert_eq!(read(dir.path().join("report.html")), "mine");
    let before = read(dir.path().join("a/metrics.jsonl"));
    made(dir.path(), &["a", "--out", "report.html", "--figures", "f"]);
    assert!(read(dir.path().join("report.html")).starts_with("<!DOCTYPE html>"));
    assert!(dir.path().join("f/reward.svg").exists());
    assert!(!dir.path().join("report-figures").exists());
    assert_eq!(read(dir.path().join("a/metrics.jsonl")), before);
    for (args, says) in [
        (
            &["nowhere", "--out", "x.html"][..],
            "nowhere does not exist",
        ),
        (&["report.html", "--out", "x.html"], "is not a folder"),
        (&["f", "--out", "x.html"], "neither a run folder"),
        (&["a", "--out", "f"], "is a folder"),
        (
            &["a", "--out", "x.html", "--figures", "report.html"],
            "is not a folder",
        ),
    ] {
        let refused = report(dir.path(), args);
        let message = String::from_utf8_lossy(&refused.stderr).to_string();
        assert_eq!(refused.status.code(), Some(2), "{message}");
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn a_real_run_says_what_made_it() {
    let dir = tempfile::tempdir().unwrap();
    let trained = Command::new(crate::common::arca())
        .args(["train", "--run", "r", "--quiet", "--device", "cpu"])
        .args(["--set", "train.steps=2", "--set", "eval.limit=4"])
        .args([
            "--set",
            "credit.method=arca",
            "--set",
            "train.prompts_per_step=2",
        ])
        .current_dir(dir.path())
        .status()
        .unwrap();
    assert!(trained.success());
    let summary: serde_json::Value =
        serde_json::from_str(&read(dir.path().join("r/summary.json"))).unwrap();
    assert_eq!(summary["commit"], arca::COMMIT);
    assert_eq!(summary["version"], env!("CARGO_PKG_VERSION"));
    assert!(summary["device"].as_str().unwrap().starts_with("cpu"));
    assert!(
        summary["command"]
            .as_str()
            .unwrap()
            .contains("train --run r")
    );
    let hash = arca::COMMIT
        .strip_suffix("+changes")
        .unwrap_or(arca::COMMIT);
    let hex = hash.len() == 40 && hash.chars().all(|c| c.is_ascii_hexdigit());
    assert!(hash == "unknown" || hex, "{hash}");

    let text = made(dir.path(), &["r", "--out", "r.html"]);
    assert!(text.contains(arca::COMMIT), "{text}");
    let html = read(dir.path().join("r.html"));
    let page = parse(&html);
    let lines = elements(page.root(), "polyline").count();
    assert!(lines > 10, "{lines} curves");
    assert!(html.contains(arca::COMMIT));
}
