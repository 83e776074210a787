//! The backward of the saved rows: from one coefficient per head pair to the
//! gradients of one adapter. Base weights have none.

use anyhow::Result;

use crate::device::{Float, slice, slice_mut};
use crate::model::buffers::{Activations, Scratch};
use crate::model::half_layer::{Context, GradientArena, HalfLayers, Pass, norm_backward};
use crate::ops::cost::{self, Cost};
use crate::profile::{self, op};

/// Add to `grads` the gradient of sum over grad pairs of coefficient * log pi.
/// `scratch` holds u (from the head's forward) and the coefficients. With
/// `recompute` every layer is first computed again from the stream that entered
/// it: the same operations on the same numbers, so that no bit differs.
pub fn backward<D: HalfLayers, R: Float>(
    device: &D,
    pass: &Pass<D>,
    acts: &mut Activations<D, R>,
    scratch: &mut Scratch<D>,
    grads: &mut GradientArena<D>,
    recompute: bool,
) -> Result<()> {
    let rows = pass.saved_rows;
    let shape = &pass.model.shape;
    let hidden = shape.hidden_size;
    let pairs = device.batch(pass.batch).grad_pairs;
    op(
        device,
        pass.ctx,
        "logprob_backward",
        || cost::logprob_backward(rows, pairs, hidden, size_of::<D::Act>()),
        || {
            device.logprob_backward(
                pass.ctx,
                pass.batch,
                hidden,
                slice(&scratch.coefficients, pairs),
                slice(&scratch.u, pairs * hidden),
                slice_mut(&mut scratch.dx, rows * hidden),
            )
        },
    )?;
    op(
        device,
        pass.ctx,
        "zero",
        || Cost::of_bytes(4 * rows * hidden),
        || device.zero(pass.ctx, slice_mut(&mut scratch.dh, rows * hidden)),
    )?;
    let stream = acts.h_in.get(shape.num_layers, rows, rows);
    let rstd = slice(&acts.rstd_final, rows);
    norm_backward(device, pass, stream, &pass.model.final_norm, rstd, scratch)?;
    for layer in (0..shape.num_layers).rev() {
        let _range = profile::layer(layer);
        if recompute {
            let again = Pass {
                rows,
                again: true,
                ..*pass
            };
            device.attention_half_forward(&again, layer, acts, &mut Context::Packed)?;
            device.mlp_half_forward(&again, layer, acts)?;
        }
        device.mlp_half_backward(pass, layer, acts, scratch, grads)?;
        device.attention_half_backward(pass, layer, acts, scratch, grads)?;
    }
    Ok(())
}
