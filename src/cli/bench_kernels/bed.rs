//! Operands of each op at one shape, and the calls to time.

use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::{Row, one_layer};
use crate::cli::args::{BenchArgs, BenchShape};
use crate::device::{BatchCapacity, Ctx, slice, slice_mut};
use crate::episode::AdapterId;
use crate::model::adapter::{AdapterLayout, LoraSettings};
use crate::model::batch::{Batch, PageTable, Pair};
use crate::model::buffers::Rows;
use crate::model::config::{Group, ModelShape, Module};
use crate::model::half_layer::HalfLayers;
use crate::ops::adamw::AdamWStep;
use crate::ops::cost::{self, Cost, Ranks};
use crate::ops::decode::{PAGE, page_elements};
use crate::ops::lora::{LoraBackward, LoraCall};
use crate::ops::qknorm_rope::{QkNormWeights, RopeTable};
use crate::ops::rmsnorm::NormShape;
use crate::ops::sample::SampleRequest;
use crate::profile::roof::{fill_random, median, random_act, random_buf, random_weight};
use crate::rng::Stream;

const POLICY: AdapterId = AdapterId(0);

/// A shape with a batch as a training step has it.
pub(super) struct Bed<'a, D: HalfLayers> {
    device: &'a D,
    ctx: &'a Ctx<'a, D>,
    pub(super) title: String,
    shape: ModelShape,
    rows: usize,
    batch: D::Batch,
    host: Batch,
    layout: AdapterLayout,
    adapters: D::Adapters,
    decode_rows: usize,
    decode_context: usize,
}

impl<'a, D: HalfLayers> Bed<'a, D> {
    pub(super) fn new(
        device: &'a D,
        ctx: &'a Ctx<'a, D>,
        which: BenchShape,
        rows: usize,
        args: &BenchArgs,
    ) -> Result<Self> {
        let shape = one_layer(which)?;
        let r = args.lora_r.unwrap_or(16);
        let host = group_batch(rows, shape.vocab_size as u32);
        let mut batch = device.new_batch(BatchCapacity {
            rows: host.rows(),
            segments: host.segments.len(),
            pairs: host.pairs.len().max(host.residual_pairs.len()),
            ..BatchCapacity::default()
        })?;
        device.load_batch(ctx, &mut batch, host.clone())?;
        let settings = LoraSettings::uniform(&shape, &Module::ALL, r, 2.0 * r as f32, 0.0, false);
        let layout = AdapterLayout::new(&shape, settings)?;
        let mut adapters = device.new_adapters(&shape)?;
        let params = random_buf::<D, f32>(device, ctx, layout.len())?;
        device.sync_adapter(
            ctx,
            &mut adapters,
            POLICY,
            &layout,
            slice(&params, layout.len()),
        )?;
        let (decode_rows, decode_context) = match rows {
            1024.. => (128, 768),
            _ => (8, 48),
        };
        Ok(Bed {
            title: format!("{}: {} rows, LoRA r {r}", which.name(), host.rows()),
            rows: host.rows(),
            device,
            ctx,
            shape,
            batch,
            host,
            layout,
            adapters,
            decode_rows,
            decode_context,
        })
    }

    fn time(&self, op: &str, cost: Cost, work: &mut dyn FnMut() -> Result<()>) -> Result<Row> {
        Ok(Row {
            op: op.to_string(),
            seconds: median(self.device, self.ctx, work)
                .with_context(|| format!("in the bench of {op}"))?,
            cost,
        })
    }

    /// All ops, in order of the forward.
    pub(super) fn rows(&mut self) -> Result<Vec<Row>> {
        let mut rows = self.streams()?;
        for group in Group::ALL {
            rows.extend(self.group(group)?);
        }
        rows.extend(self.attention()?);
        rows.extend(self.head()?);
        rows.push(self.optimizer()?);
        Ok(rows)
    }

