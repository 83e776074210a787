//! The frozen base model: weights on the device, read from a checkpoint.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::device::memory::Role;
use crate::device::{Ctx, slice_mut};
use crate::model::config::{Group, ModelShape, Module};
use crate::model::weights::Checkpoint;
use crate::ops::Ops;
use crate::ops::linear::{Linear, WeightView};
use crate::ops::qknorm_rope::{QkNormWeights, RopeTable};

/// The frozen base model.
pub struct Model<D: Ops> {
    pub shape: ModelShape,
    pub embedding: <D as Linear>::Table,
    pub layers: Vec<Layer<D>>,
    pub final_norm: D::Buf<f32>,
    pub head: <D as Linear>::Matrix,
    pub rope: RopeTable<D>,
}

/// One decoder layer's weights.
pub struct Layer<D: Ops> {
    pub norm1: D::Buf<f32>,
    pub qkv: <D as Linear>::Matrix,
    pub qk_norm: QkNormWeights<D>,
    pub o: <D as Linear>::Matrix,
    pub norm2: D::Buf<f32>,
    pub gate_up: <D as Linear>::Matrix,
    pub down: <D as Linear>::Matrix,
}

impl<D: Ops> Model<D> {
    /// Load a folder. `backward` makes room for training; `positions` is the
    /// longest context that will be run, `lora` the most columns of s that an
    /// adapter will have, by group.
    pub fn load(
        device: &D,
        ctx: &Ctx<D>,
        dir: &Path,
        backward: bool,
        positions: usize,
        lora: [usize; 4],
    ) -> Result<Self> {
        let shape = ModelShape::load(dir)?;
        ensure!(
            positions <= shape.max_position_embeddings,
            "contexts of up to {positions} tokens are asked for (prompt and rollout.max_completion_length), but {} has max_position_embeddings {}",
            dir.display(),
            shape.max_position_embeddings
        );
        device
            .check_shape(&shape)
            .with_context(|| format!("{} cannot run on {}", dir.display(), device.name()))?;
        let checkpoint = Checkpoint::open(dir)?;
        let vector = |name: &str, n: usize| -> Result<D::Buf<f32>> {
            let values = checkpoint.vector(name, n)?;
            let mut buf = device.alloc_for(Role::Weights, n)?;
            device.upload(ctx, slice_mut(&mut buf, n), &values)?;
            Ok(buf)
        };
        let matrix = |layer: usize, group: Group| -> Result<<D as Linear>::Matrix> {
            let mut parts: Vec<WeightView> = Vec::new();
            let mut bias = Vec::new();
            for m in group.modules() {
                let (inputs, outputs) = m.features(&shape);
                let name = format!("model.layers.{layer}.{}", m.path());
                parts.push(checkpoint.matrix(&format!("{name}.weight"), outputs, inputs)?);
                if shape.attention_bias
                    && matches!(m, Module::Q | Module::K | Module::V | Module::O)
                {
                    bias.extend(checkpoint.vector(&format!("{name}.bias"), outputs)?);
                }
            }
            let bias = (!bias.is_empty()).then_some(bias);
            device.load_matrix(&parts, bias, backward, lora[group as usize])
        };
        let (h, v) = (shape.hidden_size, shape.vocab_size);
        let mut layers = Vec::new();
        for i in 0..shape.num_layers {
            let name = |suffix: &str| format!("model.layers.{i}.{suffix}.weight");
            layers.push(Layer {
                norm1: vector(&name("input_layernorm"), h)?,
                qkv: matrix(i, Group::Qkv)?,
                qk_norm: QkNormWeights {
                    q: vector(&name("self_attn.q_norm"), shape.head_dim)?,
                    k: vector(&name("self_attn.k_norm"), shape.head_dim)?,
                },
                o: matrix(i, Group::O)?,
                norm2: vector(&name("post_attention_layernorm"), h)?,
                gate_up: matrix(i, Group::GateUp)?,
                down: matrix(i, Group::Down)?,
            });
        }
        let embedding = checkpoint.matrix("model.embed_tokens.weight", v, h)?;
        // A head stored although tied is the embedding again; transformers
        // ties regardless.
        let head = if shape.tie_word_embeddings {
            embedding.clone()
        } else {
            checkpoint.matrix("lm_head.weight", v, h)?
        };
        let final_norm = vector("model.norm.weight", h)?;
        Ok(Model {
            rope: RopeTable::new(device, ctx, &shape, positions)?,
            embedding: device.load_table(embedding)?,
            head: device.load_matrix(&[head], None, backward, 0)?,
            final_norm,
            layers,
            shape,
        })
    }
}
