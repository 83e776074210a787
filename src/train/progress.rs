//! The progress of a run on standard error: a bar on a terminal, plain lines
//! elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Plain lines keep at least this distance, so that a log of fast steps stays
/// short; the first and the last step always have one.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);

/// What a progress line tells of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepLine {
    /// Counted from 1.
    pub step: usize,
    /// In a sweep: arms that have not failed, and all of them.
    pub arms: Option<(usize, usize)>,
    /// Mean reward of the batch.
    pub reward: f64,
    /// Mean completion length (tokens).
    pub length: f64,
    pub tokens_per_second: f64,
}

impl StepLine {
    fn numbers(&self) -> String {
        let arms = match self.arms {
            Some((alive, all)) => format!("{alive}/{all} arms  "),
            None => String::new(),
        };
        format!(
            "{arms}reward {:.3}  length {:.1}  {} tok/s",
            self.reward,
            self.length,
            short(self.tokens_per_second)
        )
    }
}

/// Shows a run's progress.
#[derive(Debug)]
pub struct Progress {
    total: usize,
    first: usize,
    started: Instant,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Quiet,
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
}

impl Progress {
    /// Progress towards `total_steps`: a bar where standard error is a
    /// terminal, else lines; nothing but warnings when quiet.
    pub fn new(total_steps: usize, quiet: bool) -> Self {
        let sink = if quiet {
            Sink::Quiet
        } else if std::io::stderr().is_terminal() {
            Sink::Bar(bar(total_steps))
        } else {
            Sink::Lines { last: None }
        };
        Progress {
            total: total_steps,
            first: 0,
            started: Instant::now(),
            sink,
        }
    }

    /// Continues a run that has `done` steps behind it: they count as done, and
    /// not for the time that is left.
    pub fn resume(&mut self, done: usize) {
        self.first = done;
        if let Sink::Bar(bar) = &self.sink {
            bar.set_position(done as u64);
        }
    }

    /// A step is done.
    pub fn step(&mut self, line: &StepLine) {
        let time = self.time(line.step);
        match &mut self.sink {
            Sink::Quiet => {}
            Sink::Bar(bar) => {
                bar.set_position(line.step as u64);
                bar.set_message(format!("{}  {time}", line.numbers()));
            }
            Sink::Lines { last } => {
                let now = Instant::now();
                let due = last.is_none_or(|last| now - last >= PLAIN_INTERVAL);
                if due || line.step == self.total {
                    *last = Some(now);
                    eprintln!(
                        "step {}/{}  {}  {time}",
                        line.step,
                        self.total,
                        line.numbers()
                    );
                }
            }
        }
    }

    /// A line for the user, left out when quiet.
    pub fn message(&self, text: &str) {
        match &self.sink {
            Sink::Quiet => {}
            Sink::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
            Sink::Lines { .. } => eprintln!("{text}"),
        }
    }

    /// A line that is shown even when quiet.
    pub fn warning(&self, text: &str) {
        match &self.sink {
            Sink::Bar(bar) => bar.suspend(|| eprintln!("warning: {text}")),
            Sink::Quiet | Sink::Lines { .. } => eprintln!("warning: {text}"),
        }
    }

    /// Leaves the last line standing.
    pub fn finish(&self) {
        if let Sink::Bar(bar) = &self.sink {
            bar.abandon();
            eprintln!();
        }
    }

    /// `eta 3m20s`, at the end `took 1h05m`.
    fn time(&self, step: usize) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        let done = step.saturating_sub(self.first).max(1);
        match self.total.saturating_sub(step) {
            0 => format!("took {}", duration(elapsed)),
            left => format!("eta {}", duration(elapsed / done as f64 * left as f64)),
        }
    }
}

fn bar(total_steps: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(
        Some(total_steps as u64),
        ProgressDrawTarget::stderr_with_hz(10),
    );
    // The colour is dropped by the library where NO_COLOR is set.
    // Sized for 80 columns; `wide_msg` is cut, not wrapped, on narrower ones.
    let template = "step {pos}/{len} {bar:12.cyan} {elapsed}  {wide_msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    // The elapsed time goes on during a long step.
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// 950, 1.2k, 34k, 5.6M.
fn short(value: f64) -> String {
    match value {
        v if v < 999.5 => format!("{v:.0}"),
        v if v < 9_950.0 => format!("{:.1}k", v / 1e3),
        v if v < 999_500.0 => format!("{:.0}k", v / 1e3),
        v => format!("{:.1}M", v / 1e6),
    }
}

/// 7s, 3m20s, 2h05m.
fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 999.4, 999.6, 1234.0, 9_951.0, 34_000.0, 5.6e6].map(short),
            ["0", "999", "1.0k", "1.2k", "10k", "34k", "5.6M"]
        );
        assert_eq!(
            [0.4, 59.4, 59.6, 200.0, 7_500.0].map(duration),
            ["0s", "59s", "1m00s", "3m20s", "2h05m"]
        );
    }

    #[test]
    fn a_line_names_its_numbers() {
        let line = StepLine {
            step: 3,
            arms: None,
            reward: 0.41234,
            length: 38.25,
            tokens_per_second: 1934.0,
        };
        assert_eq!(line.numbers(), "reward 0.412  length 38.2  1.9k tok/s");
        let line = StepLine {
            arms: Some((15, 16)),
            ..line
        };
        assert!(line.numbers().starts_with("15/16 arms  reward 0.412"));
    }
}
