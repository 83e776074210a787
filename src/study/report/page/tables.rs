//! The tables of results, differences and speed.

use std::fmt::Write as _;

use crate::study::comparison::Gap;
use crate::study::markup::escape;
use crate::study::report::Report;
use crate::study::report::chart::{compact, number};
use crate::study::report::compare::Difference;
use crate::study::report::palette;
use crate::study::report::results::{COLUMNS, CONTRASTS, Cell, Form, Row};
use crate::study::report::speed::speed;

/// Results and differences.
pub fn html(report: &Report) -> String {
    let mut out = String::from("<section id=\"results\">\n<h2>Results</h2>\n");
    if report.groups.is_empty() {
        out += "<p class=\"muted\">Not measured: no run has metrics or an evaluation yet.</p>\n</section>\n";
        return out;
    }
    out += &results(report);
    out += &contrasts(report);
    out += &comparisons(report);
    out += "</section>\n";
    out
}

fn results(report: &Report) -> String {
    let mut out = String::from(
        "<p class=\"muted\">Means \u{b1} one standard error over seeds; <i>in italics</i>, over \
         problems, for the base model and single seeds. Accuracies, length and truncated: held-out \
         samples after training. Train reward, Gini, effective tokens and largest weight: means over \
         all steps.</p>\n<div class=\"scroll\"><table class=\"results\">\n<thead><tr><th>method</th>\
         <th>r</th><th>exponent</th><th>hidden</th><th>seeds</th>",
    );
    for column in &COLUMNS {
        let _ = write!(out, "<th>{}</th>", escape(&report.results.heading(column)));
    }
    out += "</tr></thead>\n<tbody>\n";
    for row in &report.results.rows {
        out += &result_row(report, row);
    }
    out += "</tbody>\n</table></div>\n";
    for group in report.groups.iter().filter(|g| g.left_out > 0) {
        let _ = writeln!(
            out,
            "<p class=\"muted\">{}: {} run{} left out of the means, being unfinished or of a seed that is there already.</p>",
            escape(&group.label),
            group.left_out,
            if group.left_out == 1 { "" } else { "s" }
        );
    }
    out
}

fn result_row(report: &Report, row: &Row) -> String {
    let group = row.group.map(|g| &report.groups[g]);
    let swatch = match group {
        Some(group) => format!(
            "<span class=\"swatch\" style=\"background:{}\"></span>",
            palette::group(group.colour)
        ),
        None => String::new(),
    };
    let unfinished = match group {
        Some(group) if group.unfinished => " <span class=\"tag\">unfinished</span>",
        _ => "",
    };
    let mut out = format!(
        "<tr{}><th scope=\"row\">{swatch}{}{unfinished}</th>",
        if group.is_none() {
            " class=\"base\""
        } else {
            ""
        },
        escape(&row.label)
    );
    let dash = || "\u{2013}".to_string();
    for setting in &row.settings {
        let text = setting.clone().unwrap_or_else(dash);
        let _ = write!(out, "<td>{}</td>", escape(&text));
    }
    let seeds = match row.seeds {
        0 => dash(),
        n => n.to_string(),
    };
    let _ = write!(out, "<td>{seeds}</td>");
    for (column, cell) in COLUMNS.iter().zip(&row.cells) {
        match cell {
            Some(cell) => {
                let _ = write!(out, "<td>{}</td>", cell_html(cell, column.form));
            }
            None => out += "<td class=\"muted\">\u{2013}</td>",
        }
    }
    out += "</tr>\n";
    out
}

/// A mean without a leading zero, as the paper writes it, and its error.
fn cell_html(cell: &Cell, form: Form) -> String {
    let mean = in_form(cell.estimate.mean, form);
    match cell.estimate.error {
        Some(error) => {
            let tag = if cell.over_problems { "i" } else { "span" };
            format!(
                "{mean}<{tag} class=\"error\">\u{b1}{}</{tag}>",
                in_form(error, form)
            )
        }
        None => mean,
    }
}

/// A number of a column.
pub fn in_form(x: f64, form: Form) -> String {
    match form {
        Form::Share => {
            let text = format!("{x:.3}");
            match text.strip_prefix("0.") {
                Some(digits) => format!(".{digits}"),
                None => text,
            }
        }
        Form::Tokens => format!("{x:.1}"),
    }
}

