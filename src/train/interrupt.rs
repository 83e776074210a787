//! Ctrl-C and SIGTERM: the first asks for a clean end after the current step,
//! the second ends the program at once.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::cli::INTERRUPTED;

/// Whether the user has asked the run to end. Clones share the answer.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over SIGINT, SIGTERM and SIGHUP for the rest of the program, which
    /// can be done once.
    pub fn install() -> anyhow::Result<Interrupt> {
        let interrupt = Interrupt::default();
        let asked = interrupt.clone();
        ctrlc::set_handler(move || {
            if asked.0.swap(true, Ordering::SeqCst) {
                std::process::exit(i32::from(INTERRUPTED));
            }
            // Off the line that shows ^C or the progress.
            let newline = if std::io::stderr().is_terminal() {
                "\n"
            } else {
                ""
            };
            eprintln!(
                "{newline}interrupted: finishing this step, then saving (again to stop at once)"
            );
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(interrupt)
    }

    /// Asks for a clean end, as the first signal does.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// True once a clean end was asked for: finish the step, save, end with
    /// [`crate::cli::Outcome::Interrupted`].
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
