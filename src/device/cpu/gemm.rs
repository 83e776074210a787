//! Matrix products with one reduction order.
//!
//! C[i, j] = sum over k, in order, of A[i, k] * B[k, j], one fused
//! multiply-add after another. How many rows are computed together, how the
//! work is cut over threads and where partial sums rest in between change no
//! bit. Everything that multiplies on the CPU comes through [`Product`]:
//! linear layers, attention and gradients.

use std::ops::Range;

use crate::device::Float;
use crate::device::cpu::pool;
use crate::device::cpu::simd::has_avx2;

/// Columns of a panel: two AVX2 registers.
pub const LANES: usize = 16;
/// Rows of the largest register tile.
const TILE_ROWS: usize = 6;
/// Reduction steps between rests of the partial sums, so that a panel's share
/// stays in the first-level cache.
const K_BLOCK: usize = 256;
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
}

impl<'a, T> Right<'a, T> {
    /// Panels packed one after another, each `[k, LANES]`.
    pub fn packed(data: &'a [T], k: usize) -> Self {
        Right {
            data,
            panel_stride: k * LANES,
            k_stride: LANES,
        }
    }

    /// A row-major matrix whose row length is a multiple of [`LANES`].
    pub fn row_major(data: &'a [T], row: usize) -> Self {
        debug_assert!(row.is_multiple_of(LANES));
        Right {
            data,
            panel_stride: LANES,
            k_stride: row,
        }
    }
}

/// acc[i, p * LANES + j] += sum_k left[i, k] * right[panels.start + p][k, j]
/// for `rows` rows; `acc` is row-major with rows of `acc_stride`.
pub fn accumulate<A: Float, B: Float>(
    rows: Range<usize>,
    panels: Range<usize>,
    k: usize,
    left: Left<A>,
    right: Right<B>,
    acc: &mut [f32],
    acc_stride: usize,
) {
    multiply(rows, panels, k, left, right, acc, acc_stride, false);
}

/// The same with `=` for `+=`, which saves clearing and loading `acc`. Its
/// bits are those of [`accumulate`] into zeros.
pub fn product<A: Float, B: Float>(
    rows: Range<usize>,
    panels: Range<usize>,
    k: usize,
    left: Left<A>,
    right: Right<B>,
    acc: &mut [f32],
    acc_stride: usize,
) {
    if k == 0 {
        for row in acc.chunks_mut(acc_stride.max(1)).take(rows.len()) {
            row[..panels.len() * LANES].fill(0.0);
        }
        return;
    }
    multiply(rows, panels, k, left, right, acc, acc_stride, true);
}

/// `fresh` takes the sums before the first reduction step as zero.
#[allow(clippy::too_many_arguments)]
fn multiply<A: Float, B: Float>(
    rows: Range<usize>,
    panels: Range<usize>,
    k: usize,
    left: Left<A>,
    right: Right<B>,
    acc: &mut [f32],
    acc_stride: usize,
    fresh: bool,
) {
    if rows.is_empty() || panels.is_empty() || k == 0 {
        return;
    }
    let last_a = (rows.end - 1) * left.row_stride + (k - 1) * left.col_stride;
    let last_b = (panels.end - 1) * right.panel_stride + (k - 1) * right.k_stride + LANES - 1;
    let last_c = (rows.len() - 1) * acc_stride + panels.len() * LANES - 1;
    assert!(last_a < left.data.len() && last_b < right.data.len() && last_c < acc.len());

    let m = rows.len();
    let tiles = m.div_ceil(TILE_ROWS);
    let wide = has_avx2();
    for k0 in (0..k).step_by(K_BLOCK) {
        let kb = K_BLOCK.min(k - k0);
        let mut p = 0;
        while p < panels.len() {
            // Few rows leave registers free: take several panels at once.
            let most = match m {
                1 => 4,
                2 | 3 => 2,
                _ => 1,
            };
            let count = if panels.len() - p >= most { most } else { 1 };
            let b = (panels.start + p) * right.panel_stride + k0 * right.k_stride;
            for t in 0..tiles {
                let (i0, i1) = (m * t / tiles, m * (t + 1) / tiles);
                let a = (rows.start + i0) * left.row_stride + k0 * left.col_stride;
                let c = i0 * acc_stride + p * LANES;
                // SAFETY: the extreme indices were checked above and every
                // other one is smaller; AVX2 where detected.
                unsafe {
                    let operands = Operands {
                        k: kb,
                        a: left.data.as_ptr().add(a),
                        row_stride: left.row_stride,
                        col_stride: left.col_stride,
                        b: right.data.as_ptr().add(b),
                        k_stride: right.k_stride,
                        panel_stride: right.panel_stride,
                        acc: acc.as_mut_ptr().add(c),
                        acc_stride,
                        fresh: fresh && k0 == 0,
                    };
                    tile(i1 - i0, count, wide, &operands);
                }
            }
            p += count;
        }
    }
}

