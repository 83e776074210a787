//! `arca bench kernels`: every op alone, at the shapes of Qwen3 models.
//!
//! Times are the device's own (events on a GPU); the share is of what this
//! device reached in one large product and one large copy just before, not of
//! a data sheet. The lower bound of an op is the larger of its operations at
//! the first and its bytes at the second rate.

mod bed;

use anyhow::Result;
use serde_json::{Value, json};

use super::args::{BenchArgs, KernelShape};
use super::{Outcome, UsageError, print};
use crate::device::{BatchCapacity, Ctx};
use crate::model::batch::Batch;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::ops::cost::Cost;
use crate::train::session::{OnDevice, on_device};
use bed::{Bed, all, all_mut, median, random_act, random_weight};

/// Runs the verb.
pub fn run(args: BenchArgs) -> Result<Outcome> {
    let config = args.load()?;
    if args.rows.is_some_and(|n| n < 18) {
        return Err(UsageError::new("bench kernels: --rows must be at least 18").into());
    }
    on_device(&config, Kernels { args: &args })?;
    Ok(Outcome::Done)
}

struct Kernels<'a> {
    args: &'a BenchArgs,
}

/// A shape of the family, with one layer: ops do not know the others.
fn shape_of(which: KernelShape) -> ModelShape {
    let (hidden, intermediate, heads) = match which {
        KernelShape::Demo => (128, 256, 4),
        KernelShape::Qwen0_6b => (1024, 3072, 16),
        KernelShape::Qwen1_7b => (2048, 6144, 16),
        KernelShape::Qwen4b => (2560, 9728, 32),
    };
    let demo = which == KernelShape::Demo;
    ModelShape {
        vocab_size: if demo { 512 } else { 151_936 },
        hidden_size: hidden,
        intermediate_size: intermediate,
        num_layers: 1,
        num_heads: heads,
        num_kv_heads: if demo { 2 } else { 8 },
        head_dim: if demo { 64 } else { 128 },
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        attention_bias: false,
        tie_word_embeddings: true,
        max_position_embeddings: 4096,
        eos_ids: Vec::new(),
    }
}

impl OnDevice for Kernels<'_> {
    type Output = ();

    fn run<D: HalfLayers>(self, device: D) -> Result<()> {
        // A GPU takes the sizes of training; elsewhere small ones must do.
        let large = device.name().starts_with("NVIDIA");
        let rows = self.args.rows.unwrap_or(if large { 8192 } else { 64 });
        let shapes = match self.args.shape.as_slice() {
            [] if large => vec![
                KernelShape::Qwen0_6b,
                KernelShape::Qwen1_7b,
                KernelShape::Qwen4b,
            ],
            [] => vec![KernelShape::Demo],
            chosen => chosen.to_vec(),
        };
        let stream = device.new_stream()?;
        let ctx = Ctx { stream: &stream };
        let roof = Roof::measure(&device, &ctx, if large { 8192 } else { 512 })?;
        let name = device.name();
        print(&format!(
            "{name}: product {:.2} TFLOP/s, copy {:.1} GB/s\n",
            roof.flops / 1e12,
            roof.bytes / 1e9
        ))?;
        for which in shapes {
            let mut bed = Bed::new(&device, &ctx, which, rows, self.args)?;
            print(&Row::head(&bed.title))?;
            for row in bed.rows()? {
                match self.args.json {
                    true => print(&format!("{}\n", row.json(&roof, &bed.title, &name)))?,
                    false => print(&row.line(&roof))?,
                }
            }
        }
        Ok(())
    }
}

/// What this device reaches at best.
pub(super) struct Roof {
    /// Operations a second.
    pub flops: f64,
    /// Bytes read and written a second.
    pub bytes: f64,
}

impl Roof {
    /// Of a product and a copy of n by n elements and more.
    pub(super) fn measure<D: HalfLayers>(device: &D, ctx: &Ctx<D>, n: usize) -> Result<Roof> {
        let batch = device.new_batch(BatchCapacity {
            rows: 1,
            segments: 1,
            pairs: 1,
            ..BatchCapacity::default()
        })?;
        let weight = device.load_matrix(&[random_weight(n, n)?], None, false)?;
        let x = random_act(device, ctx, n * n)?;
        let mut y = device.alloc::<D::Act>(n * n)?;
        let seconds = median(device, ctx, &mut || {
            device.linear_forward(
                ctx,
                &batch,
                n,
                &weight,
                all(&x, n * n),
                None,
                all_mut(&mut y, n * n),
            )
        })?;
        // A copy of the same kind as the kernels': a residual add without the
        // norm would be an op of its own, so the embedding's row copy stands in.
        let vocab = 4096.min(n * 8);
        let table = device.load_table(random_weight(vocab, n)?)?;
        let mut gather = Batch::default();
        let tokens: Vec<u32> = (0..8 * n).map(|i| (i % vocab) as u32).collect();
        gather.push_segment(&tokens, &[], None);
        let mut loaded = device.new_batch(BatchCapacity {
            rows: tokens.len(),
            segments: 1,
            pairs: 1,
            ..BatchCapacity::default()
        })?;
        device.load_batch(ctx, &mut loaded, gather)?;
        let len = tokens.len() * n;
        let mut out = device.alloc::<D::Act>(len)?;
        let copy = median(device, ctx, &mut || {
            device.embedding_forward(ctx, &loaded, &table, all_mut(&mut out, len))
        })?;
        Ok(Roof {
            flops: 2.0 * (n as f64).powi(3) / seconds,
            bytes: 2.0 * (len * size_of::<D::Act>()) as f64 / copy,
        })
    }

    /// Seconds that the op takes at least.
    fn bound(&self, cost: &Cost) -> f64 {
        (cost.flops / self.flops).max(cost.bytes / self.bytes)
    }
}

/// One op's figures.
struct Row {
    op: String,
    seconds: f64,
    cost: Cost,
}

impl Row {
    fn head(title: &str) -> String {
        format!(
            "\n{title}\n{:<28} {:>10} {:>9} {:>9} {:>7}\n",
            "op", "us", "TFLOP/s", "GB/s", "% roof"
        )
    }

    fn line(&self, roof: &Roof) -> String {
        format!(
            "{:<28} {:>10.1} {:>9.3} {:>9.1} {:>7.1}\n",
            self.op,
            self.seconds * 1e6,
            self.cost.flops / self.seconds / 1e12,
            self.cost.bytes / self.seconds / 1e9,
            100.0 * roof.bound(&self.cost) / self.seconds
        )
    }

    fn json(&self, roof: &Roof, shape: &str, device: &str) -> Value {
        json!({
            "op": self.op,
            "shape": shape,
            "device": device,
            "microseconds": self.seconds * 1e6,
            "flops": self.cost.flops,
            "bytes": self.cost.bytes,
            "tflops_per_second": self.cost.flops / self.seconds / 1e12,
            "gigabytes_per_second": self.cost.bytes / self.seconds / 1e9,
            "share_of_roof": roof.bound(&self.cost) / self.seconds,
            "roof_tflops_per_second": roof.flops / 1e12,
            "roof_gigabytes_per_second": roof.bytes / 1e9,
        })
    }
}
