//! The HTML file. It is well-formed XML too, holds everything it needs, and
//! reads without scripts; the script only adds numbers under the pointer.

mod runs;
mod tables;

use std::fmt::Write as _;

use super::Report;
use super::figures::Section;
use super::group::Group;
use super::heat;
use super::load::Status;
use super::palette;
use crate::study::heatmap;
use crate::study::markup::escape;

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

/// With more groups than this, figures share one legend per section.
const OWN_LEGEND: usize = 6;

/// The whole file.
pub fn html(report: &Report) -> String {
    let title = format!("arca report: {}", what(report));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"generator\" content=\"arca {}\"/>\n<title>{}</title>\n<style>\n{}{STYLE}{}</style>\n</head>\n<body>\n<main>\n",
        env!("CARGO_PKG_VERSION"),
        escape(&title),
        palette::css(),
        heatmap::CSS,
    );
    out += &header(report);
    out += &tables::html(report);
    for section in &report.sections {
        out += &of_section(report, section);
        // What the weights look at comes before what they cost.
        if section.id == "place" {
            out += "<section id=\"tokens\">\n<h2>Weights over real completions</h2>\n";
            match heat::html(&report.study, &report.groups) {
                Some(heats) => out += &heats,
                None => {
                    out += "<p class=\"muted\">Not measured: no run has an inspect.jsonl.</p>\n"
                }
            }
            out += "</section>\n";
        }
    }
    out += &runs::html(report);
    let _ = writeln!(
        out,
        "</main>\n<script>\n/*<![CDATA[*/\n{SCRIPT}{}/*]]>*/\n</script>\n</body>\n</html>",
        heatmap::SCRIPT
    );
    out
}

/// What the report is on, in a few words.
pub fn what(report: &Report) -> String {
    let runs = &report.study.runs;
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    match (&runs[..], &report.study.sweeps[..]) {
        ([run], []) => run.name.clone(),
        (_, [sweep]) => {
            let name = sweep.dir.canonicalize().unwrap_or(sweep.dir.clone());
            let name = name.file_name().map(|n| n.to_string_lossy().to_string());
            format!(
                "sweep {}, {}",
                name.unwrap_or_default(),
                count(runs.len(), "run")
            )
        }
        _ => format!(
            "{}, {}",
            count(runs.len(), "run"),
            count(report.groups.len(), "setting")
        ),
    }
}

/// Facts on the runs, each with its values over them.
pub fn facts(report: &Report) -> Vec<(&'static str, Vec<String>)> {
    let runs = &report.study.runs;
    let mut facts: Vec<(&'static str, Vec<String>)> = Vec::new();
    let mut fact = |name, values: Vec<Option<String>>| {
        let mut distinct: Vec<String> = Vec::new();
        for value in values.into_iter().flatten() {
            if !distinct.contains(&value) {
                distinct.push(value);
            }
        }
        facts.push((name, distinct));
    };
    let key = |name: &'static str| -> Vec<Option<String>> {
        runs.iter().map(|r| r.key(name).map(String::from)).collect()
    };
    let data = |name: &'static str| -> Vec<Option<String>> {
        key(name)
            .into_iter()
            .map(|v| {
                v.map(|v| {
                    if v.is_empty() {
                        "bundled demo".into()
                    } else {
                        v
                    }
                })
            })
            .collect()
    };
    fact(
        "model",
        runs.iter().map(|r| Some(r.model().to_string())).collect(),
    );
    fact("training data", data("data.train"));
    fact("held-out data", data("data.eval"));
    fact(
        "device",
        runs.iter()
            .map(|r| {
                r.outcome
                    .device
                    .clone()
                    .or(r.key("train.device").map(String::from))
            })
            .collect(),
    );
    fact("dtype (set)", key("model.compute_dtype"));
    fact(
        "held-out problems",
        vec![report.results.problems.map(|n| n.to_string())],
    );
    fact("steps", key("train.steps"));
    fact("seeds", key("train.seed"));
    let commits = runs.iter().map(|r| r.outcome.commit.clone());
    let of_sweeps = report.study.sweeps.iter().map(|s| s.commit.clone());
    fact("commit", commits.chain(of_sweeps).collect());
    fact(
        "version",
        runs.iter().map(|r| r.outcome.version.clone()).collect(),
    );
    let mut finished: Vec<String> = runs
        .iter()
        .filter_map(|r| r.outcome.finished.clone())
        .collect();
    finished.sort();
    let last = finished.last().cloned();
    fact("last finished", vec![last]);
    fact(
        "command",
        runs.iter().map(|r| r.outcome.command.clone()).collect(),
    );
    facts
}

