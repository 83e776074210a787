//! All that a run needs to go on bit for bit: adapter, moments, cursor.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::data::Cursor;
use crate::episode::AdapterId;
use crate::model::half_layer::HalfLayers;
use crate::model::peft;
use crate::train::evaluate::EvalRow;
use crate::train::optimizer::{Optimizer, load_moments, save_moments};
use crate::train::run_dir::replace_dir;
use crate::train::session::Session;

/// The run's own state beside the tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps done.
    pub step: usize,
    pub cursor: Cursor,
    /// Completion tokens trained on so far.
    pub num_tokens: u64,
    /// Completions trained on so far.
    #[serde(default)]
    pub completions: u64,
    /// Seconds of training, evaluations and saves not counted.
    pub seconds: f64,
    /// The base model's evaluation, made before the first step.
    pub base: Option<EvalRow>,
    /// Best held-out sampled accuracy so far and its step.
    pub best: Option<(usize, f64)>,
    /// Mean reward of each step.
    pub rewards: Vec<f64>,
}

/// Save into `dir`, whole or not at all.
pub fn save<D: HalfLayers>(
    dir: &Path,
    session: &Session<D>,
    adapter: AdapterId,
    optimizer: &Optimizer<D>,
    state: &RunState,
) -> Result<()> {
    let moments = optimizer.moments(&session.engine)?;
    let layout = &session.engine.adapter(adapter).layout;
    replace_dir(dir, |tmp| {
        session.save_adapter(adapter, &tmp.join("adapter"))?;
        save_moments(&tmp.join("optimizer.safetensors"), layout, &moments)?;
        let path = tmp.join("state.json");
        let text = serde_json::to_string_pretty(state)?;
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    })
}

/// Load what [`save`] wrote.
pub fn load<D: HalfLayers>(
    dir: &Path,
    session: &mut Session<D>,
    adapter: AdapterId,
    optimizer: &mut Optimizer<D>,
) -> Result<RunState> {
    let shape = session.engine.shape().clone();
    let (layout, params) = peft::load(&dir.join("adapter"), &shape)?;
    let own = session.engine.adapter(adapter).layout.clone();
    anyhow::ensure!(
        layout.tensors() == own.tensors(),
        "the adapter in {} has other modules or ranks than the run's config.toml asks for",
        dir.display()
    );
    session.engine.set_params(adapter, &params)?;
    let moments = load_moments(&dir.join("optimizer.safetensors"), &own)?;
    optimizer.set_moments(&session.engine, &moments)?;
    let path = dir.join("state.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no run state", path.display()))
}
