//! A reward function that is a program of the user's.
//!
//! It is started for every batch (in training a group, while others are still
//! drawn; so several may run at once), reads one JSON line per completion
//! (`problem`, `answer`, `completion`) and writes one per completion in the
//! same order: `reward`, and if it likes `correct` and `rule`. A fresh
//! process per batch needs no protocol for flushing or for restarts, and one
//! that hangs takes nothing with it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;

use super::{RewardItem, Scored, Verdict};

/// Its name in `reward.functions`.
pub const NAME: &str = "external";

/// Wall-clock seconds a batch may take.
const LIMIT: Duration = Duration::from_secs(30);

/// How long a program may take to end once it has answered everything.
const GRACE: Duration = Duration::from_secs(1);

/// `reward.command`: a program and its arguments.
#[derive(Clone, Debug)]
pub struct External {
    command: Vec<String>,
    limit: Duration,
}

#[derive(Deserialize)]
struct Answer {
    reward: f64,
    correct: Option<bool>,
    rule: Option<String>,
}

impl External {
    /// A program with the usual limit of time; refused when empty.
    pub fn new(command: &[String]) -> Result<Self> {
        ensure!(
            command.first().is_some_and(|program| !program.is_empty()),
            "reward.functions names \"{NAME}\", but reward.command has no program to run"
        );
        Ok(External {
            command: command.to_vec(),
            limit: LIMIT,
        })
    }

    /// The same with another limit of time for a batch.
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Values of a batch. Completions not answered in time are worth 0 and say
    /// so; a program that cannot be started, ends early or writes anything but
    /// its answers is an error.
    pub fn score_batch(&self, items: &[RewardItem]) -> Result<Vec<Scored>> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + self.limit;
        let mut running = Running::start(&self.command, requests(items))?;
        let mut scores = Vec::with_capacity(items.len());
        while scores.len() < items.len() {
            match running.next_line(deadline) {
                Line::Text(line) => {
                    let scored = parse(&line).with_context(|| {
                        running.describe(&format!("its answer {}", scores.len() + 1))
                    })?;
                    scores.push(scored);
                }
                Line::End => {
                    let answered = scores.len();
                    bail!(running.describe_end(&format!(
                        "ended after {answered} answers to {} completions",
                        items.len()
                    )));
                }
                Line::Late => {
                    let rule = format!(
                        "time-out: {} gave no answer within {:?}",
                        self.command[0], self.limit
                    );
                    scores.resize(items.len(), timed_out(rule));
                    return Ok(scores);
                }
            }
        }
        match running.next_line(Instant::now() + GRACE) {
            Line::Text(line) => bail!(running.describe(&format!(
                "wrote more lines than it was given, which leaves unclear what answers what: {line:?}"
            ))),
            Line::End | Line::Late => Ok(scores),
        }
    }
}

/// All requests of a batch as JSON lines.
fn requests(items: &[RewardItem]) -> Vec<u8> {
    items
        .iter()
        .flat_map(|item| {
            let request = json!({
                "problem": item.problem.problem,
                "answer": item.problem.answer,
                "completion": item.completion,
            });
            format!("{request}\n").into_bytes()
        })
        .collect()
}

fn parse(line: &str) -> Result<Scored> {
    let answer: Answer = serde_json::from_str(line).with_context(|| {
        format!("expected {{\"reward\": NUMBER}} on a line of its own, found {line:?}")
    })?;
    let value = answer.reward as f32;
    ensure!(
        value.is_finite(),
        "the reward {} is out of range",
        answer.reward
    );
    Ok(Scored::new(
        value,
        Verdict {
            correct: answer.correct.unwrap_or(value > 0.0),
            extracted: None,
            rule: answer.rule.unwrap_or_else(|| "external reward".into()),
            ..Verdict::default()
        },
    ))
}

fn timed_out(rule: String) -> Scored {
    Scored {
        value: 0.0,
        verdict: Verdict {
            rule,
            ..Verdict::default()
        },
        timed_out: true,
    }
}

enum Line {
    Text(String),
    /// The program closed its output.
    End,
    /// The time was over first.
    Late,
}

/// A started program. Each of its pipes has a thread, so that neither side
/// can wait for the other with a full pipe. It is killed when dropped.
struct Running {
    child: Child,
    program: String,
    lines: Receiver<std::io::Result<String>>,
    errors: Option<JoinHandle<String>>,
    waited: bool,
}

impl Running {
    fn start(command: &[String], input: Vec<u8>) -> Result<Self> {
        let mut builder = Command::new(&command[0]);
        builder
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A group of its own: its children can be killed with it, and Ctrl-C
        // at the terminal leaves it to finish the batch before a clean save.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut builder, 0);
        let mut child = builder
            .spawn()
            .with_context(|| format!("reward.command: cannot start {:?}", command[0]))?;
        let (sender, lines) = channel();
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read all of its input has closed the
            // pipe; what it wrote decides whether that was a fault.
            std::thread::spawn(move || stdin.write_all(&input));
        }
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines() {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let errors = child
            .stderr
            .take()
            .map(|stderr| std::thread::spawn(move || tail(stderr)));
        Ok(Running {
            child,
            program: command[0].clone(),
            lines,
            errors,
            waited: false,
        })
    }

    /// The next line that is not blank.
    fn next_line(&mut self, deadline: Instant) -> Line {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(Ok(line)) if line.trim().is_empty() => continue,
                Ok(Ok(line)) => return Line::Text(line),
                // A line that is no UTF-8 cannot be followed by good ones.
                Ok(Err(error)) => return Line::Text(format!("({error})")),
                Err(RecvTimeoutError::Disconnected) => return Line::End,
                Err(RecvTimeoutError::Timeout) => return Line::Late,
            }
        }
    }

    fn describe(&self, what: &str) -> String {
        format!("reward.command {:?}: {what}", self.program)
    }

    /// [`Running::describe`] with how it ended and what it wrote to stderr.
    fn describe_end(&mut self, what: &str) -> String {
        // Its output is closed, so it is about to end, unless it is odd.
        let until = Instant::now() + GRACE;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    self.waited = true;
                    break format!(" ({status})");
                }
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
                _ => break String::new(),
            }
        };
        self.kill();
        let errors = self.errors.take().and_then(|thread| {
            let until = Instant::now() + GRACE;
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            thread.is_finished().then(|| thread.join().ok()).flatten()
        });
        let errors = match errors.as_deref().map(str::trim) {
            None | Some("") => String::new(),
            Some(errors) => format!("; its stderr ends with: {errors}"),
        };
        self.describe(&format!("{what}{status}{errors}"))
    }

    fn kill(&mut self) {
        // Once waited for, its id may be another process's.
        if std::mem::replace(&mut self.waited, true) {
            return;
        }
        #[cfg(unix)]
        {
            use rustix::process::{Pid, Signal, kill_process_group};
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The end of a stream, for an error message.
fn tail(stream: impl Read) -> String {
    const KEPT: usize = 20;
    let mut last = VecDeque::new();
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(String::from_utf8_lossy(&line).into_owned());
        line.clear();
    }
    last.into_iter().collect()
}
