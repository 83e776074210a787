//! One test body per op, stamped for three devices: the CPU in bf16, the
//! kernels in the emulator, the kernels on a GPU.
//!
//! A body runs the op on the device under test, on `Cpu<f32>` (the reference:
//! proven against float64 elsewhere) and on `Cpu<bf16>` (a plain bf16
//! implementation), all on inputs that bf16 holds exactly. The error against
//! the reference may be at most twice that of plain bf16 (see [`Errors`]).

mod adamw;
mod attention;
mod attention_wgmma;
mod decode;
mod embedding;
mod linear;
mod logprob;
mod lora;
mod lora_backward;
mod model;
mod qknorm_rope;
mod residual;
mod rmsnorm;
mod sample;
mod selftest;
mod swiglu;
mod traffic;

use std::sync::atomic::{AtomicUsize, Ordering};

use arca::device::cpu::Cpu;
use arca::device::cuda::Cuda;
use arca::device::{BatchCapacity, Ctx, Device, Element, Float, Slice, SliceMut};
use arca::model::batch::Batch;
use arca::model::config::ModelShape;
use arca::ops::linear::{WeightDtype, WeightView};
use arca::rng::Stream;
use half::bf16;

/// Stamp `body`, a generic `fn body<D: Ops>(on: &On<D>)`, for each device.
macro_rules! test_device {
    ($name:ident) => {
        mod $name {
            #[test]
            fn cpu() {
                super::$name(&crate::kernels::On::new(
                    arca::device::cpu::Cpu::<half::bf16>::new(),
                ));
            }

            crate::kernels::on_cuda!($name);
        }
    };
}
pub(crate) use test_device;

/// The same for a body of the kernels alone, `fn body(on: &On<Cuda>)`.
macro_rules! test_cuda {
    ($name:ident) => {
        mod $name {
            crate::kernels::on_cuda!($name);
        }
    };
}
pub(crate) use test_cuda;

/// The stamps of a body for the emulator and a GPU.
macro_rules! on_cuda {
    ($name:ident) => {
        #[cfg(feature = "emulator")]
        #[test]
        fn emulator() {
            for device in crate::kernels::emulators() {
                super::$name(&crate::kernels::On::new(device));
            }
        }

        #[test]
        fn cuda() {
            if let Some(device) = crate::kernels::gpu() {
                super::$name(&crate::kernels::On::new(device));
            }
        }
    };
}
pub(crate) use on_cuda;

/// The emulator under each schedule that tests run: the fast build in four
/// orders of execution, the checked one in two.
#[cfg(feature = "emulator")]
pub fn emulators() -> impl Iterator<Item = Cuda> {
    emulators_of(80)
}

/// The same of another architecture.
#[cfg(feature = "emulator")]
pub fn emulators_of(arch: u32) -> impl Iterator<Item = Cuda> {
    use arca::device::cuda::emulator::EmulatorSettings;
    [
        (0, false),
        (1, false),
        (2, false),
        (3, false),
        (0, true),
        (3, true),
    ]
    .into_iter()
    .map(move |(seed, checked)| {
        let settings = EmulatorSettings {
            seed,
            checked,
            arch,
            ..EmulatorSettings::default()
        };
        Cuda::emulator(settings).expect("the emulator starts")
    })
}

static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// The GPU, or none: then the test is skipped and counted, or fails if
/// `REQUIRE_CUDA=1`.
pub fn gpu() -> Option<Cuda> {
    match Cuda::gpu(0) {
        Ok(device) => Some(device),
        Err(e) if std::env::var("REQUIRE_CUDA").is_ok_and(|v| v == "1") => {
            panic!("REQUIRE_CUDA=1, but there is no usable GPU: {e:#}")
        }
        Err(_) => {
            if SKIPPED.fetch_add(1, Ordering::Relaxed) == 0 {
                // SAFETY: the handler only reads a static and writes a line.
                unsafe { atexit(report_skips) };
            }
            None
        }
    }
}

unsafe extern "C" {
    fn atexit(f: extern "C" fn()) -> i32;
}

/// libtest has no state between passed and failed that a test can choose at
/// run time, so the count is printed when the process ends.
extern "C" fn report_skips() {
    let n = SKIPPED.load(Ordering::Relaxed);
    eprintln!("{n} CUDA tests skipped: no usable GPU (REQUIRE_CUDA=1 makes that a failure)");
}

/// A device with a stream, and shorthands for moving numbers.
pub struct On<D: Device> {
    pub device: D,
    stream: D::Stream,
}

impl<D: Device> On<D> {
    pub fn new(device: D) -> Self {
        let stream = device.new_stream().expect("a stream");
        On { device, stream }
    }

    pub fn ctx(&self) -> Ctx<'_, D> {
        Ctx {
            stream: &self.stream,
        }
    }

    /// Elements as they are.
    pub fn put<T: Element>(&self, data: &[T]) -> Tensor<D, T> {
        let mut buf = self.device.alloc(data.len()).expect("memory");
        let to = SliceMut {
            buf: &mut buf,
            start: 0,
            len: data.len(),
        };
        self.device.upload(&self.ctx(), to, data).expect("upload");
        Tensor {
            buf,
            len: data.len(),
        }
    }

    /// Values rounded to `T`.
    pub fn float<T: Float>(&self, data: &[f32]) -> Tensor<D, T> {
        let data: Vec<T> = data.iter().map(|&x| T::from_f32(x)).collect();
        self.put(&data)
    }

    /// Values rounded to the activations' type.
    pub fn act(&self, data: &[f32]) -> Tensor<D, D::Act> {
        self.float(data)
    }

    /// NaN: what an op must overwrite.
    pub fn dirty<T: Float>(&self, len: usize) -> Tensor<D, T> {
        self.float(&vec![f32::NAN; len])
    }

    pub fn get<T: Float>(&self, t: &Tensor<D, T>) -> Vec<f32> {
        let mut out = vec![T::default(); t.len];
        self.device
            .download(&self.ctx(), t.slice(), &mut out)
            .expect("download");
        out.into_iter().map(Float::to_f32).collect()
    }

    pub fn batch(&self, batch: &Batch) -> D::Batch {
        let capacity = BatchCapacity {
            rows: batch.rows().max(1),
            segments: batch.segments.len().max(1),
            pairs: batch.pairs.len().max(batch.residual_pairs.len()).max(1),
            ..BatchCapacity::default()
        };
        let mut loaded = self.device.new_batch(capacity).expect("memory");
        self.device
            .load_batch(&self.ctx(), &mut loaded, batch.clone())
            .expect("load");
        loaded
    }
}