    /// What runs along the residual stream and within the MLP.
    fn streams(&self) -> Result<Vec<Row>> {
        let (device, ctx, rows, h) = (self.device, self.ctx, self.rows, self.shape.hidden_size);
        let act = size_of::<D::Act>();
        let n = rows * h;
        let table = device.load_table(random_weight(self.shape.vocab_size, h)?)?;
        let (a, b) = (random_act(device, ctx, n)?, random_act(device, ctx, n)?);
        let mut out = device.alloc::<D::Act>(n)?;
        let mut x = device.alloc::<D::Act>(n)?;
        let mut rstd = random_buf::<D, f32>(device, ctx, rows)?;
        let mut dh = device.alloc::<f32>(n)?;
        let weight = random_buf::<D, f32>(device, ctx, h)?;
        let norm = NormShape {
            rows,
            hidden: h,
            eps: 1e-6,
        };
        let w = self.shape.intermediate_size;
        let gate_up = random_act(device, ctx, rows * 2 * w)?;
        let mut wide = device.alloc::<D::Act>(rows * 2 * w)?;
        let mut narrow = random_act(device, ctx, rows * w)?;
        let pairs = self.host.residual_pairs.len();
        let mut norms = device.alloc::<f32>(pairs)?;
        Ok(vec![
            self.time("embedding", cost::embedding(rows, h, act, act), &mut || {
                device.embedding_forward(ctx, &self.batch, &table, slice_mut(&mut out, n))
            })?,
            self.time(
                "rmsnorm_forward",
                cost::rmsnorm_forward(rows, h, act, act),
                &mut || {
                    device.rmsnorm_forward(
                        ctx,
                        norm,
                        Some((slice(&a, n), slice(&b, n))),
                        slice_mut(&mut out, n),
                        &weight,
                        slice_mut(&mut x, n),
                        slice_mut(&mut rstd, rows),
                    )
                },
            )?,
            self.time(
                "rmsnorm_backward",
                cost::rmsnorm_backward(rows, h, act, act),
                &mut || {
                    device.rmsnorm_backward(
                        ctx,
                        norm,
                        slice(&a, n),
                        &weight,
                        slice(&rstd, rows),
                        slice(&b, n),
                        slice_mut(&mut dh, n),
                        slice_mut(&mut out, n),
                    )
                },
            )?,
            self.time("residual_norms", cost::residual(pairs, h, act), &mut || {
                device.residual_norms(
                    ctx,
                    &self.batch,
                    h,
                    slice(&a, n),
                    slice_mut(&mut norms, pairs),
                )
            })?,
            self.time(
                "swiglu_forward",
                cost::swiglu_forward(rows, w, act),
                &mut || {
                    device.swiglu_forward(
                        ctx,
                        rows,
                        w,
                        slice(&gate_up, rows * 2 * w),
                        slice_mut(&mut narrow, rows * w),
                    )
                },
            )?,
            self.time(
                "swiglu_backward",
                cost::swiglu_backward(rows, w, act),
                &mut || {
                    device.swiglu_backward(
                        ctx,
                        rows,
                        w,
                        slice(&gate_up, rows * 2 * w),
                        slice(&narrow, rows * w),
                        slice_mut(&mut wide, rows * 2 * w),
                    )
                },
            )?,
        ])
    }