fn contrasts(report: &Report) -> String {
    let contrasts = &report.results.contrasts;
    let mut out = String::from("<h3>Differences to uniform credit</h3>\n");
    if contrasts.is_empty() {
        out += "<p class=\"muted\">Not measured: no method has a uniform run with the same rank and other settings beside it.</p>\n";
        return out;
    }
    out += match contrasts.iter().any(|c| c.by_problem) {
        true => {
            "<p class=\"muted\">Accuracies are paired by problem (marks averaged over seeds): mean \u{b1} one \
             standard error over problems, and the two-sided p of the paired bootstrap. Not corrected for the \
             number of comparisons. Train reward is paired by seed.</p>\n"
        }
        false => {
            "<p class=\"muted\">Paired by seed: mean \u{b1} one standard error over seeds. Marks by problem \
             (a sweep's evaluation.json) would allow a test.</p>\n"
        }
    };
    out += "<div class=\"scroll\"><table class=\"results\">\n<thead><tr><th>method</th><th>against</th><th>pairs</th>";
    for column in &COLUMNS[..CONTRASTS] {
        let _ = write!(
            out,
            "<th>\u{394} {}</th>",
            escape(&report.results.heading(column))
        );
    }
    out += "</tr></thead>\n<tbody>\n";
    for contrast in contrasts {
        let (group, uniform) = (
            &report.groups[contrast.group],
            &report.groups[contrast.uniform],
        );
        let first = contrast.cells[..CONTRASTS - 1].iter().flatten().next();
        let pairs = match (first, contrast.by_problem) {
            (Some(d), true) => format!("{} problems", d.n),
            (Some(d), false) => format!("{} seed{}", d.n, if d.n == 1 { "" } else { "s" }),
            (None, _) => "\u{2013}".into(),
        };
        let _ = write!(
            out,
            "<tr><th scope=\"row\"><span class=\"swatch\" style=\"background:{}\"></span>{}</th><td>{}</td><td>{pairs}</td>",
            palette::group(group.colour),
            escape(&group.label),
            escape(&uniform.label)
        );
        for cell in &contrast.cells {
            let _ = write!(out, "<td>{}</td>", difference(cell.as_ref()));
        }
        out += "</tr>\n";
    }
    out += "</tbody>\n</table></div>\n";
    out
}

/// What sweeps themselves concluded.
fn comparisons(report: &Report) -> String {
    let all = report.study.sweeps.iter().flat_map(|s| &s.comparisons);
    let mut rows = String::new();
    for c in all {
        let mcnemar = c.greedy_mcnemar.map_or("\u{2013}".into(), p_value);
        let _ = writeln!(
            rows,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{mcnemar}</td><td>{}</td></tr>",
            escape(&c.arm),
            escape(&c.control),
            gap(&c.greedy),
            gap(&c.sampled)
        );
    }
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<h3>Comparisons of the sweep</h3>\n<p class=\"muted\">Means over problems with the middle 95 % of the \
         paired bootstrap and its p; McNemar: exact test of the greedy completions, for one seed.</p>\n\
         <div class=\"scroll\"><table class=\"results\">\n<thead><tr><th>arm</th><th>against</th>\
         <th>\u{394} greedy</th><th>McNemar</th><th>\u{394} sampled</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
    )
}

fn gap(gap: &Gap) -> String {
    let tag = if gap.p_value < 0.05 { "strong" } else { "span" };
    format!(
        "{}<span class=\"error\">[{}, {}]</span> <{tag} class=\"p\">{}</{tag}>",
        signed(gap.difference),
        signed(gap.interval[0]),
        signed(gap.interval[1]),
        p_value(gap.p_value)
    )
}

fn signed(x: f64) -> String {
    let sign = if x < 0.0 { "\u{2212}" } else { "+" };
    format!("{sign}{}", in_form(x.abs(), Form::Share))
}

fn difference(cell: Option<&Difference>) -> String {
    let Some(d) = cell else {
        return "\u{2013}".into();
    };
    let mut out = signed(d.mean);
    if let Some(error) = d.error {
        let _ = write!(
            out,
            "<span class=\"error\">\u{b1}{}</span>",
            in_form(error, Form::Share)
        );
    }
    if let Some(p) = d.p {
        let text = p_value(p);
        let tag = if p < 0.05 { "strong" } else { "span" };
        let _ = write!(out, " <{tag} class=\"p\">{text}</{tag}>");
    }
    out
}

/// A p-value in words.
pub fn p_value(p: f64) -> String {
    match p {
        p if p < 0.001 => "p&lt;.001".into(),
        p => format!("p={}", in_form(p, Form::Share)),
    }
}

/// Tokens per second and memory.
pub fn speeds(report: &Report) -> String {
    let mut out = String::from(
        "<div class=\"scroll\"><table class=\"results\">\n<thead><tr><th>method</th><th>s / step</th>\
         <th>tokens / s</th><th>rollout tokens / s</th><th>update tokens / s</th><th>peak memory</th>\
         <th>tokens of a run</th><th>seconds of a run</th></tr></thead>\n<tbody>\n",
    );
    let text = |x: Option<f64>, write: &dyn Fn(f64) -> String| {
        x.map_or_else(|| "\u{2013}".to_string(), write)
    };
    for group in &report.groups {
        let s = speed(group, &report.study.runs);
        let _ = write!(
            out,
            "<tr><th scope=\"row\"><span class=\"swatch\" style=\"background:{}\"></span>{}</th><td>{}</td>",
            palette::group(group.colour),
            escape(&group.label),
            text(s.step, &number)
        );
        for rate in s.tokens_per_second {
            let _ = write!(out, "<td>{}</td>", text(rate, &compact));
        }
        let _ = writeln!(
            out,
            "<td>{}</td><td>{}</td><td>{}</td></tr>",
            text(s.peak_bytes, &bytes),
            text(s.tokens, &compact),
            text(s.seconds, &number)
        );
    }
    out += "</tbody>\n</table></div>\n";
    out
}

fn bytes(x: f64) -> String {
    match x {
        x if x >= 1024f64.powi(3) => format!("{:.2} GiB", x / 1024f64.powi(3)),
        x => format!("{:.0} MiB", x / 1024f64.powi(2)),
    }
}
