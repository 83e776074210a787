//! Tiles of AVX-512 BF16: two steps of the reduction are one instruction.
//!
//! The sums differ from those of fused multiply-adds in rounding (and in that
//! denormal numbers count as zero), but an element is still one chain in the
//! order of k, whichever tile takes it.

use std::arch::x86_64::*;
use std::array::from_fn;
use std::hint::black_box;
use std::mem::MaybeUninit;

use super::{MOST_PAIRED, Operands};
use crate::device::cpu::gemm::LANES;

/// Rows of the largest tile.
const MOST_ROWS: usize = 8;
/// Panels of the largest.
const MOST_PANELS: usize = 4;
/// Pairs of steps from what is multiplied to what is fetched into the caches.
const AHEAD: usize = 32;
/// Rows of a product from which a copy of the right operand in pairs pays.
const COPY_ROWS: usize = 33;
/// Elements of a pair of steps over a panel: a register.
const PAIR: usize = 2 * LANES;

/// Both operands are bf16, by their bits.
type Dots = Operands<u16, u16>;

/// # Safety
/// As [`super::multiply`], on a machine with AVX-512 F, BW, VL and BF16; left
/// rows lie along memory, and a panel's steps one behind another.
pub(super) unsafe fn multiply(o: &Dots) {
    debug_assert!(o.k <= MOST_PAIRED && o.panels <= MOST_PANELS);
    debug_assert!(o.col_stride == 1 && o.k_stride == LANES);
    // SAFETY: as promised by the caller.
    unsafe {
        if o.rows >= COPY_ROWS {
            right_in_pairs(o);
        } else {
            tiles::<false>(o, true);
        }
    }
}

/// The product over a copy of its right operand whose pairs need no shuffling,
/// and whose last step, if it has no other, is paired with zeros.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn right_in_pairs(o: &Dots) {
    let mut copy = [const { MaybeUninit::<u16>::uninit() }; MOST_PANELS * LANES * MOST_PAIRED];
    let to: *mut u16 = copy.as_mut_ptr().cast();
    let panel_stride = o.k.next_multiple_of(2) * LANES;
    // SAFETY: reads are in bounds by the caller's promise, as are the numbers
    // of panels and steps, by which the writes are.
    unsafe {
        for p in 0..o.panels {
            let (from, to) = (o.b.add(p * o.panel_stride), to.add(p * panel_stride));
            for pair in 0..o.k / 2 {
                let from = from.add(pair * PAIR);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD * PAIR).cast());
                _mm512_storeu_si512(to.add(pair * PAIR).cast(), interleaved(from));
            }
            if o.k % 2 == 1 {
                let at = o.k / 2 * PAIR;
                _mm512_storeu_si512(to.add(at).cast(), alone(from.add(at)));
            }
        }
        let paired = Operands {
            b: to.cast_const(),
            panel_stride,
            ..*o
        };
        tiles::<true>(&paired, false);
    }
}

/// # Safety
/// As [`multiply`]; the right operand is a copy in pairs if `PAIRED`.
unsafe fn tiles<const PAIRED: bool>(o: &Dots, fetch: bool) {
    let most = if o.panels == 4 { 6 } else { MOST_ROWS };
    macro_rules! call {
        ($piece:ident, $fetch:literal: $(($m:literal, $p:literal)),*) => {
            match ($piece.rows, $piece.panels) {
                // SAFETY: as promised by the caller.
                $(($m, $p) => unsafe { sums::<$m, $p, PAIRED, $fetch>($piece) },)*
                _ => unreachable!("no tile of {} rows by {} panels", $piece.rows, $piece.panels),
            }
        };
        ($piece:ident, $fetch:literal) => {
            call!($piece, $fetch: (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1),
                (1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (6, 2), (7, 2), (8, 2),
                (1, 4), (2, 4), (3, 4), (4, 4), (5, 4), (6, 4))
        };
    }
    o.cut(most, |piece| {
        if fetch && piece.acc == o.acc {
            call!(piece, true)
        } else {
            call!(piece, false)
        }
    });
}

/// # Safety
/// As [`tiles`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn sums<const M: usize, const P: usize, const PAIRED: bool, const FETCH: bool>(o: &Dots) {
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
        // See the tiles of multiply-adds for why pointers are kept apart.
        let rows: [*const u16; M] = black_box(from_fn(|i| o.a.wrapping_add(i * o.row_stride)));
        let panels: [*const u16; P] = black_box(from_fn(|p| o.b.wrapping_add(p * o.panel_stride)));
        let (mut at, mut from) = (0, 0);
        for _ in 0..o.k / 2 {
            let mut right = [_mm512_setzero_si512(); P];
            for (v, panel) in right.iter_mut().zip(panels) {
                let at = panel.wrapping_add(from);
                if FETCH {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * PAIR).cast());
                }
                *v = if PAIRED {
                    _mm512_loadu_si512(at.cast())
                } else {
                    interleaved(at)
                };
            }
            for (row, left) in c.iter_mut().zip(rows) {
                let x = left.wrapping_add(at).cast::<i32>().read_unaligned();
                add(row, x, &right);
            }
            at += 2;
            from += PAIR;
        }
        if o.k % 2 == 1 {
            let mut right = [_mm512_setzero_si512(); P];
            for (v, panel) in right.iter_mut().zip(panels) {
                let at = panel.wrapping_add(from);
                *v = if PAIRED {
                    _mm512_loadu_si512(at.cast())
                } else {
                    alone(at)
                };
            }
            for (row, left) in c.iter_mut().zip(rows) {
                add(row, i32::from(*left.wrapping_add(at)), &right);
            }
        }
        for (i, row) in c.iter().enumerate() {
            for (p, v) in row.iter().enumerate() {
                _mm512_storeu_ps(o.acc.add(i * o.acc_stride + p * LANES), *v);
            }
        }
    }
}

/// Add a pair of left elements times the panels' pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn add<const P: usize>(sums: &mut [__m512; P], left: i32, right: &[__m512i; P]) {
    // SAFETY: both are 32 bf16 in 512 bits.
    let bf16 = |v: __m512i| -> __m512bh { unsafe { std::mem::transmute(v) } };
    let x = bf16(_mm512_set1_epi32(left));
    for (sum, right) in sums.iter_mut().zip(right) {
        *sum = _mm512_dpbf16_ps(*sum, x, bf16(*right));
    }
}

/// Two steps of a panel, one behind the other, as pairs.
///
/// # Safety
/// [`PAIR`] elements are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn interleaved(p: *const u16) -> __m512i {
    const ORDER: [u16; PAIR] = {
        let mut order = [0; PAIR];
        let mut i = 0;
        while i < PAIR {
            order[i] = (i / 2 + i % 2 * LANES) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: by the caller's promise; the order fills a register.
    unsafe {
        let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
        _mm512_permutexvar_epi16(order, _mm512_loadu_si512(p.cast()))
    }
}

/// One step of a panel, paired with zeros.
///
/// # Safety
/// [`LANES`] elements are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn alone(p: *const u16) -> __m512i {
    // SAFETY: by the caller's promise.
    _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(p.cast()) })
}
