//! The two halves of a decoder layer, the units that forward and backward
//! call.
//!
//! Each half has a default body composed from the small ops: the reference.
//! A device may override a whole half with fused kernels, tested against it.

mod adapted;

use anyhow::Result;

use crate::device::{Ctx, Float, Slice, slice, slice_mut};
use crate::model::adapter::AdapterLayout;
use crate::model::buffers::{Activations, KvCache, Scratch};
use crate::model::config::{Group, ModelShape};
use crate::model::qwen3::{Layer, Model};
use crate::ops::Ops;
use crate::ops::cost::{self, Cost, Ranks};
use crate::ops::rmsnorm::NormShape;
use crate::profile;
use adapted::{linear, linear_backward, shrink};

/// What stays the same through all layers of one forward.
pub struct Pass<'a, D: Ops> {
    pub ctx: &'a Ctx<'a, D>,
    pub model: &'a Model<D>,
    pub adapters: &'a D::Adapters,
    /// Columns of s per group; 0 where no row of the batch is adapted.
    pub s_width: [usize; 4],
    pub batch: &'a D::Batch,
    pub rows: usize,
    pub saved_rows: usize,
    /// Whether layers are computed again for their backward, from the stream
    /// that entered them.
    pub again: bool,
    /// Of the batch's first adapted rows: what profiles count LoRA's cost by.
    pub layout: Option<&'a AdapterLayout>,
}

impl<D: Ops> Pass<'_, D> {
    fn shape(&self) -> &ModelShape {
        &self.model.shape
    }

    /// One op as a range of profiles.
    fn op(
        &self,
        device: &D,
        name: &'static str,
        cost: impl FnOnce() -> Cost,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        profile::op(device, self.ctx, name, cost, work)
    }

    /// LoRA's part in a group of products of a layer over the first `rows` rows.
    fn ranks(&self, device: &D, layer: usize, group: Group, rows: usize) -> Ranks {
        let adapted = device.batch(self.batch).adapted_rows(rows);
        let of = |layout| Ranks::new(layout, layer, group, adapted);
        self.layout.map(of).unwrap_or_default()
    }

    fn norm(&self, rows: usize) -> NormShape {
        NormShape {
            rows,
            hidden: self.shape().hidden_size,
            eps: self.shape().rms_norm_eps,
        }
    }
}

/// Where a forward finds its context.
pub enum Context<'a, D: Ops> {
    /// Packed segments with prefixes, all within the batch.
    Packed,
    /// KV pages, written by this very forward.
    Paged(&'a mut KvCache<D>),
}

pub trait HalfLayers: Ops {
    /// h_in of `layer` = previous h_mid + y (for layer 0: the embedding, which
    /// is there already); y = o_proj(attention(norm(h_in))).
    fn attention_half_forward<R: Float>(
        &self,
        pass: &Pass<Self>,
        layer: usize,
        acts: &mut Activations<Self, R>,
        context: &mut Context<Self>,
    ) -> Result<()> {
        attention_half_forward(self, pass, layer, acts, context)
    }

    /// h_mid = h_in + y; y = down_proj(swiglu(gate_up(norm(h_mid)))).
    fn mlp_half_forward<R: Float>(
        &self,
        pass: &Pass<Self>,
        layer: usize,
        acts: &mut Activations<Self, R>,
    ) -> Result<()> {
        mlp_half_forward(self, pass, layer, acts)
    }

    /// From dy (and dh) behind the MLP half to those before it; adds the
    /// adapter's gradients.
    fn mlp_half_backward<R: Float>(
        &self,
        pass: &Pass<Self>,
        layer: usize,
        acts: &Activations<Self, R>,
        scratch: &mut Scratch<Self>,
        grads: &mut GradientArena<Self>,
    ) -> Result<()> {
        mlp_half_backward(self, pass, layer, acts, scratch, grads)
    }

