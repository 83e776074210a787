//! Counter-based random numbers: every draw is a pure function of its key.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011). Keys are (run seed, purpose, step, problem, sample, position), so
//! a draw never depends on the batch it happened to be made in.

/// What a stream of random numbers is for. Part of the key, so that two uses
/// never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    Rollout = 1,
    Evaluation = 2,
    DataOrder = 3,
    LoraInit = 4,
    Dropout = 5,
    Generate = 6,
}

/// One Philox4x32-10 block: 128 random bits from a 128-bit counter and a
/// 64-bit key.
#[inline(always)]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const M0: u64 = 0xD251_1F53;
    const M1: u64 = 0xCD9E_8D57;
    for _ in 0..10 {
        let p0 = M0 * counter[0] as u64;
        let p1 = M1 * counter[2] as u64;
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
        key[0] = key[0].wrapping_add(0x9E37_79B9);
        key[1] = key[1].wrapping_add(0xBB67_AE85);
    }
    counter
}

/// FNV-1a over bytes, then a 64-bit finaliser.
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325u64;
    for &b in bytes {
        h = (h ^ b as u64).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(h)
}

/// SplitMix64's finaliser: a bijection that spreads every input bit.
#[inline]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A 64-bit Philox key made of everything that names a stream.
pub fn stream_key(seed: u64, purpose: Purpose, step: u64, problem: u64, sample: u64) -> u64 {
    let mut h = mix(seed ^ 0x6172_6361_0000_0000);
    for part in [purpose as u64, step, problem, sample] {
        h = mix(h.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ part);
    }
    h
}

#[inline]
pub fn split_key(key: u64) -> [u32; 2] {
    [key as u32, (key >> 32) as u32]
}

/// Uniform in the open interval (0, 1): 23 bits and a half, exact in f32.
#[inline(always)]
pub fn open_unit(bits: u32) -> f32 {
    ((bits >> 9) as f32 + 0.5) * (1.0 / 8_388_608.0)
}

/// A sequence of draws from one key, for host-side uses (shuffles, inits).
pub struct Stream {
    key: [u32; 2],
    counter: u64,
    block: [u32; 4],
    used: usize,
}

impl Stream {
    pub fn new(key: u64) -> Self {
        Stream {
            key: split_key(key),
            counter: 0,
            block: [0; 4],
            used: 4,
        }
    }

    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            let c = self.counter;
            self.block = philox([c as u32, (c >> 32) as u32, 0, 0], self.key);
            self.counter += 1;
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// Uniform in 0..n without modulo bias (n > 0).
    pub fn below(&mut self, n: u32) -> u32 {
        let zone = u32::MAX - u32::MAX % n;
        loop {
            let x = self.next_u32();
            if x < zone {
                return x % n;
            }
        }
    }

    /// Uniform in (0, 1).
    pub fn unit(&mut self) -> f32 {
        open_unit(self.next_u32())
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123's own test vectors for philox4x32-10.
    #[test]
    fn philox_matches_published_vectors() {
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox(
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0]
            ),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn keys_differ_in_every_part() {
        let base = stream_key(1, Purpose::Rollout, 2, 3, 4);
        for other in [
            stream_key(2, Purpose::Rollout, 2, 3, 4),
            stream_key(1, Purpose::Evaluation, 2, 3, 4),
            stream_key(1, Purpose::Rollout, 3, 3, 4),
            stream_key(1, Purpose::Rollout, 2, 4, 4),
            stream_key(1, Purpose::Rollout, 2, 3, 5),
        ] {
            assert_ne!(base, other);
        }
    }
}
