//! Where the time goes: nested ranges, step > phase > layer > op, for a
//! profiler that listens (NVTX) and for the built-in one.
//!
//! The code says where ranges begin and end; without a listener that is one
//! relaxed atomic load each. A [`Recording`] keeps those of its own thread:
//! ranges on the host's clock, ops on the device's (events on the stream, read
//! back late; where ops are done when their call returns, the host's clock).
//! What comes of it is a [`Profile`]: [`ops`] makes a roofline table of it,
//! [`trace`] a file for Perfetto.

pub mod ops;
pub mod roof;
pub mod steps;
pub mod trace;

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;

use crate::device::nvtx::Tool;
use crate::device::{Ctx, Device, Mark};
use crate::ops::cost::Cost;

/// How many listen: recordings, and a tool.
static LISTENERS: AtomicUsize = AtomicUsize::new(0);
static TOOL: OnceLock<Tool> = OnceLock::new();

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Marks kept before their times are asked for: a device has only so many events.
const MOST_MARKS: usize = 16_384;

/// How deep a range lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Step,
    Phase,
    Layer,
    Op,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::Step => "step",
            Level::Phase => "phase",
            Level::Layer => "layer",
            Level::Op => "op",
        }
    }
}

/// Tell ranges to the profiler that this process runs under, if there is one.
///
/// # Errors
/// There is one, but it cannot be told; the text says why.
pub fn listen_to_tools() -> Result<(), String> {
    if let Some(tool) = Tool::from_environment()?
        && TOOL.set(tool).is_ok()
    {
        LISTENERS.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[inline(always)]
fn listening() -> bool {
    LISTENERS.load(Ordering::Relaxed) != 0
}

/// Begin a training step's range; it ends when the value is dropped.
#[inline]
pub fn step(number: usize) -> Range {
    Range::begin(Level::Step, "step", Some(number))
}

/// Begin a phase's range.
#[inline]
pub fn phase(name: &'static str) -> Range {
    Range::begin(Level::Phase, name, None)
}

/// Begin a layer's range.
#[inline]
pub fn layer(index: usize) -> Range {
    Range::begin(Level::Layer, "layer", Some(index))
}

/// A range under way, of the thread that began it.
#[must_use = "a range ends when it is dropped"]
pub struct Range {
    told: bool,
    _thread: PhantomData<*const ()>,
}

impl Range {
    #[inline]
    fn begin(level: Level, name: &'static str, number: Option<usize>) -> Range {
        let told = listening();
        if told {
            tell(name, number);
            record(|r| r.begin(level, name, number));
        }
        Range {
            told,
            _thread: PhantomData,
        }
    }
}

impl Drop for Range {
    #[inline]
    fn drop(&mut self) {
        if self.told {
            record(Recorder::end);
            untell();
        }
    }
}

#[cold]
fn tell(name: &'static str, number: Option<usize>) {
    if let Some(tool) = TOOL.get() {
        match number {
            Some(number) => tool.push(&format!("{name} {number}")),
            None => tool.push(name),
        }
    }
}

#[cold]
fn untell() {
    if let Some(tool) = TOOL.get() {
        tool.pop();
    }
}

/// Run one op's launches as a range that declares its least cost.
#[inline(always)]
pub fn op<D: Device, T>(
    device: &D,
    ctx: &Ctx<D>,
    name: &'static str,
    cost: impl FnOnce() -> Cost,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    match listening() {
        false => work(),
        true => recorded(device, ctx, (name, false), cost, work),
    }
}

/// The same of a stream whose work goes on beside that of other ops.
#[inline(always)]
pub fn beside<D: Device, T>(
    device: &D,
    ctx: &Ctx<D>,
    name: &'static str,
    cost: impl FnOnce() -> Cost,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    match listening() {
        false => work(),
        true => recorded(device, ctx, (name, true), cost, work),
    }
}

#[cold]
#[inline(never)]
fn recorded<D: Device, T>(
    device: &D,
    ctx: &Ctx<D>,
    (name, beside): (&'static str, bool),
    cost: impl FnOnce() -> Cost,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let recording = RECORDER.with_borrow(Option::is_some);
    let mark = || match recording {
        true => device.mark(ctx),
        false => Ok(None),
    };
    let range = Range::begin(Level::Op, name, None);
    let first = mark()?;
    let out = work()?;
    let last = mark()?;
    let mut full = false;
    record(|r| full = r.finish_op(cost(), first.zip(last), beside));
    drop(range);
    if full {
        read_marks(device)?;
    }
    Ok(out)
}

fn record(f: impl FnOnce(&mut Recorder)) {
    RECORDER.with_borrow_mut(|recorder| {
        if let Some(recorder) = recorder {
            f(recorder);
        }
    });
}

/// A range as it is recorded.
#[derive(Clone, Debug)]
pub struct Span {
    pub level: Level,
    pub name: &'static str,
    /// Of a step or a layer.
    pub number: Option<usize>,
    /// The range that this one lies in, an earlier one of the profile.
    pub parent: Option<usize>,
    /// Seconds on the host's clock since the recording began: of an op on a
    /// device with a clock of its own, its launches.
    pub host: [f64; 2],
    /// The same on the device's clock, where it has one: of a range, from the
    /// start of its first op to the end of its last.
    pub device: Option<[f64; 2]>,
    /// Of an op.
    pub cost: Cost,
    /// Of an op: whether the device did it beside others.
    pub beside: bool,
}

impl Span {
    /// What the range is called.
    pub fn title(&self) -> String {
        match self.number {
            Some(number) => format!("{} {number}", self.name),
            None => self.name.to_string(),
        }
    }

    /// Seconds that the device worked on it, or the host where that is the same.
    pub fn seconds(&self) -> f64 {
        let [start, end] = self.device.unwrap_or(self.host);
        end - start
    }
}

/// Ranges in order of their beginnings.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    pub spans: Vec<Span>,
}

struct Recorder {
    origin: Instant,
    spans: Vec<Span>,
    open: Vec<usize>,
    /// The mark that the device's clock counts from, and its time.
    base: Option<(Mark, f64)>,
    /// Ops whose times are not read yet, with their marks.
    marked: Vec<(usize, Mark, Mark)>,
}

impl Recorder {
    fn now(&self) -> f64 {
        self.origin.elapsed().as_secs_f64()
    }

    fn begin(&mut self, level: Level, name: &'static str, number: Option<usize>) {
        let now = self.now();
        self.spans.push(Span {
            level,
            name,
            number,
            parent: self.open.last().copied(),
            host: [now, now],
            device: None,
            cost: Cost::default(),
            beside: false,
        });
        self.open.push(self.spans.len() - 1);
    }

    fn end(&mut self) {
        // A range that began before the recording is none of its.
        if let Some(span) = self.open.pop() {
            self.spans[span].host[1] = self.now();
        }
    }

    /// What is known of the innermost range, an op, when it ends; whether there
    /// are many marks by now.
    fn finish_op(&mut self, cost: Cost, marks: Option<(Mark, Mark)>, beside: bool) -> bool {
        if let Some(&span) = self.open.last() {
            self.spans[span].cost = cost;
            self.spans[span].beside = beside;
            if let Some((first, last)) = marks {
                self.marked.push((span, first, last));
            }
        }
        self.marked.len() * 2 >= MOST_MARKS
    }
}

/// Ask the device for the times of all marks so far.
fn read_marks<D: Device>(device: &D) -> Result<()> {
    let Some((marked, base, from)) = RECORDER.with_borrow_mut(|recorder| {
        let recorder = recorder.as_mut()?;
        let (base, from) = recorder.base?;
        Some((std::mem::take(&mut recorder.marked), base, from))
    }) else {
        return Ok(());
    };
    let Some(&(.., last)) = marked.last() else {
        return Ok(());
    };
    let marks: Vec<Mark> = std::iter::once(base)
        .chain(marked.iter().flat_map(|m| [m.1, m.2]))
        .collect();
    let times = device.mark_times(&marks)?;
    record(|r| {
        for ((span, ..), pair) in marked.iter().zip(times[1..].chunks(2)) {
            r.spans[*span].device = Some([from + pair[0], from + pair[1]]);
        }
        r.base = Some((last, from + times[times.len() - 1]));
    });
    Ok(())
}

/// Records this thread's ranges until it is finished or dropped.
pub struct Recording {
    _thread: PhantomData<*const ()>,
}

impl Recording {
    /// Begin, with nothing under way on the stream.
    ///
    /// # Errors
    /// The device's; or this thread records already.
    pub fn start<D: Device>(device: &D, ctx: &Ctx<D>) -> Result<Recording> {
        anyhow::ensure!(
            RECORDER.with_borrow(Option::is_none),
            "a profile is being recorded already"
        );
        device.wait(ctx)?;
        let base = device.mark(ctx)?;
        let recorder = Recorder {
            origin: Instant::now(),
            spans: Vec::new(),
            open: Vec::new(),
            base: base.map(|mark| (mark, 0.0)),
            marked: Vec::new(),
        };
        RECORDER.with_borrow_mut(|r| *r = Some(recorder));
        LISTENERS.fetch_add(1, Ordering::Relaxed);
        Ok(Recording {
            _thread: PhantomData,
        })
    }

    /// Wait for the device and read what it did.
    ///
    /// # Errors
    /// The device's.
    pub fn finish<D: Device>(self, device: &D, ctx: &Ctx<D>) -> Result<Profile> {
        device.wait(ctx)?;
        read_marks(device)?;
        let recorder = RECORDER.with_borrow_mut(Option::take);
        let mut spans = recorder.map(|r| r.spans).unwrap_or_default();
        for i in (0..spans.len()).rev() {
            let (Some(own), Some(parent)) = (spans[i].device, spans[i].parent) else {
                continue;
            };
            let [start, end] = spans[parent].device.unwrap_or(own);
            spans[parent].device = Some([start.min(own[0]), end.max(own[1])]);
        }
        Ok(Profile { spans })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDER.with_borrow_mut(|r| *r = None);
        LISTENERS.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;

    /// One after the other: a recording in a thread makes those in others ask
    /// whether they record.
    #[test]
    fn nobody_pays_until_ranges_are_recorded() {
        nobody_listens();
        a_recording_is_of_its_thread_and_ends();
    }

    /// Nothing is kept unless it is asked for, and asking costs next to nothing:
    /// `--nocapture` says how much.
    fn nobody_listens() {
        let device = Cpu::<f32>::new();
        let ctx = Ctx { stream: &() };
        let calls = 1_000_000;
        let mut sum = 0u64;
        // The fastest of several: others use the machine too.
        let fastest = (0..20)
            .map(|_| {
                let start = Instant::now();
                for i in 0..calls {
                    let cost = || unreachable!("a cost that nobody asks for");
                    let done = op(&device, &ctx, "op", cost, || {
                        sum = std::hint::black_box(sum + i);
                        Ok(())
                    });
                    assert!(done.is_ok());
                }
                start.elapsed().as_secs_f64() / calls as f64
            })
            .fold(f64::MAX, f64::min);
        println!("{:.2} ns an op when off", fastest * 1e9);
        assert!(fastest < 20e-9, "{:.1} ns", fastest * 1e9);

        let recording = Recording::start(&device, &ctx).unwrap();
        let recorded = 10_000;
        let start = Instant::now();
        for _ in 0..recorded {
            let cost = || Cost::of_bytes(8);
            op(&device, &ctx, "op", cost, || Ok(())).unwrap();
        }
        let each = start.elapsed().as_secs_f64() / recorded as f64;
        println!("{:.0} ns an op when recorded", each * 1e9);
        let profile = recording.finish(&device, &ctx).unwrap();
        assert_eq!(profile.spans.len(), recorded);
    }

    fn a_recording_is_of_its_thread_and_ends() {
        let device = Cpu::<f32>::new();
        let ctx = Ctx { stream: &() };
        let outer = phase("before");
        let recording = Recording::start(&device, &ctx).unwrap();
        assert!(Recording::start(&device, &ctx).is_err());
        drop(outer);
        {
            let _step = step(3);
            let _phase = phase("forward");
            std::thread::scope(|s| {
                s.spawn(|| drop(phase("elsewhere")));
            });
            let cost = || Cost::of_bytes(8);
            op(&device, &ctx, "copy", cost, || Ok(())).unwrap();
            let failed: Result<()> = op(&device, &ctx, "fails", cost, || anyhow::bail!("no"));
            assert!(failed.is_err());
            let _layer = layer(1);
        }
        let profile = recording.finish(&device, &ctx).unwrap();
        let _late = phase("after");
        let found: Vec<(String, Option<usize>)> = profile
            .spans
            .iter()
            .map(|s| (s.title(), s.parent))
            .collect();
        let expected = [
            ("step 3", None),
            ("forward", Some(0)),
            ("copy", Some(1)),
            ("fails", Some(1)),
            ("layer 1", Some(1)),
        ];
        let expected = expected.map(|(name, parent)| (name.to_string(), parent));
        assert_eq!(found, expected);
        assert_eq!(profile.spans[2].cost.bytes, 8.0);
        assert!(profile.spans.iter().all(|s| s.host[1] >= s.host[0]));
    }
}
