//! `arca eval`: accuracy of the base model and of adapters.

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::Outcome;
use super::args::EvalArgs;
use crate::config::{Config, UsageError};
use crate::episode::AdapterId;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::study::comparison::Versus;
use crate::study::table::gaps;
use crate::tokenizer::Tokenizer;
use crate::train::evaluate::{EvalRow, Evaluated, Subject, evaluate, table};
use crate::train::session::{
    AdapterSource, Demand, OnDevice, Session, fit_context, kv_pages, model_dir, on_device,
};
use crate::train::setup::{data_path, load_prompts};
use crate::train::step::Prompts;

/// Runs the verb.
pub fn run(args: EvalArgs) -> Result<Outcome> {
    let config = args.load()?;
    let evaluated = on_device(
        &config,
        Evaluation {
            config: &config,
            args: &args,
        },
    )?;
    let rows: Vec<EvalRow> = evaluated.iter().map(|e| e.row.clone()).collect();
    // The base model is the first.
    let versus: Vec<Option<Versus>> = evaluated
        .iter()
        .enumerate()
        .map(|(i, e)| {
            let adapter = (i > 0).then_some(&e.outcomes)?;
            Versus::of(adapter, &evaluated[0].outcomes, config.train.seed)
        })
        .collect();
    if !args.config.common.quiet {
        let compared: Vec<_> = rows
            .iter()
            .zip(&versus)
            .filter_map(|(row, v)| {
                let v = v.as_ref()?;
                Some((&row.model[..], v.greedy, Some(v.greedy_mcnemar), v.sampled))
            })
            .collect();
        let differences = match compared.is_empty() {
            true => String::new(),
            false => gaps("base", &compared),
        };
        super::print(&(table(&rows) + &differences))?;
    }
    if let Some(path) = &args.json {
        let rows: Vec<Row> = rows
            .into_iter()
            .zip(versus)
            .map(|(row, difference_to_base)| Row {
                row,
                difference_to_base,
            })
            .collect();
        super::write_output(path, &format!("{}\n", serde_json::to_string_pretty(&rows)?))?;
    }
    Ok(Outcome::Done)
}

/// A row of `--json`.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    row: EvalRow,
    #[serde(skip_serializing_if = "Option::is_none")]
    difference_to_base: Option<Versus>,
}

struct Evaluation<'a> {
    config: &'a Config,
    args: &'a EvalArgs,
}

impl OnDevice for Evaluation<'_> {
    type Output = Vec<Evaluated>;

    fn run<D: HalfLayers>(self, device: D) -> Result<Vec<Evaluated>> {
        let config = self.config;
        let dir = model_dir(config)?;
        let shape = ModelShape::load(&dir)?;
        let tokenizer = Tokenizer::load(&dir)?;
        let path = data_path(config, &config.data.eval, "data.eval", "eval.jsonl")?
            .ok_or_else(|| UsageError::new("name the problems to evaluate on: --data FILE"))?;
        let (
            Prompts {
                mut problems,
                mut ids,
            },
            dataset,
        ) = load_prompts(config, &tokenizer, &path)?;
        let report = dataset.to_string();
        if !self.args.config.common.quiet && !report.is_empty() {
            eprintln!("{}: {report}", path.display());
        }
        if config.eval.limit > 0 {
            problems.truncate(config.eval.limit);
            ids.truncate(config.eval.limit);
        }
        ensure!(
            !problems.is_empty(),
            "{} holds no usable problem",
            path.display()
        );

        let seed = config.train.seed;
        let subject = |name: String, adapter| Subject {
            name,
            adapter,
            seed,
        };
        let mut subjects = vec![subject("base".to_string(), None)];
        let mut adapters = Vec::new();
        for (i, dir) in self.args.adapter.iter().enumerate() {
            let source = AdapterSource::load(dir, &shape)
                .with_context(|| format!("adapter {}", dir.display()))?;
            adapters.push(source);
            let id = AdapterId(i as u32);
            subjects.push(subject(dir.display().to_string(), Some(id)));
        }
        let longest_prompt = ids.iter().map(Vec::len).max().unwrap_or(0);
        let config = &fit_context(config, &shape, longest_prompt);
        let demand = Demand {
            longest_prompt,
            longest_completion: config.rollout.max_completion_length,
            group: config.eval.samples,
            sampled: problems.len() * config.eval.samples * subjects.len(),
            tokens_per_batch: config.train.tokens_per_batch,
            pages: kv_pages(config, &shape, device.memory_kind())?,
            ..Demand::default()
        };
        let mut session = Session::open(device, config, &dir, &demand, adapters)?;
        evaluate(&mut session, config, &problems, &ids, &subjects)
    }
}
