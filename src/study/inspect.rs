//! Every method's weights on given completions, from one scoring forward each.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::credit::{
    Concentration, Credit, CreditAssigner, METHODS, Peer, Scope, Signals, TokenWeights, method,
};
use crate::episode::{AdapterId, TokenSignals};
use crate::model::engine::Engine;
use crate::model::half_layer::HalfLayers;
use crate::tokenizer::Tokenizer;
use crate::train::packing::{PackGroup, PackSpec, Packed, pack};
use crate::train::setup::contrast_ids;
use crate::train::update::Forward;

/// A completion to look at.
#[derive(Clone, Debug, Default)]
pub struct InspectRow {
    pub prompt: Vec<u32>,
    pub completion: Vec<u32>,
    /// Rows of the same prompt are a group; their rewards, or the advantages
    /// themselves, tell methods of group scope which side is which.
    pub reward: Option<f32>,
    pub advantage: Option<f32>,
}

/// A row with its signals and weights.
#[derive(Clone, Debug)]
pub struct Inspected {
    pub row: InspectRow,
    /// Without the hidden states.
    pub signals: TokenSignals,
    /// By method, in the order asked for.
    pub weights: Vec<(&'static str, TokenWeights)>,
}

/// The methods of these names; `all` is every one. Without a tokenizer there
/// is no contrast prompt: `all` then leaves out what needs it, and naming it
/// is an error.
pub fn methods(names: &[String], tokenizer: bool) -> Result<Vec<&'static dyn Credit>> {
    let mut out: Vec<&'static dyn Credit> = Vec::new();
    for name in names {
        let found: Vec<&'static dyn Credit> = match name.as_str() {
            "all" => METHODS
                .iter()
                .copied()
                .filter(|m| tokenizer || !m.needs().extra_segments)
                .collect(),
            name => vec![method(name)?],
        };
        for m in found {
            ensure!(
                tokenizer || !m.needs().extra_segments,
                "credit method {} needs a tokenizer for credit.contrast_prompt, and the model has none",
                m.name()
            );
            if out.iter().all(|other| other.name() != m.name()) {
                out.push(m);
            }
        }
    }
    Ok(out)
}

/// What to look at completions with.
pub struct Inspection {
    credit: CreditAssigner,
    methods: Vec<&'static dyn Credit>,
    policy: Option<AdapterId>,
    reference: Option<AdapterId>,
    contrast: Vec<u32>,
    temperature: f32,
}

impl Inspection {
    /// These methods with the settings of `config`, for the resident adapter
    /// `policy` against `reference` (none: the base model).
    pub fn new(
        config: &Config,
        methods: Vec<&'static dyn Credit>,
        policy: Option<AdapterId>,
        reference: Option<AdapterId>,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Self> {
        let contrast = methods.iter().any(|m| m.needs().extra_segments);
        Ok(Inspection {
            credit: CreditAssigner::new(&config.credit)?,
            methods,
            policy,
            reference,
            contrast: match tokenizer.filter(|_| contrast) {
                Some(tokenizer) => contrast_ids(config, tokenizer)?,
                None => Vec::new(),
            },
            temperature: match config.rollout.temperature > 0.0 {
                true => config.rollout.temperature,
                false => 1.0,
            },
        })
    }

    fn needs(&self) -> Signals {
        let needs = self.methods.iter().map(|m| m.needs());
        needs.fold(Signals::NONE, Signals::union)
    }

    /// One batch per row, whose sizes tell what an engine must have room for.
    pub fn pack(&self, rows: &[InspectRow]) -> Result<Vec<Packed>> {
        let spec = PackSpec {
            policy: self.policy,
            reference: Some(self.reference),
            reference_logprobs: true,
            residuals: true,
            contrast: (!self.contrast.is_empty()).then_some(&self.contrast[..]),
            training: false,
            dropout: 0.0,
            policy_rows: usize::MAX,
        };
        let mut batches = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            let group = PackGroup {
                prompt: &row.prompt,
                completions: vec![(i, &row.completion)],
                key: 0,
            };
            batches.extend(pack(&[group], &spec)?);
        }
        Ok(batches)
    }

    /// Score the rows and weigh their tokens.
    pub fn run<D: HalfLayers>(
        &self,
        engine: &mut Engine<D>,
        rows: &[InspectRow],
    ) -> Result<Vec<Inspected>> {
        let groups = groups(rows);
        let width = engine.shape().hidden_size;
        let mut out: Vec<Inspected> = Vec::new();
        for (i, packed) in self.pack(rows)?.into_iter().enumerate() {
            let p = &packed.sequences[0];
            let hidden = Some(self.credit.hidden());
            let head = engine
                .run_packed(packed.batch.clone(), self.temperature, false, hidden)
                .with_context(|| {
                    let rows = packed.batch_rows;
                    format!("row {}: scoring it takes a batch of {rows} rows", i + 1)
                })?;
            let states = match self.needs().hidden_states {
                true => engine.final_states(rows[i].prompt.len() + rows[i].completion.len() - 1)?,
                false => Vec::new(),
            };
            let forward = Forward {
                head,
                states,
                width,
            };
            let mut one = Inspected {
                row: rows[i].clone(),
                signals: forward.signals(&packed, p),
                weights: Vec::new(),
            };
            self.weigh(std::slice::from_mut(&mut one), &[0.0], Scope::Completion)
                .with_context(|| format!("row {}", i + 1))?;
            // States are large: only rows that are compared keep them.
            let compared = groups
                .iter()
                .any(|(group, _)| group.len() > 1 && group.contains(&i));
            if !compared || self.methods.iter().all(|m| m.scope() != Scope::Group) {
                one.signals.states = Vec::new();
            }
            out.push(one);
        }
        for (group, advantages) in &groups {
            let mut members: Vec<Inspected> = group.iter().map(|&i| out[i].clone()).collect();
            self.weigh(&mut members, advantages, Scope::Group)?;
            for (&i, member) in group.iter().zip(members) {
                out[i].weights = member.weights;
                out[i].signals.states = Vec::new();
            }
        }
        let mut advantages = vec![0.0; rows.len()];
        for (group, values) in &groups {
            for (&i, &a) in group.iter().zip(values) {
                advantages[i] = a;
            }
        }
        self.weigh(&mut out, &advantages, Scope::Batch)?;
        for one in &mut out {
            let place = |name: &str| self.methods.iter().position(|m| m.name() == name);
            one.weights.sort_by_key(|(name, _)| place(name));
        }
        Ok(out)
    }

