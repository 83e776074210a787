//! Greedy decoding with candle's Qwen3: one JSON line per run asked for.
//!
//! `candle-decode MODEL PROMPT NEW`; every line on standard input is a run.

use std::io::BufRead;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3::{Config, ModelForCausalLM};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, prompt, new] = &args[..] else {
        anyhow::bail!("usage: candle-decode MODEL PROMPT NEW");
    };
    let (prompt, new): (usize, usize) = (prompt.parse()?, new.parse()?);
    let device = Device::Cpu;
    let text = std::fs::read_to_string(format!("{dir}/config.json"))?;
    // transformers 5 writes rope_theta into a table of its own.
    let mut json: serde_json::Value = serde_json::from_str(&text)?;
    if let Some(theta) = json["rope_parameters"]["rope_theta"].as_f64() {
        json["rope_theta"] = theta.into();
    }
    let config: Config = serde_json::from_value(json)?;
    let file = format!("{dir}/model.safetensors");
    // SAFETY: nobody changes the file while this runs.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&[file], DType::F32, &device)? };
    let mut model = ModelForCausalLM::new(&config, weights)?;
    let ids: Vec<u32> = (0..prompt).map(|i| (i as u32 * 7919 + 11) % config.vocab_size as u32).collect();
    for line in std::io::stdin().lock().lines() {
        line?;
        model.clear_kv_cache();
        let start = Instant::now();
        let mut input = Tensor::new(&ids[..], &device)?.unsqueeze(0)?;
        let mut offset = 0;
        for _ in 0..new {
            let logits = model.forward(&input, offset)?;
            offset += input.dim(1)?;
            let next = logits.flatten_all()?.argmax(0)?.to_scalar::<u32>().context("no token")?;
            input = Tensor::new(&[next], &device)?.unsqueeze(0)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        println!("{}", serde_json::json!({ "seconds": seconds, "tokens": new }));
    }
    Ok(())
}
