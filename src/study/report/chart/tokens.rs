//! A completion's tokens on grounds of the colour of their weights, once per
//! method.

use super::WIDTH;
use super::canvas::{Anchor, Canvas};
use crate::study::heatmap::{SCALE, heat, opacity, visible};
use crate::study::markup::escape;

/// One completion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokens {
    /// Its tokens.
    pub tokens: Vec<String>,
    /// Name and weights of each method.
    pub methods: Vec<(String, Vec<f64>)>,
}

const SIZE: f64 = 10.5;
/// Of a letter of a monospaced font, to its size.
const LETTER: f64 = 0.602;
const LINE: f64 = 16.0;

impl Tokens {
    pub(super) fn draw(&self, canvas: &mut Canvas) {
        let (left, right) = (14.0, WIDTH - 14.0);
        for (name, weights) in &self.methods {
            canvas.y += 12.0;
            let y = canvas.y;
            canvas.text(left, y, 11.5, "ink", Anchor::Start, name);
            canvas.y += 16.0;
            let mut x = left;
            for (token, weight) in self.tokens.iter().zip(weights) {
                let text = visible(token);
                let wide = LETTER * SIZE * text.chars().count() as f64;
                if x > left && x + wide > right {
                    x = left;
                    canvas.y += LINE;
                }
                self.draw_token(canvas, x, wide, &text, *weight);
                x += wide;
                if token.contains('\n') {
                    x = left;
                    canvas.y += LINE;
                }
            }
            if x > left {
                canvas.y += 8.0;
            } else {
                canvas.y -= LINE - 8.0;
            }
        }
        canvas.y += 14.0;
        let (y, mut x) = (canvas.y, left);
        canvas.text(x, y, 10.5, "muted", Anchor::Start, "weight \u{d7} T:");
        x += 66.0;
        for relative in SCALE {
            canvas.push(&format!(
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"34\" height=\"14\" fill=\"var(--heat)\" fill-opacity=\"{:.3}\"/>",
                y - 10.5,
                opacity(heat(relative, 1))
            ));
            let name = relative.to_string();
            canvas.text(x + 17.0, y, 9.0, "ink", Anchor::Middle, &name);
            x += 35.0;
        }
        canvas.y += 4.0;
    }

    fn draw_token(&self, canvas: &mut Canvas, x: f64, wide: f64, text: &str, weight: f64) {
        let opacity = opacity(heat(weight, self.tokens.len()));
        let y = canvas.y;
        if opacity > 0.0 {
            canvas.push(&format!(
                "<rect x=\"{x:.2}\" y=\"{:.1}\" width=\"{wide:.2}\" height=\"14\" fill=\"var(--heat)\" fill-opacity=\"{opacity:.3}\"/>",
                y - 10.5
            ));
        }
        canvas.push(&format!(
            "<text class=\"token\" x=\"{x:.2}\" y=\"{y:.1}\" font-size=\"{SIZE}\" font-family=\"monospace\" xml:space=\"preserve\" fill=\"var(--ink)\">{}</text>",
            escape(text)
        ));
    }
}
