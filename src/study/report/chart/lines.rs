//! Curves with bands.

use std::fmt::Write as _;

use super::WIDTH;
use super::canvas::{Anchor, Canvas, Mark, dash, text_width};
use super::scale::{Scale, range};
use crate::study::markup::escape;

/// One place of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Step, tokens, seconds or decile.
    pub x: f64,
    /// The mean.
    pub y: f64,
    /// Half the height of the band; 0 for none.
    pub error: f64,
}

/// One curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its name in the legend.
    pub label: String,
    /// Its colour.
    pub colour: String,
    /// Which turn of its colour it is.
    pub dash: usize,
    /// Drawn thin, and without a place in the legend: goes with another.
    pub thin: bool,
    /// Ascending in x.
    pub points: Vec<Point>,
}

/// Curves over one axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lines {
    /// Name of the horizontal axis.
    pub x_label: String,
    /// The curves.
    pub lines: Vec<Line>,
    /// A shaded range and its name.
    pub band: Option<(f64, f64, String)>,
    /// A dashed horizontal line and its name.
    pub level: Option<(f64, String)>,
    /// Ends of the vertical axis; from the data where absent.
    pub ends: Option<(f64, f64)>,
}

const HEIGHT: f64 = 178.0;
/// Curves of few points show each of them.
const DOTTED: usize = 12;
/// Figures of more lines have no bands.
const MOST_BANDS: usize = 8;

impl Lines {
    pub(super) fn draw(&self, canvas: &mut Canvas, legend: bool) {
        let points = || self.lines.iter().flat_map(|l| &l.points);
        let values = points().flat_map(|p| [p.y - p.error, p.y + p.error]);
        // A band around a share may not leave the axis at zero.
        let lowest = points().map(|p| p.y).fold(f64::INFINITY, f64::min);
        let values = values.map(|y| if lowest >= 0.0 { y.max(0.0) } else { y });
        let extra = self.level.iter().map(|l| l.0);
        let Some(data) = range(values.chain(extra)) else {
            return;
        };
        let (top, bottom) = (canvas.y + 4.0, canvas.y + 4.0 + HEIGHT);
        let y = Scale::new(self.ends.unwrap_or(data), (bottom, top), 4);
        let widest = y
            .ticks()
            .iter()
            .map(|(_, text)| text_width(text, 11.0))
            .fold(0.0, f64::max);
        let (left, right) = (14.0 + widest + 8.0, WIDTH - 18.0);
        let xs = points().map(|p| p.x);
        let (x0, x1) = xs.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), x| {
            (lo.min(x), hi.max(x))
        });
        let x = Scale::new((x0, x1), (left, right), 5);
        let x = if x.ends.1 - x.ends.0 >= 1.0 {
            x.whole()
        } else {
            x
        };

        if let Some((lo, hi, name)) = &self.band {
            let (lo, hi) = (lo.max(y.ends.0), hi.min(y.ends.1));
            if hi > lo {
                canvas.push(&format!(
                    "<rect class=\"band\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"var(--band)\"/>",
                    y.at(hi),
                    right - left,
                    y.at(lo) - y.at(hi)
                ));
                canvas.text(
                    right - 4.0,
                    y.at(hi) + 12.0,
                    10.5,
                    "muted",
                    Anchor::End,
                    name,
                );
            }
        }
        for (value, text) in y.ticks() {
            canvas.rule(left, y.at(value), right, y.at(value));
            canvas.text(
                left - 7.0,
                y.at(value) + 3.8,
                11.0,
                "muted",
                Anchor::End,
                &text,
            );
        }
        for (value, text) in x.ticks() {
            let place = x.at(value);
            canvas.rule(place, bottom, place, bottom + 4.0);
            canvas.text(place, bottom + 16.0, 11.0, "muted", Anchor::Middle, &text);
        }
        canvas.text(
            (left + right) / 2.0,
            bottom + 32.0,
            11.5,
            "muted",
            Anchor::Middle,
            &self.x_label,
        );
        if let Some((value, name)) = &self.level {
            let place = y.at(*value);
            canvas.push(&format!(
                "<line x1=\"{left:.1}\" y1=\"{place:.1}\" x2=\"{right:.1}\" y2=\"{place:.1}\" stroke=\"var(--muted)\" stroke-width=\"1.2\" stroke-dasharray=\"3 3\"/>"
            ));
            canvas.push(&format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10.5\" text-anchor=\"end\" fill=\"var(--muted)\" stroke=\"var(--panel)\" stroke-width=\"3\" paint-order=\"stroke\">{}</text>",
                right - 2.0,
                place - 5.0,
                escape(name)
            ));
        }
        // Of many bands none could be made out.
        if self.lines.iter().filter(|l| !l.thin).count() <= MOST_BANDS {
            for line in &self.lines {
                draw_band(canvas, line, &x, &y);
            }
        }
        for line in &self.lines {
            draw_line(canvas, line, &x, &y);
        }
        canvas.root = format!(
            " class=\"plot\" data-x=\"{} {} {left:.1} {right:.1}\" data-y=\"{} {} {bottom:.1} {top:.1}\"",
            x.ends.0, x.ends.1, y.ends.0, y.ends.1
        );
        canvas.y = bottom + 36.0;
        if legend {
            let entries: Vec<(Mark, String)> = self
                .lines
                .iter()
                .filter(|l| !l.thin)
                .map(|l| (Mark::Stroke(l.colour.clone(), l.dash), l.label.clone()))
                .collect();
            canvas.legend(&entries);
        }
    }
}

fn draw_band(canvas: &mut Canvas, line: &Line, x: &Scale, y: &Scale) {
    if line.points.len() < 2 || line.points.iter().all(|p| p.error <= 0.0) {
        return;
    }
    let clamp = |value: f64| y.at(value.clamp(y.ends.0, y.ends.1));
    let mut path = String::new();
    for p in &line.points {
        let _ = write!(path, "{:.1},{:.1} ", x.at(p.x), clamp(p.y + p.error));
    }
    for p in line.points.iter().rev() {
        let _ = write!(path, "{:.1},{:.1} ", x.at(p.x), clamp(p.y - p.error));
    }
    canvas.push(&format!(
        "<polygon class=\"spread\" points=\"{}\" fill=\"{}\" fill-opacity=\"0.15\"/>",
        path.trim_end(),
        line.colour
    ));
}
fn draw_line(canvas: &mut Canvas, line: &Line, x: &Scale, y: &Scale) {
    let places: Vec<String> = line
        .points
        .iter()
        .map(|p| format!("{:.2},{:.2}", x.at(p.x), y.at(p.y)))
        .collect();
    let (width, pattern) = match line.thin {
        true => (1.2, " stroke-dasharray=\"1 3\"".to_string()),
        false => (1.9, dash(line.dash)),
    };
    canvas.push(&format!(
        "<polyline points=\"{}\" data-name=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{width}\" stroke-linejoin=\"round\" stroke-linecap=\"round\"{pattern}><title>{}</title></polyline>",
        places.join(" "),
        escape(&line.label),
        line.colour,
        escape(&line.label),
    ));
    if line.points.len() <= DOTTED && !line.thin {
        for p in &line.points {
            canvas.push(&format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\" fill=\"{}\"/>",
                x.at(p.x),
                y.at(p.y),
                line.colour
            ));
        }
    }
}