    /// A group of linear layers: the base product alone and with LoRA, both
    /// ways, and LoRA's own passes.
    fn group(&self, group: Group) -> Result<Vec<Row>> {
        let (device, ctx, rows) = (self.device, self.ctx, self.rows);
        let act = size_of::<D::Act>();
        let inputs = group.inputs(&self.shape);
        let parts = group.outputs(&self.shape);
        let outputs: usize = parts.iter().sum();
        let views = parts
            .iter()
            .map(|&n| random_weight(n, inputs))
            .collect::<Result<Vec<_>>>()?;
        let lora = self.layout.s_width(group);
        let weight = device.load_matrix(&views, None, true, lora)?;
        let [mut x, mut s] = Rows::with_lora(device, rows, inputs, lora)?;
        let [mut dy, mut ds] = Rows::with_lora(device, rows, outputs, lora)?;
        fill_random(device, ctx, x.get_mut(rows))?;
        fill_random(device, ctx, dy.get_mut(rows))?;
        let mut y = device.alloc::<D::Act>(rows * outputs)?;
        let mut dx = device.alloc::<D::Act>(rows * inputs)?;
        let mut grads = device.alloc::<f32>(self.layout.len())?;
        let product = cost::product(rows, inputs, outputs, act, 2);
        let ranks = Ranks::new(&self.layout, 0, group, rows);
        let name = |what: &str| format!("{what} {group:?}");
        let mut out = vec![
            self.time(&name("product"), product, &mut || {
                device.linear_forward(
                    ctx,
                    &self.batch,
                    rows,
                    &weight,
                    x.get(rows),
                    None,
                    slice_mut(&mut y, rows * outputs),
                )
            })?,
            self.time(&name("lora_shrink"), ranks.shrink(act), &mut || {
                device.lora_shrink(
                    ctx,
                    &self.batch,
                    rows,
                    &self.adapters,
                    0,
                    group,
                    x.get(rows),
                    s.get_mut(rows),
                )
            })?,
            self.time(&name("lora_backward"), ranks.backward(act), &mut || {
                let call = LoraBackward {
                    adapters: &self.adapters,
                    layout: &self.layout,
                    layer: 0,
                    group,
                    x: x.get(rows),
                    s: s.get(rows),
                    dy: dy.get(rows),
                };
                let grads = slice_mut(&mut grads, self.layout.len());
                device.lora_backward(ctx, &self.batch, rows, &call, ds.get_mut(rows), grads)
            })?,
        ];
        let call = |s| LoraCall {
            adapters: &self.adapters,
            layer: 0,
            group,
            s,
        };
        out.push(self.time(
            &name("linear_forward"),
            product + ranks.expand(act),
            &mut || {
                device.linear_forward(
                    ctx,
                    &self.batch,
                    rows,
                    &weight,
                    x.get(rows),
                    Some(call(s.get(rows))),
                    slice_mut(&mut y, rows * outputs),
                )
            },
        )?);
        out.push(self.time(
            &name("linear_backward"),
            product + ranks.expand_backward(act),
            &mut || {
                device.linear_backward(
                    ctx,
                    &self.batch,
                    rows,
                    &weight,
                    dy.get(rows),
                    Some(call(ds.get(rows))),
                    slice_mut(&mut dx, rows * inputs),
                )
            },
        )?);
        Ok(out)
    }

