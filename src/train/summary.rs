//! What a run came to: `summary.json`, and the words at its end.

use std::path::Path;

use serde_json::{Value, json};

use crate::credit::PATIENCE;
use crate::model::plan::peak_memory;
use crate::train::checkpoint::RunState;
use crate::train::evaluate::{self, EvalRow};
use crate::train::run_dir::RunDir;

/// `summary.json`: the run's outcome.
pub fn summary(s: &RunState, last: Option<&EvalRow>, method: &str) -> Value {
    let tenth = |rewards: &[f64]| rewards.iter().sum::<f64>() / rewards.len().max(1) as f64;
    let n = s.rewards.len();
    json!({
        "base": s.base,
        "final": last,
        "best_step": s.best.map(|b| b.0),
        "steps": s.step,
        "seconds": s.seconds,
        "tokens_per_second": s.num_tokens as f64 / s.seconds.max(1e-9),
        "num_tokens": s.num_tokens,
        "peak_bytes": peak_memory(),
        "credit": method,
        "reward_first_ten": tenth(&s.rewards[..n.min(10)]),
        "reward_last_ten": tenth(&s.rewards[n.saturating_sub(10)..]),
        "version": env!("CARGO_PKG_VERSION"),
        "commit": crate::COMMIT,
        "command": command(),
        "finished": jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
    })
}

/// The command line, with the program's name for its path.
pub fn command() -> String {
    let mut args = std::env::args();
    let program = args.next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    let quoted = |arg: String| match arg.contains(char::is_whitespace) {
        true => format!("'{arg}'"),
        false => arg,
    };
    let all: Vec<String> = [name].into_iter().chain(args.map(quoted)).collect();
    all.join(" ")
}

/// The closing words of a run: accuracy before and after, diagnostics, places.
pub fn report(rows: &[EvalRow], summary: &Value, dir: &RunDir) -> String {
    let number = |key: &str| summary[key].as_f64().unwrap_or_default();
    let mut out = format!(
        "\n{} steps in {:.1} s, {:.0} tokens/s; mean reward {:.3} in the first ten steps, {:.3} in the last ten\n",
        summary["steps"],
        number("seconds"),
        number("tokens_per_second"),
        number("reward_first_ten"),
        number("reward_last_ten"),
    );
    if !rows.is_empty() {
        out += &format!(
            "\nheld-out accuracy in %, {} problems:\n{}",
            rows[0].n,
            evaluate::table(rows)
        );
    }
    out += &diagnostics_table(
        &dir.metrics(),
        summary["credit"].as_str().unwrap_or_default(),
    );
    let root = dir.root().display();
    out + &format!(
        "\nadapter: {root}/adapter (best: {root}/adapter_best)\nmetrics: {root}/metrics.jsonl, TensorBoard events in {root}\n\
             completions: {root}/completions, summary: {root}/summary.json\n"
    )
}

/// Credit diagnostics at the first, a middle and the last step.
fn diagnostics_table(metrics: &Path, method: &str) -> String {
    let Ok(text) = std::fs::read_to_string(metrics) else {
        return String::new();
    };
    let rows: Vec<Value> = text
        .lines()
        .filter_map(|l| serde_json::from_str(l).ok())
        .collect();
    let names = [
        ("gini", "credit/gini"),
        ("eff. tokens", "credit/effective_token_ratio"),
        ("max weight", "credit/max_weight"),
        ("fallback", "credit/uniform_fallback_frac"),
        ("residual", "credit/residual_norm_mean"),
        ("noise floor", "credit/residual_noise_floor"),
        ("entropy", "train/entropy"),
        ("kl", "train/kl"),
        ("scored", "credit/scored_frac"),
    ];
    let mut out = format!("\ncredit diagnostics ({method}):\n{:>6}", "step");
    for (name, _) in names {
        out += &format!(" {name:>11}");
    }
    out.push('\n');
    let n = rows.len();
    let mut picked: Vec<usize> = [0, n / 4, n / 2, 3 * n / 4, n.saturating_sub(1)].into();
    picked.dedup();
    for row in picked.into_iter().filter_map(|i| rows.get(i)) {
        out += &format!("{:>6}", row["step"].as_u64().unwrap_or_default());
        for (_, key) in names {
            out += &match row[key].as_f64() {
                Some(x) => format!(" {x:>11.4}"),
                None => format!(" {:>11}", "-"),
            };
        }
        out.push('\n');
    }
    out + &alarms(&rows)
}

/// How many steps' weights were degenerate, and how near the residual is to
/// its noise; nothing where all is well.
fn alarms(rows: &[Value]) -> String {
    let mut out = String::new();
    let steps = |code: f64| {
        let raised = |r: &&Value| r["credit/alarm"].as_f64() == Some(code);
        rows.iter().filter(raised).count()
    };
    for (code, what) in [(1.0, "collapsed to uniform"), (2.0, "spuriously sparse")] {
        if steps(code) >= PATIENCE {
            out += &format!(
                "credit alarm: {what} in {} of {} steps\n",
                steps(code),
                rows.len()
            );
        }
    }
    let last = rows
        .iter()
        .rev()
        .find_map(|r| r["credit/residual_to_noise"].as_f64());
    if let Some(ratio) = last {
        out += &format!("residual over its noise floor at the end: {ratio:.1}\n");
    }
    out
}
