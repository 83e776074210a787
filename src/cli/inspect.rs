//! `arca inspect`: each token's log-prob, entropy, residual and credit, all
//! methods side by side.

use std::io::IsTerminal;

use anyhow::{Context, Result, ensure};

use super::Outcome;
use super::args::InspectArgs;
use super::rows::read_rows;
use crate::config::{Config, UsageError};
use crate::credit::{Concentration, CreditAssigner};
use crate::episode::AdapterId;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::study::bands::{self, Screen};
use crate::study::heatmap::{self, HeatMethod, HeatToken};
use crate::study::inspect::{InspectRow, Inspected, Inspection, methods};
use crate::study::markup::escape;
use crate::tokenizer::Tokenizer;
use crate::train::session::{AdapterSource, OnDevice, Session, capacity_of, model_dir, on_device};

/// Runs the verb.
pub fn run(args: InspectArgs) -> Result<Outcome> {
    let config = args.load()?;
    on_device(
        &config,
        Verb {
            config: &config,
            args: &args,
        },
    )?;
    Ok(Outcome::Done)
}

struct Verb<'a> {
    config: &'a Config,
    args: &'a InspectArgs,
}

impl OnDevice for Verb<'_> {
    type Output = ();

    fn run<D: HalfLayers>(self, device: D) -> Result<()> {
        let (config, args) = (self.config, self.args);
        let usage = |e: anyhow::Error| UsageError::new(format!("{e:#}"));
        let credit = CreditAssigner::new(&config.credit).map_err(usage)?;
        let dir = model_dir(config)?;
        let shape = ModelShape::load(&dir)?;
        credit.hidden().check(shape.num_layers).map_err(usage)?;
        let tokenizer = match dir.join("tokenizer.json").exists() {
            true => Some(Tokenizer::load(&dir)?),
            false => None,
        };
        let names = match args.method.is_empty() {
            true => vec![credit.method().name().to_string()],
            false => args.method.clone(),
        };
        let methods = methods(&names, tokenizer.is_some())
            .context("--method")
            .map_err(usage)?;

        let mut rows = Vec::new();
        let mut places = Vec::new();
        for row in read_rows(&args.input)? {
            let prompt = row.ids("prompt", tokenizer.as_ref())?;
            let completion = row.ids("completion", tokenizer.as_ref())?;
            for (what, ids) in [("prompt", &prompt), ("completion", &completion)] {
                ensure!(!ids.is_empty(), "{}: the {what} has no tokens", row.place);
            }
            rows.push(InspectRow {
                prompt,
                completion,
                reward: row.number("reward")?,
                advantage: row.number("advantage")?,
            });
            places.push(row.place);
        }

        let mut adapters = Vec::new();
        for (dir, key) in [
            (&args.adapter, "--adapter"),
            (&config.reference.adapter, "reference.adapter"),
        ] {
            if let Some(dir) = dir {
                adapters.push(AdapterSource::load(dir, &shape).context(key)?);
            }
        }
        let policy = args.adapter.as_ref().map(|_| AdapterId(0));
        let last = adapters.len().saturating_sub(1) as u32;
        let reference = config.reference.adapter.as_ref().map(|_| AdapterId(last));
        let inspection = Inspection::new(config, methods, policy, reference, tokenizer.as_ref())?;
        let layouts: Vec<_> = adapters.iter().map(|a| a.layout.clone()).collect();
        let capacity = capacity_of(&inspection.pack(&rows)?, &layouts);
        let mut session = Session::with_capacity(device, config, &dir, capacity, 0, adapters)?;
        let inspected = inspection.run(&mut session.engine, &rows)?;

        let tokenizer = tokenizer.as_ref();
        if let Some(path) = &args.json {
            let mut out = String::new();
            for one in &inspected {
                out += &one.json(tokenizer)?.to_string();
                out.push('\n');
            }
            super::write_output(path, &out)?;
        }
        if let Some(path) = &args.html {
            super::write_output(path, &html(&inspected, &places, tokenizer)?)?;
        }
        if args.json.is_none() && args.html.is_none() {
            let screen = Screen {
                width: columns(),
                colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            };
            let mut out = bands::legend(screen.colour);
            for (one, place) in inspected.iter().zip(&places) {
                out += &row_text(one, place, tokenizer, screen, args.table);
            }
            super::print(&out)?;
        }
        Ok(())
    }
}

