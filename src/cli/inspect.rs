//! `arca inspect`: each token's log-prob, entropy, residual and credit.

use std::io::IsTerminal;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::Outcome;
use super::args::InspectArgs;
use super::rows::read_rows;
use crate::config::{Config, UsageError};
use crate::credit::{Concentration, Credit, CreditAssigner, TokenWeights, method};
use crate::episode::{AdapterId, TokenSignals};
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::tokenizer::Tokenizer;
use crate::train::packing::{PackGroup, PackSpec, pack};
use crate::train::session::{AdapterSource, OnDevice, Session, capacity_of, model_dir, on_device};

/// Runs the verb.
pub fn run(args: InspectArgs) -> Result<Outcome> {
    let config = args.load()?;
    on_device(
        &config,
        Inspection {
            config: &config,
            args: &args,
        },
    )?;
    Ok(Outcome::Done)
}

struct Inspection<'a> {
    config: &'a Config,
    args: &'a InspectArgs,
}

impl OnDevice for Inspection<'_> {
    type Output = ();

    fn run<D: HalfLayers>(self, device: D) -> Result<()> {
        let (config, args) = (self.config, self.args);
        let usage = |e: anyhow::Error| UsageError::new(format!("{e:#}"));
        let credit = CreditAssigner::new(&config.credit).map_err(usage)?;
        let methods: Vec<&'static dyn Credit> = match args.method.is_empty() {
            true => vec![credit.method()],
            false => args
                .method
                .iter()
                .map(|name| method(name).context("--method"))
                .collect::<Result<_>>()
                .map_err(usage)?,
        };
        let dir = model_dir(config)?;
        let shape = ModelShape::load(&dir)?;
        credit.hidden().check(shape.num_layers).map_err(usage)?;
        let tokenizer = match dir.join("tokenizer.json").exists() {
            true => Some(Tokenizer::load(&dir)?),
            false => None,
        };
        let rows = read_rows(&args.input)?;
        let mut texts = Vec::new();
        for row in &rows {
            let prompt = row.ids("prompt", tokenizer.as_ref())?;
            let completion = row.ids("completion", tokenizer.as_ref())?;
            ensure!(
                !prompt.is_empty(),
                "{}: the prompt has no tokens",
                row.place
            );
            ensure!(
                !completion.is_empty(),
                "{}: the completion has no tokens",
                row.place
            );
            texts.push((prompt, completion));
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
        let reference = config
            .reference
            .adapter
            .as_ref()
            .map(|_| AdapterId(adapters.len() as u32 - 1));
        let groups: Vec<PackGroup> = texts
            .iter()
            .enumerate()
            .map(|(i, (prompt, completion))| PackGroup {
                prompt,
                completions: vec![(i, completion)],
                key: 0,
            })
            .collect();
        let spec = PackSpec {
            policy,
            reference: Some(reference),
            reference_logprobs: true,
            residuals: true,
            training: false,
            dropout: 0.0,
            max_rows: config.train.tokens_per_batch,
        };
        let batches = pack(&groups, &spec)?;
        let layouts: Vec<_> = adapters.iter().map(|a| a.layout.clone()).collect();
        let capacity = capacity_of(&batches, &layouts);
        let mut session = Session::with_capacity(device, config, &dir, capacity, 0, adapters)?;

        let temperature = match config.rollout.temperature > 0.0 {
            true => config.rollout.temperature,
            false => 1.0,
        };
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let mut out = String::new();
        for packed in batches {
            let result = session.engine.run_packed(
                packed.batch,
                temperature,
                false,
                Some(credit.hidden()),
            )?;
            for p in packed.sequences {
                let signals = TokenSignals {
                    logprobs: result.logprobs[p.policy.clone()].to_vec(),
                    entropies: result.entropies[p.policy].to_vec(),
                    reference_logprobs: result.logprobs[p.reference].to_vec(),
                    residuals: result.residuals[p.residuals].to_vec(),
                };
                let weights: Vec<(&str, TokenWeights)> = methods
                    .iter()
                    .map(|m| {
                        let assigner = credit.with_method(*m);
                        // Beyond any warm-up: what the method itself says.
                        let weights = assigner.weights(&signals, usize::MAX);
                        Ok((
                            m.name(),
                            weights.with_context(|| rows[p.index].place.clone())?,
                        ))
                    })
                    .collect::<Result<_>>()?;
                let (prompt, completion) = &texts[p.index];
                if args.json.is_some() {
                    out += &row_json(prompt, completion, &signals, &weights).to_string();
                    out.push('\n');
                } else {
                    out += &row_text(
                        &rows[p.index].place,
                        completion,
                        &signals,
                        &weights,
                        tokenizer.as_ref(),
                        colour,
                    )?;
                }
            }
        }
        match &args.json {
            Some(path) => super::write_output(path, &out),
            None => super::print(&out),
        }
    }
}

