//! Drawing the next token: LM head, temperature, top-k / top-p / min-p, then
//! Gumbel-max with counter-based noise.
//!
//! argmax_v (z_v / T - ln(-ln u_v)) is distributed as softmax(z / T); u_v is a
//! pure function of (key, position, v), built from exact integer operations
//! and a fixed sequence of IEEE operations, so that every device draws the
//! same noise.

use anyhow::Result;

use crate::device::cpu::simd::{ln, max, vectorized};
use crate::device::cpu::{Cpu, pool};
use crate::device::{Ctx, Device, Float, Slice};
use crate::ops::linear::{CpuMatrix, Linear};
use crate::ops::logprob::{head_chunks, row_stats};
use crate::rng;

/// How one row's token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRequest {
    /// Row of x whose state predicts the token.
    pub row: u32,
    /// Random stream of the sequence, see [`rng::stream_key`].
    pub key: u64,
    /// Index of the token within its completion.
    pub position: u32,
    /// 0 takes the likeliest token (and reports log-probs at temperature 1).
    pub temperature: f32,
    /// 1 = off.
    pub top_p: f32,
    /// 0 = off.
    pub top_k: u32,
    /// 0 = off.
    pub min_p: f32,
}

/// A drawn token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampled {
    pub token: u32,
    /// Log-prob under softmax(z / T) over the whole vocabulary.
    pub logprob: f32,
    /// The row's logits hold NaN or nothing finite: `token` means nothing.
    pub invalid: bool,
}

pub trait Sample: Device + Linear {
    /// One token per request from x `[rows, hidden]` (the head's input).
    fn sample(
        &self,
        ctx: &Ctx<Self>,
        head: &Self::Matrix,
        x: Slice<Self, Self::Act>,
        requests: &[SampleRequest],
    ) -> Result<Vec<Sampled>>;
}

vectorized! {
    /// The first token of largest z * scale + Gumbel noise at a position;
    /// eight Philox blocks at a time.
    fn gumbel_argmax(key: u64, position: u32, z: &[f32], scale: f32) -> usize {
        const WIDTH: usize = 8;
        let key = rng::split_key(key);
        let noise = |u: f32| -ln(-ln(u));
        let (mut best, mut token) = (f32::NEG_INFINITY, 0);
        for (b, z) in z.chunks(4 * WIDTH).enumerate() {
            let mut words = [[0u32; WIDTH]; 4];
            for j in 0..WIDTH {
                let block = rng::philox([(b * WIDTH + j) as u32, position, 0, 0], key);
                for (w, x) in words.iter_mut().zip(block) {
                    w[j] = x;
                }
            }
            // No token of the block can be above the one that would have both
            // the largest logit and the largest noise, but for ln's rounding.
            let mut bits = [0u32; WIDTH];
            for w in &words {
                for (top, x) in bits.iter_mut().zip(w) {
                    *top = (*top).max(*x);
                }
            }
            let bits = bits.into_iter().fold(0, u32::max);
            let bound = max(z) * scale + noise(rng::open_unit(bits));
            if bound + (1e-4 + 4.0 * f32::EPSILON * bound.abs()) < best {
                continue;
            }
            for (i, z) in z.iter().enumerate() {
                let x = z * scale + noise(rng::open_unit(words[i % 4][i / 4]));
                if x > best {
                    (best, token) = (x, b * 4 * WIDTH + i);
                }
            }
        }
        token
    }
}

vectorized! {
    /// The largest logit; NaN if any is.
    fn top(z: &[f32]) -> f32 {
        let mut lanes = [0u32; 16];
        for chunk in z.chunks(16) {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane |= u32::from(x.is_nan());
            }
        }
        match lanes.iter().any(|&n| n != 0) {
            true => f32::NAN,
            false => max(z),
        }
    }
}

/// Rule out tokens in the order of transformers: top-k, then top-p of what is
/// left, then min-p. `z` are logits at temperature 1.
fn truncate(z: &mut [f32], r: &SampleRequest) {
    let scale = 1.0 / r.temperature;
    if r.top_k > 0 && (r.top_k as usize) < z.len() {
        let mut sorted = z.to_vec();
        let k = r.top_k as usize - 1;
        sorted.select_nth_unstable_by(k, |a, b| b.total_cmp(a));
        let least = sorted[k];
        for x in z.iter_mut() {
            if *x < least {
                *x = f32::NEG_INFINITY;
            }
        }
    }
    let top = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if r.top_p < 1.0 {
        let mut order: Vec<(f32, u32)> = z
            .iter()
            .enumerate()
            .filter(|(_, x)| x.is_finite())
            .map(|(i, &x)| (x, i as u32))
            .collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let weight = |x: f32| (((x - top) * scale) as f64).exp();
        let total: f64 = order.iter().map(|o| weight(o.0)).sum();
        let mut before = 0.0;
        for (x, i) in order {
            // Kept while the mass of the likelier ones is below top_p: at
            // least one token always is.
            if before >= r.top_p as f64 * total {
                z[i as usize] = f32::NEG_INFINITY;
            }
            before += weight(x);
        }
    }
    if r.min_p > 0.0 {
        let least = r.min_p.ln();
        for x in z.iter_mut() {
            if (*x - top) * scale < least {
                *x = f32::NEG_INFINITY;
            }
        }
    }
}

