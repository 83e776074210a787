//! Tiles of AVX-512: a panel's step of the reduction is one register.

use std::arch::x86_64::*;
use std::array::from_fn;
use std::hint::black_box;
use std::mem::MaybeUninit;

use super::{MOST_STEPS, Operands};
use crate::device::Float;
use crate::device::cpu::gemm::LANES;

/// Rows of the largest tile.
const MOST_ROWS: usize = 8;
/// Panels of the largest.
const MOST_PANELS: usize = 4;
/// Steps from what is multiplied to what is fetched into the caches: the
/// hardware's own prefetching stops at each page.
const AHEAD: usize = 32;
/// Elements ahead of what is read of a left row that is fetched where a tile
/// has one panel: such products (LoRA's shrinks) read much and compute little.
const AHEAD_LEFT: usize = 8 * LANES;
/// Rows of a product from which a copy of a bf16 right operand in f32 pays.
const WIDEN_ROWS: usize = 33;

/// Rows of the largest tile over `panels` panels: the sums take at most 24 of
/// the 32 registers.
fn most_rows(panels: usize) -> usize {
    if panels == 4 { 6 } else { MOST_ROWS }
}

/// # Safety
/// As [`super::multiply`], on a machine with AVX-512 F, BW and VL.
pub(super) unsafe fn multiply<A: Float, B: Float>(o: &Operands<A, B>) {
    debug_assert!(o.k <= MOST_STEPS && o.panels <= MOST_PANELS);
    // SAFETY: as promised by the caller.
    unsafe {
        if size_of::<B>() == 2 && o.rows >= WIDEN_ROWS {
            right_widened(o);
        } else {
            tiles(o, true);
        }
    }
}

/// The product over a copy of its right operand in f32, where several tiles
/// would widen the same elements on the ports of the multiply-adds.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn right_widened<A: Float, B: Float>(o: &Operands<A, B>) {
    const STEP: usize = MOST_PANELS * LANES;
    let mut copy = [const { MaybeUninit::<f32>::uninit() }; STEP * MOST_STEPS];
    let to: *mut f32 = copy.as_mut_ptr().cast();
    // SAFETY: reads are in bounds by the caller's promise, as are the numbers
    // of panels and steps, by which the writes are.
    unsafe {
        for k in 0..o.k {
            for p in 0..o.panels {
                let from = o.b.add(p * o.panel_stride + k * o.k_stride);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD * o.k_stride).cast());
                _mm512_storeu_ps(to.add(k * STEP + p * LANES), load(from));
            }
        }
        let wide = Operands {
            rows: o.rows,
            panels: o.panels,
            k: o.k,
            a: o.a,
            row_stride: o.row_stride,
            col_stride: o.col_stride,
            b: to.cast_const(),
            k_stride: STEP,
            panel_stride: LANES,
            acc: o.acc,
            acc_stride: o.acc_stride,
            fresh: o.fresh,
            pairs: false,
        };
        tiles(&wide, false);
    }
}

/// One tile after another; with `fetch` the first brings what is ahead of the
/// right operand into the caches, where the others then find it.
///
/// # Safety
/// As [`multiply`].
unsafe fn tiles<A: Float, B: Float>(o: &Operands<A, B>, fetch: bool) {
    o.cut(most_rows(o.panels), |piece| {
        let fetch = fetch && piece.acc == o.acc;
        // SAFETY: as promised by the caller.
        unsafe {
            if size_of::<A>() == 4 && (o.col_stride == 1 || o.row_stride == 1) {
                // f32 is the only float of four bytes.
                let left = o.with_left(piece.a.cast(), o.row_stride, o.col_stride);
                tile(
                    &Operands {
                        rows: piece.rows,
                        acc: piece.acc,
                        ..left
                    },
                    fetch,
                );
            } else {
                left_widened(piece, fetch);
            }
        }
    });
}

/// The tile over a copy of its left operand in f32: a broadcast of f32 is a
/// load, that of bf16 takes the port of the multiply-adds.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn left_widened<A: Float, B: Float>(o: &Operands<A, B>, fetch: bool) {
    let mut copy = [const { MaybeUninit::<f32>::uninit() }; MOST_ROWS * MOST_STEPS];
    let to: *mut f32 = copy.as_mut_ptr().cast();
    // SAFETY: reads are in bounds by the caller's promise, as are rows and k,
    // by which the writes are.
    unsafe {
        if o.col_stride != 1 && o.row_stride == 1 && size_of::<A>() == 2 {
            let lanes = (1u16 << o.rows) - 1;
            for k in 0..o.k {
                let from = o.a.add(k * o.col_stride).cast();
                let half = _mm_maskz_loadu_epi16(lanes as u8, from);
                let wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
                _mm256_storeu_ps(to.add(k * MOST_ROWS), _mm256_castsi256_ps(wide));
            }
            return tile(&o.with_left(to, 1, MOST_ROWS), fetch);
        }
        for i in 0..o.rows {
            let (from, to) = (o.a.add(i * o.row_stride), to.add(i * MOST_STEPS));
            let mut k = 0;
            if o.col_stride == 1 {
                while k + LANES <= o.k {
                    _mm512_storeu_ps(to.add(k), load(from.add(k)));
                    k += LANES;
                }
            }
            while k < o.k {
                *to.add(k) = (*from.add(k * o.col_stride)).to_f32();
                k += 1;
            }
        }
        tile(&o.with_left(to, MOST_STEPS, 1), fetch);
    }
}

