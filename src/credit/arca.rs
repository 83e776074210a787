//! ARCA, adapter-residual credit: a_t = ||h_t(adapter on) - h_t(adapter off)||_2
//! of the state that predicts y_t. Weight on the tokens whose computation the
//! adapter changed (arXiv 2606.00257).
//!
//! Which state h is (`credit.hidden`) is the scoring pass's business; the norm
//! arrives here ready made, accumulated in f32.

use super::{Credit, Scope, Settings, Signals};
use crate::episode::TokenSignals;

/// a_t = ||h_on - h_off||_2.
pub struct Arca;

impl Credit for Arca {
    fn name(&self) -> &'static str {
        "arca"
    }

    fn scope(&self) -> Scope {
        Scope::Completion
    }

    fn needs(&self) -> Signals {
        Signals {
            residuals: true,
            ..Signals::NONE
        }
    }

    fn score(&self, signals: &TokenSignals, _: &Settings, out: &mut [f32]) {
        out.copy_from_slice(&signals.residuals);
    }
}
