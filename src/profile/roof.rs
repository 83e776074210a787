//! What this device reaches at best: the rates that shares are shares of.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use memmap2::MmapMut;

use crate::device::cpu::pool;
use crate::device::{BatchCapacity, Ctx, Device, Float, SliceMut, slice, slice_mut};
use crate::model::batch::Batch;
use crate::model::half_layer::HalfLayers;
use crate::ops::cost::Cost;
use crate::ops::linear::{WeightDtype, WeightView};
use crate::rng::Stream;

/// Measured rates of a device.
#[derive(Clone, Copy, Debug)]
pub struct Roof {
    /// Operations a second of a large plain product, operands in the
    /// activations' type.
    pub flops: f64,
    /// Bytes read and written a second by a large copy.
    pub bytes: f64,
}

impl Roof {
    /// The fastest of several runs: products of n x n x n for a few n, and a
    /// copy of rows of an embedding table to activations.
    ///
    /// # Errors
    /// The device's, such as too little memory.
    pub fn measure<D: HalfLayers>(device: &D, ctx: &Ctx<D>) -> Result<Roof> {
        // The emulator is for tests.
        let (products, copied): (&[usize], usize) = match device.name() {
            gpu if gpu.starts_with("NVIDIA") => (&[4096, 8192], 8192),
            emulator if emulator.contains("emulator") => (&[256], 256),
            // The copy is to be larger than caches.
            _ => (&[512, 1024, 2048], 2048),
        };
        let mut flops = 0f64;
        for &n in products {
            flops = flops.max(2.0 * (n as f64).powi(3) / product(device, ctx, n)?);
        }
        let (bytes, seconds) = copy(device, ctx, copied)?;
        Ok(Roof {
            flops,
            bytes: bytes / seconds,
        })
    }

    /// Seconds that an op of this cost takes at least.
    pub fn bound(&self, cost: &Cost) -> f64 {
        (cost.flops / self.flops).max(cost.bytes / self.bytes)
    }
}

/// Operations a second that a device of this name could do in theory, and where
/// that is from.
pub fn datasheet(device: &str) -> Option<(f64, String)> {
    // Dense bf16 with sums in f32, from NVIDIA's data sheets.
    let gpus = [
        ("H200", 989.4),
        ("GH200", 989.4),
        ("H100 PCIe", 756.0),
        ("H100 NVL", 835.5),
        ("H100", 989.4),
        ("A100", 312.0),
        ("B200", 2250.0),
    ];
    if let Some((name, tera)) = gpus.iter().find(|(name, _)| device.contains(name)) {
        return Some((tera * 1e12, format!("data sheet of {name}, dense bf16")));
    }
    match device.starts_with("cpu") {
        true => cpu_theory(),
        false => None,
    }
}

/// Both multiply-add units of each core at the clock that the system tells; the
/// CPU's bf16 is widened and multiplied in f32.
fn cpu_theory() -> Option<(f64, String)> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let clock = text.lines().find(|l| l.starts_with("cpu MHz"))?;
    let mhz: f64 = clock.split(':').nth(1)?.trim().parse().ok()?;
    let (lanes, vectors) = fused_lanes()?;
    let threads = pool::threads();
    let flops = threads as f64 * mhz * 1e6 * (2 * 2 * lanes) as f64;
    Some((
        flops,
        format!(
            "{threads} threads on cores of their own at {:.2} GHz with two {vectors} multiply-adds a cycle",
            mhz / 1e3
        ),
    ))
}

