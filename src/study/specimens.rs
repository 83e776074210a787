//! What a trained adapter's credit looks at: a few held-out completions under
//! every method, beside the run.

use std::sync::Arc;

use anyhow::Result;
use serde_json::json;

use crate::credit::METHODS;
use crate::model::half_layer::HalfLayers;
use crate::reward::RewardItem;
use crate::rng::Purpose;
use crate::rollout::Request;
use crate::study::inspect::{InspectRow, Inspection};
use crate::train::run_dir::write_atomic;
use crate::train::trainer::Trainer;

/// Completions that are looked at.
const COMPLETIONS: usize = 4;

/// Sample a completion of each of the first held-out problems under an arm's
/// adapter, and write them to its folder as `inspect.jsonl`: rows as `arca
/// inspect --json` writes them, with `text`, `tokens` and `reward`. Nothing is
/// written where no problem is held out.
pub fn write_inspect<D: HalfLayers>(trainer: &mut Trainer<D>, arm: usize) -> Result<()> {
    let Trainer {
        session,
        arms,
        held_out,
        rewards,
        ..
    } = trainer;
    let arm = &arms[arm];
    let config = &arm.config;
    let sampling = Arc::new(session.sampling(config));
    let tokenizer = session.tokenizer()?.clone();
    let requests: Vec<Request> = held_out
        .problems
        .iter()
        .zip(&held_out.ids)
        .take(COMPLETIONS)
        .map(|(problem, ids)| Request {
            adapter: Some(arm.adapter),
            prompt_ids: ids.clone(),
            samples: 0..1,
            sampling: sampling.clone(),
            seed: config.train.seed,
            purpose: Purpose::Generate,
            step: arm.state.step as u64,
            problem: problem.key(),
        })
        .collect();
    if requests.is_empty() {
        return Ok(());
    }
    let completions = session.generate(requests, &mut |_| Ok(()))?;
    let mut rows = Vec::with_capacity(completions.len());
    for completion in completions {
        let text = tokenizer.decode(&completion.ids, true)?;
        let item = RewardItem {
            problem: &held_out.problems[completion.request],
            completion: &text,
            finish: completion.finish,
            completion_tokens: completion.ids.len(),
        };
        rows.push(InspectRow {
            prompt: held_out.ids[completion.request].clone(),
            reward: Some(rewards.score_batch(&[item])?[0].reward),
            completion: completion.ids,
            advantage: None,
        });
    }
    let (policy, reference) = (Some(arm.adapter), arm.reference());
    let inspection = Inspection::new(
        config,
        METHODS.to_vec(),
        policy,
        reference,
        Some(&tokenizer),
    )?;
    let mut out = String::new();
    for one in inspection.run(&mut session.engine, &rows)? {
        let mut row = one.json(Some(&tokenizer))?;
        row["reward"] = json!(one.row.reward);
        out += &row.to_string();
        out.push('\n');
    }
    write_atomic(&arm.dir.root().join("inspect.jsonl"), out.as_bytes())
}