/// What one register tile multiplies; strides in elements.
struct Operands<A, B> {
    k: usize,
    a: *const A,
    row_stride: usize,
    col_stride: usize,
    b: *const B,
    k_stride: usize,
    panel_stride: usize,
    acc: *mut f32,
    acc_stride: usize,
    fresh: bool,
}

/// One block of a product's output: some rows by some panels.
#[derive(Clone, Debug)]
pub struct Block {
    pub rows: std::ops::Range<usize>,
    pub panels: std::ops::Range<usize>,
}

impl Block {
    /// Length of a row of the block's accumulator.
    pub fn stride(&self) -> usize {
        self.panels.len() * LANES
    }
}

/// Cut an output of `rows` by `panels` into blocks over the cores. For each,
/// `fill` sets an accumulator (of whatever content) and `write` takes it away.
/// `k` is the length of the reductions, to judge the work.
pub fn blocks(
    rows: usize,
    panels: usize,
    k: usize,
    fill: impl Fn(&Block, &mut [f32]) + Sync + Send,
    write: impl Fn(&Block, &[f32]) + Sync + Send,
) {
    if rows == 0 || panels == 0 {
        return;
    }
    let panel_blocks = panels.div_ceil(PANEL_BLOCK);
    // Narrow outputs (LoRA's) are cut along the rows for everybody's sake.
    let wanted = (2 * pool::threads()).div_ceil(panel_blocks);
    let row_blocks = rows
        .div_ceil(ROW_BLOCK)
        .max(wanted.min(rows.div_ceil(2 * TILE_ROWS)));
    // About 16 multiply-adds a nanosecond at best.
    let work = rows * panels * k.max(16);
    pool::parallel(row_blocks * panel_blocks, work, |task| {
        let (pb, rb) = (task / row_blocks, task % row_blocks);
        let block = Block {
            rows: rows * rb / row_blocks..rows * (rb + 1) / row_blocks,
            panels: panels * pb / panel_blocks..panels * (pb + 1) / panel_blocks,
        };
        with_buffer(block.rows.len() * block.stride(), |acc| {
            fill(&block, acc);
            write(&block, acc);
        });
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
        buf = vec![0.0; len.next_power_of_two()];
    }
    let result = f(&mut buf[..len]);
    SCRATCH.with(|s| s.borrow_mut().push(buf));
    result
}

/// # Safety
/// All elements that the strides reach for `m` rows, `panels` panels and `k`
/// steps must lie in the operands; `acc` must be writable; `wide` only with
/// AVX2 and FMA.
unsafe fn tile<A: Float, B: Float>(m: usize, panels: usize, wide: bool, o: &Operands<A, B>) {
    macro_rules! call {
        ($f:ident $(, $side:ident)?) => {
            // SAFETY: as promised by the caller.
            unsafe {
                match (m, panels) {
                    (1, 4) => $f::<A, B, 1, 4 $(, $side)?>(o),
                    (1, _) => $f::<A, B, 1, 1 $(, $side)?>(o),
                    (2, 2) => $f::<A, B, 2, 2 $(, $side)?>(o),
                    (2, _) => $f::<A, B, 2, 1 $(, $side)?>(o),
                    (3, 2) => $f::<A, B, 3, 2 $(, $side)?>(o),
                    (3, _) => $f::<A, B, 3, 1 $(, $side)?>(o),
                    (4, _) => $f::<A, B, 4, 1 $(, $side)?>(o),
                    (5, _) => $f::<A, B, 5, 1 $(, $side)?>(o),
                    _ => $f::<A, B, 6, 1 $(, $side)?>(o),
                }
            }
        };
    }
    #[cfg(target_arch = "x86_64")]
    if wide {
        if o.col_stride == 1 {
            call!(tile_avx2, ALONG_ROWS);
        } else if o.row_stride == 1 {
            call!(tile_avx2, ALONG_COLUMNS);
        } else {
            call!(tile_avx2, STRIDED);
        }
        return;
    }
    let _ = wide;
    call!(tile_portable);
}

/// The definition: what `tile_avx2` does in registers, without fused
/// multiply-adds (a machine without FMA would emulate each in software).
unsafe fn tile_portable<A: Float, B: Float, const M: usize, const P: usize>(o: &Operands<A, B>) {
    for p in 0..P {
        for i in 0..M {
            // SAFETY: in bounds by the caller's promise.
            unsafe {
                let c = &mut *o
                    .acc
                    .add(i * o.acc_stride + p * LANES)
                    .cast::<[f32; LANES]>();
                if o.fresh {
                    *c = [0.0; LANES];
                }
                for k in 0..o.k {
                    let x = (*o.a.add(i * o.row_stride + k * o.col_stride)).to_f32();
                    let row = &*o
                        .b
                        .add(p * o.panel_stride + k * o.k_stride)
                        .cast::<[B; LANES]>();
                    for j in 0..LANES {
                        c[j] += x * row[j].to_f32();
                    }
                }
            }
        }
    }
}

/// Which elements of a left operand lie side by side, if any.
const ALONG_ROWS: u8 = 0;
const ALONG_COLUMNS: u8 = 1;
const STRIDED: u8 = 2;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_avx2<A: Float, B: Float, const M: usize, const P: usize, const SIDE: u8>(
    o: &Operands<A, B>,
) {
    use std::arch::x86_64::*;
    use std::array::from_fn;
    use std::hint::black_box;
    // SAFETY: in bounds by the caller's promise.
    unsafe {
        let mut c = [[[_mm256_setzero_ps(); 2]; P]; M];
        if !o.fresh {
            for (i, row) in c.iter_mut().enumerate() {
                for (p, pair) in row.iter_mut().enumerate() {
                    for (h, v) in pair.iter_mut().enumerate() {
                        *v = _mm256_loadu_ps(o.acc.add(i * o.acc_stride + p * LANES + h * 8));
                    }
                }
            }
        }
        // One step of the reduction: left elements by row, right panels.
        macro_rules! step {
            ($left:expr, $b:expr) => {
                let mut right = [[_mm256_setzero_ps(); 2]; P];
                for (p, pair) in right.iter_mut().enumerate() {
                    for (h, v) in pair.iter_mut().enumerate() {
                        *v = load8($b[p].add(h * 8));
                    }
                }
                for (i, row) in c.iter_mut().enumerate() {
                    let element: *const A = $left(i);
                    let x = _mm256_set1_ps((*element).to_f32());
                    for (p, pair) in row.iter_mut().enumerate() {
                        for (h, v) in pair.iter_mut().enumerate() {
                            *v = _mm256_fmadd_ps(x, right[p][h], *v);
                        }
                    }
                }
                $b.iter_mut().for_each(|p| *p = p.add(o.k_stride));
            };
        }
        // One pointer per row and per panel, which the optimiser must not
        // derive from each other: it would chain their additions, and the
        // chain would take longer than the multiply-adds.
        let mut b: [*const B; P] = black_box(from_fn(|p| o.b.add(p * o.panel_stride)));
        match SIDE {
            ALONG_ROWS => {
                let mut a: [*const A; M] = black_box(from_fn(|i| o.a.add(i * o.row_stride)));
                for _ in 0..o.k / 4 {
                    for u in 0..4 {
                        step!(|i: usize| a[i].add(u), b);
                    }
                    a.iter_mut().for_each(|p| *p = p.add(4));
                }
                for u in 0..o.k % 4 {
                    step!(|i: usize| a[i].add(u), b);
                }
            }
            ALONG_COLUMNS => {
                let mut a = o.a;
                for _ in 0..o.k {
                    step!(|i: usize| a.add(i), b);
                    a = a.wrapping_add(o.col_stride);
                }
            }
            _ => {
                for k in 0..o.k {
                    step!(|i: usize| o.a.add(i * o.row_stride + k * o.col_stride), b);
                }
            }
        }
        for (i, row) in c.iter().enumerate() {
            for (p, pair) in row.iter().enumerate() {
                for (h, v) in pair.iter().enumerate() {
                    _mm256_storeu_ps(o.acc.add(i * o.acc_stride + p * LANES + h * 8), *v);
                }
            }
        }
    }
}

/// Eight elements as f32.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn load8<B: Float>(p: *const B) -> std::arch::x86_64::__m256 {
    use std::arch::x86_64::*;
    // SAFETY: eight elements are readable by the caller's promise; the type
    // is told by its size (f32 or bf16 are the only floats here).
    unsafe {
        if size_of::<B>() == 4 {
            _mm256_loadu_ps(p.cast())
        } else {
            let half = _mm_loadu_si128(p.cast());
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
                Right::packed(&b, k), &mut c, n);
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
                product(block.rows.clone(), block.panels.clone(), k, left, Right::packed(&b, k), acc, block.stride());
            }, |block, acc| {
                for (r, i) in block.rows.clone().enumerate() {
                    // SAFETY: blocks are disjoint.
                    unsafe { out.slice_mut(i * n + block.panels.start * LANES, block.stride()) }
                        .copy_from_slice(&acc[r * block.stride()..][..block.stride()]);
                }
            });
            for i in 0..m {
                let mut one = vec![0f32; n];
                accumulate(i..i + 1, 0..panels, k, left, Right::packed(&b, k), &mut one, n);
                prop_assert_eq!(&one[..], &all[i * n..(i + 1) * n]);
            }
        }
    }
}
