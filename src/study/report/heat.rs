//! Token weights over real completions, all methods side by side.

use std::fmt::Write as _;

use super::chart::{Chart, Figure, Tokens, number};
use super::group::Group;
use super::inspected::Inspected;
use super::load::{Run, Study};
use crate::credit::Concentration;
use crate::study::heatmap::{self, HeatMethod, HeatToken};
use crate::study::markup::escape;

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
    let mut out = heatmap::legend();
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

fn completion(row: &Inspected, n: usize) -> String {
    let reward = match row.reward {
        Some(reward) => format!(", reward {}", number(reward)),
        None => String::new(),
    };
    let facts = [
        ("log-prob", &row.logprobs),
        ("entropy", &row.entropies),
        ("residual", &row.residuals),
    ];
    let tokens: Vec<HeatToken> = row
        .tokens
        .iter()
        .enumerate()
        .map(|(t, text)| HeatToken {
            text: text.clone(),
            facts: facts
                .iter()
                .filter_map(|(name, values)| Some((*name, *values.get(t)?)))
                .collect(),
        })
        .collect();
    let methods: Vec<HeatMethod> = row
        .weights
        .iter()
        .map(|(name, weights)| HeatMethod {
            name,
            caption: Concentration::of(weights).map_or(String::new(), |c| {
                format!(
                    "Gini {:.2}, effective tokens {:.2}, largest {:.2}",
                    c.gini, c.effective_token_ratio, c.max_weight
                )
            }),
            weights,
        })
        .collect();
    format!(
        "<h4>Completion {}: {} tokens{reward}</h4>\n{}",
        n + 1,
        row.tokens.len(),
        heatmap::fragment(&tokens, &methods)
    )
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