/// f32 lanes of the widest multiply-add, and its name.
#[cfg(target_arch = "x86_64")]
fn fused_lanes() -> Option<(usize, &'static str)> {
    if is_x86_feature_detected!("avx512f") {
        Some((16, "AVX-512"))
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Some((8, "AVX2"))
    } else {
        None
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn fused_lanes() -> Option<(usize, &'static str)> {
    None
}

/// Seconds of the fastest product of n x n x n.
fn product<D: HalfLayers>(device: &D, ctx: &Ctx<D>, n: usize) -> Result<f64> {
    let batch = device.new_batch(BatchCapacity {
        rows: 1,
        segments: 1,
        pairs: 1,
        ..BatchCapacity::default()
    })?;
    let weight = device.load_matrix(&[random_operand::<D>(n, n)?], None, false, 0)?;
    let x = random_act(device, ctx, n * n)?;
    let mut y = device.alloc::<D::Act>(n * n)?;
    let times = times(device, ctx, &mut || {
        device.linear_forward(
            ctx,
            &batch,
            n,
            &weight,
            slice(&x, n * n),
            None,
            slice_mut(&mut y, n * n),
        )
    })?;
    Ok(times[0])
}

/// Bytes of a copy, read and written, and seconds of the fastest. A residual
/// add without the norm would be an op of its own, so the embedding's row copy
/// stands in.
fn copy<D: HalfLayers>(device: &D, ctx: &Ctx<D>, n: usize) -> Result<(f64, f64)> {
    let vocab = 4096.min(n * 8);
    let table = device.load_table(random_operand::<D>(vocab, n)?)?;
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
    let times = times(device, ctx, &mut || {
        device.embedding_forward(ctx, &loaded, &table, slice_mut(&mut out, len))
    })?;
    Ok((2.0 * (len * size_of::<D::Act>()) as f64, times[0]))
}

/// Seconds of several runs, sorted, after two that warm up.
fn times<D: Device>(
    device: &D,
    ctx: &Ctx<D>,
    work: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<f64>> {
    work()?;
    let first = device.timed(ctx, work)?;
    let runs = ((0.3 / first.max(1e-6)) as usize).clamp(3, 50);
    let mut times = (0..runs)
        .map(|_| device.timed(ctx, work))
        .collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The median of several runs after two that warm up.
pub fn median<D: Device>(
    device: &D,
    ctx: &Ctx<D>,
    work: &mut dyn FnMut() -> Result<()>,
) -> Result<f64> {
    let times = times(device, ctx, work)?;
    Ok(times[times.len() / 2])
}

/// A bf16 weight of small random numbers.
pub fn random_weight(rows: usize, cols: usize) -> Result<WeightView> {
    random_weight_of(WeightDtype::Bf16, rows, cols)
}

/// The same in the activations' type.
fn random_operand<D: Device>(rows: usize, cols: usize) -> Result<WeightView> {
    let dtype = match size_of::<D::Act>() {
        4 => WeightDtype::F32,
        _ => WeightDtype::Bf16,
    };
    random_weight_of(dtype, rows, cols)
}

fn random_weight_of(dtype: WeightDtype, rows: usize, cols: usize) -> Result<WeightView> {
    let size = dtype.size();
    let bytes = rows * cols * size;
    let mut map = MmapMut::map_anon(bytes.max(1)).context("memory for a random weight")?;
    let mut random = Stream::new((rows * cols) as u64);
    // A period that is no multiple of a row: cheap, and no two rows are equal.
    let period: Vec<u8> = (0..65_521)
        .map(|_| 0.1 * (random.unit() - 0.5))
        .flat_map(|x: f32| match dtype {
            WeightDtype::F32 => x.to_le_bytes().to_vec(),
            WeightDtype::Bf16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
            WeightDtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
        })
        .collect();
    for to in map.chunks_mut(period.len()) {
        to.copy_from_slice(&period[..to.len()]);
    }
    Ok(WeightView {
        map: Arc::new(map.make_read_only().context("memory for a random weight")?),
        bytes: 0..bytes,
        dtype,
        rows,
        cols,
    })
}

fn random_values<T: Float>(n: usize) -> Vec<T> {
    let mut random = Stream::new(n as u64 ^ 0xbe);
    let period: Vec<T> = (0..65_521.min(n.max(1)))
        .map(|_| T::from_f32(2.0 * random.unit() - 1.0))
        .collect();
    period.iter().copied().cycle().take(n).collect()
}

/// A buffer of random numbers between -1 and 1.
pub fn random_buf<D: Device, T: Float>(device: &D, ctx: &Ctx<D>, n: usize) -> Result<D::Buf<T>> {
    let mut buf = device.alloc(n)?;
    fill_random(device, ctx, slice_mut(&mut buf, n))?;
    Ok(buf)
}

/// Random numbers between -1 and 1 into a part of a buffer.
pub fn fill_random<D: Device, T: Float>(
    device: &D,
    ctx: &Ctx<D>,
    to: SliceMut<D, T>,
) -> Result<()> {
    let values = random_values::<T>(to.len);
    device.upload(ctx, to, &values)
}

/// The same of activations.
pub fn random_act<D: Device>(device: &D, ctx: &Ctx<D>, n: usize) -> Result<D::Buf<D::Act>> {
    random_buf::<D, D::Act>(device, ctx, n)
}
