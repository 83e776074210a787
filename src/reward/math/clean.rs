//! One alphabet for the many an answer is typed in: Unicode signs as LaTeX,
//! escapes repaired, chat markers and dollars gone.

/// The text with Unicode mathematics as LaTeX commands. Commands that it
/// writes end in a space, so that no letter after them joins their name.
pub fn clean(text: &str) -> String {
    let text = text.trim();
    // Most answers are a few plain characters.
    if text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+' | b'/' | b'(' | b')' | b' '))
    {
        return text.to_string();
    }
    let text = without_markers(text);
    let text = single_backslashes(text);
    let text = lost_backslashes(text);
    let mut out = String::with_capacity(text.len() + 16);
    // Which script the digits just written stand in.
    let mut script: Option<char> = None;
    for (at, c) in text.char_indices() {
        // Most characters stay what they are.
        if script.is_none() && (c.is_ascii_graphic() || c == ' ') && c != '$' {
            out.push(c);
            continue;
        }
        if let Some((place, digit)) = scripted(c) {
            if script != Some(place) {
                if script.is_some() {
                    out.push('}');
                }
                out.push(place);
                out.push('{');
            }
            script = Some(place);
            out.push(digit);
            continue;
        }
        if script.take().is_some() {
            out.push('}');
        }
        let rest = &text[at + c.len_utf8()..];
        match c {
            // Numbers of statements: "②③" lists two.
            '①'..='⑳' => {
                let number = c as u32 - '①' as u32 + 1;
                out.push_str(&number.to_string());
                if rest.starts_with(|c| ('①'..='⑳').contains(&c)) {
                    out.push(',');
                }
            }
            '\u{c}' | '\t' | '\u{8}' => out.push_str(broken_escape(c, rest)),
            '$' => {
                if out.ends_with('\\') {
                    out.push('$');
                } else {
                    out.push(' ');
                }
            }
            '\u{ff01}'..='\u{ff5e}' => {
                out.extend(char::from_u32(c as u32 - 0xfee0));
            }
            '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' => {}
            c if c.is_ascii_control() => out.push(' '),
            c if c.is_ascii() => out.push(c),
            c => match SIGNS.iter().find(|(sign, _)| *sign == c) {
                Some((_, latex)) => {
                    out.push_str(latex);
                    if latex.starts_with('\\') {
                        out.push(' ');
                    }
                }
                None if c.is_whitespace() => out.push(' '),
                None => out.push(c),
            },
        }
    }
    if script.is_some() {
        out.push('}');
    }
    for (clock, letters) in [
        ("p.m.", "pm"),
        ("a.m.", "am"),
        ("P.M.", "PM"),
        ("A.M.", "AM"),
    ] {
        if out.contains('.') && out.contains(clock) {
            out = out.replace(clock, letters);
        }
    }
    let kept = trim_noise(&out);
    if kept.len() < out.len() {
        out = kept.to_string();
    }
    out
}

/// The text without what may stand around an answer and means nothing.
fn trim_noise(text: &str) -> &str {
    let mut text = text;
    loop {
        let before = text.len();
        text = text.trim().trim_matches('*').trim_matches('`');
        text = text.trim_end_matches([',', ';', ':']);
        if text.ends_with('.') && !text.ends_with("..") {
            text = &text[..text.len() - 1];
        }
        // "185\": a backslash that lost its command.
        if text.ends_with('\\') && !text.ends_with("\\\\") {
            text = &text[..text.len() - 1];
        }
        for space in ["\\,", "\\;", "\\!", "\\ ", "\\quad", "\\\\"] {
            text = text.strip_suffix(space).unwrap_or(text);
        }
        if text.len() == before {
            return text;
        }
    }
}

/// Chat markers and the HTML that datasets carry.
fn without_markers(text: &str) -> String {
    let mut text = text.to_string();
    if !text.contains('<') {
        return text;
    }
    for marker in ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>"] {
        if text.contains(marker) {
            text = text.replace(marker, " ");
        }
    }
    if text.contains("<su") {
        for (tag, latex) in [
            ("<sup>", "^{"),
            ("</sup>", "}"),
            ("<sub>", "_{"),
            ("</sub>", "}"),
        ] {
            text = text.replace(tag, latex);
        }
    }
    text
}

