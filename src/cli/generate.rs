//! `arca generate`: complete prompts.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Outcome;
use super::args::GenerateArgs;
use super::rows::{Row, read_rows};
use crate::config::Config;
use crate::episode::AdapterId;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::rng::{Purpose, hash_bytes};
use crate::rollout::{Event, Request};
use crate::tokenizer::Tokenizer;
use crate::train::session::{
    AdapterSource, Demand, OnDevice, Session, fit_context, model_dir, on_device,
};

/// Runs the verb.
pub fn run(args: GenerateArgs) -> Result<Outcome> {
    let config = args.load()?;
    on_device(
        &config,
        Generation {
            config: &config,
            args: &args,
        },
    )?;
    Ok(Outcome::Done)
}

struct Generation<'a> {
    config: &'a Config,
    args: &'a GenerateArgs,
}

/// One prompt to complete.
struct Prompt {
    id: Value,
    ids: Vec<u32>,
}

impl OnDevice for Generation<'_> {
    type Output = ();

    fn run<D: HalfLayers>(self, device: D) -> Result<()> {
        let (config, args) = (self.config, self.args);
        let dir = model_dir(config)?;
        let shape = ModelShape::load(&dir)?;
        let tokenizer = match dir.join("tokenizer.json").exists() {
            true => Some(Tokenizer::load(&dir)?),
            false => None,
        };
        let rows = match (&args.prompt, &args.input) {
            (Some(text), _) => vec![Row::of_prompt(text)],
            (None, Some(path)) => read_rows(path)?,
            (None, None) => Vec::new(),
        };
        let prompts: Vec<Prompt> = rows
            .iter()
            .enumerate()
            .map(|(i, row)| {
                Ok(Prompt {
                    id: row.value.get("id").cloned().unwrap_or(json!(i)),
                    ids: row.ids("prompt", tokenizer.as_ref())?,
                })
            })
            .collect::<Result<_>>()?;
        ensure!(!prompts.is_empty(), "there is no prompt to complete");
        for (row, prompt) in rows.iter().zip(&prompts) {
            ensure!(
                !prompt.ids.is_empty(),
                "{}: the prompt has no tokens",
                row.place
            );
        }
        ensure!(args.samples > 0, "--samples must be 1 or more");

        let mut adapters = Vec::new();
        if let Some(dir) = &args.adapter {
            let source = AdapterSource::load(dir, &shape);
            adapters.push(source.with_context(|| format!("adapter {}", dir.display()))?);
        }
        let adapter = (!adapters.is_empty()).then_some(AdapterId(0));
        let longest_prompt = prompts.iter().map(|p| p.ids.len()).max().unwrap_or(0);
        let config = &fit_context(config, &shape, longest_prompt);
        let demand = Demand {
            longest_prompt,
            longest_completion: config.rollout.max_completion_length,
            group: args.samples,
            sampled: prompts.len() * args.samples,
            tokens_per_batch: config.train.tokens_per_batch,
            ..Demand::default()
        };
        let mut session = Session::open(device, config, &dir, &demand, adapters)?;
        let requests: Vec<Request> = prompts
            .iter()
            .map(|p| Request {
                adapter,
                prompt_ids: p.ids.clone(),
                samples: 0..args.samples as u32,
                seed: config.train.seed,
                purpose: Purpose::Generate,
                step: 0,
                problem: hash_bytes(p.id.to_string().as_bytes()),
            })
            .collect();
        let sampling = session.sampling(config);
        // Text appears as it is drawn where there is one completion to show.
        let stream = args.json.is_none() && prompts.len() == 1 && args.samples == 1;
        let mut decoder = match &tokenizer {
            Some(t) if stream => Some(t.stream(true)),
            _ => None,
        };
        let done = session.generate(&requests, &sampling, &config.rollout.stop, &mut |event| {
            if let (Event::Token { token, .. }, Some(decoder)) = (event, &mut decoder) {
                super::print(&decoder.push(token))?;
            }
            Ok(())
        })?;
        if let Some(mut decoder) = decoder {
            return super::print(&format!("{}\n", decoder.finish()));
        }

        let mut out = String::new();
        for c in &done {
            let text = match &tokenizer {
                Some(t) => Some(t.decode(&c.ids, true)?),
                None => None,
            };
            let id = &prompts[c.request].id;
            out += &match (&args.json, &text) {
                (None, Some(text)) => format!("=== {id}, sample {}\n{text}\n", c.sample),
                (None, None) => format!("=== {id}, sample {}\n{:?}\n", c.sample, c.ids),
                (Some(_), _) => {
                    let row: BTreeMap<&str, Value> = [
                        ("id", id.clone()),
                        ("sample", json!(c.sample)),
                        ("prompt_ids", json!(prompts[c.request].ids)),
                        ("completion_ids", json!(c.ids)),
                        ("text", json!(text)),
                        ("logprobs", json!(c.logprobs)),
                        ("finish_reason", json!(c.finish)),
                    ]
                    .into();
                    format!("{}\n", serde_json::to_string(&row)?)
                }
            };
        }
        match &args.json {
            Some(path) => super::write_output(path, &out),
            None => super::print(&out),
        }
    }
}