    /// The same for the attention half. In layer 0 nothing below needs dh.
    fn attention_half_backward<R: Float>(
        &self,
        pass: &Pass<Self>,
        layer: usize,
        acts: &Activations<Self, R>,
        scratch: &mut Scratch<Self>,
        grads: &mut GradientArena<Self>,
    ) -> Result<()> {
        attention_half_backward(self, pass, layer, acts, scratch, grads)
    }
}

impl<A: Float> HalfLayers for crate::device::cpu::Cpu<A> {}
impl HalfLayers for crate::device::cuda::Cuda {}

/// Gradients of one adapter, accumulated in place.
pub struct GradientArena<'a, D: Ops> {
    pub layout: &'a AdapterLayout,
    pub grads: &'a mut D::Buf<f32>,
}

/// The reference body of [`HalfLayers::attention_half_forward`].
pub fn attention_half_forward<D: Ops, R: Float>(
    device: &D,
    pass: &Pass<D>,
    layer: usize,
    acts: &mut Activations<D, R>,
    context: &mut Context<D>,
) -> Result<()> {
    let (rows, saved, shape) = (pass.rows, pass.saved_rows, pass.shape());
    let weights: &Layer<D> = &pass.model.layers[layer];
    let add = match layer {
        _ if pass.again => None,
        0 => None,
        _ => Some((
            acts.h_mid.get(layer - 1, saved, rows),
            slice(&acts.y, rows * shape.hidden_size),
        )),
    };
    pass.op(
        device,
        "rmsnorm_forward",
        || cost::rmsnorm_forward(rows, shape.hidden_size, size_of::<D::Act>(), size_of::<R>()),
        || {
            device.rmsnorm_forward(
                pass.ctx,
                pass.norm(rows),
                add,
                acts.h_in.get_mut(layer, saved, rows),
                &weights.norm1,
                acts.xn1.get_mut(layer, saved, rows),
                acts.rstd1.get_mut(layer, saved, rows),
            )
        },
    )?;
    linear(
        device,
        pass,
        layer,
        Group::Qkv,
        &weights.qkv,
        acts.xn1.get(layer, saved, rows),
        acts.s_qkv.get_mut(layer, saved, rows),
        acts.qkv.get_mut(layer, saved, rows),
    )?;
    pass.op(
        device,
        "qknorm_rope_forward",
        || cost::qknorm_rope_forward(rows, shape, size_of::<D::Act>()),
        || {
            device.qknorm_rope_forward(
                pass.ctx,
                pass.batch,
                shape,
                rows,
                &weights.qk_norm,
                &pass.model.rope,
                acts.qkv.get(layer, saved, rows),
                acts.qk.get_mut(layer, saved, rows),
            )
        },
    )?;
    let (qk, qkv) = (
        acts.qk.get(layer, saved, rows),
        acts.qkv.get(layer, saved, rows),
    );
    let out = acts.attended.get_mut(layer, saved, rows);
    match context {
        Context::Packed => pass.op(
            device,
            "attention_forward",
            || cost::attention_forward(device.batch(pass.batch), rows, shape, size_of::<D::Act>()),
            || {
                device.attention_forward(
                    pass.ctx,
                    pass.batch,
                    shape,
                    qk,
                    qkv,
                    out,
                    acts.lse.get_mut(layer, saved, rows),
                )
            },
        )?,
        Context::Paged(cache) => pass.op(
            device,
            "decode_attention",
            || cost::paged_attention(device.batch(pass.batch), rows, shape, size_of::<D::Act>()),
            || {
                device.decode_attention(
                    pass.ctx,
                    pass.batch,
                    shape,
                    qk,
                    qkv,
                    cache.layer_mut(layer),
                    out,
                )
            },
        )?,
    }
    linear(
        device,
        pass,
        layer,
        Group::O,
        &weights.o,
        acts.attended.get(layer, saved, rows),
        acts.s_o.get_mut(layer, saved, rows),
        slice_mut(&mut acts.y, rows * shape.hidden_size),
    )
}

