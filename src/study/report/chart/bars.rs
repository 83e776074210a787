//! Stacked bars, lying down.

use super::WIDTH;
use super::canvas::{Anchor, Canvas, Mark, fit};
use super::scale::{Scale, number};
use crate::study::markup::escape;

/// A part of a bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Its name in the legend.
    pub label: String,
    /// Its colour.
    pub colour: String,
    /// Its length.
    pub value: f64,
}

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What it is of.
    pub label: String,
    /// From left to right.
    pub segments: Vec<Segment>,
}

/// Bars over one axis that begins at 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bars {
    /// From top to bottom; all with the same segments.
    pub bars: Vec<Bar>,
    /// Name of the axis.
    pub x_label: String,
}

const ROW: f64 = 36.0;

impl Bars {
    pub(super) fn draw(&self, canvas: &mut Canvas) {
        let total = |bar: &Bar| bar.segments.iter().map(|s| s.value).sum::<f64>();
        let longest = self.bars.iter().map(total).fold(0.0, f64::max);
        let (left, right) = (18.0, WIDTH - 62.0);
        let x = Scale::new((0.0, longest.max(1e-9)), (left, right), 4);
        let (top, bottom) = (canvas.y, canvas.y + ROW * self.bars.len() as f64 + 4.0);
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
        for (i, bar) in self.bars.iter().enumerate() {
            let y = top + ROW * i as f64;
            canvas.push(&format!(
                "<text x=\"{left}\" y=\"{:.1}\" font-size=\"11.5\" fill=\"var(--ink)\" stroke=\"var(--panel)\" stroke-width=\"4\" paint-order=\"stroke\" stroke-linejoin=\"round\">{}</text>",
                y + 12.0,
                escape(&fit(&bar.label, 11.5, right - left))
            ));
            let mut from = 0.0;
            for segment in bar.segments.iter().filter(|s| s.value > 0.0) {
                let (a, b) = (x.at(from), x.at(from + segment.value));
                from += segment.value;
                canvas.push(&format!(
                    "<rect class=\"segment\" x=\"{a:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"14\" fill=\"{}\"><title>{}</title></rect>",
                    y + 17.0,
                    (b - a).max(0.3),
                    segment.colour,
                    escape(&format!("{}, {}: {}", bar.label, segment.label, number(segment.value)))
                ));
            }
            canvas.text(
                x.at(from) + 6.0,
                y + 28.0,
                11.5,
                "ink",
                Anchor::Start,
                &number(from),
            );
        }
        canvas.text(
            (left + right) / 2.0,
            bottom + 30.0,
            11.5,
            "muted",
            Anchor::Middle,
            &self.x_label,
        );
        canvas.y = bottom + 34.0;
        let mut entries: Vec<(Mark, String)> = Vec::new();
        for segment in self.bars.iter().flat_map(|b| &b.segments) {
            if segment.value > 0.0 && !entries.iter().any(|(_, label)| *label == segment.label) {
                entries.push((Mark::Square(segment.colour.clone()), segment.label.clone()));
            }
        }
        canvas.legend(&entries);
    }
}
