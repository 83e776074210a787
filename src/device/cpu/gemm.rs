//! Matrix products with one reduction order.
//!
//! C[i, j] = sum over k, in order, of A[i, k] * B[k, j], one fused
//! multiply-add after another. How many rows are computed together, how the
//! work is cut over threads and where partial sums rest in between change no
//! bit. Everything that multiplies on the CPU comes through [`Product`]:
//! linear layers, attention and gradients.

use std::marker::PhantomData;
use std::ops::Range;

use crate::device::Float;
use crate::device::cpu::simd::{Isa, isa};
use crate::device::cpu::tile::{self, Operands};
use crate::device::cpu::{memory, pool};

/// Columns of a panel: two AVX2 registers.
pub const LANES: usize = 16;
/// Rows below which an output is not cut for more cores.
const FEW_ROWS: usize = 12;
const ROW_BLOCK: usize = 192;
const PANEL_BLOCK: usize = 4;

/// The left operand: element (i, k) lies at `i * row_stride + k * col_stride`.
#[derive(Clone, Copy)]
pub struct Left<'a, T> {
    pub data: &'a [T],
    pub row_stride: usize,
    pub col_stride: usize,
}

/// The right operand in panels of [`LANES`] columns: element (k, j) of panel p
/// lies at `p * panel_stride + k * k_stride + j`.
#[derive(Clone, Copy)]
pub struct Right<'a, T> {
    pub data: &'a [T],
    pub panel_stride: usize,
    pub k_stride: usize,
    /// Whether two steps of the reduction may be taken as one, where the
    /// machine has a faster instruction for that. Only for reductions that
    /// always begin at their first element: which steps go together decides
    /// the bits.
    pub pairs: bool,
}

impl<'a, T> Right<'a, T> {
    /// Panels packed one after another, each `[k, LANES]`.
    pub fn packed(data: &'a [T], k: usize) -> Self {
        Right {
            data,
            panel_stride: k * LANES,
            k_stride: LANES,
            pairs: false,
        }
    }

    /// The same for a weight, whose reductions are always whole.
    pub fn weight(data: &'a [T], k: usize) -> Self {
        Right {
            pairs: true,
            ..Right::packed(data, k)
        }
    }

    /// A row-major matrix whose row length is a multiple of [`LANES`].
    pub fn row_major(data: &'a [T], row: usize) -> Self {
        debug_assert!(row.is_multiple_of(LANES));
        Right {
            data,
            panel_stride: LANES,
            k_stride: row,
            pairs: false,
        }
    }
}

/// Where sums are made: rows that lie `stride` elements apart, in a buffer of
/// their own or in an output that other threads write elsewhere.
pub struct Sums<'a> {
    first: *mut f32,
    len: usize,
    stride: usize,
    life: PhantomData<&'a mut [f32]>,
}

impl<'a> Sums<'a> {
    pub fn new(data: &'a mut [f32], stride: usize) -> Self {
        Sums {
            first: data.as_mut_ptr(),
            len: data.len(),
            stride,
            life: PhantomData,
        }
    }

    /// Sums in `out`, whose rows have `stride` elements, from element `at` on.
    ///
    /// # Safety
    /// Until they are gone, nobody else may touch the elements that are summed.
    pub unsafe fn within(out: &'a pool::Shared<f32>, at: usize, stride: usize) -> Self {
        let (first, len) = out.from(at);
        Sums {
            first,
            len,
            stride,
            life: PhantomData,
        }
    }

    /// Those from a row and a column on.
    pub fn from(&mut self, row: usize, column: usize) -> Sums<'_> {
        let at = row * self.stride + column;
        assert!(at <= self.len);
        Sums {
            // SAFETY: within the elements or just behind them.
            first: unsafe { self.first.add(at) },
            len: self.len - at,
            stride: self.stride,
            life: PhantomData,
        }
    }

    /// The first `len` elements of a row.
    pub fn row(&mut self, row: usize, len: usize) -> &mut [f32] {
        let at = row * self.stride;
        assert!(at + len <= self.len);
        // SAFETY: in bounds, and this is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(at), len) }
    }
}

/// sums[i, p * LANES + j] += sum_k left[i, k] * right[panels.start + p][k, j]
/// for `rows` rows.
pub fn accumulate<A: Float, B: Float>(
    rows: Range<usize>,
    panels: Range<usize>,
    k: usize,
    left: Left<A>,
    right: Right<B>,
    sums: Sums,
) {
    multiply(isa(), rows, panels, k, left, right, sums, false);
}

