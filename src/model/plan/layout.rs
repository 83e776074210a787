//! Where buffers lie in one piece of memory: those of different phases lie
//! over each other.

use crate::model::plan::buffers::{Buffer, Phase};

/// Offsets in bytes, one per copy of each buffer, and the bytes of the whole.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    pub offsets: Vec<Vec<u64>>,
    pub bytes: u64,
}

/// Bytes of one copy of a buffer; none for one that lies within another.
pub fn bytes_of(buffer: &Buffer, alignment: usize) -> u64 {
    if buffer.within.is_some() {
        return 0;
    }
    let bytes = buffer.elements() * buffer.dtype.size();
    bytes.next_multiple_of(alignment) as u64
}

/// First what every phase uses; behind it each phase's own, over the others'.
///
/// The pages of a rollout thereby lie in the saved activations and the
/// backward's scratch: nothing reads a page once the samples of its rollout
/// have ended, and no update reads what another saved.
pub fn overlay(buffers: &[Buffer], alignment: usize) -> Layout {
    let bytes = |b: &Buffer| b.count as u64 * bytes_of(b, alignment);
    let common: u64 = buffers
        .iter()
        .filter(|b| b.phase.is_none())
        .map(bytes)
        .sum();
    let mut ends: Vec<(Option<Phase>, u64)> = vec![(None, 0)];
    let mut layout = Layout {
        bytes: common,
        ..Layout::default()
    };
    for buffer in buffers {
        if let Some(within) = &buffer.within {
            // One that is planned after what lies in it would be a mistake here.
            let host = buffers.iter().position(|b| b.name == within.name);
            let column = (within.column * buffer.dtype.size()) as u64;
            let hosts = host.and_then(|h| layout.offsets.get(h));
            let offsets = hosts.into_iter().flatten().map(|o| o + column);
            layout.offsets.push(offsets.collect());
            continue;
        }
        let at = match ends.iter().position(|(phase, _)| *phase == buffer.phase) {
            Some(at) => at,
            None => {
                ends.push((buffer.phase, common));
                ends.len() - 1
            }
        };
        let end = &mut ends[at].1;
        let each = bytes_of(buffer, alignment);
        let offsets = (0..buffer.count as u64).map(|i| *end + i * each).collect();
        *end += bytes(buffer);
        layout.bytes = layout.bytes.max(*end);
        layout.offsets.push(offsets);
    }
    layout
}

/// Each buffer for itself: how many bytes they are together.
pub fn apart(buffers: &[Buffer], alignment: usize) -> Layout {
    Layout {
        offsets: buffers.iter().map(|b| vec![0; b.count]).collect(),
        bytes: buffers
            .iter()
            .map(|b| b.count as u64 * bytes_of(b, alignment))
            .sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::{Dtype, Role};

    fn buffer(elements: usize, phase: Option<Phase>, count: usize) -> Buffer {
        Buffer {
            name: String::new(),
            role: Role::Kv,
            dims: vec![elements],
            dtype: Dtype::Bf16,
            count,
            phase,
            shrink: "",
            within: None,
        }
    }

    /// No byte is in two buffers' hands in one phase, and all phases' bytes
    /// are the larger one's.
    #[test]
    fn overlays_never_clash() {
        let mut random = crate::rng::Stream::new(3);
        let phases = [Phase::Forward, Phase::Update, Phase::NoiseFloor];
        for _ in 0..200 {
            let list: Vec<Buffer> = (0..1 + random.below(9))
                .map(|_| {
                    let phase = phases.get(random.below(4) as usize).copied();
                    let n = random.below(400) as usize;
                    buffer(n, phase, 1 + random.below(3) as usize)
                })
                .collect();
            let layout = overlay(&list, 16);
            let mut most = 0;
            for phase in phases {
                let mut owner = vec![false; layout.bytes as usize];
                let mut need = 0;
                for (b, offsets) in list.iter().zip(&layout.offsets) {
                    if b.phase.is_some_and(|p| p != phase) {
                        continue;
                    }
                    for &offset in offsets {
                        assert_eq!(offset % 16, 0);
                        need += bytes_of(b, 16);
                        for byte in &mut owner[offset as usize..][..2 * b.elements()] {
                            assert!(!std::mem::replace(byte, true), "{list:?}");
                        }
                    }
                }
                most = most.max(need);
            }
            assert_eq!(layout.bytes, most);
        }
    }
}
