//! The emulator as a driver: the same kernels, compiled by g++, on the CPU.

use anyhow::{Result, bail};

use super::Cuda;

/// How the emulator runs kernels.
#[derive(Clone, Copy, Debug)]
pub struct EmulatorSettings {
    /// Order in which threads run: 0 in order, 1 in reverse, else random.
    pub seed: u64,
    /// Check every access (slow).
    pub checked: bool,
    /// Compute capability to pretend, 10 * major + minor.
    pub arch: u32,
    /// OS threads that blocks are spread over.
    pub threads: usize,
}

impl Default for EmulatorSettings {
    fn default() -> Self {
        EmulatorSettings {
            seed: 0,
            checked: false,
            arch: 80,
            threads: 1,
        }
    }
}

impl Cuda {
    /// The device in the emulator.
    pub fn emulator(_: EmulatorSettings) -> Result<Cuda> {
        bail!("not there yet")
    }
}
