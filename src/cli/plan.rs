//! `arca plan`: what a run would need in memory, and the largest that fits.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::Outcome;
use super::args::PlanArgs;
use crate::config::{Config, UsageError};
use crate::credit::CreditAssigner;
use crate::device::memory::{MemoryKind, Role};
use crate::model::adapter::AdapterLayout;
use crate::model::config::ModelShape;
use crate::model::plan::{Plan, WeightTypes};
use crate::train::session::{
    AdapterSource, DECODE_ROWS, Demand, device_memory, kv_pages, model_dir, plan,
};
use crate::train::setup::{data_path, initial_adapter, training_demand};

/// Runs the verb.
pub fn run(args: PlanArgs) -> Result<Outcome> {
    let config = args.load()?;
    let (kind, free) = device_memory(&config)?;
    let planning = Planning::new(&config, kind)?;
    let available = args.memory.or(free);
    let text = match args.json {
        true => planning.json(available),
        false => planning.text(available),
    };
    super::print(&text)?;
    Ok(Outcome::Done)
}

/// All that a training run's plan is made from.
struct Planning<'a> {
    config: &'a Config,
    kind: MemoryKind,
    shape: ModelShape,
    types: WeightTypes,
    layouts: Vec<AdapterLayout>,
    demand: Demand,
}

/// The largest batches that fit, all else being equal.
struct Largest {
    tokens_per_batch: Option<usize>,
    /// A larger one changes nothing: the whole step is one batch.
    whole_step: bool,
    decode_rows: Option<usize>,
}

impl<'a> Planning<'a> {
    fn new(config: &'a Config, kind: MemoryKind) -> Result<Self> {
        let dir = model_dir(config)?;
        let shape = ModelShape::load(&dir)?;
        let credit =
            CreditAssigner::new(&config.credit).map_err(|e| UsageError::new(format!("{e:#}")))?;
        let mut layouts = vec![initial_adapter(config, &shape)?.layout];
        if let Some(dir) = &config.reference.adapter {
            let reference = AdapterSource::load(dir, &shape).context("reference.adapter")?;
            layouts.push(reference.layout);
        }
        // Files are not read for a plan: as many problems as may be held out.
        let held_out = match data_path(config, &config.data.eval, "data.eval", "eval.jsonl")? {
            None => 0,
            Some(_) if config.eval.limit > 0 => config.eval.limit,
            Some(_) => DECODE_ROWS,
        };
        let longest = config.data.max_prompt_length;
        let demand = Demand {
            pages: kv_pages(config, &shape, kind)?,
            ..training_demand(config, &credit, longest, held_out)
        };
        demand.check_pages(config)?;
        Ok(Planning {
            config,
            kind,
            types: WeightTypes::read(&dir, &shape)?,
            shape,
            layouts,
            demand,
        })
    }

    fn plan(&self, demand: &Demand, decode_rows: usize, available: Option<u64>) -> Plan {
        plan(
            self.config,
            self.kind,
            &self.shape,
            &self.types,
            &demand.capacity_with(&self.layouts, decode_rows),
            &self.layouts,
            demand.trained,
            available,
        )
    }

    fn configured(&self, available: Option<u64>) -> Plan {
        self.plan(&self.demand, DECODE_ROWS, available)
    }

    fn largest(&self, memory: u64) -> Largest {
        let d = &self.demand;
        let with_tokens = |tokens_per_batch| {
            let demand = Demand {
                tokens_per_batch,
                ..*d
            };
            self.plan(&demand, DECODE_ROWS, Some(memory)).total() <= memory
        };
        let step = d.step_groups * d.longest_prompt + d.step_sequences * d.longest_completion;
        let copies = 1 + usize::from(d.reference_rows);
        let whole = (copies * step).max(16 * d.longest_prompt);
        let tokens_per_batch = most(whole, with_tokens);
        // Decode rows are those of the group at least, whatever is asked.
        let with_decode = |rows| {
            let demand = Demand {
                sampled: rows,
                ..*d
            };
            rows < d.group || self.plan(&demand, rows, Some(memory)).total() <= memory
        };
        Largest {
            tokens_per_batch,
            whole_step: tokens_per_batch == Some(whole),
            decode_rows: most(MOST_DECODE_ROWS, with_decode).filter(|&rows| rows >= d.group),
        }
    }

    fn json(&self, available: Option<u64>) -> String {
        let plan = self.configured(available);
        let roles: BTreeMap<&str, u64> = Role::ALL
            .into_iter()
            .map(|r| (r.name(), plan.role_bytes(r)))
            .collect();
        let largest = available.map(|a| self.largest(a));
        let blame: Vec<&str> = match available {
            Some(a) if plan.total() > a => plan.blame().iter().map(|e| e.what.as_str()).collect(),
            _ => Vec::new(),
        };
        let object = json!({
            "device": plan.kind.name(),
            "entries": plan.entries,
            "roles": roles,
            "shared_bytes": plan.shared_bytes(),
            "total_bytes": plan.total(),
            "available_bytes": available,
            "fits": available.map(|a| plan.total() <= a),
            "blame": blame,
            "rows": plan.capacity.rows,
            "saved_rows": plan.capacity.saved_rows,
            "gradient_checkpointing": plan.capacity.recompute,
            "kv_pages": plan.capacity.pages,
            "largest_tokens_per_batch": largest.as_ref().and_then(|l| l.tokens_per_batch),
            "largest_is_whole_step": largest.as_ref().map(|l| l.whole_step),
            "largest_decode_rows": largest.as_ref().and_then(|l| l.decode_rows),
        });
        format!("{object}\n")
    }

    fn text(&self, available: Option<u64>) -> String {
        let plan = self.configured(available);
        let mut out = plan.table();
        out.push('\n');
        match available {
            None => out += "how much memory there is could not be asked: give --memory\n",
            Some(a) => {
                match plan.refusal(a) {
                    Some(refusal) => out += &refusal,
                    None => out += &format!("fits: {} MiB are available\n", a >> 20),
                }
                if plan.capacity.recompute {
                    out +=
                        "the backward computes each layer again (train.gradient_checkpointing)\n";
                }
                let largest = self.largest(a);
                out += &match (largest.tokens_per_batch, largest.whole_step) {
                    (Some(n), false) => format!("largest train.tokens_per_batch that fits: {n}\n"),
                    (Some(n), true) => {
                        format!("any train.tokens_per_batch fits: the whole step is {n} tokens\n")
                    }
                    (None, _) => "no train.tokens_per_batch fits\n".to_string(),
                };
                out += &match largest.decode_rows {
                    Some(MOST_DECODE_ROWS) => {
                        format!("sequences side by side that fit: {MOST_DECODE_ROWS} and more\n")
                    }
                    Some(n) => format!(
                        "sequences side by side that fit: {n} (up to {DECODE_ROWS} are decoded in one batch)\n"
                    ),
                    None => "no group of samples fits side by side\n".to_string(),
                };
            }
        }
        out + &format!(
            "prompts of up to data.max_prompt_length = {} tokens are planned for\n",
            self.config.data.max_prompt_length
        )
    }
}

/// Where the search for decode rows ends.
const MOST_DECODE_ROWS: usize = 1 << 14;

/// The largest n in 1..=end that fits: such that n + 1 does not.
fn most(end: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    if fits(end) {
        return Some(end);
    }
    let (mut good, mut bad) = (0, end);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        match fits(middle) {
            true => good = middle,
            false => bad = middle,
        }
    }
    (good > 0).then_some(good)
}
