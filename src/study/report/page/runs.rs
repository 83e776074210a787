//! What each run was told to do, and what differs between them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::study::markup::escape;
use crate::study::report::Report;
use crate::study::report::load::{Run, Status};

/// The runs: a table of what differs, then each one's settings.
pub fn html(report: &Report) -> String {
    let runs = &report.study.runs;
    let differing = differing(runs);
    let mut out = String::from("<section id=\"runs\">\n<h2>Runs</h2>\n");
    out += "<div class=\"scroll\"><table class=\"results\">\n<thead><tr><th>run</th><th>status</th><th>steps</th><th>commit</th>";
    for key in &differing {
        let _ = write!(out, "<th>{}</th>", escape(key));
    }
    out += "</tr></thead>\n<tbody>\n";
    for run in runs {
        let status = match run.status {
            Status::Done => "done",
            Status::Unfinished => "unfinished",
            Status::Failed(_) => "failed",
        };
        let _ = write!(
            out,
            "<tr><th scope=\"row\">{}</th><td>{status}</td><td>{}</td><td>{}</td>",
            escape(&run.name),
            run.series.steps.last().unwrap_or(&0),
            escape(&short(run.outcome.commit.as_deref().unwrap_or("\u{2013}")))
        );
        for key in &differing {
            let _ = write!(
                out,
                "<td>{}</td>",
                escape(run.key(key).unwrap_or("\u{2013}"))
            );
        }
        out += "</tr>\n";
    }
    out += "</tbody>\n</table></div>\n";
    if runs.len() > 1 {
        out += "<p class=\"muted\">Marked settings are those that differ between the runs.</p>\n";
    }
    for run in runs {
        out += &settings(run, &differing);
    }
    out += "</section>\n";
    out
}

fn settings(run: &Run, differing: &[String]) -> String {
    let mut out = format!(
        "<details class=\"config\"><summary>{}</summary>\n<p class=\"muted\">{}</p>\n",
        escape(&run.name),
        escape(&run.dir.display().to_string())
    );
    for (name, value) in [
        ("commit", &run.outcome.commit),
        ("version", &run.outcome.version),
        ("device", &run.outcome.device),
        ("finished", &run.outcome.finished),
        ("command", &run.outcome.command),
    ] {
        if let Some(value) = value {
            let _ = writeln!(out, "<p>{name}: <code>{}</code></p>", escape(value));
        }
    }
    if run.config.is_empty() {
        out += "<p class=\"muted\">The settings are not known.</p>\n";
    } else {
        out += "<div class=\"keys\">\n";
        for (key, value) in &run.config {
            let line = format!("{} = {}", escape(key), escape(value));
            match differing.contains(key) {
                true => {
                    let _ = writeln!(out, "<div><mark>{line}</mark></div>");
                }
                false => {
                    let _ = writeln!(out, "<div>{line}</div>");
                }
            }
        }
        out += "</div>\n";
    }
    out += "</details>\n";
    out
}

/// Keys whose values differ between runs whose settings are all known.
fn differing(runs: &[Run]) -> Vec<String> {
    // A failed arm without a config.toml has what the sweep lists, no more.
    let whole = |r: &&Run| r.key("model.path").is_some();
    let known: Vec<&Run> = runs.iter().filter(whole).collect();
    let keys: BTreeSet<&String> = known.iter().flat_map(|r| r.config.keys()).collect();
    keys.into_iter()
        .filter(|key| {
            let mut values = known.iter().map(|r| r.key(key));
            let first = values.next();
            values.any(|v| Some(v) != first)
        })
        .cloned()
        .collect()
}

fn short(commit: &str) -> String {
    let (hash, rest) = commit.split_at(commit.find('+').unwrap_or(commit.len()));
    let hash: String = hash.chars().take(12).collect();
    format!("{hash}{rest}")
}