/// `\\frac` for `\frac`: one layer of escaping too many. Inside an
/// environment a doubled backslash ends a row and stays.
fn single_backslashes(text: String) -> String {
    if !text.contains("\\\\") {
        return text;
    }
    if text.contains("\\\\begin") {
        return text.replace("\\\\", "\\");
    }
    if text.contains("\\begin") {
        return text;
    }
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let doubled = c == '\\' && bytes.get(at + 1) == Some(&b'\\');
        let named = bytes.get(at + 2).is_some_and(u8::is_ascii_alphabetic);
        if !(doubled && named) {
            out.push(c);
        }
    }
    out
}

/// `rac{1}{2}` and `ext{no}`: a reader of escapes took the backslash and the
/// letter behind it.
fn lost_backslashes(text: String) -> String {
    const LOST: [(&str, &str); 3] = [("rac{", "\\f"), ("ext{", "\\t"), ("egin{", "\\b")];
    let mut text = text;
    for (tail, head) in LOST {
        if !text.contains(tail) {
            continue;
        }
        let mut out = String::with_capacity(text.len() + 8);
        let mut rest = text.as_str();
        while let Some(at) = rest.find(tail) {
            let before = rest[..at].chars().next_back().or(out.chars().next_back());
            out.push_str(&rest[..at]);
            // The tab or form feed itself is mended where signs are.
            let whole = |c: char| c.is_alphabetic() || c == '\\' || c.is_ascii_control();
            if !before.is_some_and(whole) {
                out.push_str(head);
            }
            out.push_str(tail);
            rest = &rest[at + tail.len()..];
        }
        out.push_str(rest);
        text = out;
    }
    text
}

/// What a JSON reader made of `\frac`, `\text`, `\begin` with one backslash.
fn broken_escape(c: char, rest: &str) -> &'static str {
    const LOST: [(char, &str, &str); 9] = [
        ('\u{c}', "rac", "\\f"),
        ('\t', "ext", "\\t"),
        ('\t', "imes", "\\t"),
        ('\t', "heta", "\\t"),
        ('\t', "frac", "\\t"),
        ('\t', "an", "\\t"),
        ('\u{8}', "egin", "\\b"),
        ('\u{8}', "oxed", "\\b"),
        ('\u{8}', "inom", "\\b"),
    ];
    LOST.iter()
        .find(|(lost, tail, _)| *lost == c && rest.starts_with(tail))
        .map_or(" ", |(_, _, head)| head)
}

/// A raised or lowered sign: whether it is raised, and what it is.
fn scripted(c: char) -> Option<(char, char)> {
    Some(match c {
        '\u{2070}' => ('^', '0'),
        '\u{b9}' => ('^', '1'),
        '\u{b2}' => ('^', '2'),
        '\u{b3}' => ('^', '3'),
        '\u{2074}'..='\u{2079}' => ('^', char::from(b'4' + (c as u32 - 0x2074) as u8)),
        '\u{207a}' => ('^', '+'),
        '\u{207b}' => ('^', '-'),
        '\u{207f}' => ('^', 'n'),
        '\u{2080}'..='\u{2089}' => ('_', char::from(b'0' + (c as u32 - 0x2080) as u8)),
        _ => return None,
    })
}