fn draw(z: &mut [f32], r: &SampleRequest) -> Sampled {
    let greedy = r.temperature <= 0.0;
    let temperature = if greedy { 1.0 } else { r.temperature };
    let best = top(z);
    if !best.is_finite() {
        return Sampled {
            invalid: true,
            ..Sampled::default()
        };
    }
    let scale = 1.0 / temperature;
    let token = if greedy {
        z.iter().position(|&x| x == best).unwrap_or_default()
    } else if r.top_p < 1.0 || r.top_k > 0 || r.min_p > 0.0 {
        let mut kept = z.to_vec();
        truncate(&mut kept, r);
        gumbel_argmax(r.key, r.position, &kept, scale)
    } else {
        gumbel_argmax(r.key, r.position, z, scale)
    };
    let stats = row_stats(z, token, 1.0 / temperature);
    Sampled {
        token: token as u32,
        logprob: stats.logprob,
        invalid: false,
    }
}

impl<A: Float> Sample for Cpu<A> {
    fn sample(
        &self,
        _: &Ctx<Self>,
        head: &CpuMatrix,
        x: Slice<Self, A>,
        requests: &[SampleRequest],
    ) -> Result<Vec<Sampled>> {
        let vocab = head.outputs;
        let rows: Vec<u32> = requests.iter().map(|r| r.row).collect();
        let mut drawn = vec![Sampled::default(); requests.len()];
        head_chunks(head, x.host(), &rows, |start, logits, padded| {
            let n = logits.len() / padded;
            let logits = pool::Shared::new(logits);
            let drawn = pool::Shared::new(&mut drawn);
            pool::parallel_rows(n, vocab * 8, |range| {
                for i in range {
                    // SAFETY: one row each.
                    let (z, out) = unsafe {
                        (
                            &mut logits.slice_mut(i * padded, padded)[..vocab],
                            drawn.slice_mut(start + i, 1),
                        )
                    };
                    out[0] = draw(z, &requests[start + i]);
                }
            });
            Ok(())
        })?;
        Ok(drawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(position: u32) -> SampleRequest {
        SampleRequest {
            row: 0,
            key: 12345,
            position,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
        }
    }

    /// Frequencies of 40,000 draws against softmax: chi-square with 6 degrees
    /// of freedom stays below its 99.99 % point.
    #[test]
    fn draws_follow_the_softmax() {
        let z = [1.0f32, 0.0, -1.0, 2.0, 0.5, -0.5, 1.5];
        for temperature in [1.0f32, 0.7] {
            let mut counts = [0f64; 7];
            let n = 40_000;
            for position in 0..n {
                let mut r = request(position);
                r.temperature = temperature;
                counts[draw(&mut z.clone(), &r).token as usize] += 1.0;
            }
            let weights = z.map(|x| ((x / temperature) as f64).exp());
            let total: f64 = weights.iter().sum();
            let chi: f64 = weights
                .iter()
                .zip(counts)
                .map(|(w, c)| {
                    let expected = w / total * n as f64;
                    (c - expected).powi(2) / expected
                })
                .sum();
            assert!(chi < 27.9, "chi-square {chi} at temperature {temperature}");
        }
    }

    /// Leaving out what cannot win changes no draw.
    #[test]
    fn argmax_is_over_all_tokens() {
        let mut random = rng::Stream::new(7);
        for position in 0..300 {
            let spread = [0.0, 1.0, 30.0, 1e4][position as usize % 4];
            let mut z: Vec<f32> = (0..517).map(|_| spread * random.unit()).collect();
            z[3 * position as usize % 500] = f32::NEG_INFINITY;
            let key = 99;
            let mut best = (f32::NEG_INFINITY, 0);
            for (v, z) in z.iter().enumerate() {
                // Eight blocks of four words at a time, words first.
                let (chunk, i) = (v / 32, v % 32);
                let counter = [(chunk * 8 + i / 4) as u32, position, 0, 0];
                let u = rng::open_unit(rng::philox(counter, rng::split_key(key))[i % 4]);
                let x = z * 0.7 - ln(-ln(u));
                if x > best.0 {
                    best = (x, v);
                }
            }
            assert_eq!(gumbel_argmax(key, position, &z, 0.7), best.1);
        }
    }

    #[test]
    fn truncation_keeps_what_it_says() {
        let z = [0.0f32, 1.0, 2.0, 3.0, -1.0];
        let kept = |r: &SampleRequest| -> Vec<usize> {
            let mut z = z;
            truncate(&mut z, r);
            (0..5).filter(|&i| z[i].is_finite()).collect()
        };
        let mut r = request(0);
        r.top_k = 2;
        assert_eq!(kept(&r), [2, 3]);
        let mut r = request(0);
        // softmax: .031 .086 .233 .634 .012; the two likeliest have .867.
        r.top_p = 0.8;
        assert_eq!(kept(&r), [2, 3]);
        r.top_p = 0.9;
        assert_eq!(kept(&r), [1, 2, 3]);
        r.top_p = 1e-6;
        assert_eq!(kept(&r), [3]);
        let mut r = request(0);
        r.min_p = 0.1;
        assert_eq!(kept(&r), [1, 2, 3]);
    }

    #[test]
    fn bad_logits_are_reported() {
        assert!(draw(&mut [0.0, f32::NAN, 1.0], &request(0)).invalid);
        assert!(draw(&mut [f32::NEG_INFINITY; 3], &request(0)).invalid);
    }
}