    /// Add the weights of the methods of one scope.
    fn weigh(&self, rows: &mut [Inspected], advantages: &[f32], scope: Scope) -> Result<()> {
        for m in self.methods.iter().filter(|m| m.scope() == scope) {
            let assigner = self.credit.with_method(*m);
            let peers: Vec<Peer> = rows
                .iter()
                .zip(advantages)
                .map(|(row, &advantage)| Peer {
                    signals: &row.signals,
                    advantage,
                })
                .collect();
            // Without states there was nothing to compare with.
            let alone = scope == Scope::Group && peers.len() == 1;
            let weights = match alone {
                true => vec![TokenWeights::uniform(peers[0].signals.logprobs.len())],
                // Beyond any warm-up: what the method itself says.
                false => assigner.weights_together(&peers, usize::MAX)?,
            };
            for (row, weights) in rows.iter_mut().zip(weights) {
                row.weights.push((m.name(), weights));
            }
        }
        Ok(())
    }
}

/// Rows of one prompt with their advantages: as given, else reward minus the
/// group's mean (only ratios matter), else 0.
fn groups(rows: &[InspectRow]) -> Vec<(Vec<usize>, Vec<f32>)> {
    let mut place: HashMap<&[u32], usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let at = *place.entry(&row.prompt).or_insert(groups.len());
        if at == groups.len() {
            groups.push(Vec::new());
        }
        groups[at].push(i);
    }
    groups
        .into_iter()
        .map(|group| {
            let rewards: Option<Vec<f32>> = group.iter().map(|&i| rows[i].reward).collect();
            let mean = rewards.map_or(f32::NAN, |r| r.iter().sum::<f32>() / r.len() as f32);
            let advantages = group.iter().map(|&i| {
                let centred = rows[i].reward.map(|r| r - mean).filter(|a| a.is_finite());
                rows[i].advantage.or(centred).unwrap_or(0.0)
            });
            let advantages = advantages.collect();
            (group, advantages)
        })
        .collect()
}

impl Inspected {
    /// The object that `arca inspect --json` writes; text and tokens where
    /// there is a tokenizer.
    pub fn json(&self, tokenizer: Option<&Tokenizer>) -> Result<Value> {
        let s = &self.signals;
        let mut by_method = Map::new();
        let mut diagnostics = Map::new();
        for (name, w) in &self.weights {
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
        let mut out = json!({
            "prompt_ids": self.row.prompt,
            "completion_ids": self.row.completion,
        });
        if let Some(tokenizer) = tokenizer {
            out["text"] = json!(tokenizer.decode(&self.row.completion, true)?);
            out["tokens"] = json!(self.tokens(Some(tokenizer)));
        }
        if let Some(reward) = self.row.reward {
            out["reward"] = json!(reward);
        }
        out["logprobs"] = json!(s.logprobs);
        out["entropies"] = json!(s.entropies);
        out["reference_logprobs"] = json!(s.reference_logprobs);
        out["residuals"] = json!(s.residuals);
        if !s.contrast_logprobs.is_empty() {
            out["contrast_logprobs"] = json!(s.contrast_logprobs);
        }
        out["weights"] = json!(by_method);
        out["diagnostics"] = json!(diagnostics);
        Ok(out)
    }

    /// The text of each token; its number where there is none.
    pub fn tokens(&self, tokenizer: Option<&Tokenizer>) -> Vec<String> {
        let text = |&id: &u32| match tokenizer.and_then(|t| t.token_bytes(id)) {
            Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            None => format!(" {id}"),
        };
        self.row.completion.iter().map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_every_method_once() {
        let names = |list: &[&str], tokenizer| -> Result<Vec<&str>> {
            let list: Vec<String> = list.iter().map(|n| n.to_string()).collect();
            Ok(methods(&list, tokenizer)?
                .iter()
                .map(|m| m.name())
                .collect())
        };
        assert_eq!(names(&["arca", "all"], true).unwrap().len(), METHODS.len());
        assert_eq!(names(&["arca", "all"], true).unwrap()[0], "arca");
        assert!(!names(&["all"], false).unwrap().contains(&"contrast"));
        assert!(names(&["contrast"], false).is_err());
        assert!(names(&["acra"], true).is_err());
    }

    #[test]
    fn groups_are_rows_of_one_prompt() {
        let row = |prompt: u32, reward, advantage| InspectRow {
            prompt: vec![prompt],
            completion: vec![1],
            reward,
            advantage,
        };
        let rows = [
            row(1, Some(1.0), None),
            row(2, None, Some(0.5)),
            row(1, Some(0.0), None),
            row(3, Some(1.0), None),
            row(3, None, None),
        ];
        assert_eq!(
            groups(&rows),
            [
                (vec![0, 2], vec![0.5, -0.5]),
                (vec![1], vec![0.5]),
                (vec![3, 4], vec![0.0, 0.0]),
            ]
        );
    }
}