    /// Rotation, attention both ways, and decode over pages.
    fn attention(&self) -> Result<Vec<Row>> {
        let (device, ctx, rows, shape) = (self.device, self.ctx, self.rows, &self.shape);
        let act = size_of::<D::Act>();
        let (q, qkv_width) = (shape.q_width(), shape.qkv_width());
        let qk_width = q + shape.kv_width();
        let rope = RopeTable::new(device, ctx, shape, shape.max_position_embeddings)?;
        let norms = QkNormWeights {
            q: random_buf::<D, f32>(device, ctx, shape.head_dim)?,
            k: random_buf::<D, f32>(device, ctx, shape.head_dim)?,
        };
        let qkv = random_act(device, ctx, rows * qkv_width)?;
        let mut qk = random_act(device, ctx, rows * qk_width)?;
        let mut out = device.alloc::<D::Act>(rows * q)?;
        let mut lse = device.alloc::<f32>(rows * shape.num_heads)?;
        let d_out = random_act(device, ctx, rows * q)?;
        let mut d_qk = device.alloc::<D::Act>(rows * qk_width)?;
        let mut d_qkv = device.alloc::<D::Act>(rows * qkv_width)?;
        let batch = &self.batch;
        let mut list = vec![
            self.time(
                "qknorm_rope_forward",
                cost::qknorm_rope_forward(rows, shape, act),
                &mut || {
                    device.qknorm_rope_forward(
                        ctx,
                        batch,
                        shape,
                        rows,
                        &norms,
                        &rope,
                        slice(&qkv, rows * qkv_width),
                        slice_mut(&mut qk, rows * qk_width),
                    )
                },
            )?,
            self.time(
                "attention_forward",
                cost::attention_forward(&self.host, rows, shape, act),
                &mut || {
                    device.attention_forward(
                        ctx,
                        batch,
                        shape,
                        slice(&qk, rows * qk_width),
                        slice(&qkv, rows * qkv_width),
                        slice_mut(&mut out, rows * q),
                        slice_mut(&mut lse, rows * shape.num_heads),
                    )
                },
            )?,
            self.time(
                "attention_backward",
                cost::attention_backward(&self.host, rows, shape, act),
                &mut || {
                    device.attention_backward(
                        ctx,
                        batch,
                        shape,
                        slice(&qk, rows * qk_width),
                        slice(&qkv, rows * qkv_width),
                        slice(&out, rows * q),
                        slice(&lse, rows * shape.num_heads),
                        slice(&d_out, rows * q),
                        slice_mut(&mut d_qk, rows * qk_width),
                        slice_mut(&mut d_qkv, rows * qkv_width),
                    )
                },
            )?,
            self.time(
                "qknorm_rope_backward",
                cost::qknorm_rope_backward(rows, shape, act),
                &mut || {
                    device.qknorm_rope_backward(
                        ctx,
                        batch,
                        shape,
                        rows,
                        &norms,
                        &rope,
                        slice(&qkv, rows * qkv_width),
                        slice(&d_qk, rows * qk_width),
                        slice_mut(&mut d_qkv, rows * qkv_width),
                    )
                },
            )?,
        ];
        let (n, context) = (self.decode_rows, self.decode_context);
        let (decode, page_count) = decode_batch(n, context);
        let mut loaded = device.new_batch(BatchCapacity {
            rows: n,
            segments: n,
            pairs: 1,
            ..BatchCapacity::default()
        })?;
        device.load_batch(ctx, &mut loaded, decode)?;
        let len = page_count * page_elements(shape);
        let mut pages = random_act(device, ctx, len)?;
        list.push(self.time(
            "decode_attention",
            cost::decode_attention(n, context, shape, act),
            &mut || {
                device.decode_attention(
                    ctx,
                    &loaded,
                    shape,
                    slice(&qk, n * qk_width),
                    slice(&qkv, n * qkv_width),
                    slice_mut(&mut pages, len),
                    slice_mut(&mut out, n * q),
                )
            },
        )?);
        Ok(list)
    }

