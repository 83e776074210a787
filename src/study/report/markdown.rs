//! The study written down: tables and what they allow one to say, in Markdown.
//!
//! Every sentence is made from the numbers, so that a study can be made again
//! and says what the new numbers say.

use std::fmt::Write as _;
use std::path::Path;

use super::Report;
use super::compare::Difference;
use super::estimate::Estimate;
use super::load::{Run, Status};
use super::results::{COLUMNS, CONTRASTS, Contrast};
use super::text::result_rows;
use super::{group::Group, page};
use crate::credit::{COLLAPSED, SPARSE};

/// Below this p a difference is called one, for itself.
const ALPHA: f64 = 0.05;
/// The poster of arXiv 2606.00257 shades this range of Gini coefficients.
const MIDDLE: [f64; 2] = [0.25, 0.60];

/// The document. `command` made it; `figures` is the folder of the figures as
/// seen from it.
pub fn markdown(report: &Report, command: &str, figures: Option<&Path>) -> String {
    let mut out = format!("# {}\n\n", page::what(report));
    out += "Written by the tool from the runs' own files; no number was put in by hand.\n\n";
    out += &made(report, command);
    out += &results(report);
    out += &contrasts(report);
    out += &degenerate(report);
    out += &places(report);
    out += &noise(report);
    out += &caveats(report);
    if let Some(folder) = figures {
        out += &pictures(report, folder);
    }
    out
}

fn made(report: &Report, command: &str) -> String {
    let mut out = String::from("## How it was made\n\n```\n");
    let mut commands: Vec<&str> = Vec::new();
    for run in &report.study.runs {
        if let Some(c) = run
            .outcome
            .command
            .as_deref()
            .filter(|c| !commands.contains(c))
        {
            commands.push(c);
        }
    }
    commands.push(command);
    let _ = writeln!(out, "{}\n```\n", commands.join("\n"));
    for (name, values) in page::facts(report) {
        if !values.is_empty() && name != "command" {
            let _ = writeln!(out, "- {name}: {}", values.join(", "));
        }
    }
    for sweep in &report.study.sweeps {
        let names = ["altogether", "in rollouts", "in updates"];
        let parts = names.iter().zip(sweep.seconds);
        let parts: Vec<String> = parts
            .filter_map(|(name, s)| Some(format!("{:.0} s {name}", s?)))
            .collect();
        if !parts.is_empty() {
            let _ = writeln!(out, "- time: {}", parts.join(", "));
        }
    }
    out.push('\n');
    out
}

fn results(report: &Report) -> String {
    format!(
        "## Results\n\n{}\nMeans over seeds ± one standard error over seeds; with * over problems (base model, or a \
         single seed). Rewards, Gini coefficients and the like are means over all training steps.\n\n",
        table(result_rows(report))
    )
}

fn contrasts(report: &Report) -> String {
    let contrasts = &report.results.contrasts;
    if contrasts.is_empty() {
        return String::new();
    }
    let headings = COLUMNS[..CONTRASTS]
        .iter()
        .map(|c| report.results.heading(c));
    let mut rows: Vec<Vec<String>> =
        vec![["method".to_string()].into_iter().chain(headings).collect()];
    let mut tested = Vec::new();
    for contrast in contrasts {
        let cells = contrast.cells.iter().map(|cell| match cell {
            None => "-".to_string(),
            Some(d) => {
                let p = d.p.map_or(String::new(), |p| format!(" (p {})", p_text(p)));
                format!("{}{p}", signed(d))
            }
        });
        let label = &report.groups[contrast.group].label;
        rows.push([label.clone()].into_iter().chain(cells).collect());
        let tests = contrast.cells.iter().enumerate();
        let tests = tests.filter_map(|(i, d)| Some((contrast, i, (*d)?, d.as_ref()?.p?)));
        tested.extend(tests);
    }
    let mut out = format!(
        "## Against uniform credit of the same rank\n\n{}\nAccuracies are paired by problem (marks averaged over \
         seeds): mean ± standard error over problems, p by the paired bootstrap over problems, two-sided. It says \
         whether these adapters differ, not whether other training runs would. The reward is paired by seed and \
         not tested.\n\n",
        table(rows)
    );
    let apart: Vec<_> = tested.iter().filter(|t| t.3 < ALPHA).collect();
    let _ = writeln!(
        out,
        "{} of {} differences in accuracy have p below {ALPHA}; {:.1} would where there is no difference at all. \
         p is not corrected for their number.\n",
        apart.len(),
        tested.len(),
        ALPHA * tested.len() as f64
    );
    for (contrast, i, d, p) in &apart {
        let label = &report.groups[contrast.group].label;
        let heading = report.results.heading(&COLUMNS[*i]);
        let seeds = contrast.each_seed(&COLUMNS[*i], &report.groups, &report.study.runs);
        let seeds: Vec<String> = seeds.iter().map(|d| format!("{d:+.3}")).collect();
        let _ = writeln!(
            out,
            "- {label}: {heading} {} (p {}); by seed {}",
            signed(d),
            p_text(*p),
            seeds.join(", ")
        );
    }
    if !apart.is_empty() {
        out.push('\n');
    }
    let bound = ALPHA / tested.len().max(1) as f64;
    let sure = apart.iter().filter(|t| t.3 < bound).count();
    if !tested.is_empty() {
        let _ = writeln!(
            out,
            "Held to {ALPHA} over all of them together (Bonferroni: p below {}), {}.\n",
            p_text(bound),
            match sure {
                0 => "none is left".to_string(),
                n => format!("{n} {} left", if n == 1 { "is" } else { "are" }),
            }
        );
    }
    out + &resolution(contrasts)
}