/// The reference body of [`HalfLayers::mlp_half_forward`].
pub fn mlp_half_forward<D: Ops, R: Float>(
    device: &D,
    pass: &Pass<D>,
    layer: usize,
    acts: &mut Activations<D, R>,
) -> Result<()> {
    let (rows, saved, shape) = (pass.rows, pass.saved_rows, pass.shape());
    let weights: &Layer<D> = &pass.model.layers[layer];
    pass.op(
        device,
        "rmsnorm_forward",
        || cost::rmsnorm_forward(rows, shape.hidden_size, size_of::<D::Act>(), size_of::<R>()),
        || {
            device.rmsnorm_forward(
                pass.ctx,
                pass.norm(rows),
                Some((
                    acts.h_in.get(layer, saved, rows),
                    slice(&acts.y, rows * shape.hidden_size),
                )),
                acts.h_mid.get_mut(layer, saved, rows),
                &weights.norm2,
                acts.xn2.get_mut(layer, saved, rows),
                acts.rstd2.get_mut(layer, saved, rows),
            )
        },
    )?;
    linear(
        device,
        pass,
        layer,
        Group::GateUp,
        &weights.gate_up,
        acts.xn2.get(layer, saved, rows),
        acts.s_gate_up.get_mut(layer, saved, rows),
        acts.gate_up.get_mut(layer, saved, rows),
    )?;
    pass.op(
        device,
        "swiglu_forward",
        || cost::swiglu_forward(rows, shape.intermediate_size, size_of::<D::Act>()),
        || {
            device.swiglu_forward(
                pass.ctx,
                rows,
                shape.intermediate_size,
                acts.gate_up.get(layer, saved, rows),
                acts.act.get_mut(layer, saved, rows),
            )
        },
    )?;
    if pass.again {
        // What the layer puts out, no backward looks at.
        let (x, s) = (
            acts.act.get(layer, saved, rows),
            acts.s_down.get_mut(layer, saved, rows),
        );
        return shrink(device, pass, layer, Group::Down, x, s).map(|_| ());
    }
    linear(
        device,
        pass,
        layer,
        Group::Down,
        &weights.down,
        acts.act.get(layer, saved, rows),
        acts.s_down.get_mut(layer, saved, rows),
        slice_mut(&mut acts.y, rows * shape.hidden_size),
    )
}

/// The reference body of [`HalfLayers::mlp_half_backward`].
pub fn mlp_half_backward<D: Ops, R: Float>(
    device: &D,
    pass: &Pass<D>,
    layer: usize,
    acts: &Activations<D, R>,
    scratch: &mut Scratch<D>,
    grads: &mut GradientArena<D>,
) -> Result<()> {
    let (rows, shape) = (pass.saved_rows, pass.shape());
    let (h, i) = (shape.hidden_size, shape.intermediate_size);
    let weights: &Layer<D> = &pass.model.layers[layer];
    linear_backward(
        device,
        pass,
        layer,
        Group::Down,
        &weights.down,
        acts.act.get(layer, rows, rows),
        acts.s_down.get(layer, rows, rows),
        scratch.dy.get(rows),
        scratch.ds_hidden.get_mut(rows),
        Some(slice_mut(&mut scratch.d_act, rows * i)),
        grads,
    )?;
    pass.op(
        device,
        "swiglu_backward",
        || cost::swiglu_backward(rows, i, size_of::<D::Act>()),
        || {
            device.swiglu_backward(
                pass.ctx,
                rows,
                i,
                acts.gate_up.get(layer, rows, rows),
                slice(&scratch.d_act, rows * i),
                scratch.d_gate_up.get_mut(rows),
            )
        },
    )?;
    linear_backward(
        device,
        pass,
        layer,
        Group::GateUp,
        &weights.gate_up,
        acts.xn2.get(layer, rows, rows),
        acts.s_gate_up.get(layer, rows, rows),
        scratch.d_gate_up.get(rows),
        scratch.ds_gate_up.get_mut(rows),
        Some(slice_mut(&mut scratch.dx, rows * h)),
        grads,
    )?;
    let stream = acts.h_mid.get(layer, rows, rows);
    let rstd = acts.rstd2.get(layer, rows, rows);
    norm_backward(device, pass, stream, &weights.norm2, rstd, scratch)
}

