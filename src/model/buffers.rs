//! Activations, backward scratch and KV pages, as the plan sizes them.

use anyhow::Result;

use crate::device::memory::Role;
use crate::device::{Element, Float, Slice, SliceMut, slice, slice_mut};
use crate::model::config::ModelShape;
use crate::model::plan::{KV_PAGES, LIVE, Planned, STREAM, joined_stride};
use crate::ops::Ops;
use crate::ops::decode::page_elements;

/// A buffer of `[rows, width]` for every level.
pub struct Stacked<D: Ops, T: Element> {
    buf: D::Buf<T>,
    /// For forwards that save nothing, where those have memory of their own.
    live: Option<D::Buf<T>>,
    width: usize,
    /// Whether every level has rows of its own, rather than all the same.
    levels: bool,
}

impl<D: Ops, T: Element> Stacked<D, T> {
    fn new(planned: &Planned<D>, name: &str) -> Result<Self> {
        let (buf, width) = planned.buffer(name)?;
        let name = format!("{LIVE}{name}");
        let live = match planned.has(&name) {
            true => Some(planned.buffer(&name)?.0),
            false => None,
        };
        Ok(Stacked {
            buf,
            live,
            width,
            levels: !planned.plan.capacity.recompute || name.ends_with(STREAM),
        })
    }

    /// The first `rows` rows of a level, when a level saves `saved`.
    pub fn get(&self, level: usize, saved: usize, rows: usize) -> Slice<'_, D, T> {
        Slice {
            buf: match (&self.live, saved) {
                (Some(live), 0) => live,
                _ => &self.buf,
            },
            start: self.start(level, saved),
            len: rows * self.width,
        }
    }

    fn start(&self, level: usize, saved: usize) -> usize {
        match self.levels {
            true => level * saved * self.width,
            false => 0,
        }
    }

    pub fn get_mut(&mut self, level: usize, saved: usize, rows: usize) -> SliceMut<'_, D, T> {
        let start = self.start(level, saved);
        SliceMut {
            buf: match (&mut self.live, saved) {
                (Some(live), 0) => live,
                _ => &mut self.buf,
            },
            start,
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
    /// The plan's activations whose names begin with `prefix`.
    pub fn new(planned: &Planned<D>, prefix: &str) -> Result<Self> {
        let name = |name: &str| format!("{prefix}{name}");
        let act = |n: &str| Stacked::<D, D::Act>::new(planned, &name(n));
        let statistic = |n: &str| Stacked::<D, f32>::new(planned, &name(n));
        let residual = |n: &str| Stacked::<D, R>::new(planned, &name(n));
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
            y: planned.buffer(&name("y"))?.0,
            x_final: planned.buffer(&name("x_final"))?.0,
            rstd_final: planned.buffer(&name("rstd_final"))?.0,
        })
    }
}

/// A buffer of rows, as far apart as the plan has them.
pub struct Rows<D: Ops> {
    buf: D::Buf<D::Act>,
    stride: usize,
}

impl<D: Ops> Rows<D> {
    fn new(planned: &Planned<D>, name: &str) -> Result<Self> {
        let (buf, stride) = planned.buffer(name)?;
        Ok(Rows { buf, stride })
    }

    /// An operand of a product, `width` wide, and what LoRA multiplies beside it,
    /// `lora` wide: in memory of their own, as plans lay them out.
    pub fn with_lora(device: &D, rows: usize, width: usize, lora: usize) -> Result<[Self; 2]> {
        let size = size_of::<D::Act>();
        let joins = device.memory_kind().joins_lora();
        let (stride, s_stride) = match joins {
            true => (joined_stride(width, lora), joined_stride(width, lora)),
            false => (width, lora),
        };
        // A device that does not overlay gives each its own memory.
        let region = device.region((rows * stride * size) as u64)?;
        let column = if joins { width } else { 0 };
        let reach = (rows * s_stride).saturating_sub(column);
        Ok([
            Rows {
                buf: device.place(&region, 0, rows * stride)?,
                stride,
            },
            Rows {
                buf: device.place(&region, (column * size) as u64, reach)?,
                stride: s_stride,
            },
        ])
    }

    /// The first `rows` rows.
    pub fn get(&self, rows: usize) -> Slice<'_, D, D::Act> {
        slice(&self.buf, rows * self.stride)
    }

    pub fn get_mut(&mut self, rows: usize) -> SliceMut<'_, D, D::Act> {
        slice_mut(&mut self.buf, rows * self.stride)
    }
}

/// What only a backward needs.
pub struct Scratch<D: Ops> {
    /// Gradient of the residual stream, f32.
    pub dh: D::Buf<f32>,
    /// The same, rounded: the gradient of what a half-layer added.
    pub dy: Rows<D>,
    pub dx: D::Buf<D::Act>,
    pub d_act: D::Buf<D::Act>,
    pub d_gate_up: Rows<D>,
    pub d_attended: D::Buf<D::Act>,
    pub d_qk: D::Buf<D::Act>,
    pub d_qkv: Rows<D>,
    /// ds of the products whose output's gradient is `dy`.
    pub ds_hidden: Rows<D>,
    pub ds_gate_up: Rows<D>,
    pub ds_qkv: Rows<D>,
    /// d log pi / d x of each grad pair.
    pub u: D::Buf<D::Act>,
    pub coefficients: D::Buf<f32>,
}

impl<D: Ops> Scratch<D> {
    pub fn new(planned: &Planned<D>) -> Result<Self> {
        Ok(Scratch {
            dh: planned.buffer("dh")?.0,
            dy: Rows::new(planned, "dy")?,
            dx: planned.buffer("dx")?.0,
            d_act: planned.buffer("d_act")?.0,
            d_gate_up: Rows::new(planned, "d_gate_up")?,
            d_attended: planned.buffer("d_attended")?.0,
            d_qk: planned.buffer("d_qk")?.0,
            d_qkv: Rows::new(planned, "d_qkv")?,
            ds_hidden: Rows::new(planned, "ds_hidden")?,
            ds_gate_up: Rows::new(planned, "ds_gate_up")?,
            ds_qkv: Rows::new(planned, "ds_qkv")?,
            u: planned.buffer("u")?.0,
            coefficients: planned.buffer("coefficients")?.0,
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
    /// Pages in memory of their own.
    pub fn new(device: &D, shape: &ModelShape, pages: usize) -> Result<Self> {
        let len = pages * page_elements(shape);
        let layers = (0..shape.num_layers)
            .map(|_| device.alloc_for(Role::Kv, len))
            .collect::<Result<_>>()?;
        Ok(KvCache { layers, len, pages })
    }

    /// The plan's pages. An update may overwrite what they hold.
    pub fn planned(planned: &Planned<D>) -> Result<Self> {
        let (layers, width) = planned.buffers(KV_PAGES)?;
        let pages = planned.plan.capacity.pages;
        Ok(KvCache {
            layers,
            len: pages * width,
            pages,
        })
    }

    pub fn layer_mut(&mut self, layer: usize) -> SliceMut<'_, D, D::Act> {
        slice_mut(&mut self.layers[layer], self.len)
    }
}
