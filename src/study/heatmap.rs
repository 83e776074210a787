//! Token heat maps: one panel per method, side by side; and how hot a weight is,
//! for all that shows weights.
//!
//! The markup is well-formed XML too. [`fragment`] is what goes into a page's body, [`CSS`] what goes into its
//! head once, [`page`] a whole file of it. Nothing is loaded from elsewhere.

use std::fmt::Write;

use super::markup::escape;

/// A token and what the hover shows of it.
#[derive(Clone, Debug, Default)]
pub struct HeatToken {
    pub text: String,
    /// (name, value), as in ("log-prob", -0.31).
    pub facts: Vec<(&'static str, f64)>,
}

/// One panel: weights of all tokens, and a line under its name.
#[derive(Clone, Debug)]
pub struct HeatMethod<'a> {
    pub name: &'a str,
    pub caption: String,
    /// Sum to 1, one per token.
    pub weights: &'a [f64],
}

/// Shared style: follows the reader's light or dark setting.
pub const CSS: &str = "\
.heat{--ink:#1f2328;--paper:#fff;--line:#d0d7de;--soft:#59636e;--hot:#f76707;\
display:grid;grid-template-columns:repeat(auto-fit,minmax(min(21rem,100%),1fr));gap:.75rem;color:var(--ink)}
.heat section{border:1px solid var(--line);border-radius:6px;padding:.6rem .75rem;background:var(--paper);min-width:0}
.heat .name{margin:0;font:600 .9rem system-ui,sans-serif}
.heat .cap{margin:.1rem 0 .5rem;font:.75rem system-ui,sans-serif;color:var(--soft);font-variant-numeric:tabular-nums}
.heat .map{font:.82rem/1.75 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:0}
.heat .t{background:color-mix(in srgb,var(--hot) calc(var(--w)*78%),transparent);border-radius:2px;padding:.1em 0;\
box-shadow:inset -1px 0 var(--paper)}
.heat .t:hover,.heat .t.same{outline:2px solid var(--ink);outline-offset:-1px}
.heat .t:hover::after{content:attr(data-tip);position:fixed;left:1rem;bottom:1rem;z-index:9;max-width:calc(100vw - 2rem);\
white-space:pre-wrap;background:var(--ink);color:var(--paper);border-radius:6px;padding:.5rem .7rem;\
font:.8rem/1.5 ui-monospace,Menlo,Consolas,monospace}
.heat .nl{color:var(--soft)}
.heatkey{display:flex;flex-wrap:wrap;align-items:center;gap:.25rem;font:.8rem system-ui,sans-serif;margin:.5rem 0 1rem}
.heatkey .heat{display:inline;border:0}
.heatkey .t{padding:.15em .55em}
@media (prefers-color-scheme:dark){.heat{--ink:#e6edf3;--paper:#161b22;--line:#30363d;--soft:#9198a1;--hot:#d9480f}}
";

/// Marks a token in all panels while it is hovered; the page works without.
pub const SCRIPT: &str = "\
addEventListener('mouseover',e=>{document.querySelectorAll('.t.same').forEach(t=>t.classList.remove('same'));\
const t=e.target;if(!t.matches||!t.matches('.heat .t[data-tip]'))return;\
const i=[...t.parentNode.children].filter(c=>c.matches('.t')).indexOf(t);\
t.closest('.heat').querySelectorAll('.map').forEach(m=>{\
const c=[...m.children].filter(c=>c.matches('.t'))[i];if(c&&c!==t)c.classList.add('same')})});\
";

/// Weights over the uniform one that legends show.
pub const SCALE: [f64; 6] = [0.0, 0.5, 1.0, 2.0, 4.0, 16.0];

/// How hot a weight is, from 0 to 1: r / (r + 2), where r is the weight over
/// that of uniform credit. One token with everything and a token a little
/// above the others can both be seen.
pub fn heat(weight: f64, tokens: usize) -> f64 {
    let relative = weight.max(0.0) * tokens as f64;
    relative / (relative + 2.0)
}

/// How much of its colour a token's ground has.
pub fn opacity(heat: f64) -> f64 {
    0.78 * heat
}

/// Panels of all methods over the same tokens.
pub fn fragment(tokens: &[HeatToken], methods: &[HeatMethod]) -> String {
    let mut out = String::from("<div class=\"heat\">\n");
    for m in methods {
        let _ = write!(
            out,
            "<section><p class=\"name\">{}</p><p class=\"cap\">{}</p><p class=\"map\">",
            escape(m.name),
            escape(&m.caption)
        );
        for (t, (token, &weight)) in tokens.iter().zip(m.weights).enumerate() {
            let mut tip = format!("{:?}, token {t}\nweight {weight:.4} ", token.text);
            let _ = write!(tip, "({:.2} of uniform)", weight * tokens.len() as f64);
            for (name, value) in &token.facts {
                let _ = write!(tip, "\n{name} {value:.4}");
            }
            let _ = write!(
                out,
                "<span class=\"t\" style=\"--w:{:.3}\" data-tip=\"{}\">{}</span>",
                heat(weight, tokens.len()),
                escape(&tip).replace('\n', "&#10;"),
                marked(&token.text)
            );
            if token.text.contains('\n') {
                out.push_str("<br/>");
            }
        }
        out.push_str("</p></section>\n");
    }
    out.push_str("</div>\n");
    out
}

/// Line breaks and tabs are shown; a token without text has a dot.
pub fn visible(text: &str) -> String {
    match text {
        "" => "·".to_string(),
        text => text.replace('\n', "⏎").replace('\r', "").replace('\t', "→"),
    }
}

/// The same, those characters softer than the others.
fn marked(text: &str) -> String {
    let mut out = escape(&visible(text));
    for c in ["·", "⏎", "→"] {
        // Only what stands for something else, and not the text's own.
        if !text.contains(c) {
            out = out.replace(c, &format!("<span class=\"nl\">{c}</span>"));
        }
    }
    out
}

/// What the colours mean.
pub fn legend() -> String {
    let mut out =
        String::from("<div class=\"heatkey\">weight over uniform credit: <span class=\"heat\">");
    for relative in SCALE {
        let _ = write!(
            out,
            "<span class=\"t\" style=\"--w:{:.3}\">{relative}</span>",
            heat(relative, 1)
        );
    }
    out + "</span></div>\n"
}

/// A whole page.
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title}</title>\n<style>\n\
         body{{margin:1.25rem auto;max-width:110rem;padding:0 1rem;font:1rem/1.5 system-ui,sans-serif;\
         color:#1f2328;background:#f6f8fa}}\n\
         h1{{font-size:1.3rem;margin:0}} h2{{font-size:1.05rem;margin:1.5rem 0 .25rem}}\n\
         .prompt{{white-space:pre-wrap;font:.8rem/1.5 ui-monospace,Menlo,Consolas,monospace;opacity:.75;\
         border-left:3px solid #8884;padding-left:.75rem;margin:.25rem 0 .75rem;overflow-wrap:anywhere}}\n\
         @media (prefers-color-scheme:dark){{body{{color:#e6edf3;background:#0d1117}}}}\n\
         {CSS}</style></head>\n<body>\n<h1>{title}</h1>\n{body}<script>{SCRIPT}</script></body></html>\n",
        title = escape(title),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_everywhere() {
        let tokens = [
            HeatToken {
                text: "<b>\"&'".into(),
                facts: vec![("log-prob", -0.5)],
            },
            HeatToken {
                text: ".\n".into(),
                facts: Vec::new(),
            },
        ];
        let html = fragment(
            &tokens,
            &[HeatMethod {
                name: "a<b",
                caption: "x & y".into(),
                weights: &[0.75, 0.25],
            }],
        );
        assert!(!html.contains("<b>") && html.contains("&lt;b&gt;&quot;&amp;&#39;"));
        assert!(html.contains("a&lt;b") && html.contains("x &amp; y"));
        assert!(html.contains("weight 0.7500 (1.50 of uniform)&#10;log-prob -0.5000"));
        // 1.5 / 3.5, and the line break that the text has.
        assert!(html.contains("--w:0.429") && html.contains("<br/>"));
        assert_eq!(html.matches("class=\"t\"").count(), 2);
    }

    #[test]
    fn a_page_needs_no_network() {
        let html = page("t", &legend());
        for outside in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert!(html.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn heat_grows_and_stays_below_one() {
        assert_eq!(heat(0.0, 10), 0.0);
        assert!((heat(0.1, 10) - 1.0 / 3.0).abs() < 1e-12);
        assert!(heat(0.2, 10) > heat(0.1, 10) && heat(1.0, 10_000) < 1.0);
    }
}
