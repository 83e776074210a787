//! Correlations as numbers on coloured cells.

use super::WIDTH;
use super::canvas::{Anchor, Canvas, Mark, fit, text_width};
use crate::study::markup::escape;

/// Numbers in [-1, 1] by row and column.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    /// Names of the rows.
    pub rows: Vec<String>,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Row by row; `None` where nothing was measured.
    pub values: Vec<Vec<Option<f64>>>,
}

const CELL: f64 = 26.0;
const SIZE: f64 = 11.0;

impl Matrix {
    pub(super) fn draw(&self, canvas: &mut Canvas) {
        let widest = |names: &[String]| {
            names
                .iter()
                .map(|n| text_width(n, SIZE))
                .fold(0.0, f64::max)
        };
        let left = 14.0 + widest(&self.rows).min(150.0) + 8.0;
        // Column names lean, so that long ones find room.
        let lean = 0.6f64;
        let head = widest(&self.columns).min(130.0);
        let right = WIDTH - 14.0 - head * lean.cos() * 0.6;
        let wide = ((right - left) / self.columns.len().max(1) as f64).min(64.0);
        let top = canvas.y + head * lean.sin() + 16.0;
        for (j, name) in self.columns.iter().enumerate() {
            let (x, y) = (left + wide * (j as f64 + 0.5), top - 6.0);
            canvas.push(&format!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{SIZE}\" fill=\"var(--muted)\" transform=\"rotate({:.1} {x:.1} {y:.1})\">{}</text>",
                -lean.to_degrees(),
                escape(&fit(name, SIZE, 130.0))
            ));
        }
        for (i, name) in self.rows.iter().enumerate() {
            let y = top + CELL * i as f64;
            canvas.text(
                left - 8.0,
                y + CELL / 2.0 + 4.0,
                SIZE,
                "ink",
                Anchor::End,
                &fit(name, SIZE, 150.0),
            );
            for (j, value) in self.values[i].iter().enumerate() {
                let x = left + wide * j as f64;
                let Some(value) = value else { continue };
                let colour = if *value < 0.0 { "cold" } else { "heat" };
                canvas.push(&format!(
                    "<rect class=\"cell\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"3\" fill=\"var(--{colour})\" fill-opacity=\"{:.2}\"/>",
                    x + 1.0,
                    y + 1.0,
                    wide - 2.0,
                    CELL - 2.0,
                    0.06 + 0.62 * value.abs().min(1.0)
                ));
                let text = format!("{value:.2}").replace("-0.00", "0.00");
                let size = if wide < 34.0 { 9.0 } else { 10.5 };
                canvas.text(
                    x + wide / 2.0,
                    y + CELL / 2.0 + 3.6,
                    size,
                    "ink",
                    Anchor::Middle,
                    &text,
                );
            }
        }
        canvas.y = top + CELL * self.rows.len() as f64 + 4.0;
        let entry = |colour: &str, text: &str| {
            let mark = Mark::Faint(format!("var(--{colour})"), 0.68);
            (mark, text.to_string())
        };
        canvas.legend(&[
            entry("heat", "1: the same order"),
            entry("cold", "\u{2212}1: the opposite order"),
        ]);
    }
}
