//! Which attention kernels a device uses: those of sm_80, or Hopper's.
//!
//! A device that has Hopper's products uses them once they have agreed with the
//! others on a small batch: they were written without such a device at hand, and
//! a wrong gradient is worse than a slow one. `ARCA_ATTENTION=mma` or `wgmma`
//! chooses without asking, to compare the two.

use std::sync::OnceLock;

use anyhow::{Result, bail};
use half::bf16;

use crate::device::cuda::{Cuda, CudaBuf};
use crate::device::{BatchCapacity, Ctx, Device, Float, slice, slice_mut};
use crate::model::batch::Batch;
use crate::model::config::ModelShape;
use crate::ops::attention::Attention;
use crate::rng::Stream;

/// Attention kernels by what they compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKernels {
    /// Warps' products (`mma.sync`), on every architecture.
    Mma,
    /// Hopper's products of warpgroups.
    Wgmma,
}

/// What a device has chosen, for head_dim 64 and 128.
#[derive(Default)]
pub(crate) struct AttentionChoice([OnceLock<AttentionKernels>; 2]);

impl From<AttentionKernels> for AttentionChoice {
    fn from(kernels: AttentionKernels) -> Self {
        AttentionChoice([kernels.into(), kernels.into()])
    }
}

/// Largest difference of the two kernels' results, relative to the largest
/// result: both round probabilities to bf16 (2^-9), sums differ in their order.
const AGREES: f32 = 0.02;

impl Cuda {
    /// The kernels for this shape's head_dim.
    ///
    /// # Errors
    /// `ARCA_ATTENTION` names none, or none that this device has.
    pub(crate) fn attention_kernels(&self, shape: &ModelShape) -> Result<AttentionKernels> {
        use AttentionKernels::{Mma, Wgmma};
        let slot = &self.attention.0[usize::from(shape.head_dim == 128)];
        if let Some(&chosen) = slot.get() {
            return Ok(chosen);
        }
        let info = self.driver.info();
        let wish = std::env::var("ARCA_ATTENTION").unwrap_or_default();
        let chosen = match (wish.as_str(), info.wgmma) {
            ("mma", _) | ("", false) => Mma,
            ("wgmma", true) => Wgmma,
            ("wgmma", false) => bail!(
                "ARCA_ATTENTION=wgmma: {} (sm_{}) has no such kernels; they are for sm_90 and built for sm_90a",
                info.name,
                info.arch
            ),
            ("", true) => match self.attention_difference(shape.head_dim) {
                Ok(difference) if difference <= AGREES => Wgmma,
                Ok(difference) => {
                    eprintln!(
                        "warning: attention by wgmma differs from attention by mma.sync by {difference} on {}: the latter is used. \
                         Please report this",
                        info.name
                    );
                    Mma
                }
                Err(e) => {
                    return Err(e.context(
                        "trying attention by wgmma (ARCA_ATTENTION=mma goes without it)",
                    ));
                }
            },
            (other, _) => bail!("ARCA_ATTENTION={other}: it may be mma or wgmma"),
        };
        Ok(*slot.get_or_init(|| chosen))
    }

    /// Largest difference between the results of the two kinds of kernels on a
    /// small batch, both ways, relative to the largest result. NaN counts as
    /// infinite.
    ///
    /// # Errors
    /// The device's.
    pub fn attention_difference(&self, head_dim: usize) -> Result<f32> {
        let run = |kernels| try_attention(&self.clone().with_attention(kernels), head_dim);
        let (mma, wgmma) = (run(AttentionKernels::Mma)?, run(AttentionKernels::Wgmma)?);
        let mut worst = 0f32;
        for (a, b) in mma.iter().zip(&wgmma) {
            let largest = a.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
            for (x, y) in a.iter().zip(b) {
                let difference = (x - y).abs() / largest;
                worst = match difference.is_nan() {
                    true => f32::INFINITY,
                    false => worst.max(difference),
                };
            }
        }
        Ok(worst)
    }
}

/// A shape with three heads a KV head, so that one has no partner.
fn small_shape(head_dim: usize) -> ModelShape {
    ModelShape {
        vocab_size: 16,
        hidden_size: 16,
        intermediate_size: 16,
        num_layers: 1,
        num_heads: 6,
        num_kv_heads: 2,
        head_dim,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        tie_word_embeddings: true,
        attention_bias: false,
        max_position_embeddings: 512,
        eos_ids: Vec::new(),
    }
}

/// out, d_qk and d_qkv of a prompt with two completions, three tiles of keys and
/// ragged ends.
fn try_attention(device: &Cuda, head_dim: usize) -> Result<[Vec<f32>; 3]> {
    let shape = small_shape(head_dim);
    let mut batch = Batch::default();
    let prompt = batch.push_segment(&[0; 150], &[], None);
    batch.push_segment(&[0; 133], &[prompt], None);
    batch.push_segment(&[0; 17], &[prompt], None);
    batch.saved_rows = batch.rows();
    let rows = batch.rows();
    let stream = device.new_stream()?;
    let ctx = Ctx { stream: &stream };
    let mut loaded = device.new_batch(BatchCapacity {
        rows,
        segments: batch.segments.len(),
        pairs: 1,
        ..BatchCapacity::default()
    })?;
    device.load_batch(&ctx, &mut loaded, batch)?;

    let mut values = Stream::new(3);
    let mut random = |width: usize| -> Result<CudaBuf<bf16>> {
        let values: Vec<bf16> = (0..rows * width)
            .map(|_| bf16::from_f32(4.0 * values.unit() - 2.0))
            .collect();
        let mut buf = device.alloc(values.len())?;
        device.upload(&ctx, slice_mut(&mut buf, values.len()), &values)?;
        Ok(buf)
    };
    let (q, qk_width) = (shape.q_width(), shape.q_width() + shape.kv_width());
    let (qk, qkv, d_out) = (random(qk_width)?, random(shape.qkv_width())?, random(q)?);
    let mut out = device.alloc::<bf16>(rows * q)?;
    let mut lse = device.alloc::<f32>(rows * shape.num_heads)?;
    let mut d_qk = device.alloc::<bf16>(rows * qk_width)?;
    let mut d_qkv = device.alloc::<bf16>(rows * shape.qkv_width())?;
    device.attention_forward(
        &ctx,
        &loaded,
        &shape,
        slice(&qk, qk.len()),
        slice(&qkv, qkv.len()),
        slice_mut(&mut out, rows * q),
        slice_mut(&mut lse, rows * shape.num_heads),
    )?;
    device.attention_backward(
        &ctx,
        &loaded,
        &shape,
        slice(&qk, qk.len()),
        slice(&qkv, qkv.len()),
        slice(&out, out.len()),
        slice(&lse, lse.len()),
        slice(&d_out, d_out.len()),
        slice_mut(&mut d_qk, rows * qk_width),
        slice_mut(&mut d_qkv, rows * shape.qkv_width()),
    )?;
    let get = |buf: &CudaBuf<bf16>| -> Result<Vec<f32>> {
        let mut values = vec![bf16::ZERO; buf.len()];
        device.download(&ctx, slice(buf, buf.len()), &mut values)?;
        Ok(values.into_iter().map(Float::to_f32).collect())
    };
    Ok([get(&out)?, get(&d_qk)?, get(&d_qkv)?])
}
