//! The sheet a chart is drawn on: text, lines, title and legend.

use super::WIDTH;
use crate::study::markup::escape;

/// How a legend's entry looks.
#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// A stroke in this colour with this dash pattern.
    Stroke(String, usize),
    /// A filled square.
    Square(String),
    /// A filled square with this opacity.
    Faint(String, f64),
}

/// Dash patterns; the first is a plain stroke.
const DASHES: [&str; 7] = ["", "7 3", "2 3", "10 3 2 3", "4 2", "1 2", "12 4"];

/// The dash pattern of the `n`-th group of a colour, as an attribute.
pub fn dash(n: usize) -> String {
    match DASHES[n % DASHES.len()] {
        "" => String::new(),
        pattern => format!(" stroke-dasharray=\"{pattern}\""),
    }
}

/// Width of `text` at `size`, by a mean of sans-serif letters.
pub fn text_width(text: &str, size: f64) -> f64 {
    let letters: f64 = text
        .chars()
        .map(|c| match c {
            'i' | 'l' | 'j' | '.' | ',' | ' ' | '\'' | '|' | ':' => 0.32,
            'm' | 'w' | 'M' | 'W' | '@' | '%' => 0.88,
            c if c.is_ascii_uppercase() || c.is_ascii_digit() => 0.62,
            c if c.is_ascii() => 0.55,
            _ => 0.75,
        })
        .sum();
    letters * size
}

/// `text` shortened to `most` units.
pub fn fit(text: &str, size: f64, most: f64) -> String {
    if text_width(text, size) <= most {
        return text.to_string();
    }
    let mut short = text.to_string();
    while short.pop().is_some() {
        let with_mark = format!("{}\u{2026}", short.trim_end());
        if text_width(&with_mark, size) <= most {
            return with_mark;
        }
    }
    short
}

/// Where a text hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// An SVG in the making.
pub struct Canvas {
    body: String,
    title: String,
    /// Attributes of the root element.
    pub root: String,
    /// Where the next block begins.
    pub y: f64,
}

impl Canvas {
    /// A sheet with a title and a subtitle.
    pub fn new(title: &str, subtitle: &str) -> Canvas {
        let mut canvas = Canvas {
            body: String::new(),
            title: title.to_string(),
            root: String::new(),
            y: 20.0,
        };
        canvas.push(&format!(
            "<text x=\"14\" y=\"22\" font-size=\"14\" font-weight=\"600\" fill=\"var(--ink)\">{}</text>",
            escape(&fit(title, 14.5, WIDTH - 28.0))
        ));
        canvas.y = 30.0;
        for line in wrap(subtitle, 11.5, WIDTH - 28.0) {
            canvas.y += 10.0;
            let y = canvas.y;
            canvas.text(14.0, y, 11.5, "muted", Anchor::Start, &line);
            canvas.y += 5.0;
        }
        canvas.y += 8.0;
        canvas
    }

    /// Adds an element.
    pub fn push(&mut self, element: &str) {
        self.body += element;
        self.body.push('\n');
    }

    /// Adds text in a colour of the page.
    pub fn text(&mut self, x: f64, y: f64, size: f64, colour: &str, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        self.push(&format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"var(--{colour})\"{anchor}>{}</text>",
            escape(text)
        ));
    }

    /// Adds a thin line of the grid.
    pub fn rule(&mut self, x1: f64, y1: f64, x2: f64, y2: f64) {
        self.push(&format!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"var(--grid)\" stroke-width=\"1\"/>"
        ));
    }

    /// Adds a legend, in as many lines as it takes.
    pub fn legend(&mut self, entries: &[(Mark, String)]) {
        const SIZE: f64 = 11.5;
        let mut x = 14.0;
        self.y += 14.0;
        for (mark, label) in entries {
            let label = fit(label, SIZE, WIDTH - 60.0);
            let wide = 22.0 + text_width(&label, SIZE) + 14.0;
            if x > 14.0 && x + wide > WIDTH {
                x = 14.0;
                self.y += 17.0;
            }
            let y = self.y;
            let drawn = match mark {
                Mark::Stroke(colour, turn) => format!(
                    "<line x1=\"{x:.1}\" y1=\"{0:.1}\" x2=\"{1:.1}\" y2=\"{0:.1}\" stroke=\"{colour}\" stroke-width=\"2.4\"{2}/>",
                    y - 4.0,
                    x + 17.0,
                    dash(*turn)
                ),
                Mark::Square(colour) => square(x, y, colour, 1.0),
                Mark::Faint(colour, opacity) => square(x, y, colour, *opacity),
            };
            self.push(&drawn);
            self.text(x + 22.0, y, SIZE, "ink", Anchor::Start, &label);
            x += wide;
        }
        self.y += 6.0;
    }

    /// The `<svg>` element.
    pub fn finish(self) -> String {
        let height = self.y + 12.0;
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" height=\"{height:.0}\" role=\"img\" \
             aria-label=\"{}\" font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif\"{}>\n\
             <rect width=\"{WIDTH}\" height=\"{height:.0}\" rx=\"10\" fill=\"var(--panel)\"/>\n{}</svg>",
            escape(&self.title),
            self.root,
            self.body
        )
    }
}

fn square(x: f64, y: f64, colour: &str, opacity: f64) -> String {
    format!(
        "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"11\" height=\"11\" rx=\"2\" fill=\"{colour}\" fill-opacity=\"{opacity}\"/>",
        x + 4.0,
        y - 10.0
    )
}

/// Words in lines of at most `most` units.
pub fn wrap(text: &str, size: f64, most: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if text_width(&format!("{line} {word}"), size) <= most => {
                line.push(' ');
                *line += word;
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_and_shortened() {
        assert_eq!(
            escape("<a b='c'>\u{1}&"),
            "&lt;a b=&#39;c&#39;&gt;\u{fffd}&amp;"
        );
        assert_eq!(fit("short", 10.0, 100.0), "short");
        let cut = fit("a rather long label of a group", 10.0, 60.0);
        assert!(cut.ends_with('\u{2026}') && text_width(&cut, 10.0) <= 60.0);
        let lines = wrap("one two three four", 10.0, 45.0);
        assert!(lines.len() > 1);
        assert_eq!(lines.join(" "), "one two three four");
    }
}