/// Signs and what they mean. Commands get a space behind them.
const SIGNS: &[(char, &str)] = &[
    ('−', "-"),
    ('–', "-"),
    ('—', "-"),
    ('‐', "-"),
    ('×', "\\times"),
    ('·', "\\cdot"),
    ('⋅', "\\cdot"),
    ('∙', "\\cdot"),
    ('•', "\\cdot"),
    ('∗', "\\cdot"),
    ('÷', "\\div"),
    ('∕', "/"),
    ('⁄', "/"),
    ('π', "\\pi"),
    ('√', "\\sqrt"),
    ('∞', "\\infty"),
    ('≤', "\\le"),
    ('⩽', "\\le"),
    ('≥', "\\ge"),
    ('⩾', "\\ge"),
    ('≠', "\\ne"),
    ('≈', "\\approx"),
    ('≡', "\\equiv"),
    ('±', "\\pm"),
    ('∓', "\\mp"),
    ('∪', "\\cup"),
    ('∩', "\\cap"),
    ('∈', "\\in"),
    ('∖', "\\setminus"),
    ('∅', "\\emptyset"),
    ('ℝ', "\\mathbb{R}"),
    ('ℤ', "\\mathbb{Z}"),
    ('ℕ', "\\mathbb{N}"),
    ('ℚ', "\\mathbb{Q}"),
    ('ℂ', "\\mathbb{C}"),
    ('°', "^{\\circ}"),
    ('º', "^{\\circ}"),
    ('˚', "^{\\circ}"),
    ('½', "\\frac{1}{2}"),
    ('⅓', "\\frac{1}{3}"),
    ('⅔', "\\frac{2}{3}"),
    ('¼', "\\frac{1}{4}"),
    ('¾', "\\frac{3}{4}"),
    ('⅕', "\\frac{1}{5}"),
    ('⅖', "\\frac{2}{5}"),
    ('⅗', "\\frac{3}{5}"),
    ('⅘', "\\frac{4}{5}"),
    ('⅙', "\\frac{1}{6}"),
    ('⅚', "\\frac{5}{6}"),
    ('⅛', "\\frac{1}{8}"),
    ('⅜', "\\frac{3}{8}"),
    ('⅝', "\\frac{5}{8}"),
    ('⅞', "\\frac{7}{8}"),
    ('α', "\\alpha"),
    ('β', "\\beta"),
    ('γ', "\\gamma"),
    ('δ', "\\delta"),
    ('Δ', "\\Delta"),
    ('∆', "\\Delta"),
    ('ε', "\\epsilon"),
    ('θ', "\\theta"),
    ('λ', "\\lambda"),
    ('μ', "\\mu"),
    ('µ', "\\mu"),
    ('ρ', "\\rho"),
    ('σ', "\\sigma"),
    ('τ', "\\tau"),
    ('φ', "\\phi"),
    ('ϕ', "\\phi"),
    ('ψ', "\\psi"),
    ('ω', "\\omega"),
    ('Ω', "\\Omega"),
    ('∑', "\\sum"),
    ('∏', "\\prod"),
    ('∫', "\\int"),
    ('⌊', "\\lfloor"),
    ('⌋', "\\rfloor"),
    ('⌈', "\\lceil"),
    ('⌉', "\\rceil"),
    ('⟨', "\\langle"),
    ('⟩', "\\rangle"),
    ('∠', "\\angle"),
    ('∣', "|"),
    ('∀', "\\forall"),
    ('…', "\\ldots"),
    ('⋯', "\\cdots"),
    ('′', "'"),
    ('’', "'"),
    ('‘', "'"),
    ('“', "\""),
    ('”', "\""),
    ('，', ","),
    ('；', ";"),
    ('：', ":"),
    ('（', "("),
    ('）', ")"),
    ('＜', "<"),
    ('＞', ">"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_become_latex() {
        for (text, expected) in [
            ("2π", "2\\pi"),
            ("x²", "x^{2}"),
            ("x⁻¹²y", "x^{-12}y"),
            ("x₁²", "x_{1}^{2}"),
            ("４２", "42"),
            ("−5", "-5"),
            ("$5$", "5"),
            ("\\$5", "\\$5"),
            ("**7**", "7"),
            ("5.", "5"),
            ("5\\,.", "5"),
            ("185\\", "185"),
            ("1, 2, ...", "1, 2, ..."),
            ("42<|im_end|>", "42"),
            ("3<sup>x</sup>", "3^{x}"),
            ("\\\\frac{1}{2}", "\\frac{1}{2}"),
            ("1+\u{c}rac{1}{2}", "1+\\frac{1}{2}"),
            ("4:30 p.m.", "4:30 pm"),
            ("②③", "2,3"),
            ("[rac{1}{e},\\frac{1}{2}]", "[\\frac{1}{e},\\frac{1}{2}]"),
            ("ext{no}", "\\text{no}"),
        ] {
            assert_eq!(clean(text), expected, "{text}");
        }
    }

    #[test]
    fn rows_of_a_matrix_stay_rows() {
        let matrix = r"\begin{pmatrix}1\\x\end{pmatrix}";
        assert_eq!(clean(matrix), matrix);
        let doubled = r"\\begin{pmatrix}1\\\\x\\end{pmatrix}";
        assert_eq!(clean(doubled), matrix);
    }
}