/// The same with `=` for `+=`, which saves clearing and loading the sums. Its
/// bits are those of [`accumulate`] into zeros.
pub fn product<A: Float, B: Float>(
    rows: Range<usize>,
    panels: Range<usize>,
    k: usize,
    left: Left<A>,
    right: Right<B>,
    mut sums: Sums,
) {
    if k == 0 {
        for i in 0..rows.len() {
            sums.row(i, panels.len() * LANES).fill(0.0);
        }
        return;
    }
    multiply(isa(), rows, panels, k, left, right, sums, true);
}

/// `fresh` takes the sums before the first reduction step as zero.
#[allow(clippy::too_many_arguments)]
fn multiply<A: Float, B: Float>(
    isa: Isa,
    rows: Range<usize>,
    panels: Range<usize>,
    k: usize,
    left: Left<A>,
    right: Right<B>,
    sums: Sums,
    fresh: bool,
) {
    if rows.is_empty() || panels.is_empty() || k == 0 {
        return;
    }
    let last_a = (rows.end - 1) * left.row_stride + (k - 1) * left.col_stride;
    let last_b = (panels.end - 1) * right.panel_stride + (k - 1) * right.k_stride + LANES - 1;
    let last_c = (rows.len() - 1) * sums.stride + panels.len() * LANES - 1;
    assert!(last_a < left.data.len() && last_b < right.data.len() && last_c < sums.len);

    let m = rows.len();
    let bf16 = size_of::<A>() == 2 && size_of::<B>() == 2;
    let pairs = isa == Isa::Avx512Dot && right.pairs && bf16 && left.col_stride == 1;
    debug_assert!(!right.pairs || right.k_stride == LANES);
    let steps = isa.steps(pairs);
    for k0 in (0..k).step_by(steps) {
        let kb = steps.min(k - k0);
        let mut p = 0;
        while p < panels.len() {
            let count = isa.panels(m, panels.len() - p);
            let a = rows.start * left.row_stride + k0 * left.col_stride;
            let b = (panels.start + p) * right.panel_stride + k0 * right.k_stride;
            // SAFETY: the extreme indices were checked above and every other
            // one is smaller; `isa` is this machine's or narrower.
            unsafe {
                let operands = Operands {
                    rows: m,
                    panels: count,
                    k: kb,
                    a: left.data.as_ptr().add(a),
                    row_stride: left.row_stride,
                    col_stride: left.col_stride,
                    b: right.data.as_ptr().add(b),
                    k_stride: right.k_stride,
                    panel_stride: right.panel_stride,
                    acc: sums.first.add(p * LANES),
                    acc_stride: sums.stride,
                    fresh: fresh && k0 == 0,
                    pairs,
                };
                tile::multiply(isa, &operands);
            }
            p += count;
        }
    }
}

/// One block of a product's output: some rows by some panels.
#[derive(Clone, Debug)]
pub struct Block {
    pub rows: std::ops::Range<usize>,
    pub panels: std::ops::Range<usize>,
}

impl Block {
    /// Columns; also the length of a row of a buffer for the block alone.
    pub fn stride(&self) -> usize {
        self.panels.len() * LANES
    }
}

/// Cut an output of `rows` by `panels` into blocks over the cores. For each,
/// `fill` sets sums (of whatever content) and `write` takes them away.
/// `k` is the length of the reductions, to judge the work.
pub fn blocks(
    rows: usize,
    panels: usize,
    k: usize,
    fill: impl Fn(&Block, Sums) + Sync + Send,
    write: impl Fn(&Block, &[f32]) + Sync + Send,
) {
    cut(rows, panels, PANEL_BLOCK, k, |block| {
        in_buffer(&block, &fill, &write)
    });
}

/// The same in few wide blocks, for a right operand that is row-major and
/// long: some steps of it are gone through for all panels while its pages and
/// lines are at hand.
pub fn wide_blocks(
    rows: usize,
    panels: usize,
    k: usize,
    fill: impl Fn(&Block, Sums) + Sync + Send,
    write: impl Fn(&Block, &[f32]) + Sync + Send,
) {
    let each = panels.div_ceil(2 * pool::threads());
    let each = each.next_multiple_of(PANEL_BLOCK);
    cut(rows, panels, each, k, |block| {
        in_buffer(&block, &fill, &write)
    });
}

fn in_buffer(block: &Block, fill: impl Fn(&Block, Sums), write: impl Fn(&Block, &[f32])) {
    with_buffer(block.rows.len() * block.stride(), |acc| {
        fill(block, Sums::new(acc, block.stride()));
        write(block, acc);
    });
}