/// A buffer with its length.
pub struct Tensor<D: Device, T: Element> {
    pub buf: D::Buf<T>,
    pub len: usize,
}

impl<D: Device, T: Element> Tensor<D, T> {
    pub fn slice(&self) -> Slice<'_, D, T> {
        Slice {
            buf: &self.buf,
            start: 0,
            len: self.len,
        }
    }

    pub fn slice_mut(&mut self) -> SliceMut<'_, D, T> {
        SliceMut {
            buf: &mut self.buf,
            start: 0,
            len: self.len,
        }
    }
}

/// The reference device and the plain bf16 one.
pub fn references() -> (On<Cpu<f32>>, On<Cpu<bf16>>) {
    (On::new(Cpu::new()), On::new(Cpu::new()))
}

/// Uniform in (-1, 1), of the values that bf16 holds.
pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut stream = Stream::new(seed);
    (0..n)
        .map(|_| bf16::from_f32(2.0 * stream.unit() - 1.0).to_f32())
        .collect()
}

/// Elements behind each row of a tensor with wide rows: a multiple of 8 that is
/// none of 16.
pub const ROOM: usize = 24;

/// Rows of `width` with `room` NaN behind each.
pub fn widen(values: &[f32], width: usize, room: usize) -> Vec<f32> {
    values
        .chunks_exact(width)
        .flat_map(|row| row.iter().copied().chain(vec![f32::NAN; room]))
        .collect()
}

/// What [`widen`] took; the room behind the rows must be as it left it.
#[track_caller]
pub fn narrow(values: &[f32], width: usize, room: usize) -> Vec<f32> {
    let rows = values.chunks_exact(width + room);
    assert!(
        rows.clone()
            .all(|row| row[width..].iter().all(|x| x.is_nan())),
        "the room behind rows of {width} was written"
    );
    rows.flat_map(|row| &row[..width]).copied().collect()
}

/// A shape of which only attention's sizes matter.
pub fn shape(head_dim: usize, heads: usize, kv_heads: usize) -> ModelShape {
    ModelShape {
        head_dim,
        num_heads: heads,
        num_kv_heads: kv_heads,
        ..crate::common::small_shape(false)
    }
}

/// A mapped bf16 weight `[rows, cols]` of `random(rows * cols, seed)`.
pub fn weight(rows: usize, cols: usize, seed: u64) -> WeightView {
    weight_of(&random(rows * cols, seed), rows, cols)
}

/// A mapped bf16 weight of these values.
pub fn weight_of(values: &[f32], rows: usize, cols: usize) -> WeightView {
    assert_eq!(values.len(), rows * cols);
    let mut map = memmap2::MmapMut::map_anon(2 * values.len()).unwrap();
    for (to, x) in map.chunks_exact_mut(2).zip(values) {
        to.copy_from_slice(&bf16::from_f32(*x).to_le_bytes());
    }
    WeightView {
        map: std::sync::Arc::new(map.make_read_only().unwrap()),
        bytes: 0..2 * values.len(),
        dtype: WeightDtype::Bf16,
        rows,
        cols,
    }
}

/// How far results are from the reference's.
#[derive(Clone, Copy, Debug)]
pub struct Errors {
    pub mean: f64,
    pub p99: f64,
    pub max: f64,
}

impl Errors {
    /// NaN is infinitely wrong, unless both are NaN.
    pub fn new(got: &[f32], want: &[f32]) -> Self {
        assert_eq!(got.len(), want.len(), "lengths");
        let mut all: Vec<f64> = got
            .iter()
            .zip(want)
            .map(|(g, w)| match (g.is_nan(), w.is_nan()) {
                (true, true) => 0.0,
                (false, false) if g == w => 0.0,
                (false, false) => (*g as f64 - *w as f64).abs(),
                _ => f64::INFINITY,
            })
            .collect();
        all.sort_by(f64::total_cmp);
        let n = all.len();
        Errors {
            mean: all.iter().sum::<f64>() / n.max(1) as f64,
            p99: all
                .get(n.saturating_sub(1) * 99 / 100)
                .copied()
                .unwrap_or(0.0),
            max: all.last().copied().unwrap_or(0.0),
        }
    }
}

/// `got` is at most twice as far from `reference` as `plain` is: in the mean,
/// at the 99th percentile and (four times, for one number's luck) at worst.
/// `floor` allows for what plain bf16 happens to get exactly.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], plain: &[f32], reference: &[f32], floor: f64) {
    let (g, p) = (Errors::new(got, reference), Errors::new(plain, reference));
    assert!(
        g.mean <= 2.0 * p.mean + floor
            && g.p99 <= 2.0 * p.p99 + 2.0 * floor
            && g.max <= 4.0 * p.max + 4.0 * floor,
        "{what}: errors {g:?}, plain bf16 has {p:?}, floor {floor}"
    );
}