/// What the problems could have shown.
fn resolution(contrasts: &[Contrast]) -> String {
    let errors: Vec<f64> = contrasts
        .iter()
        .filter(|c| c.by_problem)
        .filter_map(|c| c.cells.first().copied().flatten()?.error)
        .collect();
    match Estimate::of(errors) {
        None => String::new(),
        // 1.96 for the test at .05, .84 for four times out of five.
        Some(error) => format!(
            "With a standard error of {:.3} on average, a greedy difference of {:.3} would be found four times out \
             of five; smaller ones are not decided by this study.\n\n",
            error.mean,
            2.8 * error.mean
        ),
    }
}

fn degenerate(report: &Report) -> String {
    let heads = [
        "method",
        "Gini",
        "eff. tokens / T",
        "max weight",
        "fell back",
        "collapsed",
        "sparse",
        "reading",
    ];
    let mut rows = vec![heads.map(String::from).to_vec()];
    for group in report.groups.iter().filter(|g| g.method != "uniform") {
        let mean = |key: &str| over(report, group, |run| run.series.mean(key));
        let share = |kind: f64| {
            over(report, group, |run| {
                let alarms: Vec<f64> = run.series.points("credit/alarm").map(|p| p.1).collect();
                let raised = alarms.iter().filter(|a| **a == kind).count();
                (!alarms.is_empty()).then(|| raised as f64 / alarms.len() as f64)
            })
        };
        let (gini, ratio) = (mean("credit/gini"), mean("credit/effective_token_ratio"));
        rows.push(vec![
            group.label.clone(),
            number(gini, 3),
            number(ratio, 3),
            number(mean("credit/max_weight"), 3),
            percent(mean("credit/uniform_fallback_frac")),
            percent(share(1.0)),
            percent(share(2.0)),
            reading(gini, ratio).to_string(),
        ]);
    }
    if rows.len() == 1 {
        return String::new();
    }
    format!(
        "## Is the signal degenerate?\n\n{}\nMeans over completions, steps and seeds; \"fell back\" is the share of \
         completions whose scores were all 0, \"collapsed\" and \"sparse\" the shares of steps with an alarm. \
         Collapsed to uniform: Gini below {} and effective tokens above {}; spuriously sparse: above {} and below \
         {}; the middle: Gini of {} to {} (arXiv 2606.00257).\n\n",
        table(rows),
        COLLAPSED.gini,
        COLLAPSED.effective_token_ratio,
        SPARSE.gini,
        SPARSE.effective_token_ratio,
        MIDDLE[0],
        MIDDLE[1]
    )
}

/// Where the means lie.
fn reading(gini: Option<f64>, ratio: Option<f64>) -> &'static str {
    let (Some(gini), Some(ratio)) = (gini, ratio) else {
        return "-";
    };
    if gini < COLLAPSED.gini && ratio > COLLAPSED.effective_token_ratio {
        "collapsed to uniform"
    } else if gini > SPARSE.gini && ratio < SPARSE.effective_token_ratio {
        "spuriously sparse"
    } else if gini < MIDDLE[0] {
        "flatter than the middle"
    } else if gini > MIDDLE[1] {
        "sparser than the middle"
    } else {
        "in the middle"
    }
}

