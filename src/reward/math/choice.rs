//! Answers of multiple choice, their letter with what it stands for.

/// `(A) 5`, `\text{(B)}\ 12`, `C. 7`: the letter and what stands behind it.
pub fn choice(text: &str) -> Option<(&str, &str)> {
    let mut rest = text.trim_start();
    let styled = [
        "\\text{",
        "\\textbf{",
        "\\mathrm{",
        "\\textrm{",
        "\\mathbf{",
    ]
    .iter()
    .find_map(|style| rest.strip_prefix(style));
    rest = styled.unwrap_or(rest).trim_start();
    let bracketed = rest.strip_prefix('(');
    rest = bracketed.unwrap_or(rest);
    if !rest.starts_with(|c: char| ('A'..='J').contains(&c)) {
        return None;
    }
    let (letter, after) = rest.split_at(1);
    let mark = after.trim_start();
    let mut behind = match bracketed {
        Some(_) => mark.strip_prefix(')')?,
        None => mark.strip_prefix([')', '.'])?,
    };
    // "B.12" may be anything; "B. 12" is a choice.
    let spaced = bracketed.is_some() || behind.starts_with([' ', '}', '\\', '~']);
    if let (Some(_), Some((inside, outside))) = (styled, behind.split_once('}')) {
        // All words stand in one group with the letter, or none do.
        behind = match inside.trim().is_empty() {
            true => outside,
            false if outside.trim().is_empty() => inside,
            false => return None,
        };
    }
    for space in ["\\ ", "\\quad", "\\,", "\\;", "~"] {
        behind = behind.trim_start();
        behind = behind.strip_prefix(space).unwrap_or(behind);
    }
    let behind = behind.trim();
    let operator = |c: char| ",;+-*/=^_<>&|!.:)".contains(c);
    let joined = [
        "and",
        "or",
        "\\cup",
        "\\cap",
        "\\text{ and",
        "\\text{ or",
        "\\text{and",
        "\\text{or",
        "\\cdot",
        "\\times",
        "\\le",
        "\\ge",
        "\\to",
    ];
    let other = behind
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|word| word.len() == 1 && word.chars().all(|c| ('A'..='J').contains(&c)));
    let fits = spaced
        && !behind.is_empty()
        && !behind.starts_with(operator)
        && !joined.iter().any(|word| behind.starts_with(word))
        && !other;
    fits.then_some((letter, behind))
}

/// Whether a text is a choice's letter and nothing else.
pub fn letter(text: &str) -> Option<char> {
    let key = super::words::key(text);
    let mut chars = key.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) if ('a'..='j').contains(&c) => Some(c.to_ascii_uppercase()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_what_they_stand_for() {
        for (text, expected) in [
            ("(A) 5", Some(("A", "5"))),
            (r"\text{(B)}\ 12", Some(("B", "12"))),
            (r"\textbf{(C) } \frac{1}{2}", Some(("C", r"\frac{1}{2}"))),
            (r"\text{(D) no}", Some(("D", "no"))),
            ("B. 12", Some(("B", "12"))),
            ("(A)", None),
            ("(A)+5", None),
            ("(A), (B)", None),
            ("(A) and (C)", None),
            ("A or B", None),
            ("B.5", None),
            ("(K) 5", None),
        ] {
            assert_eq!(choice(text), expected, "{text}");
        }
    }
}
