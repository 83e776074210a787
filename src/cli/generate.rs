//! `arca generate`: complete prompts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Outcome;
use super::args::GenerateArgs;
use super::rows::{Row, read_rows};
use crate::config::Config;
use crate::episode::AdapterId;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::rng::{Purpose, hash_bytes};
use crate::rollout::{Completion, Event, Request, Sampling};
use crate::tokenizer::{IncrementalDecoder, Tokenizer, stop_ids};
use crate::train::session::{
    AdapterSource, Demand, OnDevice, Session, fit_context, kv_pages, model_dir, on_device, sampling,
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

/// One prompt to complete, in its own way.
struct Prompt {
    id: Value,
    ids: Vec<u32>,
    sampling: Arc<Sampling>,
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
        ensure!(args.samples > 0, "--samples must be 1 or more");
        let rows = match (&args.prompt, &args.input) {
            (Some(text), _) => vec![Row::of_prompt(text)],
            (None, Some(path)) => read_rows(path)?,
            (None, None) => Vec::new(),
        };
        let mut prompts = Vec::with_capacity(rows.len());
        for (i, row) in rows.iter().enumerate() {
            let ids = row.ids("prompt", tokenizer.as_ref())?;
            ensure!(!ids.is_empty(), "{}: the prompt has no tokens", row.place);
            prompts.push((row.value.get("id").cloned().unwrap_or(json!(i)), ids));
        }
        ensure!(!prompts.is_empty(), "there is no prompt to complete");

        let mut adapters = Vec::new();
        if let Some(dir) = &args.adapter {
            let source = AdapterSource::load(dir, &shape);
            adapters.push(source.with_context(|| format!("adapter {}", dir.display()))?);
        }
        let adapter = (!adapters.is_empty()).then_some(AdapterId(0));
        let longest_prompt = prompts.iter().map(|p| p.1.len()).max().unwrap_or(0);
        let config = &fit_context(config, &shape, longest_prompt);
        let common = sampling(config, stop_ids(&dir, &shape.eos_ids)?);
        let prompts: Vec<Prompt> = prompts
            .into_iter()
            .zip(&rows)
            .map(|((id, ids), row)| {
                let sampling = of_row(row, &common)?;
                let most = shape.max_position_embeddings.saturating_sub(ids.len());
                ensure!(
                    sampling.max_tokens <= most.max(common.max_tokens),
                    "{}: max_tokens is {}, and the model's context has room for {most} beside the prompt",
                    row.place,
                    sampling.max_tokens
                );
                let sampling = Arc::new(sampling);
                Ok(Prompt { id, ids, sampling })
            })
            .collect::<Result<_>>()?;
        // The longest prompt need not have the longest completion.
        let contexts = prompts.iter().map(|p| p.ids.len() + p.sampling.max_tokens);
        let context = contexts.max().unwrap_or(0);
        let demand = Demand {
            longest_prompt,
            longest_completion: context - longest_prompt,
            group: args.samples,
            sampled: prompts.len() * args.samples,
            tokens_per_batch: config.train.tokens_per_batch,
            pages: kv_pages(config, &shape, device.memory_kind())?,
            ..Demand::default()
        };
        let mut session = Session::open(device, config, &dir, &demand, adapters)?;
        // Only now: a start that fails leaves an earlier file as it was.
        let mut out = Output::new(
            &prompts,
            args.samples,
            tokenizer.as_ref(),
            args.json.as_deref(),
        )?;
        let mut rollout = session.rollout();
        for (p, row) in prompts.iter().zip(&rows) {
            rollout
                .submit(Request {
                    adapter,
                    prompt_ids: p.ids.clone(),
                    samples: 0..args.samples as u32,
                    sampling: p.sampling.clone(),
                    seed: config.train.seed,
                    purpose: Purpose::Generate,
                    step: 0,
                    problem: hash_bytes(p.id.to_string().as_bytes()),
                })
                .with_context(|| row.place.clone())?;
        }
        rollout.run(&mut |event| match event {
            Event::Token { token, .. } => out.token(token),
            Event::Finished(completion) => out.finished(completion),
            Event::Complete { .. } => Ok(()),
        })?;
        out.end()
    }
}