/// Columns of the terminal; COLUMNS goes first, 100 where nothing is known.
fn columns() -> usize {
    let given = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    let known = || {
        console::Term::stdout()
            .size_checked()
            .map(|(_, c)| c.into())
    };
    given.or_else(known).filter(|&c| c > 0).unwrap_or(100)
}

fn caption(one: &Inspected, at: usize) -> String {
    let weights = &one.weights[at].1;
    let Some(c) = Concentration::of(&weights.weights) else {
        return String::new();
    };
    let fallback = match weights.fallback {
        true => " · fell back to uniform",
        false => "",
    };
    format!(
        "Gini {:.3} · effective tokens {:.3} · largest {:.3}{fallback}",
        c.gini, c.effective_token_ratio, c.max_weight
    )
}

fn row_text(
    one: &Inspected,
    place: &str,
    tokenizer: Option<&Tokenizer>,
    screen: Screen,
    table: bool,
) -> String {
    let tokens = one.tokens(tokenizer);
    let mut out = format!("\n{place}, {} tokens\n", tokens.len());
    let widest = one.weights.iter().map(|(name, _)| name.len()).max();
    let widest = widest.unwrap_or(0) + 2;
    for (m, (name, _)) in one.weights.iter().enumerate() {
        out += &format!("{name:widest$}{}\n", caption(one, m));
    }
    out.push('\n');
    let methods: Vec<(&str, &[f64])> = one
        .weights
        .iter()
        .map(|(name, w)| (*name, &w.weights[..]))
        .collect();
    out += &bands::bands(&tokens, &methods, screen);
    if table {
        out += &numbers(one, &tokens);
    }
    out
}

/// One line per token.
fn numbers(one: &Inspected, tokens: &[String]) -> String {
    let s = &one.signals;
    let mut out = format!(
        "{:>5}  {:<18} {:>9} {:>8} {:>9} {:>9}",
        "", "token", "log-prob", "entropy", "ref", "residual"
    );
    for (name, _) in &one.weights {
        out += &format!(" {name:>10}");
    }
    out.push('\n');
    for (t, token) in tokens.iter().enumerate() {
        let mut text = format!("{token:?}");
        if text.chars().count() > 18 {
            text = text.chars().take(17).chain(['…']).collect();
        }
        out += &format!(
            "{t:>5}  {text:<18} {:>9.4} {:>8.4} {:>9.4} {:>9.4}",
            s.logprobs[t], s.entropies[t], s.reference_logprobs[t], s.residuals[t]
        );
        for (name, w) in &one.weights {
            let width = name.len().max(10);
            out += &format!(" {:>width$.4}", w.weights[t]);
        }
        out.push('\n');
    }
    out
}

/// One self-contained page of all rows.
fn html(
    inspected: &[Inspected],
    places: &[String],
    tokenizer: Option<&Tokenizer>,
) -> Result<String> {
    let mut body = heatmap::legend();
    for (one, place) in inspected.iter().zip(places) {
        let s = &one.signals;
        let tokens: Vec<HeatToken> = one
            .tokens(tokenizer)
            .into_iter()
            .enumerate()
            .map(|(t, text)| HeatToken {
                text,
                facts: [
                    ("log-prob", &s.logprobs),
                    ("entropy", &s.entropies),
                    ("reference log-prob", &s.reference_logprobs),
                    ("residual", &s.residuals),
                    ("contrast log-prob", &s.contrast_logprobs),
                ]
                .into_iter()
                .filter_map(|(name, values)| Some((name, f64::from(*values.get(t)?))))
                .collect(),
            })
            .collect();
        let methods: Vec<HeatMethod> = one
            .weights
            .iter()
            .enumerate()
            .map(|(m, (name, w))| HeatMethod {
                name,
                caption: caption(one, m),
                weights: &w.weights,
            })
            .collect();
        let reward = one
            .row
            .reward
            .map_or(String::new(), |r| format!(", reward {r}"));
        body += &format!(
            "<h2>{}, {} tokens{reward}</h2>\n",
            escape(place),
            tokens.len()
        );
        if let Some(tokenizer) = tokenizer {
            let prompt = tokenizer.decode(&one.row.prompt, false)?;
            body += &format!("<p class=\"prompt\">{}</p>\n", escape(prompt.trim_end()));
        }
        body += &heatmap::fragment(&tokens, &methods);
    }
    Ok(heatmap::page("Token credit side by side", &body))
}
