//! The closing words of a sweep, for people.

use std::path::Path;

use crate::study::comparison::{Family, Gap};
use crate::study::record::{OverSteps, Record, Status};
use crate::study::statistics::{mean, standard_error};
use crate::train::evaluate::EvalRow;

/// Accuracies in %, then diagnostics, one row per arm; then what may be
/// concluded.
pub fn table(record: &Record, families: &[Family], root: &Path) -> String {
    let width = record.arms.iter().map(|a| a.name.len()).max().unwrap_or(0);
    let width = width.max(5);
    let evaluated: Vec<&EvalRow> = record
        .arms
        .iter()
        .filter_map(|a| a.evaluation.as_ref())
        .collect();
    let (n, k) = evaluated.first().map_or((0, 0), |r| (r.n, r.samples));
    let mut out = format!(
        "\nheld-out accuracy in %, {n} problems, standard errors over problems; reward, gini and \
         effective tokens are means over training steps:\n\
         {:<width$} {:>12} {:>12} {:>12} {:>12}  {:>14} {:>14} {:>14}\n",
        "arm",
        "greedy",
        format!("avg@{k}"),
        format!("pass@{k}"),
        format!("maj@{k}"),
        "reward",
        "gini",
        "eff. tokens",
    );
    if let Some(base) = &record.base {
        out += &format!("{:<width$}{}\n", "base", accuracies(base));
    }
    for arm in &record.arms {
        out += &format!("{:<width$}", arm.name);
        out += &match (&arm.evaluation, arm.status) {
            (Some(row), _) => accuracies(row),
            (None, Status::Failed) => format!("  failed after step {}", arm.steps),
            (None, _) => format!("{:52}", ""),
        };
        if arm.status != Status::Failed {
            out.push(' ');
            for of in [arm.reward, arm.gini, arm.effective_token_ratio] {
                out += &format!(" {:>14}", over_steps(of));
            }
        }
        out.push('\n');
    }
    out += &over_seeds(families);
    out += &differences(record);
    for arm in record.arms.iter().filter(|a| a.status == Status::Failed) {
        let why = arm.error.as_deref().unwrap_or("unknown");
        out += &format!("\n{} failed: {why}\n", arm.name);
    }
    let completions: u64 = record.arms.iter().map(|a| a.completions).sum();
    let tokens: u64 = record.arms.iter().map(|a| a.tokens).sum();
    out += &format!(
        "\n{completions} completions of {tokens} tokens in {:.1} s: {:.1} s of joint rollouts, {:.1} s of updates\n",
        record.seconds, record.rollout_seconds, record.update_seconds
    );
    let root = root.display();
    out + &format!(
        "arms: {root}/arms, each a run folder; summary: {root}/sweep.json, answers: {root}/evaluation.json\n"
    )
}

fn percent(x: f64, error: f64) -> String {
    format!("{:.1} ± {:.1}", 100.0 * x, 100.0 * error)
}

fn accuracies(r: &EvalRow) -> String {
    [
        (r.greedy_accuracy, r.greedy_standard_error),
        (r.sampled_accuracy, r.standard_error),
        (r.pass_at_k, r.pass_at_k_standard_error),
        (r.maj_at_k, r.maj_at_k_standard_error),
    ]
    .map(|(x, e)| format!(" {:>12}", percent(x, e)))
    .concat()
}

fn over_steps(of: Option<OverSteps>) -> String {
    match of {
        Some(o) => format!("{:.3} ± {:.3}", o.mean, o.standard_error),
        None => "-".to_string(),
    }
}

/// Means over seeds, where any arm has several.
fn over_seeds(families: &[Family]) -> String {
    if families.iter().all(|f| f.seeds.len() < 2) {
        return String::new();
    }
    let width = families.iter().map(|f| f.name.len()).max().unwrap_or(0);
    let width = width.max(5);
    let mut out = format!(
        "\nmeans over seeds in %, ± over problems, (sd) over seeds:\n{:<width$} {:>5} {:>19} {:>19}\n",
        "arm", "seeds", "greedy", "sampled",
    );
    for f in families {
        let cell = |values: &[f64], deviation: f64| {
            let of_problems = percent(mean(values), standard_error(values));
            format!("{of_problems} ({:.1})", 100.0 * deviation)
        };
        out += &format!(
            "{:<width$} {:>5} {:>19} {:>19}\n",
            f.name,
            f.seeds.len(),
            cell(&f.greedy, f.deviation[0]),
            cell(&f.sampled, f.deviation[1]),
        );
    }
    out
}

fn differences(record: &Record) -> String {
    if record.comparisons.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = record
        .comparisons
        .iter()
        .map(|c| (&c.arm[..], c.greedy, c.greedy_mcnemar, c.sampled))
        .collect();
    let tests = rows.len();
    gaps("uniform of the same rank and seeds", &rows)
        + &format!("{tests} comparisons were made: by chance alone one in 20 has p < 0.05\n")
}

/// Differences to `control` as a table: name, greedy answers, their McNemar
/// test where there is one, samples.
pub fn gaps(control: &str, rows: &[(&str, Gap, Option<f64>, Gap)]) -> String {
    let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0).max(5);
    let mut out = format!(
        "\ndifference to {control}, in points (95 % and p by the paired bootstrap; of one seed greedy's p is \
         McNemar's):\n{:<width$} {:>12} {:>15} {:>7} {:>12} {:>15} {:>7}\n",
        "model", "greedy", "95 %", "p", "sampled", "95 %", "p",
    );
    for (name, greedy, mcnemar, sampled) in rows {
        let cells = |gap: &Gap, p: f64| {
            let [low, high] = gap.interval.map(|x| 100.0 * x);
            format!(
                " {:>12} {:>15} {:>7}",
                format!(
                    "{:+.1} ± {:.1}",
                    100.0 * gap.difference,
                    100.0 * gap.standard_error
                ),
                format!("{low:+.1} .. {high:+.1}"),
                format!("{p:.4}"),
            )
        };
        out += &format!("{name:<width$}");
        out += &cells(greedy, mcnemar.unwrap_or(greedy.p_value));
        out += &cells(sampled, sampled.p_value);
        out.push('\n');
    }
    out
}
