//! Token weights in a terminal: wrapped tokens with one band per method under
//! them.

use console::measure_text_width;

use super::heatmap::heat;

/// How to draw.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Columns.
    pub width: usize,
    /// 24-bit colours; else shades of characters.
    pub colour: bool,
}

/// Shades from nothing to all, where there are no colours.
const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];

/// Tokens and, aligned under them, each method's weights. With one method and
/// colours the tokens themselves are coloured.
pub fn bands(tokens: &[String], methods: &[(&str, &[f64])], screen: Screen) -> String {
    let gutter = methods.iter().map(|(name, _)| name.len()).max();
    let gutter = gutter.unwrap_or(0) + 2;
    let room = screen.width.saturating_sub(gutter).max(8);
    let cells: Vec<String> = tokens.iter().map(|t| cell(t, room)).collect();
    let mut out = String::new();
    let mut start = 0;
    while start < cells.len() {
        let mut end = start;
        let mut used = 0;
        while end < cells.len() {
            let width = measure_text_width(&cells[end]);
            if end > start && used + width > room {
                break;
            }
            used += width;
            end += 1;
            if tokens[end - 1].contains('\n') {
                break;
            }
        }
        let line = start..end;
        start = end;
        match methods {
            [(name, weights)] if screen.colour => {
                out += &format!("{name:gutter$}");
                for t in line {
                    out += &painted(&cells[t], heat(weights[t], tokens.len()));
                }
                out.push('\n');
            }
            _ => {
                let text: String = cells[line.clone()].concat();
                out += &format!("{:gutter$}{}\n", "", text.trim_end());
                for (name, weights) in methods {
                    let mut band = String::new();
                    for t in line.clone() {
                        let width = measure_text_width(&cells[t]);
                        let heat = heat(weights[t], tokens.len());
                        band += &match screen.colour {
                            true => painted(&" ".repeat(width), heat),
                            false => shade(heat).to_string().repeat(width),
                        };
                    }
                    out += format!("{name:gutter$}{band}").trim_end();
                    out.push('\n');
                }
                if !methods.is_empty() && start < cells.len() {
                    out.push('\n');
                }
            }
        }
    }
    out
}

/// The shades of [`bands`] without colours, from a weight of nothing up.
pub fn legend(colour: bool) -> String {
    let steps = [0.0, 0.5, 1.0, 2.0, 4.0, 16.0].map(|relative: f64| {
        let heat = heat(relative, 1);
        match colour {
            true => painted(&format!(" {relative} "), heat),
            false => format!("{relative} {}", shade(heat).to_string().repeat(2)),
        }
    });
    format!("weight over uniform: {}\n", steps.join("  "))
}

fn shade(heat: f64) -> char {
    // Uniform weight has heat 1/3: the lightest shade.
    match heat {
        h if h < 0.25 => SHADES[0],
        h if h < 0.42 => SHADES[1],
        h if h < 0.60 => SHADES[2],
        h if h < 0.75 => SHADES[3],
        _ => SHADES[4],
    }
}

/// Black on white to orange: readable on light and dark terminals alike.
fn painted(text: &str, heat: f64) -> String {
    let mix = |to: f64| (255.0 + (to - 255.0) * heat).round() as u8;
    let (r, g, b) = (mix(247.0), mix(90.0), mix(0.0));
    format!("\x1b[48;2;{r};{g};{b}m\x1b[38;2;0;0;0m{text}\x1b[0m")
}

/// A token as it can stand in a line of `room` columns.
fn cell(token: &str, room: usize) -> String {
    let mut out: String = token
        .chars()
        .map(|c| match c {
            '\n' => '⏎',
            '\t' => '→',
            c if c.is_control() || measure_text_width(c.encode_utf8(&mut [0; 4])) == 0 => '·',
            c => c,
        })
        .collect();
    if out.is_empty() {
        out.push('·');
    }
    if measure_text_width(&out) > room {
        out = console::truncate_str(&out, room, "…").into_owned();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| w.to_string()).collect()
    }

    #[test]
    fn bands_stand_under_their_tokens() {
        let tokens = words(&["3", "+", "4", " is", " seven", ".\n", "end"]);
        let uniform = [1.0 / 7.0; 7];
        let mut sparse = [0.0; 7];
        sparse[4] = 1.0;
        let screen = Screen {
            width: 24,
            colour: false,
        };
        let text = bands(
            &tokens,
            &[("uniform", &uniform), ("sparse", &sparse)],
            screen,
        );
        let expected = "\
         \u{20}        3+4 is seven.⏎\n\
         uniform  ░░░░░░░░░░░░░░\n\
         sparse         ██████\n\
         \n\
         \u{20}        end\n\
         uniform  ░░░\n\
         sparse\n";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn no_line_is_wider_than_the_screen() {
        let tokens = words(&[
            "漢字",
            " and",
            " a-word-that-is-longer-than-the-line",
            "\u{200b}",
            "",
            "\t",
        ]);
        let weights = [1.0 / 6.0; 6];
        for width in [20, 27, 40] {
            for colour in [false, true] {
                let text = bands(
                    &tokens,
                    &[("a", &weights), ("bcd", &weights)],
                    Screen { width, colour },
                );
                for line in text.lines() {
                    assert!(measure_text_width(line) <= width, "{width}: {line:?}");
                }
                assert_eq!(text.contains('\x1b'), colour);
            }
        }
    }
}
