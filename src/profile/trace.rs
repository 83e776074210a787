//! A profile as a file in Chrome's trace format, which Perfetto
//! (<https://ui.perfetto.dev>) and chrome://tracing show.
//!
//! One track is the host's. Where the device has a clock of its own, a second
//! one shows what it did and when, a third one copies beside it; the first
//! shows the launches.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Level, Profile, Span};

const HOST: u32 = 1;
const DEVICE: u32 = 2;
const BESIDE: u32 = 3;

/// Write the file, of the device named so.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, profile: &Profile, device: &str) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let file = std::fs::File::create(path).with_context(cannot)?;
    let mut out = BufWriter::new(file);
    write_to(&mut out, profile, device)
        .and_then(|()| out.flush())
        .with_context(cannot)
}

/// Events one by one: there may be a million.
fn write_to(out: &mut impl Write, profile: &Profile, device: &str) -> std::io::Result<()> {
    write!(out, "{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
    let own_clock = profile.spans.iter().any(|s| s.device.is_some());
    let mut names = vec![("process_name", HOST, format!("arca on {device}"))];
    names.push(("thread_name", HOST, "host".into()));
    if own_clock {
        names.push(("thread_name", DEVICE, "device".into()));
        names.push(("thread_name", BESIDE, "device, copies".into()));
    }
    for (i, (what, tid, name)) in names.into_iter().enumerate() {
        let event = json!({"ph": "M", "name": what, "pid": 1, "tid": tid, "args": {"name": name}});
        write!(out, "{}\n{event}", if i == 0 { "" } else { "," })?;
    }
    for span in &profile.spans {
        write!(out, ",\n{}", event(span, HOST, span.host))?;
        if let Some(times) = span.device {
            let track = if span.beside { BESIDE } else { DEVICE };
            write!(out, ",\n{}", event(span, track, times))?;
        }
    }
    writeln!(out, "\n]}}")
}

/// Times in microseconds. Both ends are rounded to nanoseconds, so that what
/// lies within another range still does.
fn event(span: &Span, tid: u32, [start, end]: [f64; 2]) -> Value {
    let nanoseconds = |t: f64| (t * 1e9).round();
    let (start, end) = (nanoseconds(start), nanoseconds(end));
    let mut event = json!({
        "ph": "X",
        "name": span.title(),
        "cat": span.level.name(),
        "pid": 1,
        "tid": tid,
        "ts": start / 1e3,
        "dur": (end - start) / 1e3,
    });
    if span.level == Level::Op {
        event["args"] = json!({"flops": span.cost.flops, "bytes": span.cost.bytes});
    }
    event
}