/// The reference body of [`HalfLayers::attention_half_backward`].
pub fn attention_half_backward<D: Ops, R: Float>(
    device: &D,
    pass: &Pass<D>,
    layer: usize,
    acts: &Activations<D, R>,
    scratch: &mut Scratch<D>,
    grads: &mut GradientArena<D>,
) -> Result<()> {
    let (rows, shape) = (pass.saved_rows, pass.shape());
    let (h, q) = (shape.hidden_size, shape.q_width());
    let qk = q + shape.kv_width();
    let weights: &Layer<D> = &pass.model.layers[layer];
    linear_backward(
        device,
        pass,
        layer,
        Group::O,
        &weights.o,
        acts.attended.get(layer, rows, rows),
        acts.s_o.get(layer, rows, rows),
        scratch.dy.get(rows),
        scratch.ds_hidden.get_mut(rows),
        Some(slice_mut(&mut scratch.d_attended, rows * q)),
        grads,
    )?;
    pass.op(
        device,
        "attention_backward",
        || cost::attention_backward(device.batch(pass.batch), rows, shape, size_of::<D::Act>()),
        || {
            device.attention_backward(
                pass.ctx,
                pass.batch,
                shape,
                acts.qk.get(layer, rows, rows),
                acts.qkv.get(layer, rows, rows),
                acts.attended.get(layer, rows, rows),
                acts.lse.get(layer, rows, rows),
                slice(&scratch.d_attended, rows * q),
                slice_mut(&mut scratch.d_qk, rows * qk),
                scratch.d_qkv.get_mut(rows),
            )
        },
    )?;
    pass.op(
        device,
        "qknorm_rope_backward",
        || cost::qknorm_rope_backward(rows, shape, size_of::<D::Act>()),
        || {
            device.qknorm_rope_backward(
                pass.ctx,
                pass.batch,
                shape,
                rows,
                &weights.qk_norm,
                &pass.model.rope,
                acts.qkv.get(layer, rows, rows),
                slice(&scratch.d_qk, rows * qk),
                scratch.d_qkv.get_mut(rows),
            )
        },
    )?;
    let dx = match layer {
        0 => None,
        _ => Some(slice_mut(&mut scratch.dx, rows * h)),
    };
    linear_backward(
        device,
        pass,
        layer,
        Group::Qkv,
        &weights.qkv,
        acts.xn1.get(layer, rows, rows),
        acts.s_qkv.get(layer, rows, rows),
        scratch.d_qkv.get(rows),
        scratch.ds_qkv.get_mut(rows),
        dx,
        grads,
    )?;
    if layer == 0 {
        return Ok(());
    }
    let stream = acts.h_in.get(layer, rows, rows);
    let rstd = acts.rstd1.get(layer, rows, rows);
    norm_backward(device, pass, stream, &weights.norm1, rstd, scratch)
}

/// Through a norm: from its output's gradient in `scratch.dx` to `dh` and `dy`.
/// `stream` is what entered it, for the saved rows.
pub fn norm_backward<D: Ops, R: Float>(
    device: &D,
    pass: &Pass<D>,
    stream: Slice<D, R>,
    weight: &D::Buf<f32>,
    rstd: Slice<D, f32>,
    scratch: &mut Scratch<D>,
) -> Result<()> {
    let (rows, hidden) = (pass.saved_rows, pass.shape().hidden_size);
    let n = rows * hidden;
    pass.op(
        device,
        "rmsnorm_backward",
        || cost::rmsnorm_backward(rows, hidden, size_of::<D::Act>(), size_of::<R>()),
        || {
            device.rmsnorm_backward(
                pass.ctx,
                pass.norm(rows),
                stream,
                weight,
                rstd,
                slice(&scratch.dx, n),
                slice_mut(&mut scratch.dh, n),
                scratch.dy.get_mut(rows),
            )
        },
    )
}
