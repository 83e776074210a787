//! Run-time choice of instruction set for plain loops, and the elementary
//! functions those loops use.
//!
//! The functions are made of single IEEE operations in a fixed order (Rust
//! never fuses a multiply and an add by itself), so their bits are the same on
//! every machine and width.

/// Instruction sets that matrix products are written for, narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    Portable,
    Avx2,
    Avx512,
    /// AVX-512 whose dot products of bf16 pairs are faster than multiply-adds.
    Avx512Dot,
}

/// The widest that this machine has.
#[inline(always)]
pub fn isa() -> Isa {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        return if !has_avx512() {
            Isa::Avx2
        } else if has_fast_dots() {
            Isa::Avx512Dot
        } else {
            Isa::Avx512
        };
    }
    Isa::Portable
}

/// True where `vdpbf16ps` does more multiply-adds a cycle than `vfmadd231ps`.
///
/// By maker and not by measurement, since bits depend on it: AMD's cores (Zen 4
/// and later) take twice as many; Intel's half as many (measured on an Emerald
/// Rapids: 88 against 180 GFLOP/s a core), AMX being what it is meant to use.
#[cfg(target_arch = "x86_64")]
fn has_fast_dots() -> bool {
    static FAST: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *FAST.get_or_init(|| {
        let maker = std::arch::x86_64::__cpuid(0);
        let words = [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes);
        words.as_flattened() == b"AuthenticAMD" && has_dots()
    })
}

/// True where `vdpbf16ps` exists.
pub fn has_dots() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        has_avx512() && std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// True where AVX2 and FMA may be used.
#[inline(always)]
pub fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// True where 512-bit vectors with bytes and masks may be used.
#[inline(always)]
pub fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512vl")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Define a function whose body is compiled three times, for AVX-512, AVX2 and
/// the baseline, and chosen at run time. A loop over several slices should cut
/// them to one length first: a check of bounds within would keep it scalar.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($g:ident : $bound:path),*>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$($g: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body $(<$($g: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn wide $(<$($g: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn widest $(<$($g: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            if $crate::device::cpu::simd::has_avx512() {
                // SAFETY: the features were just detected.
                return unsafe { widest($($arg),*) };
            }
            #[cfg(target_arch = "x86_64")]
            if $crate::device::cpu::simd::has_avx2() {
                // SAFETY: the features were just detected.
                return unsafe { wide($($arg),*) };
            }
            body($($arg),*)
        }
    };
}
pub(crate) use vectorized;

/// e^x within 2 ulp on [-87, 88]; 0 below, +inf above. NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first with trailing zeros so that n * HI is exact.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const MAGIC: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.7);
    let shifted = clamped * LOG2E + MAGIC;
    let n = shifted - MAGIC;
    let r = (clamped - n * LN2_HI) - n * LN2_LO;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    // n as an integer is what the rounding left in the low bits: a cast would
    // have to check its range, one lane at a time.
    let n = shifted.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    // Two factors, so that n = 128 does not overflow the exponent field.
    let half = n / 2;
    let scale = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    let y = y * scale(half) * scale(n - half);
    if x < -87.3 {
        0.0
    } else if x > 88.72 {
        f32::INFINITY
    } else if x.is_nan() {
        x
    } else {
        y
    }
}

/// ln x for normal positive x, within 2 ulp (Cephes' polynomial).
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    let mut e = ((bits >> 23) as i32 - 126) as f32;
    let mut m = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    let low = m < std::f32::consts::FRAC_1_SQRT_2;
    e = if low { e - 1.0 } else { e };
    m = if low { m + m - 1.0 } else { m - 1.0 };
    let z = m * m;
    let mut p = 7.037_683_6e-2;
    p = p * m - 1.151_461e-1;
    p = p * m + 1.167_699_9e-1;
    p = p * m - 1.242_014_1e-1;
    p = p * m + 1.424_932_3e-1;
    p = p * m - 1.666_805_8e-1;
    p = p * m + 2.000_071_5e-1;
    p = p * m - 2.499_999_4e-1;
    p = p * m + 3.333_333e-1;
    let mut y = p * m * z;
    y += e * -2.121_944_4e-4;
    y -= 0.5 * z;
    m + y + e * 0.693_359_4
}

/// Sum of `f(i)` for i in 0..n in 16 interleaved lanes: a fixed order that
/// vectorises and depends on n alone.
#[inline(always)]
pub fn sum16(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    let whole = n / 16 * 16;
    let mut i = 0;
    while i < whole {
        for (j, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + j);
        }
        i += 16;
    }
    for (j, lane) in lanes.iter_mut().enumerate().take(n - whole) {
        *lane += f(whole + j);
    }
    fold16(lanes)
}

/// Sum of the lanes of an interleaved sum, by halves.
#[inline(always)]
pub fn fold16(mut lanes: [f32; 16]) -> f32 {
    let mut width = 8;
    while width > 0 {
        for j in 0..width {
            lanes[j] += lanes[j + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Largest of a slice; -inf for an empty one. NaN is passed over.
#[inline(always)]
pub fn max(xs: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = xs.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0f64;
        for i in 0..200_000 {
            let x = -87.0 + i as f32 * (175.0 / 200_000.0);
            let exact = (x as f64).exp();
            worst = worst.max((exp(x) as f64 / exact - 1.0).abs());
        }
        assert!(worst < 2.5e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(1000.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    /// The widths that a function is compiled for agree bit for bit.
    #[test]
    fn widths_agree() {
        vectorized! {
            fn all(x: &mut [f32]) -> [f32; 2] {
                let top = max(x);
                for v in x.iter_mut() {
                    *v = exp(*v - top) + ln(v.abs() + 1e-3);
                }
                let x = &*x;
                [top, sum16(x.len(), |i| x[i] * 1.1 + 0.3)]
            }
        }
        let mut stream = crate::rng::Stream::new(3);
        for n in 1..200 {
            let mut wide: Vec<f32> = (0..n).map(|_| stream.unit() * 80.0 - 40.0).collect();
            let mut narrow = wide.clone();
            let sums = all(&mut wide);
            let top = max(&narrow);
            for v in std::hint::black_box(&mut narrow) {
                *v = exp(*v - top) + ln(v.abs() + 1e-3);
            }
            let sum = sum16(n, |i| narrow[i] * 1.1 + 0.3);
            assert_eq!(sums.map(f32::to_bits), [top, sum].map(f32::to_bits));
            let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&wide), bits(&narrow));
        }
    }

    #[test]
    fn ln_is_within_two_ulp() {
        let mut worst = 0f64;
        for i in 1..200_000u32 {
            let x = f32::from_bits(0x0080_0000 + i * 10_000);
            let exact = (x as f64).ln();
            worst = worst.max((ln(x) as f64 - exact).abs() / exact.abs().max(1e-3));
        }
        assert!(worst < 2.5e-7, "{worst}");
    }
}