fn places(report: &Report) -> String {
    const KEYS: [(&str, &str); 8] = [
        ("first token", "credit/position/first"),
        ("last token", "credit/position/last"),
        ("digits", "credit/class/digits"),
        ("operators", "credit/class/operators"),
        ("words", "credit/class/words"),
        ("box", "credit/class/box"),
        ("other", "credit/class/other"),
        ("entropy at the top tenth", "credit/top_token_entropy"),
    ];
    let used: Vec<_> = KEYS
        .iter()
        .filter(|(_, key)| {
            report
                .groups
                .iter()
                .any(|g| over(report, g, |r| r.series.mean(key)).is_some())
        })
        .collect();
    if used.is_empty() {
        return String::new();
    }
    let heads = used.iter().map(|(name, _)| name.to_string());
    let mut rows: Vec<Vec<String>> =
        vec![["method".to_string()].into_iter().chain(heads).collect()];
    for group in &report.groups {
        let cells = used
            .iter()
            .map(|(_, key)| number(over(report, group, |r| r.series.mean(key)), 3));
        rows.push([group.label.clone()].into_iter().chain(cells).collect());
    }
    format!(
        "## Where the weight lies\n\n{}\nShares of a completion's weight, by place and by kind of token; the row of \
         uniform credit says how the tokens themselves are distributed. The last column is the policy's entropy \
         (nats) at the tenth of the tokens with the most weight.\n\n",
        table(rows)
    )
}

fn noise(report: &Report) -> String {
    let mut out = String::new();
    for group in &report.groups {
        let norm = over(report, group, |r| {
            r.series.mean("credit/residual_norm_mean")
        });
        let floor = over(report, group, |r| {
            r.series.mean("credit/residual_noise_floor")
        });
        let Some(norm) = norm else { continue };
        let _ = match floor {
            Some(floor) if floor > 0.0 => writeln!(
                out,
                "- {}: the residual is {norm:.3} on average, {:.0} times what rounding alone makes of it.",
                group.label,
                norm / floor
            ),
            _ => writeln!(
                out,
                "- {}: the residual is {norm:.3} on average; in f32 rounding adds nothing that counts.",
                group.label
            ),
        };
    }
    match out.is_empty() {
        true => out,
        false => format!("## Is it the residual or its noise?\n\n{out}\n"),
    }
}

fn caveats(report: &Report) -> String {
    let mut out = String::from("## What this does not say\n\n");
    let seeds = report
        .groups
        .iter()
        .map(|g| g.runs.len())
        .min()
        .unwrap_or(0);
    let _ = writeln!(
        out,
        "- {seeds} seed{} a setting: a standard error over so few is itself uncertain by half and more.",
        if seeds == 1 { "" } else { "s" }
    );
    if report
        .study
        .runs
        .iter()
        .any(|r| r.model() == "bundled demo")
    {
        out += "- The bundled model has 1.2 million parameters and does arithmetic: what holds here need not hold for \
                a language model on mathematics.\n";
    }
    out += "- Errors over problems say how much other problems would change a number, not how much other runs would.\n";
    for run in &report.study.runs {
        let _ = match &run.status {
            Status::Done => Ok(()),
            Status::Unfinished => writeln!(out, "- {} had not ended.", run.name),
            Status::Failed(error) => {
                writeln!(
                    out,
                    "- {} failed: {}",
                    run.name,
                    error.lines().next().unwrap_or_default()
                )
            }
        };
    }
    for note in &report.study.notes {
        let _ = writeln!(out, "- {note}");
    }
    out.push('\n');
    out
}

/// Figures that a study shows; the page has them all.
const SHOWN: [&str; 10] = [
    "accuracy-greedy",
    "accuracy-sampled",
    "reward",
    "gini",
    "effective-tokens",
    "residual",
    "deciles",
    "classes",
    "top-token-entropy",
    "correlation",
];

fn pictures(report: &Report, folder: &Path) -> String {
    let mut out = String::from("## Figures\n\n");
    for section in &report.sections {
        for figure in section.figures.iter().filter(|f| SHOWN.contains(&&*f.name)) {
            let file = folder.join(format!("{}.svg", figure.name));
            let _ = writeln!(out, "![{}]({})\n", figure.title, file.display());
        }
    }
    out
}

/// Mean over a group's runs of what each has.
fn over(report: &Report, group: &Group, value: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
    let values = group
        .runs
        .iter()
        .filter_map(|&i| value(&report.study.runs[i]));
    Estimate::of(values).map(|e| e.mean)
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |x| format!("{x:.digits$}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or("-".into(), |x| format!("{:.0} %", 100.0 * x))
}

fn signed(d: &Difference) -> String {
    match d.error {
        Some(error) => format!("{:+.3} ± {error:.3}", d.mean),
        None => format!("{:+.3}", d.mean),
    }
}

fn p_text(p: f64) -> String {
    match p < 0.001 {
        true => format!("{p:.1e}"),
        false => format!("{p:.3}"),
    }
}

/// A Markdown table; the first row is the heading, the first column text.
fn table(rows: Vec<Vec<String>>) -> String {
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().map(|c| c.replace('|', "\\|")).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
        if i == 0 {
            let rule = vec!["---:"; row.len() - 1].join("|");
            let _ = writeln!(out, "|---|{rule}|");
        }
    }
    out
}