/// # Safety
/// As [`multiply`]; one of the left strides is 1.
#[inline(always)]
unsafe fn tile<B: Float>(o: &Operands<f32, B>, fetch: bool) {
    macro_rules! call {
        ($turned:literal, $fetch:literal: $(($m:literal, $p:literal)),*) => {
            // SAFETY: as promised by the caller.
            unsafe {
                match (o.rows, o.panels) {
                    $(($m, $p) => sums::<B, $m, $p, $turned, $fetch>(o),)*
                    _ => unreachable!("no tile of {} rows by {} panels", o.rows, o.panels),
                }
            }
        };
        ($turned:literal, $fetch:literal) => {
            call!($turned, $fetch: (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1),
                (1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (6, 2), (7, 2), (8, 2),
                (1, 4), (2, 4), (3, 4), (4, 4), (5, 4), (6, 4))
        };
    }
    match (o.col_stride == 1, fetch) {
        (true, true) => call!(false, true),
        (true, false) => call!(false, false),
        (false, true) => call!(true, true),
        (false, false) => call!(true, false),
    }
}

/// # Safety
/// As [`multiply`]; the left rows lie along memory, the left columns if `TURNED`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn sums<B: Float, const M: usize, const P: usize, const TURNED: bool, const FETCH: bool>(
    o: &Operands<f32, B>,
) {
    // SAFETY: in bounds by the caller's promise.
    unsafe {
        let mut c = [[_mm512_setzero_ps(); P]; M];
        if !o.fresh {
            for (i, row) in c.iter_mut().enumerate() {
                for (p, v) in row.iter_mut().enumerate() {
                    *v = _mm512_loadu_ps(o.acc.add(i * o.acc_stride + p * LANES));
                }
            }
        }
        // One pointer per row and per panel, which the optimiser must not
        // derive from each other, and a running offset for all of each side.
        // Not unrolled: the steps' loads would be moved together, and the
        // sums out of the registers.
        let rows: [*const f32; M] = black_box(from_fn(|i| o.a.wrapping_add(i * o.row_stride)));
        let panels: [*const B; P] = black_box(from_fn(|p| o.b.wrapping_add(p * o.panel_stride)));
        let (mut at, mut from) = (0, 0);
        for _ in 0..o.k {
            if P == 1 && !TURNED && at % LANES == 0 {
                // Behind a row's end the same row of the tile that comes next.
                let ahead = at + AHEAD_LEFT;
                let on = match ahead < o.k {
                    true => ahead,
                    false => M * o.row_stride + ahead - o.k,
                };
                for row in rows {
                    _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(on).cast());
                }
            }
            let mut right = [_mm512_setzero_ps(); P];
            for (v, panel) in right.iter_mut().zip(panels) {
                let at = panel.wrapping_add(from);
                if FETCH {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * o.k_stride).cast());
                }
                *v = load(at);
            }
            for (i, row) in c.iter_mut().enumerate() {
                let x = if TURNED {
                    o.a.wrapping_add(at + i)
                } else {
                    rows[i].wrapping_add(at)
                };
                let x = _mm512_set1_ps(*x);
                for (v, right) in row.iter_mut().zip(right) {
                    *v = _mm512_fmadd_ps(x, right, *v);
                }
            }
            at += if TURNED { o.col_stride } else { 1 };
            from += o.k_stride;
        }
        for (i, row) in c.iter().enumerate() {
            for (p, v) in row.iter().enumerate() {
                _mm512_storeu_ps(o.acc.add(i * o.acc_stride + p * LANES), *v);
            }
        }
    }
}

/// A panel's elements at one step, as f32.
///
/// # Safety
/// [`LANES`] elements are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load<B: Float>(p: *const B) -> __m512 {
    // SAFETY: by the caller's promise; the type is told by its size (f32 or
    // bf16 are the only floats here).
    unsafe {
        if size_of::<B>() == 4 {
            _mm512_loadu_ps(p.cast())
        } else {
            let half = _mm256_loadu_si256(p.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))
        }
    }
}
