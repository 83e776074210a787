//! `arca plan`: what a run would need in memory.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::Outcome;
use super::args::PlanArgs;
use crate::config::{Config, UsageError};
use crate::credit::CreditAssigner;
use crate::device::Device;
use crate::device::cuda::Cuda;
use crate::model::adapter::AdapterLayout;
use crate::model::config::ModelShape;
use crate::model::plan::{Capacity, Form, Plan, Role, available_memory};
use crate::train::session::{Demand, device_form, model_dir, plan};
use crate::train::setup::{initial_adapter, wants_reference};

/// Runs the verb. No device is opened: a plan for a GPU can be made without.
pub fn run(args: PlanArgs) -> Result<Outcome> {
    let config = args.load()?;
    let form = device_form(&config);
    let available = match &args.memory {
        Some(text) => Some(parse_bytes(text)?),
        None if !form.device_memory || config.train.device == "emulator" => available_memory(),
        None => Cuda::gpu(0).ok().and_then(|gpu| gpu.available_memory()),
    };
    let text = Planning::new(&config)?.text(form, available, args.json)?;
    super::print(&text)?;
    Ok(Outcome::Done)
}

/// A number of bytes with an optional K, M, G or T (of 1024).
fn parse_bytes(text: &str) -> Result<u64> {
    let usage = || {
        UsageError::new(format!(
            "--memory {text}: give bytes, or a number with K, M, G or T, such as 80G"
        ))
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..]
        .to_ascii_uppercase()
        .trim_end_matches("IB")
        .trim_end_matches('B')
    {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(usage().into()),
    };
    let number: f64 = digits.parse().map_err(|_| usage())?;
    if !(number > 0.0 && number.is_finite()) {
        return Err(usage().into());
    }
    Ok((number * (1u64 << shift) as f64) as u64)
}

/// What a run of this configuration would hold.
struct Planning<'a> {
    config: &'a Config,
    dir: PathBuf,
    shape: ModelShape,
    layouts: Vec<AdapterLayout>,
    demand: Demand,
}

impl<'a> Planning<'a> {
    fn new(config: &'a Config) -> Result<Self> {
        let dir = model_dir(config)?;
        let shape = ModelShape::load(&dir)?;
        let credit =
            CreditAssigner::new(&config.credit).map_err(|e| UsageError::new(format!("{e:#}")))?;
        let sequences = config.train.prompts_per_step * config.rollout.group_size;
        Ok(Planning {
            layouts: vec![initial_adapter(config, &shape)?.layout],
            demand: Demand {
                longest_prompt: config.data.max_prompt_length,
                longest_completion: config.rollout.max_completion_length,
                step_groups: config.train.prompts_per_step,
                step_sequences: sequences,
                group: config.rollout.group_size,
                sampled: sequences,
                reference_rows: wants_reference(&credit, config),
                training: true,
                tokens_per_batch: config.train.tokens_per_batch,
            },
            config,
            dir,
            shape,
        })
    }

    fn plan(&self, form: Form, tokens_per_batch: usize) -> Result<(Capacity, Plan)> {
        let demand = Demand {
            tokens_per_batch,
            ..self.demand
        };
        let capacity = demand.capacity(&self.layouts);
        let plan = plan(form, &self.shape, &capacity, &self.dir, &self.layouts, true)?;
        Ok((capacity, plan))
    }

    /// The largest train.tokens_per_batch whose plan fits, if any does; more
    /// than a whole step's tokens change nothing.
    fn largest(&self, form: Form, available: u64) -> Result<Option<usize>> {
        let d = &self.demand;
        let step = d.step_groups * d.longest_prompt + d.step_sequences * d.longest_completion;
        let fits =
            |tokens: usize| -> Result<bool> { Ok(self.plan(form, tokens)?.1.total() <= available) };
        let (mut low, mut high) = (1, 2 * step.max(1));
        if !fits(low)? {
            return Ok(None);
        }
        if fits(high)? {
            return Ok(Some(high));
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match fits(middle)? {
                true => low = middle,
                false => high = middle,
            }
        }
        Ok(Some(low))
    }

    fn text(&self, form: Form, available: Option<u64>, as_json: bool) -> Result<String> {
        let tokens = self.config.train.tokens_per_batch;
        let (capacity, plan) = self.plan(form, tokens)?;
        let largest = match available {
            Some(available) => self.largest(form, available)?,
            None => None,
        };
        if as_json {
            let roles: serde_json::Map<String, serde_json::Value> = Role::ALL
                .iter()
                .map(|&r| (r.name().to_string(), json!(plan.of_role(r))))
                .collect();
            let object = json!({
                "entries": plan.entries,
                "roles": roles,
                "total_bytes": plan.total(),
                "available_bytes": available,
                "fits": available.map(|a| plan.total() <= a),
                "largest_tokens_per_batch": largest,
                "rows": capacity.rows,
                "saved_rows": capacity.saved_rows,
                "kv_pages": capacity.pages,
            });
            return Ok(format!("{object}\n"));
        }
        let mut out = plan.table();
        if let Some(available) = available {
            let mib = available >> 20;
            if plan.total() > available {
                out += &format!(
                    "would not fit: {mib} MiB are available, {} MiB are needed. The largest:\n{}",
                    plan.total() >> 20,
                    plan.blame()
                );
            } else {
                out += &format!("fits: {mib} MiB are available\n");
            }
            out += &match largest {
                Some(n) => format!(
                    "the largest train.tokens_per_batch that fits is {n} (planned: {tokens})\n"
                ),
                None => "no train.tokens_per_batch fits\n".to_string(),
            };
        }
        Ok(out
            + &format!(
                "prompts of up to data.max_prompt_length = {} tokens are planned for\n",
                self.config.data.max_prompt_length
            ))
    }
}
