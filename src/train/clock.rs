//! How long phases of an update take, without waiting for one to end before
//! the next is launched.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::device::Mark;
use crate::model::engine::Engine;
use crate::model::half_layer::HalfLayers;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    Score,
    Forward,
    Backward,
}

/// A moment: on the device's own clock where it runs behind the host.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Host(Instant),
    Device(Mark),
}

/// A span that has begun.
#[must_use]
pub struct Begun(Moment);

/// Spans, whose lengths are known when all of them are over.
#[derive(Default)]
pub struct PhaseClock {
    spans: Vec<(Timed, [Moment; 2])>,
}

fn now<D: HalfLayers>(engine: &Engine<D>) -> Result<Moment> {
    Ok(match engine.device.mark(&engine.ctx())? {
        Some(mark) => Moment::Device(mark),
        None => Moment::Host(Instant::now()),
    })
}

impl PhaseClock {
    pub fn begin<D: HalfLayers>(&self, engine: &Engine<D>) -> Result<Begun> {
        Ok(Begun(now(engine)?))
    }

    pub fn end<D: HalfLayers>(
        &mut self,
        engine: &Engine<D>,
        what: Timed,
        begun: Begun,
    ) -> Result<()> {
        self.spans.push((what, [begun.0, now(engine)?]));
        Ok(())
    }

    /// How long each kind took together. Waits for the last span's end.
    pub fn read<D: HalfLayers>(self, engine: &Engine<D>) -> Result<impl Fn(Timed) -> Duration> {
        let moments = self.spans.iter().flat_map(|s| s.1);
        let marks: Vec<Mark> = moments
            .filter_map(|m| match m {
                Moment::Device(mark) => Some(mark),
                Moment::Host(_) => None,
            })
            .collect();
        let mut times = engine.device.mark_times(&marks)?.into_iter();
        let mut lengths = Vec::with_capacity(self.spans.len());
        for (what, span) in self.spans {
            let length = match span {
                [Moment::Host(a), Moment::Host(b)] => b - a,
                _ => {
                    let (a, b) = (times.next(), times.next());
                    let seconds = b.zip(a).map_or(0.0, |(b, a)| b - a);
                    Duration::from_secs_f64(seconds.max(0.0))
                }
            };
            lengths.push((what, length));
        }
        Ok(move |of| lengths.iter().filter(|l| l.0 == of).map(|l| l.1).sum())
    }
}
