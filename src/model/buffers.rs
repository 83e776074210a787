//! Activations, backward scratch and KV pages, as the plan sizes them.

use anyhow::{Context as _, Result};

use crate::device::{Element, Float, Slice, SliceMut};
use crate::model::config::ModelShape;
use crate::model::half_layer::slice_mut;
use crate::model::plan::{Capacity, Role, Stack, stacks};
use crate::ops::Ops;
use crate::ops::decode::page_elements;

/// A buffer of `[rows, width]` for every level (see [`Stack`]).
pub struct Stacked<D: Ops, T: Element> {
    buf: D::Buf<T>,
    width: usize,
}

impl<D: Ops, T: Element> Stacked<D, T> {
    fn new(device: &D, stack: Stack, capacity: &Capacity) -> Result<Self> {
        Ok(Stacked {
            buf: device.alloc(stack.elements(capacity))?,
            width: stack.width,
        })
    }

    /// The first `rows` rows of a level, when every level saves `saved`.
    pub fn get(&self, level: usize, saved: usize, rows: usize) -> Slice<'_, D, T> {
        Slice {
            buf: &self.buf,
            start: level * saved * self.width,
            len: rows * self.width,
        }
    }

    pub fn get_mut(&mut self, level: usize, saved: usize, rows: usize) -> SliceMut<'_, D, T> {
        SliceMut {
            buf: &mut self.buf,
            start: level * saved * self.width,
            len: rows * self.width,
        }
    }
}

/// All activations of one forward. `R` is the residual stream's type.
pub struct Activations<D: Ops, R: Float> {
    /// Residual stream entering each layer, and the final one.
    pub h_in: Stacked<D, R>,
    pub xn1: Stacked<D, D::Act>,
    pub rstd1: Stacked<D, f32>,
    pub s_qkv: Stacked<D, D::Act>,
    pub qkv: Stacked<D, D::Act>,
    pub qk: Stacked<D, D::Act>,
    pub attended: Stacked<D, D::Act>,
    pub lse: Stacked<D, f32>,
    pub s_o: Stacked<D, D::Act>,
    /// Residual stream between the halves.
    pub h_mid: Stacked<D, R>,
    pub xn2: Stacked<D, D::Act>,
    pub rstd2: Stacked<D, f32>,
    pub s_gate_up: Stacked<D, D::Act>,
    pub gate_up: Stacked<D, D::Act>,
    pub act: Stacked<D, D::Act>,
    pub s_down: Stacked<D, D::Act>,
    /// What the last half-layer adds to the stream.
    pub y: D::Buf<D::Act>,
    /// The head's input: post-norm states.
    pub x_final: D::Buf<D::Act>,
    pub rstd_final: D::Buf<f32>,
}

impl<D: Ops, R: Float> Activations<D, R> {
    pub fn new(device: &D, shape: &ModelShape, capacity: &Capacity) -> Result<Self> {
        let list = stacks(shape, capacity.s_width);
        let find = |name: &str| {
            list.iter()
                .find(|s| s.0 == name)
                .map(|s| s.1)
                .with_context(|| format!("no activation {name} in the plan"))
        };
        let act = |name: &str| -> Result<Stacked<D, D::Act>> {
            Stacked::new(device, find(name)?, capacity)
        };
        let statistic =
            |name: &str| -> Result<Stacked<D, f32>> { Stacked::new(device, find(name)?, capacity) };
        let residual =
            |name: &str| -> Result<Stacked<D, R>> { Stacked::new(device, find(name)?, capacity) };
        let n = capacity.rows * shape.hidden_size;
        Ok(Activations {
            h_in: residual("h_in")?,
            xn1: act("xn1")?,
            rstd1: statistic("rstd1")?,
            s_qkv: act("s_qkv")?,
            qkv: act("qkv")?,
            qk: act("qk")?,
            attended: act("attended")?,
            lse: statistic("lse")?,
            s_o: act("s_o")?,
            h_mid: residual("h_mid")?,
            xn2: act("xn2")?,
            rstd2: statistic("rstd2")?,
            s_gate_up: act("s_gate_up")?,
            gate_up: act("gate_up")?,
            act: act("act")?,
            s_down: act("s_down")?,
            y: device.alloc(n)?,
            x_final: device.alloc(n)?,
            rstd_final: device.alloc(capacity.rows)?,
        })
    }
}

/// What only a backward needs.
pub struct Scratch<D: Ops> {
    /// Gradient of the residual stream, f32.
    pub dh: D::Buf<f32>,
    /// The same, rounded: the gradient of what a half-layer added.
    pub dy: D::Buf<D::Act>,
    pub dx: D::Buf<D::Act>,
    pub d_act: D::Buf<D::Act>,
    pub d_gate_up: D::Buf<D::Act>,
    pub d_attended: D::Buf<D::Act>,
    pub d_qk: D::Buf<D::Act>,
    pub d_qkv: D::Buf<D::Act>,
    pub ds: D::Buf<D::Act>,
    /// d log pi / d x of each grad pair.
    pub u: D::Buf<D::Act>,
    pub coefficients: D::Buf<f32>,
}

impl<D: Ops> Scratch<D> {
    pub fn new(device: &D, shape: &ModelShape, capacity: &Capacity) -> Result<Self> {
        let rows = capacity.saved_rows;
        let (h, i) = (shape.hidden_size, shape.intermediate_size);
        let widest = capacity.s_width.into_iter().max().unwrap_or(0);
        Ok(Scratch {
            dh: device.alloc(rows * h)?,
            dy: device.alloc(rows * h)?,
            dx: device.alloc(rows * h)?,
            d_act: device.alloc(rows * i)?,
            d_gate_up: device.alloc(rows * 2 * i)?,
            d_attended: device.alloc(rows * shape.q_width())?,
            d_qk: device.alloc(rows * (shape.q_width() + shape.kv_width()))?,
            d_qkv: device.alloc(rows * shape.qkv_width())?,
            ds: device.alloc(rows * widest)?,
            u: device.alloc(capacity.grad_pairs * h)?,
            coefficients: device.alloc(capacity.grad_pairs)?,
        })
    }
}

/// Keys and values of sampled sequences, in pages, for all layers.
pub struct KvCache<D: Ops> {
    layers: Vec<D::Buf<D::Act>>,
    len: usize,
    pub pages: usize,
}

impl<D: Ops> KvCache<D> {
    pub fn new(device: &D, shape: &ModelShape, pages: usize) -> Result<Self> {
        let len = pages * page_elements(shape);
        let form = D::form();
        let bytes = (len * form.act_bytes).next_multiple_of(form.alignment) * shape.num_layers;
        device.begin_role(Some((Role::Pages, bytes as u64)))?;
        let layers = (0..shape.num_layers)
            .map(|_| device.alloc(len))
            .collect::<Result<_>>()?;
        device.begin_role(None)?;
        Ok(KvCache { layers, len, pages })
    }

    pub fn layer_mut(&mut self, layer: usize) -> SliceMut<'_, D, D::Act> {
        slice_mut(&mut self.layers[layer], self.len)
    }
}
