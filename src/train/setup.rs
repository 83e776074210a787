//! From the configuration to what verbs work on: prompts, adapters, the update.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::config::{Config, UsageError};
use crate::credit::CreditAssigner;
use crate::data;
use crate::episode::{AdapterId, Problem};
use crate::loss::Objective;
use crate::model::adapter::{AdapterLayout, LoraSettings};
use crate::model::config::{ModelShape, Module};
use crate::tokenizer::{PromptTemplate, Tokenizer};
use crate::train::session::{AdapterSource, Demand, demo_dir, model_dir};
use crate::train::step::Prompts;
use crate::train::update::Updater;

/// Read problems and render their prompts.
pub fn load_prompts(
    config: &Config,
    tokenizer: &Tokenizer,
    path: &Path,
) -> Result<(Prompts, data::Dataset)> {
    let template = PromptTemplate::from_config(&config.data)?;
    let dataset = data::load(path, config.data.keep_partial_golds)?;
    let ids = dataset
        .problems
        .iter()
        .map(|p| template.ids(tokenizer, p, config.data.max_prompt_length))
        .collect::<Result<_>>()?;
    let prompts = Prompts {
        problems: dataset.problems.clone(),
        ids,
    };
    Ok((prompts, dataset))
}

/// The configured data file, or the demo's where no model is named.
pub fn data_path(
    config: &Config,
    given: &str,
    key: &str,
    demo_file: &str,
) -> Result<Option<PathBuf>> {
    match (given, config.model.path.as_str()) {
        ("", "") => Ok(Some(demo_dir()?.join(demo_file))),
        ("", _) if key == "data.eval" => Ok(None),
        ("", _) => Err(UsageError::new(format!(
            "{key} is not set: name a file of problems (JSONL, or a folder in MATH's layout)"
        ))
        .into()),
        (path, _) => Ok(Some(PathBuf::from(path))),
    }
}

/// The modules that `lora.target_modules` names.
fn target_modules(config: &Config) -> Result<Vec<Module>> {
    config
        .lora
        .target_modules
        .iter()
        .map(|name| {
            Module::ALL
                .into_iter()
                .find(|m| m.name() == name)
                .with_context(|| format!("lora.target_modules names {name}, which Qwen3 has not"))
        })
        .collect()
}

/// The adapter to train: fresh, or `lora.init_from`.
pub fn initial_adapter(config: &Config, shape: &ModelShape) -> Result<AdapterSource> {
    let lora = &config.lora;
    if let Some(dir) = &lora.init_from {
        return AdapterSource::load(dir, shape).context("lora.init_from");
    }
    let settings = LoraSettings::uniform(
        shape,
        &target_modules(config)?,
        lora.r,
        lora.alpha,
        lora.dropout,
        lora.use_rslora,
    );
    let layout = AdapterLayout::new(shape, settings)?;
    let params = layout.initial(config.train.seed);
    Ok(AdapterSource { layout, params })
}

/// The prompt under which a method that contrasts prompts scores completions
/// once more: `data.prompt_template` with `credit.contrast_prompt` as the
/// problem. Empty where the method does not.
pub fn contrast_prompt(config: &Config, credit: &CreditAssigner) -> Result<Vec<u32>> {
    if !credit.method().needs().extra_segments {
        return Ok(Vec::new());
    }
    let tokenizer = Tokenizer::load(&model_dir(config)?).with_context(|| {
        let name = credit.method().name();
        format!("credit method {name} needs a tokenizer for credit.contrast_prompt")
    })?;
    contrast_ids(config, &tokenizer)
}

/// The same with the tokenizer at hand, whatever the method.
pub fn contrast_ids(config: &Config, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let problem = Problem {
        id: "credit.contrast_prompt".into(),
        problem: config.credit.contrast_prompt.clone(),
        answer: String::new(),
        solution: None,
        level: None,
        subject: None,
    };
    PromptTemplate::from_config(&config.data)?
        .ids(tokenizer, &problem, config.data.max_prompt_length)
        .context("credit.contrast_prompt stands in the problem's place")
}

/// The update as `config` describes it. With a reference adapter resident,
/// `reference` is its id. `policy_rows` is [`Demand::policy_rows`].
pub fn updater(
    config: &Config,
    shape: &ModelShape,
    adapter: AdapterId,
    reference: Option<AdapterId>,
    policy_rows: usize,
) -> Result<Updater> {
    let credit = CreditAssigner::new(&config.credit)?;
    credit.hidden().check(shape.num_layers)?;
    Ok(Updater {
        objective: Objective::new(&config.loss)?,
        contrast: contrast_prompt(config, &credit)?,
        credit,
        loss: config.loss.clone(),
        adapter,
        reference,
        temperature: match config.rollout.temperature > 0.0 {
            true => config.rollout.temperature,
            false => 1.0,
        },
        max_completion_length: config.rollout.max_completion_length,
        policy_rows,
        dropout: config.lora.dropout,
        skip_zero_advantage: true,
    })
}

/// What training asks for at most, with prompts of up to `longest_prompt`
/// tokens and so many held-out problems.
pub fn training_demand(
    config: &Config,
    credit: &CreditAssigner,
    longest_prompt: usize,
    held_out: usize,
) -> Demand {
    let sequences = config.train.prompts_per_step * config.rollout.group_size;
    Demand {
        longest_prompt,
        longest_completion: config.rollout.max_completion_length,
        step_groups: config.train.prompts_per_step,
        step_sequences: sequences,
        group: config.rollout.group_size.max(config.eval.samples),
        sampled: sequences.max(held_out.saturating_mul(config.eval.samples)),
        reference_rows: wants_reference(credit, config),
        contrast_rows: credit.method().needs().extra_segments,
        trained: 1,
        tokens_per_batch: config.train.tokens_per_batch,
        pages: None,
    }
}

/// Whether an update with these settings ever runs reference rows.
pub fn wants_reference(updater_credit: &CreditAssigner, config: &Config) -> bool {
    updater_credit.method().needs().base_rows() || config.loss.beta > 0.0
}