    /// The LM head: log-probs with u, their backward, sampling.
    fn head(&self) -> Result<Vec<Row>> {
        let (device, ctx, shape) = (self.device, self.ctx, &self.shape);
        let act = size_of::<D::Act>();
        let (h, v) = (shape.hidden_size, shape.vocab_size);
        let head = device.load_matrix(&[random_weight(v, h)?], None, true, 0)?;
        let x = random_act(device, ctx, self.rows * h)?;
        let pairs = self.host.pairs.len();
        let mut logprobs = device.alloc::<f32>(pairs)?;
        let mut entropies = device.alloc::<f32>(pairs)?;
        let mut u = device.alloc::<D::Act>(pairs * h)?;
        let coefficients = random_buf::<D, f32>(device, ctx, pairs)?;
        let mut dx = device.alloc::<D::Act>(self.rows * h)?;
        let requests: Vec<SampleRequest> = (0..self.decode_rows as u32)
            .map(|row| SampleRequest {
                row,
                key: row as u64,
                position: 0,
                temperature: 1.0,
                top_p: 1.0,
                top_k: 0,
                min_p: 0.0,
            })
            .collect();
        Ok(vec![
            self.time(
                "logprob_forward",
                cost::logprob_forward(pairs, pairs, h, v, act),
                &mut || {
                    device.logprob_forward(
                        ctx,
                        ctx,
                        &self.batch,
                        &head,
                        1.0,
                        slice(&x, self.rows * h),
                        slice_mut(&mut logprobs, pairs),
                        slice_mut(&mut entropies, pairs),
                        Some(slice_mut(&mut u, pairs * h)),
                    )
                },
            )?,
            self.time(
                "logprob_backward",
                cost::logprob_backward(self.rows, pairs, h, act),
                &mut || {
                    device.logprob_backward(
                        ctx,
                        &self.batch,
                        h,
                        slice(&coefficients, pairs),
                        slice(&u, pairs * h),
                        slice_mut(&mut dx, self.rows * h),
                    )
                },
            )?,
            self.time(
                "sample",
                cost::sample(requests.len(), h, v, act),
                &mut || {
                    device
                        .sample(ctx, &head, slice(&x, self.rows * h), &requests)
                        .map(|_| ())
                },
            )?,
        ])
    }

    fn optimizer(&self) -> Result<Row> {
        let (device, ctx) = (self.device, self.ctx);
        // One layer's adapter is a fraction of a model's.
        let n = self.layout.len() * 28;
        let grads = random_buf::<D, f32>(device, ctx, n)?;
        let mut params = random_buf::<D, f32>(device, ctx, n)?;
        let mut m = device.alloc::<f32>(n)?;
        let mut v = device.alloc::<f32>(n)?;
        let step = AdamWStep {
            learning_rate: 1e-5,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            step: 1,
            clip: 1.0,
        };
        self.time("adamw", cost::adamw(n), &mut || {
            device.adamw(
                ctx,
                &step,
                slice(&grads, n),
                slice_mut(&mut params, n),
                slice_mut(&mut m, n),
                slice_mut(&mut v, n),
            )
        })
    }
}

/// Groups of one prompt and eight completions twice as long, until `rows` are
/// filled; all saved, all under one adapter.
fn group_batch(rows: usize, vocab: u32) -> Batch {
    let mut random = Stream::new(rows as u64);
    let prompt = (rows / 17).clamp(1, 256);
    let mut batch = Batch::default();
    while batch.rows() < rows {
        let mut ids = |n: usize| -> Vec<u32> { (0..n).map(|_| random.below(vocab)).collect() };
        let first = batch.push_segment(&ids(prompt.min(rows - batch.rows())), &[], Some(POLICY));
        for _ in 0..8 {
            let n = (2 * prompt).min(rows - batch.rows());
            if n > 0 {
                batch.push_segment(&ids(n), &[first], Some(POLICY));
            }
        }
    }
    batch.saved_rows = rows;
    let target = |row: usize| batch.tokens[(row + 1) % rows];
    batch.pairs = (0..rows)
        .map(|row| Pair {
            row: row as u32,
            target: target(row),
        })
        .collect();
    batch.grad_pairs = rows;
    let half = rows as u32 / 2;
    batch.residual_pairs = (0..half).map(|i| (i, half + i)).collect();
    batch
}

/// One new row per sequence at the end of its own cached context; and the
/// number of pages.
fn decode_batch(rows: usize, context: usize) -> (Batch, usize) {
    let each = context.div_ceil(PAGE);
    let mut batch = Batch::default();
    for i in 0..rows {
        batch.push_segment(&[0], &[], Some(POLICY));
        batch.positions[i] = context as u32 - 1;
        batch.pages.push(PageTable {
            group: Arc::from([]),
            own: (i * each..(i + 1) * each).map(|p| p as u32).collect(),
        });
    }
    (batch, rows * each)
}
