//! Register tiles: a few rows by a few panels of a product's output, whose sums
//! stay in registers over a block of the reduction.
//!
//! However wide the registers, an element of the output is one chain of fused
//! multiply-adds in the order of k, so all tiles with fused multiply-adds give
//! the same bits, whichever of them takes an element.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod dot;

use crate::device::Float;
use crate::device::cpu::gemm::LANES;
use crate::device::cpu::simd::Isa;

/// A product of as many panels as a tile may have, over as many steps; strides
/// in elements.
pub(super) struct Operands<A, B> {
    pub rows: usize,
    pub panels: usize,
    pub k: usize,
    pub a: *const A,
    pub row_stride: usize,
    pub col_stride: usize,
    pub b: *const B,
    pub k_stride: usize,
    pub panel_stride: usize,
    pub acc: *mut f32,
    pub acc_stride: usize,
    pub fresh: bool,
    /// bf16 by bf16, two steps at a time; left rows and right steps lie side
    /// by side.
    pub pairs: bool,
}

impl<A, B> Operands<A, B> {
    /// Call `f` on pieces of about the same number of rows, `most` at most.
    #[inline(always)]
    fn cut(&self, most: usize, f: impl Fn(&Self)) {
        let tiles = self.rows.div_ceil(most);
        for t in 0..tiles {
            let (first, end) = (self.rows * t / tiles, self.rows * (t + 1) / tiles);
            f(&Operands {
                rows: end - first,
                a: self.a.wrapping_add(first * self.row_stride),
                acc: self.acc.wrapping_add(first * self.acc_stride),
                ..*self
            });
        }
    }

    /// The same elements under another type's name.
    #[cfg(target_arch = "x86_64")]
    fn cast<T>(&self) -> Operands<T, T> {
        Operands {
            rows: self.rows,
            panels: self.panels,
            k: self.k,
            a: self.a.cast(),
            row_stride: self.row_stride,
            col_stride: self.col_stride,
            b: self.b.cast(),
            k_stride: self.k_stride,
            panel_stride: self.panel_stride,
            acc: self.acc,
            acc_stride: self.acc_stride,
            fresh: self.fresh,
            pairs: self.pairs,
        }
    }

    /// The same with another left operand.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn with_left<L>(&self, a: *const L, row_stride: usize, col_stride: usize) -> Operands<L, B> {
        Operands {
            rows: self.rows,
            panels: self.panels,
            k: self.k,
            a,
            row_stride,
            col_stride,
            b: self.b,
            k_stride: self.k_stride,
            panel_stride: self.panel_stride,
            acc: self.acc,
            acc_stride: self.acc_stride,
            fresh: self.fresh,
            pairs: self.pairs,
        }
    }
}

/// Most reduction steps of a tile of AVX-512, and of one that takes pairs.
#[cfg(target_arch = "x86_64")]
const MOST_STEPS: usize = 128;
#[cfg(target_arch = "x86_64")]
const MOST_PAIRED: usize = 256;

impl Isa {
    /// Reduction steps between rests of the partial sums, so that the share of
    /// a tile's panels stays in the first-level cache.
    pub(super) fn steps(self, pairs: bool) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            _ if pairs => MOST_PAIRED,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Dot => MOST_STEPS,
            _ => 256,
        }
    }

    /// Panels that the tiles of a product of `rows` rows take at once, where
    /// `left` are still to be done.
    pub(super) fn panels(self, rows: usize, left: usize) -> usize {
        let most = match (self, rows) {
            // Loads of left elements are then few beside the multiply-adds.
            (Isa::Avx512 | Isa::Avx512Dot, _) => return [0, 1, 2, 2, 4][left.min(4)],
            // Few rows leave registers free.
            (_, 1) => 4,
            (_, 2 | 3) => 2,
            _ => 1,
        };
        if left >= most { most } else { 1 }
    }
}

/// # Safety
/// All elements that the strides reach must lie in the operands; `acc` must be
/// writable; panels and steps as `isa` gave them, and `isa` no wider than the
/// machine's.
pub(super) unsafe fn multiply<A: Float, B: Float>(isa: Isa, o: &Operands<A, B>) {
    // SAFETY: as promised by the caller.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if o.pairs {
            // Both are bf16, as the flag says.
            return dot::multiply(&o.cast());
        }
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512 {
            return avx512::multiply(o);
        }
        o.cut(TILE_ROWS, |o| tile(isa, o));
    }
}

/// Rows of the largest tile of AVX2.
const TILE_ROWS: usize = 6;

/// # Safety
/// As [`multiply`], without AVX-512.
unsafe fn tile<A: Float, B: Float>(isa: Isa, o: &Operands<A, B>) {
    macro_rules! call {
        ($f:ident $(, $side:ident)?) => {
            // SAFETY: as promised by the caller.
            unsafe {
                match (o.rows, o.panels) {
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
    if isa == Isa::Avx2 {
        if o.col_stride == 1 {
            call!(tile_avx2, ALONG_ROWS);
        } else if o.row_stride == 1 {
            call!(tile_avx2, ALONG_COLUMNS);
        } else {
            call!(tile_avx2, STRIDED);
        }
        return;
    }
    let _ = isa;
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