/// The same where the output itself, row-major with rows of `stride` elements
/// from `at` on, holds the sums: nothing is copied.
pub fn blocks_within(
    rows: usize,
    panels: usize,
    k: usize,
    out: &pool::Shared<f32>,
    at: usize,
    stride: usize,
    fill: impl Fn(&Block, Sums) + Sync + Send,
) {
    debug_assert!(panels * LANES <= stride);
    cut(rows, panels, PANEL_BLOCK, k, |block| {
        let at = at + block.rows.start * stride + block.panels.start * LANES;
        // SAFETY: blocks do not overlap.
        fill(&block, unsafe { Sums::within(out, at, stride) });
    });
}

fn cut(rows: usize, panels: usize, each: usize, k: usize, f: impl Fn(Block) + Sync + Send) {
    if rows == 0 || panels == 0 {
        return;
    }
    let panel_blocks = panels.div_ceil(each);
    // Narrow outputs (LoRA's) are cut along the rows for everybody's sake.
    let wanted = (2 * pool::threads()).div_ceil(panel_blocks);
    let row_blocks = rows
        .div_ceil(ROW_BLOCK)
        .max(wanted.min(rows.div_ceil(FEW_ROWS)));
    // About 16 multiply-adds a nanosecond at best.
    let work = rows * panels * k.max(16);
    pool::parallel(row_blocks * panel_blocks, work, |task| {
        let (pb, rb) = (task / row_blocks, task % row_blocks);
        let block = Block {
            rows: rows * rb / row_blocks..rows * (rb + 1) / row_blocks,
            panels: panels * pb / panel_blocks..panels * (pb + 1) / panel_blocks,
        };
        f(block);
    });
}

thread_local! {
    static SCRATCH: std::cell::RefCell<Vec<Vec<f32>>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// A zeroed buffer of this thread, kept for the next call. Calls may nest.
pub fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    with_buffer(len, |buf| {
        buf.fill(0.0);
        f(buf)
    })
}