fn header(report: &Report) -> String {
    let mut out = format!("<header>\n<h1>{}</h1>\n", escape(&what(report)));
    let runs = &report.study.runs;
    let count = |of: fn(&Status) -> bool| runs.iter().filter(|r| of(&r.status)).count();
    let failed = count(|s| matches!(s, Status::Failed(_)));
    let unfinished = count(|s| *s == Status::Unfinished);
    let mut standing = format!("{} finished", runs.len() - failed - unfinished);
    for (n, what) in [(unfinished, "unfinished"), (failed, "failed")] {
        if n > 0 {
            let _ = write!(standing, ", <strong>{n} {what}</strong>");
        }
    }
    let _ = writeln!(out, "<p>{standing}.</p>\n<dl class=\"facts\">");
    for (name, values) in facts(report) {
        if values.is_empty() {
            continue;
        }
        const MOST: usize = 6;
        let mut text = values[..values.len().min(MOST)].join(" \u{b7} ");
        if values.len() > MOST {
            let _ = write!(text, " \u{b7} and {} more", values.len() - MOST);
        }
        let class = if name == "command" {
            " class=\"wide\""
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "<div{class}><dt>{name}</dt><dd>{}</dd></div>",
            escape(&text)
        );
    }
    for sweep in &report.study.sweeps {
        let [whole, rollout, update] = sweep.seconds;
        if let Some(whole) = whole {
            let part = |name: &str, x: Option<f64>| {
                x.map_or(String::new(), |x| format!(", {name} {x:.0} s"))
            };
            let _ = writeln!(
                out,
                "<div><dt>sweep took</dt><dd>{whole:.0} s{}{}</dd></div>",
                part("rollouts", rollout),
                part("updates", update)
            );
        }
    }
    out += "</dl>\n</header>\n";
    out += &navigation(report);
    if !report.study.notes.is_empty() {
        let n = report.study.notes.len();
        let _ = writeln!(
            out,
            "<details class=\"notes\"><summary>{n} note{} on files that are missing or damaged</summary>\n<ul>",
            if n == 1 { "" } else { "s" }
        );
        for note in &report.study.notes {
            let _ = writeln!(out, "<li>{}</li>", escape(note));
        }
        out += "</ul>\n</details>\n";
    }
    out
}

fn navigation(report: &Report) -> String {
    let mut out = String::from("<nav><a href=\"#results\">Results</a>");
    for section in &report.sections {
        let _ = write!(out, "<a href=\"#{}\">{}</a>", section.id, section.title);
        if section.id == "place" {
            out += "<a href=\"#tokens\">Weights over completions</a>";
        }
    }
    out += "<a href=\"#runs\">Runs</a></nav>\n";
    out
}

fn of_section(report: &Report, section: &Section) -> String {
    let mut out = format!(
        "<section id=\"{}\">\n<h2>{}</h2>\n<p class=\"muted\">{}</p>\n",
        section.id,
        section.title,
        escape(section.text)
    );
    let shared = report.groups.len() > OWN_LEGEND;
    let by_group = !matches!(section.id, "accuracy" | "phases" | "alarms");
    if shared && by_group && !section.figures.is_empty() {
        out += &legend(&report.groups);
    }
    if !section.figures.is_empty() {
        out += "<div class=\"figures\">\n";
        for figure in &section.figures {
            let _ = writeln!(
                out,
                "<figure id=\"figure-{}\">{}</figure>",
                figure.name,
                figure.svg(!shared)
            );
        }
        out += "</div>\n";
    }
    if section.id == "phases" {
        out += &tables::speeds(report);
    }
    if section.id == "alarms" {
        out += &failures(report);
    }
    if !section.missing.is_empty() {
        let _ = writeln!(
            out,
            "<p class=\"muted\">Not measured: {}.</p>",
            section.missing.join(", ")
        );
    }
    out += "</section>\n";
    out
}

/// The groups' colours and dashes, for all figures of a section.
fn legend(groups: &[Group]) -> String {
    let mut out = String::from("<p class=\"legend\">");
    for group in groups {
        let _ = write!(
            out,
            "<span class=\"entry\"><svg width=\"26\" height=\"10\" viewBox=\"0 0 26 10\"><line x1=\"1\" y1=\"5\" x2=\"25\" y2=\"5\" stroke=\"{}\" stroke-width=\"2.6\"{}/></svg>{}</span> ",
            palette::group(group.colour),
            super::chart::dash(group.dash),
            escape(&group.label)
        );
    }
    out += "</p>\n";
    out
}

fn failures(report: &Report) -> String {
    let mut out = String::new();
    for run in &report.study.runs {
        match &run.status {
            Status::Done => {}
            Status::Unfinished => {
                let _ = writeln!(
                    out,
                    "<p class=\"alarm\"><strong>{}</strong> is unfinished after {} steps: it has no summary.json.</p>",
                    escape(&run.name),
                    run.series.steps.last().unwrap_or(&0)
                );
            }
            Status::Failed(error) => {
                let _ = writeln!(
                    out,
                    "<div class=\"alarm\"><strong>{}</strong> failed:<pre>{}</pre></div>",
                    escape(&run.name),
                    escape(error)
                );
            }
        }
    }
    if out.is_empty() {
        out = "<p>No run failed.</p>\n".into();
    }
    out
}