/// The settings that a row gives for itself, over the common ones.
fn of_row(row: &Row, common: &Sampling) -> Result<Sampling> {
    let place = &row.place;
    let number = |key: &str, default: f32, fits: &dyn Fn(f32) -> bool, must: &str| {
        let value = row.number(key)?.unwrap_or(default);
        ensure!(fits(value), "{place}: {key} is {value}; it must be {must}");
        Ok(value)
    };
    let count = |key: &str, default: usize| match &row.value[key] {
        Value::Null => Ok(default),
        v => v
            .as_u64()
            .map(|n| n as usize)
            .with_context(|| format!("{place}: {key} is {v}, a whole number is expected")),
    };
    let stop = match &row.value["stop"] {
        Value::Null => common.stop.clone(),
        v => texts(v)
            .filter(|stops| stops.iter().all(|s| !s.is_empty()))
            .with_context(|| {
                format!(
                    "{place}: stop is {v}, a text that is not empty or a list of them is expected"
                )
            })?
            .into(),
    };
    let stop_ids = match &row.value["stop_ids"] {
        Value::Null => common.stop_ids.clone(),
        v => v
            .as_array()
            .and_then(|ids| {
                let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
                ids.iter().map(id).collect()
            })
            .with_context(|| {
                format!("{place}: stop_ids is {v}, a list of token ids is expected")
            })?,
    };
    let sampling = Sampling {
        temperature: number(
            "temperature",
            common.temperature,
            &|t| t >= 0.0,
            "0 (greedy) or more",
        )?,
        top_p: number(
            "top_p",
            common.top_p,
            &|p| p > 0.0 && p <= 1.0,
            "above 0 and at most 1",
        )?,
        top_k: count("top_k", common.top_k)?,
        min_p: number(
            "min_p",
            common.min_p,
            &|p| (0.0..1.0).contains(&p),
            "from 0 to below 1",
        )?,
        max_tokens: count("max_tokens", common.max_tokens)?,
        stop_ids,
        stop,
    };
    if sampling.max_tokens == 0 {
        bail!("{place}: max_tokens is 0; it must be 1 or more");
    }
    Ok(sampling)
}

/// A text or a list of texts.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => many.iter().map(|v| v.as_str().map(String::from)).collect(),
        _ => None,
    }
}

/// Completions on their way out: in the order of the prompts, each as soon as
/// it and all before it have ended. A single one appears token by token.
struct Output<'a> {
    prompts: &'a [Prompt],
    samples: usize,
    tokenizer: Option<&'a Tokenizer>,
    json: bool,
    /// Standard output where there is none.
    file: Option<(&'a Path, File)>,
    stream: Option<IncrementalDecoder<'a>>,
    ready: BTreeMap<usize, String>,
    next: usize,
}

impl<'a> Output<'a> {
    fn new(
        prompts: &'a [Prompt],
        samples: usize,
        tokenizer: Option<&'a Tokenizer>,
        json: Option<&'a Path>,
    ) -> Result<Self> {
        let file = match json {
            Some(path) if path.as_os_str() != "-" => {
                let file = File::create(path)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                Some((path, file))
            }
            _ => None,
        };
        let single = json.is_none() && prompts.len() * samples == 1;
        Ok(Output {
            prompts,
            samples,
            tokenizer,
            json: json.is_some(),
            file,
            stream: tokenizer.filter(|_| single).map(|t| t.stream(true)),
            ready: BTreeMap::new(),
            next: 0,
        })
    }

    fn token(&mut self, token: u32) -> Result<()> {
        match &mut self.stream {
            Some(decoder) => super::print(&decoder.push(token)),
            None => Ok(()),
        }
    }

    fn finished(&mut self, c: &Completion) -> Result<()> {
        if self.stream.is_some() {
            return Ok(());
        }
        let text = match self.tokenizer {
            Some(t) => Some(t.decode(&c.ids, true)?),
            None => None,
        };
        let Prompt { id, ids, .. } = &self.prompts[c.request];
        let shown = match (self.json, &text) {
            (false, Some(text)) => format!("=== {id}, sample {}\n{text}\n", c.sample),
            (false, None) => format!("=== {id}, sample {}\n{:?}\n", c.sample, c.ids),
            (true, _) => {
                let row: BTreeMap<&str, Value> = [
                    ("id", id.clone()),
                    ("sample", json!(c.sample)),
                    ("prompt_ids", json!(ids)),
                    ("completion_ids", json!(c.ids)),
                    ("text", json!(text)),
                    ("logprobs", json!(c.logprobs)),
                    ("finish_reason", json!(c.finish)),
                ]
                .into();
                format!("{}\n", serde_json::to_string(&row)?)
            }
        };
        let place = c.request * self.samples + c.sample as usize;
        self.ready.insert(place, shown);
        let mut text = String::new();
        while let Some(shown) = self.ready.remove(&self.next) {
            text += &shown;
            self.next += 1;
        }
        match &mut self.file {
            Some((path, file)) => file
                .write_all(text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display())),
            None if text.is_empty() => Ok(()),
            None => super::print(&text),
        }
    }

    fn end(self) -> Result<()> {
        match self.stream {
            Some(mut decoder) => super::print(&format!("{}\n", decoder.finish())),
            None => Ok(()),
        }
    }
}