/// [`with_scratch`] with whatever the last use has left.
pub fn with_buffer<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buf = SCRATCH.with(|s| s.borrow_mut().pop()).unwrap_or_default();
    if buf.len() < len {
        buf = memory::zeroed(len.next_power_of_two());
    }
    let result = f(&mut buf[..len]);
    SCRATCH.with(|s| s.borrow_mut().push(buf));
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::simd::has_dots;
    use crate::rng::Stream;
    use half::bf16;
    use proptest::prelude::*;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut s = Stream::new(seed);
        (0..n).map(|_| s.unit() * 2.0 - 1.0).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Parity with a double-precision sum, for every tile shape.
        #[test]
        fn product_matches_f64(m in 1usize..20, panels in 1usize..6, k in 1usize..600, seed: u64) {
            let a = random(m * k, seed);
            let b = random(panels * k * LANES, seed ^ 1);
            let n = panels * LANES;
            let mut c = vec![0f32; m * n];
            accumulate(0..m, 0..panels, k, Left { data: &a, row_stride: k, col_stride: 1 },
                Right::packed(&b, k), Sums::new(&mut c, n));
            for i in 0..m {
                for j in 0..n {
                    let (p, l) = (j / LANES, j % LANES);
                    let term = |x: usize| a[i * k + x] as f64 * b[(p * k + x) * LANES + l] as f64;
                    let exact: f64 = (0..k).map(term).sum();
                    // Rounding errors of k steps add up like a random walk.
                    let size: f64 = (0..k).map(|x| term(x).abs()).sum();
                    let bound = f32::EPSILON as f64 * size * (k as f64).sqrt();
                    prop_assert!((c[i * n + j] as f64 - exact).abs() <= bound, "{} {}", c[i * n + j], exact);
                }
            }
        }

        /// A row alone has the bits it has in company, however the work is cut.
        #[test]
        fn rows_do_not_depend_on_their_neighbours(m in 1usize..40, panels in 1usize..9, k in 1usize..700, seed: u64) {
            let a: Vec<bf16> = random(m * k, seed).into_iter().map(bf16::from_f32).collect();
            let b: Vec<bf16> = random(panels * k * LANES, seed ^ 1).into_iter().map(bf16::from_f32).collect();
            let n = panels * LANES;
            let left = Left { data: &a, row_stride: k, col_stride: 1 };
            let mut all = vec![0f32; m * n];
            let out = crate::device::cpu::pool::Shared::new(&mut all);
            blocks(m, panels, k, |block, acc| {
                product(block.rows.clone(), block.panels.clone(), k, left, Right::packed(&b, k), acc);
            }, |block, acc| {
                for (r, i) in block.rows.clone().enumerate() {
                    // SAFETY: blocks are disjoint.
                    unsafe { out.slice_mut(i * n + block.panels.start * LANES, block.stride()) }
                        .copy_from_slice(&acc[r * block.stride()..][..block.stride()]);
                }
            });
            for i in 0..m {
                let mut one = vec![0f32; n];
                accumulate(i..i + 1, 0..panels, k, left, Right::packed(&b, k), Sums::new(&mut one, n));
                prop_assert_eq!(&one[..], &all[i * n..(i + 1) * n]);
            }
        }

        /// The widest tiles have the bits of the narrower ones with fused
        /// multiply-adds, for all types and strides.
        #[test]
        fn avx512_equals_avx2(m in 1usize..80, panels in 1usize..10, k in 1usize..400, seed: u64, turn in 0u8..3, packed: bool) {
            if isa() < Isa::Avx512 {
                static ONCE: std::sync::Once = std::sync::Once::new();
                ONCE.call_once(|| eprintln!("skipped: this machine has no AVX-512"));
                return Ok(());
            }
            let (a, b) = (random(2 * (m + 3) * (k + 2), seed), random((panels + 1) * k * LANES, seed ^ 1));
            let half = |v: &[f32]| -> Vec<bf16> { v.iter().map(|x| bf16::from_f32(*x)).collect() };
            let (a16, b16) = (half(&a), half(&b));
            let shape = (m, panels, k, turn, packed);
            prop_assert!(same_bits(shape, &a, &b), "f32, f32");
            prop_assert!(same_bits(shape, &a, &b16), "f32, bf16");
            prop_assert!(same_bits(shape, &a16, &b), "bf16, f32");
            prop_assert!(same_bits(shape, &a16, &b16), "bf16, bf16");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Products of bf16 in pairs: parity with a double-precision sum, and a
        /// row alone has the bits it has in company.
        #[test]
        fn pairs_match_f64(m in 1usize..80, panels in 1usize..10, k in 1usize..700, seed: u64) {
            if !has_dots() {
                static ONCE: std::sync::Once = std::sync::Once::new();
                ONCE.call_once(|| eprintln!("skipped: this machine has no AVX-512 BF16"));
                return Ok(());
            }
            let half = |v: Vec<f32>| -> Vec<bf16> { v.into_iter().map(bf16::from_f32).collect() };
            let (a, b) = (half(random(m * k, seed)), half(random(panels * k * LANES, seed ^ 1)));
            let left = Left { data: &a[..], row_stride: k, col_stride: 1 };
            let n = panels * LANES;
            let run = |rows: Range<usize>| {
                let mut out = vec![f32::NAN; rows.len() * n];
                let sums = Sums::new(&mut out, n);
                multiply(Isa::Avx512Dot, rows, 0..panels, k, left, Right::weight(&b, k), sums, true);
                out
            };
            let all = run(0..m);
            for i in 0..m {
                prop_assert_eq!(&run(i..i + 1)[..], &all[i * n..(i + 1) * n]);
                for j in 0..n {
                    let (p, l) = (j / LANES, j % LANES);
                    let term = |x: usize| a[i * k + x].to_f64() * b[(p * k + x) * LANES + l].to_f64();
                    let exact: f64 = (0..k).map(term).sum();
                    let size: f64 = (0..k).map(|x| term(x).abs()).sum();
                    let bound = f32::EPSILON as f64 * size * (k as f64).sqrt();
                    prop_assert!((all[i * n + j] as f64 - exact).abs() <= bound, "{} {}", all[i * n + j], exact);
                }
            }
        }
    }

    /// Whether AVX2 and AVX-512 agree on a product and on adding it to sums,
    /// and leave alone what lies between the rows of the output.
    fn same_bits<A: Float, B: Float>(
        (m, panels, k, turn, packed): (usize, usize, usize, u8, bool),
        a: &[A],
        b: &[B],
    ) -> bool {
        let (row_stride, col_stride) = match turn {
            0 => (k + 2, 1),
            1 => (1, m + 3),
            _ => (2 * k + 3, 2),
        };
        let left = Left {
            data: a,
            row_stride,
            col_stride,
        };
        let right = match packed {
            true => Right::packed(b, k),
            false => Right::row_major(b, (panels + 1) * LANES),
        };
        let stride = panels * LANES + 5;
        let run = |isa, fresh| {
            let mut acc = random(m * stride, 7);
            let (rows, cols) = (1..m + 1, 1..panels + 1);
            let sums = Sums::new(&mut acc, stride);
            multiply(isa, rows, cols, k, left, right, sums, fresh);
            acc.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        [true, false]
            .into_iter()
            .all(|fresh| run(Isa::Avx2, fresh) == run(Isa::Avx512, fresh))
    }
}
