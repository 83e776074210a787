//! Charts as SVG. Colours are CSS variables of [`super::palette`], so that one
//! drawing serves a light and a dark page.
//!
//! All charts are as wide as a phone's column and grow in height; a page sets
//! them side by side.

mod bars;
mod canvas;
mod dots;
mod lines;
mod matrix;
mod scale;
mod strips;
mod tokens;

pub use bars::{Bar, Bars, Segment};
pub use canvas::dash;
pub use dots::{Dot, DotRow, Dots};
pub use lines::{Line, Lines, Point};
pub use matrix::Matrix;
pub use scale::{compact, number};
pub use strips::{Span, Strip, Strips};
pub use tokens::Tokens;

use canvas::Canvas;

/// Width of every chart, in SVG units (pixels at 1:1).
pub const WIDTH: f64 = 440.0;

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Stem of its files.
    pub name: String,
    /// Heading within the figure.
    pub title: String,
    /// What is shown, in small letters below the title.
    pub subtitle: String,
    /// The drawing.
    pub chart: Chart,
}

/// The kinds of drawing.
#[derive(Clone, Debug, PartialEq)]
pub enum Chart {
    /// Curves over steps, tokens, seconds or deciles.
    Lines(Lines),
    /// Values with errors, a row per group or class.
    Dots(Dots),
    /// Stacked bars.
    Bars(Bars),
    /// Numbers on coloured cells.
    Matrix(Matrix),
    /// Stretches of steps, a row per run.
    Strips(Strips),
    /// A completion under every method's weights.
    Tokens(Tokens),
}

impl Figure {
    /// The `<svg>` element. `legend`: whether the groups are named within it.
    pub fn svg(&self, legend: bool) -> String {
        let mut canvas = Canvas::new(&self.title, &self.subtitle);
        match &self.chart {
            Chart::Lines(chart) => chart.draw(&mut canvas, legend),
            Chart::Dots(chart) => chart.draw(&mut canvas, legend),
            Chart::Bars(chart) => chart.draw(&mut canvas),
            Chart::Matrix(chart) => chart.draw(&mut canvas),
            Chart::Strips(chart) => chart.draw(&mut canvas),
            Chart::Tokens(chart) => chart.draw(&mut canvas),
        }
        canvas.finish()
    }

    /// A document of its own, with light colours and its namespace.
    pub fn file(&self) -> String {
        let svg = super::palette::literal(&self.svg(true));
        svg.replacen("<svg ", "<svg xmlns=\"http://www.w3.org/2000/svg\" ", 1)
    }
}
