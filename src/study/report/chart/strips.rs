//! Stretches of steps, a row per run.

use super::WIDTH;
use super::canvas::{Anchor, Canvas, Mark, fit};
use super::scale::Scale;
use crate::study::markup::escape;

/// Steps `from` to `to`, both within.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The first step.
    pub from: f64,
    /// The last step.
    pub to: f64,
    /// Which of the [`Strips::kinds`].
    pub kind: usize,
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Strip {
    /// Whose it is.
    pub label: String,
    /// Its steps.
    pub spans: Vec<Span>,
}

/// Rows over steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Strips {
    /// From top to bottom.
    pub rows: Vec<Strip>,
    /// Names and colours.
    pub kinds: Vec<(String, String)>,
    /// The first and the last step.
    pub steps: (f64, f64),
}

const ROW: f64 = 31.0;

impl Strips {
    pub(super) fn draw(&self, canvas: &mut Canvas) {
        let (left, right) = (18.0, WIDTH - 18.0);
        let x = Scale::new((self.steps.0 - 0.5, self.steps.1 + 0.5), (left, right), 5).whole();
        let (top, bottom) = (canvas.y, canvas.y + ROW * self.rows.len() as f64 + 4.0);
        for (i, row) in self.rows.iter().enumerate() {
            let y = top + ROW * i as f64;
            canvas.text(
                left,
                y + 11.0,
                11.5,
                "ink",
                Anchor::Start,
                &fit(&row.label, 11.5, right - left),
            );
            canvas.push(&format!(
                "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"10\" rx=\"2\" fill=\"var(--grid)\"/>",
                y + 16.0,
                right - left
            ));
            for span in &row.spans {
                let (a, b) = (x.at(span.from - 0.5), x.at(span.to + 0.5));
                let (name, colour) = &self.kinds[span.kind];
                canvas.push(&format!(
                    "<rect class=\"span\" x=\"{a:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"10\" fill=\"{colour}\"><title>{}</title></rect>",
                    y + 16.0,
                    b - a,
                    escape(&format!("{}: {name}, steps {} to {}", row.label, span.from, span.to))
                ));
            }
        }
        for (value, text) in x.ticks() {
            canvas.text(
                x.at(value),
                bottom + 12.0,
                11.0,
                "muted",
                Anchor::Middle,
                &text,
            );
        }
        canvas.text(
            (left + right) / 2.0,
            bottom + 28.0,
            11.5,
            "muted",
            Anchor::Middle,
            "step",
        );
        canvas.y = bottom + 32.0;
        let entries: Vec<(Mark, String)> = self
            .kinds
            .iter()
            .map(|(name, colour)| (Mark::Square(colour.clone()), name.clone()))
            .collect();
        canvas.legend(&entries);
    }
}