pub(crate) fn row_json(
    prompt: &[u32],
    completion: &[u32],
    s: &TokenSignals,
    weights: &[(&str, TokenWeights)],
) -> Value {
    let mut by_method = Map::new();
    let mut diagnostics = Map::new();
    for (name, w) in weights {
        by_method.insert(name.to_string(), json!(w.weights));
        if let Some(c) = Concentration::of(&w.weights) {
            diagnostics.insert(
                name.to_string(),
                json!({
                    "gini": c.gini,
                    "effective_token_ratio": c.effective_token_ratio,
                    "max_weight": c.max_weight,
                    "fallback": w.fallback,
                }),
            );
        }
    }
    json!({
        "prompt_ids": prompt,
        "completion_ids": completion,
        "logprobs": s.logprobs,
        "entropies": s.entropies,
        "reference_logprobs": s.reference_logprobs,
        "residuals": s.residuals,
        "weights": by_method,
        "diagnostics": diagnostics,
    })
}

/// A table for people, one line per token, its text shaded by weight.
fn row_text(
    place: &str,
    completion: &[u32],
    s: &TokenSignals,
    weights: &[(&str, TokenWeights)],
    tokenizer: Option<&Tokenizer>,
    colour: bool,
) -> Result<String> {
    let token = |id: u32| match tokenizer.and_then(|t| t.token_bytes(id)) {
        Some(bytes) => format!("{:?}", String::from_utf8_lossy(&bytes)),
        None => id.to_string(),
    };
    let mut out = format!("{place}, {} tokens\n", completion.len());
    for (name, w) in weights {
        if let Some(c) = Concentration::of(&w.weights) {
            let fallback = if w.fallback {
                ", fell back to uniform"
            } else {
                ""
            };
            out += &format!(
                "  {name}: gini {:.3}, effective tokens {:.3}, largest weight {:.3}{fallback}\n",
                c.gini, c.effective_token_ratio, c.max_weight
            );
        }
    }
    out += &format!(
        "{:>5}  {:<18} {:>9} {:>8} {:>9} {:>9}",
        "", "token", "log-prob", "entropy", "ref", "residual"
    );
    for (name, _) in weights {
        out += &format!(" {name:>18}");
    }
    out.push('\n');
    for (t, &id) in completion.iter().enumerate() {
        let mut text = token(id);
        if text.chars().count() > 18 {
            text = text.chars().take(17).chain(['…']).collect();
        }
        out += &format!(
            "{t:>5}  {text:<18} {:>9.4} {:>8.4} {:>9.4} {:>9.4}",
            s.logprobs[t], s.entropies[t], s.reference_logprobs[t], s.residuals[t]
        );
        for (_, w) in weights {
            let share = w.weights[t];
            // Relative to uniform: 1 is white, more is red.
            let heat = (share * completion.len() as f64 / 4.0).min(1.0);
            let cell = format!("{share:>18.4}");
            out += &match colour {
                true => {
                    let fade = (255.0 * (1.0 - heat)) as u8;
                    format!(" \x1b[48;2;255;{fade};{fade}m\x1b[38;2;0;0;0m{cell}\x1b[0m")
                }
                false => format!(" {cell}"),
            };
        }
        out.push('\n');
    }
    Ok(out)
}
