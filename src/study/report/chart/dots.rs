//! Values with error bars, a row per group or class.

use super::WIDTH;
use super::canvas::{Anchor, Canvas, Mark, fit};
use super::scale::{Scale, number, range};
use crate::study::markup::escape;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Dot {
    /// Whose it is.
    pub label: String,
    /// Its colour.
    pub colour: String,
    /// The value.
    pub value: f64,
    /// One standard error to each side; 0 for none.
    pub error: f64,
}

/// Values on one line.
#[derive(Clone, Debug, PartialEq)]
pub struct DotRow {
    /// What the line is of.
    pub label: String,
    /// The values.
    pub dots: Vec<Dot>,
}

/// Rows over one axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dots {
    /// From top to bottom.
    pub rows: Vec<DotRow>,
    /// A dashed vertical line and its name.
    pub level: Option<(f64, String)>,
    /// Values beside the dots; only where a row has one.
    pub values: bool,
}

const ROW: f64 = 31.0;

impl Dots {
    pub(super) fn draw(&self, canvas: &mut Canvas, legend: bool) {
        let dots = || self.rows.iter().flat_map(|r| &r.dots);
        let ends =
            dots().flat_map(|d| [(d.value - d.error).max(0.0).min(d.value), d.value + d.error]);
        let Some(data) = range(ends.chain(self.level.iter().map(|l| l.0))) else {
            return;
        };
        let (left, right) = (18.0, WIDTH - if self.values { 62.0 } else { 22.0 });
        let x = Scale::new(data, (left, right), 5);
        let top = canvas.y + if self.level.is_some() { 12.0 } else { 0.0 };
        let bottom = top + ROW * self.rows.len() as f64 + 6.0;
        for (value, text) in x.ticks() {
            canvas.rule(x.at(value), top, x.at(value), bottom);
            canvas.text(
                x.at(value),
                bottom + 14.0,
                11.0,
                "muted",
                Anchor::Middle,
                &text,
            );
        }
        if let Some((value, name)) = &self.level {
            let place = x.at(*value);
            canvas.push(&format!(
                "<line x1=\"{place:.1}\" y1=\"{top:.1}\" x2=\"{place:.1}\" y2=\"{bottom:.1}\" stroke=\"var(--muted)\" stroke-width=\"1.4\" stroke-dasharray=\"3 3\"/>"
            ));
            let anchor = match place > WIDTH - 120.0 {
                true => Anchor::End,
                false if place < 60.0 => Anchor::Start,
                false => Anchor::Middle,
            };
            canvas.text(place, top - 4.0, 10.5, "muted", anchor, name);
        }
        for (i, row) in self.rows.iter().enumerate() {
            let y = top + ROW * i as f64;
            let name = fit(&row.label, 11.5, right - left);
            // A ground under the name, so that grid lines do not cross it.
            canvas.push(&format!(
                "<text x=\"{left}\" y=\"{:.1}\" font-size=\"11.5\" fill=\"var(--ink)\" stroke=\"var(--panel)\" stroke-width=\"4\" paint-order=\"stroke\" stroke-linejoin=\"round\">{}</text>",
                y + 12.0,
                escape(&name)
            ));
            for dot in &row.dots {
                self.draw_dot(canvas, dot, &x, y + 22.0);
            }
        }
        canvas.y = bottom + 18.0;
        if legend && self.rows.iter().any(|r| r.dots.len() > 1) {
            let mut entries: Vec<(Mark, String)> = Vec::new();
            for dot in dots() {
                if !entries.iter().any(|(_, label)| *label == dot.label) {
                    entries.push((Mark::Square(dot.colour.clone()), dot.label.clone()));
                }
            }
            canvas.legend(&entries);
        }
    }

    fn draw_dot(&self, canvas: &mut Canvas, dot: &Dot, x: &Scale, y: f64) {
        let text = match dot.error > 0.0 {
            true => format!(
                "{}: {} \u{b1} {}",
                dot.label,
                number(dot.value),
                number(dot.error)
            ),
            false => format!("{}: {}", dot.label, number(dot.value)),
        };
        let place = x.at(dot.value);
        if dot.error > 0.0 {
            let end = |value: f64| x.at(value.max(x.ends.0));
            canvas.push(&format!(
                "<line x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"{}\" stroke-width=\"2\" stroke-opacity=\"0.55\"/>",
                end(dot.value - dot.error),
                end(dot.value + dot.error),
                dot.colour
            ));
        }
        canvas.push(&format!(
            "<circle class=\"dot\" cx=\"{place:.1}\" cy=\"{y:.1}\" r=\"4.6\" fill=\"{}\" fill-opacity=\"0.9\"><title>{}</title></circle>",
            dot.colour,
            escape(&text)
        ));
        if self.values {
            canvas.text(
                WIDTH - 14.0,
                y + 4.0,
                11.5,
                "ink",
                Anchor::End,
                &number(dot.value),
            );
        }
    }
}
