//! `arca bench kernels`: every op alone, at the shapes of Qwen3 models.
//!
//! Times are the device's own (events on a GPU); the share is of what this
//! device reached in one large product and one large copy just before, not of
//! a data sheet. The lower bound of an op is the larger of its operations at
//! the first and its bytes at the second rate.

mod bed;

use anyhow::Result;
use serde_json::{Value, json};

use super::args::{BenchArgs, BenchShape};
use super::{Outcome, UsageError, print};
use crate::device::Ctx;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::ops::cost::Cost;
use crate::profile::roof::Roof;
use crate::train::session::{OnDevice, on_device};
use bed::Bed;

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

/// A shape with one layer (ops do not know the others) and room for any batch.
fn one_layer(which: BenchShape) -> Result<ModelShape> {
    Ok(ModelShape {
        num_layers: 1,
        max_position_embeddings: 4096,
        ..which.shape()?
    })
}

impl OnDevice for Kernels<'_> {
    type Output = ();

    fn run<D: HalfLayers>(self, device: D) -> Result<()> {
        // A GPU takes the sizes of training; elsewhere small ones must do.
        let large = device.name().starts_with("NVIDIA");
        let rows = self.args.rows.unwrap_or(if large { 8192 } else { 64 });
        let shapes = match self.args.shape.as_slice() {
            [] if large => vec![
                BenchShape::Qwen0_6b,
                BenchShape::Qwen1_7b,
                BenchShape::Qwen4b,
            ],
            [] => vec![BenchShape::Demo],
            chosen => chosen.to_vec(),
        };
        let stream = device.new_stream()?;
        let ctx = Ctx { stream: &stream };
        let roof = Roof::measure(&device, &ctx)?;
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
