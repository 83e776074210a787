//! The forward of a batch of packed rows: the same for prefill, decode,
//! scoring and training.

use anyhow::Result;

use crate::credit::HiddenChoice;
use crate::device::{Float, SliceMut, slice};
use crate::model::buffers::Activations;
use crate::model::half_layer::{Context, HalfLayers, Pass};
use crate::ops::cost;
use crate::ops::rmsnorm::NormShape;
use crate::profile::{self, op};

/// What to compare between adapted and base rows on the way, and where the
/// norms go (one per residual pair of the batch).
pub struct ResidualProbe<'a, D: HalfLayers> {
    pub hidden: HiddenChoice,
    pub norms: SliceMut<'a, D, f32>,
}

/// Run all layers. Afterwards `acts.x_final` holds the head's input
/// (post-norm) for every row, and for saved rows the activations that
/// [`crate::model::backward::backward`] needs are kept.
pub fn forward<D: HalfLayers, R: Float>(
    device: &D,
    pass: &Pass<D>,
    acts: &mut Activations<D, R>,
    mut context: Context<D>,
    mut probe: Option<ResidualProbe<D>>,
) -> Result<()> {
    let (rows, saved) = (pass.rows, pass.saved_rows);
    let shape = &pass.model.shape;
    let layers = shape.num_layers;
    op(
        device,
        pass.ctx,
        "embedding_forward",
        || cost::embedding(rows, shape.hidden_size, size_of::<D::Act>(), size_of::<R>()),
        || {
            device.embedding_forward(
                pass.ctx,
                pass.batch,
                &pass.model.embedding,
                acts.h_in.get_mut(0, saved, rows),
            )
        },
    )?;
    for layer in 0..layers {
        let _range = profile::layer(layer);
        device.attention_half_forward(pass, layer, acts, &mut context)?;
        // The stream after layer N is the input of layer N + 1.
        if layer > 0 {
            probe_at(
                device,
                pass,
                acts,
                HiddenChoice::Layer(layer - 1),
                layer,
                &mut probe,
            )?;
        }
        device.mlp_half_forward(pass, layer, acts)?;
    }
    op(
        device,
        pass.ctx,
        "rmsnorm_forward",
        || cost::rmsnorm_forward(rows, shape.hidden_size, size_of::<D::Act>(), size_of::<R>()),
        || {
            device.rmsnorm_forward(
                pass.ctx,
                NormShape {
                    rows,
                    hidden: shape.hidden_size,
                    eps: shape.rms_norm_eps,
                },
                Some((
                    acts.h_mid.get(layers - 1, saved, rows),
                    slice(&acts.y, rows * shape.hidden_size),
                )),
                acts.h_in.get_mut(layers, saved, rows),
                &pass.model.final_norm,
                SliceMut {
                    buf: &mut acts.x_final,
                    start: 0,
                    len: rows * shape.hidden_size,
                },
                SliceMut {
                    buf: &mut acts.rstd_final,
                    start: 0,
                    len: rows,
                },
            )
        },
    )?;
    probe_at(
        device,
        pass,
        acts,
        HiddenChoice::Layer(layers - 1),
        layers,
        &mut probe,
    )?;
    probe_at(
        device,
        pass,
        acts,
        HiddenChoice::PreNorm,
        layers,
        &mut probe,
    )?;
    if let Some(probe) = &mut probe
        && probe.hidden == HiddenChoice::PostNorm
    {
        let pairs = probe.norms.len;
        let x = slice(&acts.x_final, rows * shape.hidden_size);
        op(
            device,
            pass.ctx,
            "residual_norms",
            || cost::residual(pairs, shape.hidden_size, size_of::<D::Act>()),
            || {
                device.residual_norms(
                    pass.ctx,
                    pass.batch,
                    shape.hidden_size,
                    x,
                    probe.norms.reborrow(),
                )
            },
        )?;
    }
    Ok(())
}

/// Compare rows of the stream that enters `level` if `here` is what the probe
/// asks for.
fn probe_at<D: HalfLayers, R: Float>(
    device: &D,
    pass: &Pass<D>,
    acts: &Activations<D, R>,
    here: HiddenChoice,
    level: usize,
    probe: &mut Option<ResidualProbe<D>>,
) -> Result<()> {
    let Some(probe) = probe else { return Ok(()) };
    if probe.hidden != here {
        return Ok(());
    }
    let (pairs, hidden) = (probe.norms.len, pass.model.shape.hidden_size);
    op(
        device,
        pass.ctx,
        "residual_norms",
        || cost::residual(pairs, hidden, size_of::<R>()),
        || {
            device.residual_norms(
                pass.ctx,
                pass.batch,
                hidden,
                acts.h_in.get(level, pass.saved_rows, pass.rows),
                probe.norms.reborrow(),
            )
        },
    )
}
