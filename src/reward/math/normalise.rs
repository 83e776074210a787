//! Whether two answers are the same after normalising how they are written.
//!
//! A comparison of normalised text: it takes LaTeX noise away but does no
//! algebra, so it refuses equal values written in different forms and errs
//! on the side of not paying.

/// One spelling for the many an answer has: no dollars, spaces, sizes,
/// `\text`; `\frac` and `\sqrt` with braces; numbers without thousands marks,
/// trailing zeros or a plus sign; no degree and percent signs.
pub fn normalise(answer: &str) -> String {
    let tokens = tokenize(answer.trim().trim_matches('*'));
    let tokens = unwrap_groups(tokens);
    let tokens = brace_arguments(drop_degrees(tokens));
    let tokens = simplify_groups(tokens);
    let text = join(&tokens);
    let text = text.trim_end_matches(['.', ',', ';']).trim_matches(' ');
    let text = text.strip_prefix('+').unwrap_or(text);
    number(text)
        .or_else(|| fraction(text))
        .unwrap_or_else(|| right_number(text))
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// `\name`, or a backslash and one symbol.
    Command(String),
    Char(char),
}

/// Commands that change nothing but the looks.
const DROPPED: &[&str] = &[
    "left",
    "right",
    "big",
    "Big",
    "bigg",
    "Bigg",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "displaystyle",
    "textstyle",
    "limits",
    "degree",
    "$",
    "%",
    "(",
    ")",
    "[",
    "]",
];

/// Commands that are white space.
const SPACES: &[&str] = &[
    "!",
    ",",
    ";",
    ":",
    ">",
    " ",
    "quad",
    "qquad",
    "thinspace",
    "enspace",
];

/// Commands that stand for their argument.
const UNWRAPPED: &[&str] = &[
    "text",
    "textbf",
    "textit",
    "textrm",
    "textsf",
    "texttt",
    "mathrm",
    "mathbf",
    "mathit",
    "mathsf",
    "mbox",
    "hbox",
    "boxed",
    "fbox",
    "boldsymbol",
    "bm",
    "underline",
    "operatorname",
];

fn tokenize(text: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut chars = text.chars().peekable();
    // White space is dropped, except between digits of different numbers.
    let mut spaced = false;
    let mut null_delimiter = false;
    while let Some(c) = chars.next() {
        let token = if c == '\\' {
            let mut name = String::new();
            while let Some(letter) = chars.next_if(char::is_ascii_alphabetic) {
                name.push(letter);
            }
            if name.is_empty() {
                name.extend(chars.next());
            }
            // "\!" pulls together, it does not keep apart.
            if SPACES.contains(&name.as_str()) || name.trim().is_empty() {
                spaced |= name != "!";
                continue;
            }
            null_delimiter = matches!(name.as_str(), "left" | "right");
            if DROPPED.contains(&name.as_str()) {
                continue;
            }
            Token::Command(renamed(name))
        } else if c.is_whitespace() || c == '~' {
            spaced = true;
            continue;
        } else if matches!(c, '$' | '%' | '°') || (c == '.' && std::mem::take(&mut null_delimiter))
        {
            continue;
        } else {
            char_token(c)
        };
        null_delimiter = false;
        let digit =
            |token: Option<&Token>| matches!(token, Some(Token::Char(c)) if c.is_ascii_digit());
        if std::mem::take(&mut spaced) && digit(tokens.last()) && digit(Some(&token)) {
            let ahead = chars.clone().take(3).filter(char::is_ascii_digit).count();
            let group_of_three =
                ahead == 2 && !chars.clone().nth(2).is_some_and(|c| c.is_ascii_digit());
            if !group_of_three {
                tokens.push(Token::Char(' '));
            }
        }
        tokens.push(token);
    }
    tokens
}

fn renamed(name: String) -> String {
    match name.as_str() {
        "dfrac" | "tfrac" | "cfrac" => "frac".into(),
        "dbinom" | "tbinom" => "binom".into(),
        "le" => "leq".into(),
        "ge" => "geq".into(),
        "ne" => "neq".into(),
        "lbrace" => "{".into(),
        "rbrace" => "}".into(),
        _ => name,
    }
}

fn char_token(c: char) -> Token {
    match c {
        '−' | '–' => Token::Char('-'),
        'π' => Token::Command("pi".into()),
        '∞' => Token::Command("infty".into()),
        '≤' => Token::Command("leq".into()),
        '≥' => Token::Command("geq".into()),
        '×' => Token::Command("times".into()),
        '·' => Token::Command("cdot".into()),
        c => Token::Char(c),
    }
}

fn is_command(token: Option<&Token>, names: &[&str]) -> bool {
    matches!(token, Some(Token::Command(name)) if names.contains(&name.as_str()))
}

const OPEN: Token = Token::Char('{');
const CLOSE: Token = Token::Char('}');

/// `\text{a}` becomes `a`, `1{,}234` becomes `1,234`.
fn unwrap_groups(tokens: Vec<Token>) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
    // Whether each open brace was taken out, and its mate must be too.
    let mut open = Vec::new();
    let mut unwrap = false;
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let wrapper = std::mem::replace(&mut unwrap, false);
        if is_command(Some(&token), UNWRAPPED) {
            unwrap = true;
        } else if token == OPEN {
            let drop = wrapper || tokens.peek() == Some(&Token::Char(','));
            open.push(drop);
            if !drop {
                out.push(token);
            }
        } else if token == CLOSE {
            if !open.pop().unwrap_or(false) {
                out.push(token);
            }
        } else {
            out.push(token);
        }
    }
    out
}

