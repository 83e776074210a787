//! Models of random weights at known shapes, with no folder of their own.

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::cli::args::{BenchShape, WeightDtype};
use crate::cli::init_model;
use crate::model::config::ModelShape;

impl BenchShape {
    pub fn name(self) -> &'static str {
        match self {
            BenchShape::Demo => "demo",
            BenchShape::M5 => "5m",
            BenchShape::M100 => "100m",
            BenchShape::Qwen0_6b => "0.6b",
            BenchShape::Qwen1_7b => "1.7b",
            BenchShape::Qwen4b => "4b",
        }
    }

    /// Its config.json.
    pub fn config(self) -> &'static str {
        match self {
            BenchShape::Demo => include_str!("../../../assets/demo/config.json"),
            BenchShape::M5 => include_str!("../../../tools/compare/5m.json"),
            BenchShape::M100 => include_str!("../../../tools/compare/100m.json"),
            BenchShape::Qwen0_6b => include_str!("../../../tools/compare/0.6b.json"),
            BenchShape::Qwen1_7b => include_str!("../../../tools/compare/1.7b.json"),
            BenchShape::Qwen4b => include_str!("../../../tools/compare/4b.json"),
        }
    }

    pub fn shape(self) -> Result<ModelShape> {
        ModelShape::from_json(&serde_json::from_str(self.config())?)
    }

    /// A checkpoint of random weights in the system's folder for temporary
    /// files, gone when the value is dropped.
    pub fn checkpoint(self, dtype: WeightDtype) -> Result<TempDir> {
        let dir = tempfile::tempdir().context("a folder for random weights")?;
        init_model::write_quickly(dir.path(), self.config(), dtype)
            .context("writing random weights (TMPDIR says where)")?;
        Ok(dir)
    }
}
