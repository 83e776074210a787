//! One product with its LoRA terms, in both directions: several ops that a
//! device may fuse in time.

use anyhow::Result;

use super::{GradientArena, Pass, slice_mut};
use crate::device::{Slice, SliceMut};
use crate::model::config::Group;
use crate::ops::Ops;
use crate::ops::cost::{self, Cost};
use crate::ops::linear::Linear;
use crate::ops::lora::{LoraBackward, LoraCall};

/// Names of the products in profiles, by group.
const FORWARD: [&str; 4] = [
    "linear_forward qkv",
    "linear_forward o",
    "linear_forward gate_up",
    "linear_forward down",
];
const BACKWARD: [&str; 4] = [
    "linear_backward qkv",
    "linear_backward o",
    "linear_backward gate_up",
    "linear_backward down",
];

/// Cost of a group's base product, in either direction; a weight's element
/// counts as large as an activation's.
fn product<D: Ops>(pass: &Pass<D>, group: Group, rows: usize, act: usize) -> Cost {
    let outputs = group.outputs(pass.shape()).iter().sum();
    cost::product(rows, group.inputs(pass.shape()), outputs, act, act)
}

/// One adapted product: shrink, then base and expand together.
#[allow(clippy::too_many_arguments)]
pub(super) fn linear<D: Ops>(
    device: &D,
    pass: &Pass<D>,
    layer: usize,
    group: Group,
    weight: &<D as Linear>::Matrix,
    x: Slice<D, D::Act>,
    mut s: SliceMut<D, D::Act>,
    y: SliceMut<D, D::Act>,
) -> Result<()> {
    let act = size_of::<D::Act>();
    let adapted = shrink(device, pass, layer, group, x, s.reborrow())?;
    let call = adapted.then(|| lora_call(pass, layer, group, s.as_const()));
    pass.op(
        device,
        FORWARD[group as usize],
        || {
            product(pass, group, pass.rows, act)
                + pass.ranks(device, layer, group, pass.rows).expand(act)
        },
        || device.linear_forward(pass.ctx, pass.batch, pass.rows, weight, x, call, y),
    )
}

/// s of adapted rows, where there are any.
pub(super) fn shrink<D: Ops>(
    device: &D,
    pass: &Pass<D>,
    layer: usize,
    group: Group,
    x: Slice<D, D::Act>,
    s: SliceMut<D, D::Act>,
) -> Result<bool> {
    let adapted = pass.s_width[group as usize] > 0;
    if adapted {
        pass.op(
            device,
            "lora_shrink",
            || {
                let ranks = pass.ranks(device, layer, group, pass.rows);
                ranks.shrink(size_of::<D::Act>())
            },
            || {
                device.lora_shrink(
                    pass.ctx,
                    pass.batch,
                    pass.rows,
                    pass.adapters,
                    layer,
                    group,
                    x,
                    s,
                )
            },
        )?;
    }
    Ok(adapted)
}

/// Its backward: ds, dx (where anybody needs it) and the factors' gradients.
#[allow(clippy::too_many_arguments)]
pub(super) fn linear_backward<D: Ops>(
    device: &D,
    pass: &Pass<D>,
    layer: usize,
    group: Group,
    weight: &<D as Linear>::Matrix,
    x: Slice<D, D::Act>,
    s: Slice<D, D::Act>,
    dy: Slice<D, D::Act>,
    mut ds: SliceMut<D, D::Act>,
    dx: Option<SliceMut<D, D::Act>>,
    grads: &mut GradientArena<D>,
) -> Result<()> {
    let rows = pass.saved_rows;
    let act = size_of::<D::Act>();
    let mut call = None;
    if pass.s_width[group as usize] > 0 {
        let len = grads.layout.len();
        let backward = LoraBackward {
            adapters: pass.adapters,
            layout: grads.layout,
            layer,
            group,
            x,
            s,
            dy,
        };
        pass.op(
            device,
            "lora_backward",
            || pass.ranks(device, layer, group, rows).backward(act),
            || {
                device.lora_backward(
                    pass.ctx,
                    pass.batch,
                    rows,
                    &backward,
                    ds.reborrow(),
                    slice_mut(grads.grads, len),
                )
            },
        )?;
        call = Some(lora_call(pass, layer, group, ds.as_const()));
    }
    match dx {
        Some(dx) => pass.op(
            device,
            BACKWARD[group as usize],
            || {
                product(pass, group, rows, act)
                    + pass.ranks(device, layer, group, rows).expand_backward(act)
            },
            || device.linear_backward(pass.ctx, pass.batch, rows, weight, dy, call, dx),
        ),
        None => Ok(()),
    }
}

fn lora_call<'a, D: Ops>(
    pass: &'a Pass<'_, D>,
    layer: usize,
    group: Group,
    s: Slice<'a, D, D::Act>,
) -> LoraCall<'a, D> {
    LoraCall {
        adapters: pass.adapters,
        layer,
        group,
        s,
    }
}