/// `^\circ` and `^{\circ}` go.
fn drop_degrees(tokens: Vec<Token>) -> Vec<Token> {
    let circle = Token::Command("circ".into());
    let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
    for token in tokens {
        out.push(token);
        for degrees in [
            &[Token::Char('^'), circle.clone()][..],
            &[Token::Char('^'), OPEN, circle.clone(), CLOSE],
        ] {
            if out.ends_with(degrees) {
                out.truncate(out.len() - degrees.len());
            }
        }
    }
    out
}

/// `\frac12` becomes `\frac{1}{2}`, `\sqrt3` becomes `\sqrt{3}`.
fn brace_arguments(tokens: Vec<Token>) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::with_capacity(tokens.len() * 2);
    // Arguments still expected, at this depth and at those around it.
    let mut expected = 0;
    let mut around = Vec::new();
    for token in tokens {
        let arguments = match &token {
            token if is_command(Some(token), &["frac", "binom"]) => 2,
            token if is_command(Some(token), &["sqrt"]) => 1,
            _ => 0,
        };
        if arguments > 0 {
            expected = arguments;
            out.push(token);
        } else if token == OPEN {
            around.push(usize::saturating_sub(expected, 1));
            expected = 0;
            out.push(token);
        } else if token == CLOSE {
            expected = around.pop().unwrap_or(0);
            out.push(token);
        } else if expected > 0 && token != Token::Char('[') {
            expected -= 1;
            out.extend([OPEN, token, CLOSE]);
        } else {
            // A root's index: its radicand is left as it stands.
            expected = 0;
            out.push(token);
        }
    }
    out
}

/// `x^{2}` becomes `x^2`, `{5}` becomes `5`.
fn simplify_groups(tokens: Vec<Token>) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
    for token in tokens {
        out.push(token);
        if let [before @ .., OPEN, inner, CLOSE] = out.as_slice()
            && !matches!(inner, &OPEN | &CLOSE)
            && matches!(before.last(), None | Some(Token::Char('^' | '_')))
        {
            let inner = inner.clone();
            out.truncate(out.len() - 3);
            out.push(inner);
        }
    }
    out
}

fn join(tokens: &[Token]) -> String {
    let mut text = String::new();
    for (i, token) in tokens.iter().enumerate() {
        match token {
            Token::Char(c) => text.push(*c),
            Token::Command(name) => {
                text.push('\\');
                text.push_str(name);
                let letters = name.ends_with(|c: char| c.is_ascii_alphabetic());
                if letters
                    && matches!(tokens.get(i + 1), Some(Token::Char(c)) if c.is_ascii_alphabetic())
                {
                    text.push(' ');
                }
            }
        }
    }
    text
}

/// A whole text that is a decimal number, without thousands marks, leading
/// and trailing zeros.
fn number(text: &str) -> Option<String> {
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text),
    };
    let (whole, decimals) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let whole = thousands(whole)?;
    if !decimals.bytes().all(|byte| byte.is_ascii_digit())
        || (whole.is_empty() && decimals.is_empty())
    {
        return None;
    }
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        whole => whole,
    };
    let decimals = decimals.trim_end_matches('0');
    Some(match (whole, decimals) {
        ("0", "") => "0".into(),
        (whole, "") => format!("{sign}{whole}"),
        (whole, decimals) => format!("{sign}{whole}.{decimals}"),
    })
}

/// Digits, maybe with a comma before every three; never in a tuple, whose
/// brackets are no digits.
fn thousands(whole: &str) -> Option<String> {
    let mut groups = whole.split(',');
    let first = groups.next()?;
    let digits = |group: &str| group.bytes().all(|byte| byte.is_ascii_digit());
    let marked = whole.contains(',');
    let fits = digits(first)
        && (!marked || (1..=3).contains(&first.len()))
        && groups.all(|group| group.len() == 3 && digits(group));
    fits.then(|| whole.replace(',', ""))
}

/// `-1/2` and `\frac{-1}{2}` as `-\frac{1}{2}`.
fn fraction(text: &str) -> Option<String> {
    let (outer, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (top, bottom) = match unsigned.strip_prefix("\\frac{") {
        Some(rest) => rest.strip_suffix('}')?.split_once("}{")?,
        None => unsigned.split_once('/')?,
    };
    let (inner, top) = match top.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, top),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let sign = if outer != inner { "-" } else { "" };
    (digits(top) && digits(bottom)).then(|| format!("{sign}\\frac{{{top}}}{{{bottom}}}"))
}

/// `x=1,000` with its right side as a number of its own.
fn right_number(text: &str) -> String {
    match right_side(text) {
        Some(right) => {
            let left = &text[..text.len() - right.len()];
            let right = right.strip_prefix('+').unwrap_or(right);
            let right = number(right)
                .or_else(|| fraction(right))
                .unwrap_or_else(|| right.into());
            format!("{left}{right}")
        }
        None => text.into(),
    }
}

/// What a single letter is said to equal.
fn right_side(text: &str) -> Option<&str> {
    let (left, right) = text.split_once('=')?;
    let letter = left.len() == 1 && left.bytes().all(|byte| byte.is_ascii_alphabetic());
    (letter && !right.is_empty() && !right.contains('=')).then_some(right)
}
