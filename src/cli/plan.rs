//! `arca plan`: what a run would need in memory.

use anyhow::Result;
use serde_json::json;

use super::Outcome;
use super::args::PlanArgs;
use crate::config::{Config, UsageError};
use crate::credit::CreditAssigner;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::train::session::{Demand, OnDevice, model_dir, on_device, plan};
use crate::train::setup::{initial_adapter, wants_reference};

/// Runs the verb.
pub fn run(args: PlanArgs) -> Result<Outcome> {
    let config = args.load()?;
    let text = on_device(
        &config,
        Planning {
            config: &config,
            json: args.json,
        },
    )?;
    super::print(&text)?;
    Ok(Outcome::Done)
}

struct Planning<'a> {
    config: &'a Config,
    json: bool,
}

impl OnDevice for Planning<'_> {
    type Output = String;

    fn run<D: HalfLayers>(self, device: D) -> Result<String> {
        let config = self.config;
        let dir = model_dir(config)?;
        let shape = ModelShape::load(&dir)?;
        let credit =
            CreditAssigner::new(&config.credit).map_err(|e| UsageError::new(format!("{e:#}")))?;
        let layouts = vec![initial_adapter(config, &shape)?.layout];
        let sequences = config.train.prompts_per_step * config.rollout.group_size;
        let demand = Demand {
            longest_prompt: config.data.max_prompt_length,
            longest_completion: config.rollout.max_completion_length,
            step_groups: config.train.prompts_per_step,
            step_sequences: sequences,
            group: config.rollout.group_size,
            sampled: sequences,
            reference_rows: wants_reference(&credit, config),
            training: true,
            tokens_per_batch: config.train.tokens_per_batch,
        };
        let capacity = demand.capacity(&layouts);
        let plan = plan::<D>(&shape, &capacity, &dir, &layouts, true)?;
        let available = device.available_memory();
        if self.json {
            let object = json!({
                "entries": plan.entries,
                "total_bytes": plan.total(),
                "available_bytes": available,
                "rows": capacity.rows,
                "kv_pages": capacity.pages,
            });
            return Ok(format!("{object}\n"));
        }
        let verdict = match available {
            Some(a) if plan.total() > a => {
                format!("would not fit: {} MiB are available\n", a >> 20)
            }
            Some(a) => format!("fits: {} MiB are available\n", a >> 20),
            None => String::new(),
        };
        Ok(format!(
            "{}{verdict}prompts of up to data.max_prompt_length = {} tokens are planned for\n",
            plan.table(),
            config.data.max_prompt_length
        ))
    }
}
