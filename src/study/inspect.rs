//! A few held-out completions of a trained adapter under every credit method.

use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};

use crate::cli::inspect::row_json;
use crate::credit::{CreditAssigner, METHODS, TokenWeights};
use crate::episode::TokenSignals;
use crate::model::half_layer::HalfLayers;
use crate::reward::RewardItem;
use crate::rng::Purpose;
use crate::rollout::Request;
use crate::train::packing::{PackGroup, PackSpec, pack};
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
    let credit = CreditAssigner::new(&config.credit)?;
    let mut out = String::new();
    for completion in &completions {
        let problem = &held_out.problems[completion.request];
        let prompt = &held_out.ids[completion.request];
        let text = tokenizer.decode(&completion.ids, true)?;
        let item = RewardItem {
            problem,
            completion: &text,
            finish: completion.finish,
            completion_tokens: completion.ids.len(),
        };
        let reward = rewards.score_batch(&[item])?[0].reward;

        let group = PackGroup {
            prompt,
            completions: vec![(0, &completion.ids)],
            key: 0,
        };
        let spec = PackSpec {
            policy: Some(arm.adapter),
            reference: Some(arm.reference()),
            reference_logprobs: true,
            residuals: true,
            training: false,
            dropout: 0.0,
            max_rows: usize::MAX,
        };
        for packed in pack(&[group], &spec)? {
            let result = session.engine.run_packed(
                packed.batch,
                config.rollout.temperature,
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
                let weights: Vec<(&str, TokenWeights)> = METHODS
                    .iter()
                    .map(|m| {
                        // Beyond any warm-up: what the method itself says.
                        let assigner = credit.with_method(*m);
                        Ok((m.name(), assigner.weights(&signals, usize::MAX)?))
                    })
                    .collect::<Result<_>>()?;
                let mut row = row_json(prompt, &completion.ids, &signals, &weights);
                row["text"] = json!(text);
                row["tokens"] = completion
                    .ids
                    .iter()
                    .map(|&id| match tokenizer.token_bytes(id) {
                        Some(bytes) => Value::from(String::from_utf8_lossy(&bytes)),
                        None => Value::from(id.to_string()),
                    })
                    .collect();
                row["reward"] = json!(reward);
                out += &row.to_string();
                out.push('\n');
            }
        }
    }
    write_atomic(&arm.dir.root().join("inspect.jsonl"), out.as_bytes())
}
