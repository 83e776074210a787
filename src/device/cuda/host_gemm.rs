//! The base product on the CPU, for the emulator.

use half::bf16;

use super::driver::Gemm;
use crate::device::Float;
use crate::device::cpu::gemm::{self, LANES, Left, Right};

/// C (+)= op(A) op(B) with sums in f32 in order of k.
///
/// # Safety
/// The operands' ranges are readable, C's is writable and overlaps neither.
pub unsafe fn host_gemm(g: &Gemm) {
    let element = |base: u64, i: usize| -> f32 {
        // SAFETY: within the operand's range, as the caller promises.
        Float::to_f32(unsafe { (base as *const bf16).add(i).read() })
    };
    let a: Vec<f32> = (0..g.m * g.k)
        .map(|i| {
            let (row, k) = (i / g.k, i % g.k);
            match g.transpose_a {
                true => element(g.a, k * g.lda + row),
                false => element(g.a, row * g.lda + k),
            }
        })
        .collect();
    let panels = g.n.div_ceil(LANES);
    let mut b = vec![0f32; panels * g.k * LANES];
    for k in 0..g.k {
        for j in 0..g.n {
            b[((j / LANES) * g.k + k) * LANES + j % LANES] = match g.transpose_b {
                true => element(g.b, j * g.ldb + k),
                false => element(g.b, k * g.ldb + j),
            };
        }
    }
    let left = Left {
        data: &a[..],
        row_stride: g.k,
        col_stride: 1,
    };
    let c = g.c;
    gemm::blocks(
        g.m,
        panels,
        g.k,
        |block, sums| {
            let (rows, panels) = (block.rows.clone(), block.panels.clone());
            gemm::product(rows, panels, g.k, left, Right::packed(&b, g.k), sums);
        },
        |block, acc| {
            let first = block.panels.start * LANES;
            let width = block.stride().min(g.n - first);
            for (i, row) in block.rows.clone().enumerate() {
                for (j, &sum) in acc[i * block.stride()..][..width].iter().enumerate() {
                    let at = row * g.ldc + first + j;
                    // SAFETY: blocks do not overlap, and C is the caller's.
                    unsafe {
                        if g.c_f32 {
                            let to = (c as *mut f32).add(at);
                            to.write(if g.accumulate { to.read() + sum } else { sum });
                        } else {
                            let to = (c as *mut bf16).add(at);
                            let before = if g.accumulate {
                                Float::to_f32(to.read())
                            } else {
                                0.0
                            };
                            to.write(<bf16 as Float>::from_f32(before + sum));
                        }
                    }
                }
            }
        },
    );
}
