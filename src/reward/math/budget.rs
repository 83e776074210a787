//! What a comparison may cost: a count of steps, so that the same texts end
//! the same way on every machine, and no text can stall a run.

use std::cell::Cell;

/// Why a comparison ends without knowing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The steps are spent.
    Budget,
    /// The text is no formula this module reads.
    Unreadable,
    /// A value that does not exist: 1/0, or 0/0.
    Undefined,
}

/// The steps left. A step stands for some 50 ns of work, so that the whole
/// lies below 10 ms on a slow core.
#[derive(Debug)]
pub struct Budget {
    left: Cell<u32>,
}

/// Nesting beyond which a text is not read: far above any answer, far below
/// what a thread's stack holds.
pub const DEEPEST: usize = 96;

/// Bytes beyond which an answer is not parsed.
pub const LONGEST: usize = 12_000;

impl Budget {
    const WHOLE: u32 = 40_000;

    /// The budget of one verdict.
    pub fn new() -> Self {
        Budget {
            left: Cell::new(Self::WHOLE),
        }
    }

    /// Whether nothing has been spent.
    pub fn is_whole(&self) -> bool {
        self.left.get() == Self::WHOLE
    }

    /// The steps left.
    pub fn left(&self) -> u32 {
        self.left.get()
    }

    /// Takes what work cost that was done before, with a budget of its own
    /// of which so many steps were left.
    pub fn resume(&self, left: u32) {
        self.left.set(left);
    }

    /// Takes `steps`, or says that they are not there any more.
    pub fn spend(&self, steps: usize) -> Result<(), Stop> {
        let left = self.left.get();
        match u32::try_from(steps) {
            Ok(steps) if steps <= left => {
                self.left.set(left - steps);
                Ok(())
            }
            _ => {
                self.left.set(0);
                Err(Stop::Budget)
            }
        }
    }
}
