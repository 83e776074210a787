//! The summary for the terminal.

use std::fmt::Write as _;

use super::Report;
use super::load::Status;
use super::page;
use super::results::{COLUMNS, CONTRASTS, Cell, Form};

/// Results, differences and what went wrong, as plain text.
pub fn text(report: &Report) -> String {
    let mut out = format!("{}\n", page::what(report));
    for (name, values) in page::facts(report) {
        if matches!(name, "model" | "device" | "commit") && !values.is_empty() {
            let _ = writeln!(out, "{name}: {}", values.join(", "));
        }
    }
    out.push('\n');
    if report.groups.is_empty() {
        out += "no run has metrics or an evaluation yet\n";
    } else {
        out += &results(report);
        out += &contrasts(report);
    }
    out += &troubles(report);
    out
}

/// The table of results as text, with its headings.
pub(super) fn result_rows(report: &Report) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let headings = COLUMNS.iter().map(|c| report.results.heading(c));
    let first = ["method", "seeds"].map(String::from);
    rows.push(first.into_iter().chain(headings).collect());
    for row in &report.results.rows {
        let seeds = match row.seeds {
            0 => "-".to_string(),
            n => n.to_string(),
        };
        let cells = COLUMNS.iter().zip(&row.cells);
        let cells = cells.map(|(column, cell)| cell_text(cell.as_ref(), column.form));
        rows.push(
            [row.label.clone(), seeds]
                .into_iter()
                .chain(cells)
                .collect(),
        );
    }
    rows
}

fn results(report: &Report) -> String {
    let rows = result_rows(report);
    // Columns that no row has are not worth the width.
    let used: Vec<usize> = (0..rows[0].len())
        .filter(|&c| rows[1..].iter().any(|row| row[c] != "-"))
        .collect();
    let rows = rows
        .into_iter()
        .map(|row| used.iter().map(|&c| row[c].clone()).collect())
        .collect();
    table(rows)
        + "\u{b1}: one standard error over seeds; *: over problems (base model, single seed)\n"
}

fn cell_text(cell: Option<&Cell>, form: Form) -> String {
    let Some(cell) = cell else {
        return "-".into();
    };
    let digits = match form {
        Form::Share => 3,
        Form::Tokens => 1,
    };
    let mean = format!("{:.digits$}", cell.estimate.mean);
    match cell.estimate.error {
        Some(error) => {
            let star = if cell.over_problems { "*" } else { "" };
            format!("{mean} \u{b1} {error:.digits$}{star}")
        }
        None => mean,
    }
}

fn contrasts(report: &Report) -> String {
    if report.results.contrasts.is_empty() {
        return String::new();
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    let headings = COLUMNS[..CONTRASTS]
        .iter()
        .map(|c| report.results.heading(c));
    rows.push(
        ["to uniform".to_string()]
            .into_iter()
            .chain(headings)
            .collect(),
    );
    for contrast in &report.results.contrasts {
        let cells = contrast.cells.iter().map(|cell| match cell {
            None => "-".to_string(),
            Some(d) => {
                let mut text = format!("{:+.3}", d.mean);
                if let Some(error) = d.error {
                    let _ = write!(text, " \u{b1} {error:.3}");
                }
                if let Some(p) = d.p {
                    let _ = write!(text, " p {p:.3}");
                }
                text
            }
        });
        let label = report.groups[contrast.group].label.clone();
        rows.push([label].into_iter().chain(cells).collect());
    }
    format!("\n{}", table(rows))
}

/// Columns side by side, the first to the left, the others to the right.
fn table(rows: Vec<Vec<String>>) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        for (c, (cell, width)) in row.iter().zip(&widths).enumerate() {
            match c {
                0 => {
                    let _ = write!(out, "{cell:<width$}");
                }
                _ => {
                    let _ = write!(out, "  {cell:>width$}");
                }
            }
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

fn troubles(report: &Report) -> String {
    let mut out = String::new();
    for run in &report.study.runs {
        match &run.status {
            Status::Done => {}
            Status::Unfinished => {
                let steps = run.series.steps.last().unwrap_or(&0);
                let _ = writeln!(
                    out,
                    "{}: unfinished after {steps} steps (no summary.json)",
                    run.name
                );
            }
            Status::Failed(error) => {
                let first = error.lines().next().unwrap_or_default();
                let _ = writeln!(out, "{}: failed: {first}", run.name);
            }
        }
        for (kind, name) in [(1.0, "collapsed to uniform"), (2.0, "spuriously sparse")] {
            let steps = run.series.points("credit/alarm").filter(|p| p.1 == kind);
            let n = steps.count();
            if n > 0 {
                let _ = writeln!(
                    out,
                    "{}: {name} in {n} of {} steps",
                    run.name,
                    run.series.steps.len()
                );
            }
        }
    }
    for note in &report.study.notes {
        let _ = writeln!(out, "note: {note}");
    }
    match out.is_empty() {
        true => out,
        false => format!("\n{out}"),
    }
}
