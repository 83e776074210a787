//! Token weights over real completions, all methods side by side.

use std::fmt::Write as _;

use super::chart::{Chart, Figure, Tokens, escape, number};
use super::group::Group;
use super::inspected::Inspected;
use super::load::{Run, Study};
use crate::credit::Concentration;

/// Levels of weight times length (1 is the uniform weight): what they begin
/// at, as a legend writes it, and how opaque they are.
pub const LEVELS: [(&str, f64); 10] = [
    ("0", 0.0),
    (".1", 0.05),
    (".25", 0.11),
    (".5", 0.18),
    (".75", 0.26),
    ("1.25", 0.38),
    ("2", 0.52),
    ("3", 0.66),
    ("5", 0.82),
    ("8+", 1.0),
];

/// Where the levels after the first begin.
const BOUNDS: [f64; 9] = [0.1, 0.25, 0.5, 0.75, 1.25, 2.0, 3.0, 5.0, 8.0];

/// The level of a weight that is `relative` times the uniform one.
pub fn level(relative: f64) -> usize {
    BOUNDS
        .iter()
        .take_while(|bound| relative >= **bound)
        .count()
}

/// A token as it is shown: line ends, tabs and nothing made visible.
pub fn shown(token: &str) -> String {
    match token {
        "" => "\u{2205}".into(),
        _ => token.replace('\n', "\u{23ce}").replace('\t', "\u{21e5}"),
    }
}

/// Completions shown of a run.
const COMPLETIONS: usize = 4;
/// Tokens shown in the whole page, over methods: more would weigh it down.
const BUDGET: usize = 60_000;

/// The run of each group whose completions are shown: the first with any.
fn chosen<'a>(study: &'a Study, groups: &'a [Group]) -> Vec<(&'a Group, &'a Run)> {
    let of_group = |group: &'a Group| {
        let mut runs = group.runs.iter().map(|&i| &study.runs[i]);
        Some((group, runs.find(|run| !run.inspected.is_empty())?))
    };
    groups.iter().filter_map(of_group).collect()
}

/// The part of the page; `None` where no run has inspected completions.
pub fn html(study: &Study, groups: &[Group]) -> Option<String> {
    let chosen = chosen(study, groups);
    // The page opens on a method that does weigh tokens.
    let open = chosen
        .iter()
        .rposition(|(group, _)| group.method == "arca")
        .unwrap_or(chosen.len().checked_sub(1)?);
    let mut out = legend();
    let (mut spent, mut left_out) = (0, 0);
    for (i, (group, run)) in chosen.iter().enumerate() {
        let _ = writeln!(
            out,
            "<details{}><summary>{} <span class=\"muted\">(run {})</span></summary>",
            if i == open { " open=\"open\"" } else { "" },
            escape(&group.label),
            escape(&run.name)
        );
        for (n, row) in run.inspected.iter().enumerate() {
            let size = row.tokens.len() * row.weights.len();
            if n >= COMPLETIONS || spent + size > BUDGET {
                left_out += 1;
                continue;
            }
            spent += size;
            out += &completion(row, n);
        }
        out += "</details>\n";
    }
    if left_out > 0 {
        let _ = writeln!(
            out,
            "<p class=\"muted\">{left_out} more completions are in the runs' inspect.jsonl.</p>"
        );
    }
    Some(out)
}

fn legend() -> String {
    let mut out = String::from(
        "<p class=\"legend\">Weight times length, 1 being the uniform weight: <span class=\"scale\">",
    );
    for (i, (name, _)) in LEVELS.iter().enumerate() {
        let _ = write!(out, "<i class=\"h{i}\">{name}</i>");
    }
    out += "</span> Hover over a token or tap it for its numbers.</p>\n";
    out
}

fn completion(row: &Inspected, n: usize) -> String {
    let reward = match row.reward {
        Some(reward) => format!(", reward {}", number(reward)),
        None => String::new(),
    };
    let mut out = format!(
        "<h4>Completion {}: {} tokens{reward}</h4>\n<div class=\"heats\">\n",
        n + 1,
        row.tokens.len()
    );
    for (method, weights) in &row.weights {
        let words = match Concentration::of(weights) {
            Some(c) => format!(
                "Gini {:.2}, effective tokens {:.2}, largest {:.2}",
                c.gini, c.effective_token_ratio, c.max_weight
            ),
            None => String::new(),
        };
        let _ = write!(
            out,
            "<div class=\"heat\"><h5>{} <span class=\"muted\">{words}</span></h5><p class=\"tokens\">",
            escape(method)
        );
        for (t, (token, weight)) in row.tokens.iter().zip(weights).enumerate() {
            let relative = weight * weights.len() as f64;
            let mut title = format!(
                "weight {} ({}\u{d7} uniform)",
                number(*weight),
                number(relative)
            );
            for (name, values) in [
                ("log p", &row.logprobs),
                ("entropy", &row.entropies),
                ("residual", &row.residuals),
            ] {
                if let Some(value) = values.get(t) {
                    let _ = write!(title, ", {name} {}", number(*value));
                }
            }
            let _ = write!(
                out,
                "<i class=\"h{}\" title=\"{title}\">{}</i>{}",
                level(relative),
                escape(&shown(token)),
                if token.contains('\n') { "<br/>" } else { "" }
            );
        }
        out += "</p></div>\n";
    }
    out += "</div>\n";
    out
}

/// The same as figures for files: of one run per group.
pub fn figures(study: &Study, groups: &[Group]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (group, run) in chosen(study, groups) {
        for (n, row) in run.inspected.iter().take(COMPLETIONS).enumerate() {
            let stem: String = group
                .label
                .chars()
                .map(|c| {
                    if c.is_ascii_alphanumeric() || c == '_' || c == '.' {
                        c
                    } else {
                        '-'
                    }
                })
                .collect();
            figures.push(Figure {
                name: format!("tokens-{stem}-{}", n + 1),
                title: format!("Token weights, adapter of {}", group.label),
                subtitle: format!(
                    "run {}, completion {}, {} tokens",
                    run.name,
                    n + 1,
                    row.tokens.len()
                ),
                chart: Chart::Tokens(Tokens {
                    tokens: row.tokens.clone(),
                    methods: row.weights.clone(),
                }),
            });
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_begin_where_the_legend_says() {
        for (i, bound) in BOUNDS.iter().enumerate() {
            assert_eq!(level(*bound), i + 1);
            assert_eq!(level(bound - 1e-9), i);
            let name = LEVELS[i + 1].0.trim_end_matches('+');
            assert_eq!(name.parse::<f64>().unwrap(), *bound);
        }
        assert_eq!(level(0.0), 0);
        assert_eq!(level(1.0), 4);
    }
}
