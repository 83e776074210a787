//! Which part of a completion is its answer: the last closed box.
//!
//! One pass over the bytes with a stack of open braces, so that no text, well
//! formed or not, takes more than linear time.

use std::ops::Range;

/// A box found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What stands in the box, white space around it removed.
    pub content: String,
    /// Bytes of the whole box in the text, from its backslash on.
    pub range: Range<usize>,
    /// How it was found, for people to read.
    pub rule: &'static str,
}

/// The answer of a completion: its last closed `\boxed{}` or `\fbox{}` after
/// the end of thinking. Else a reason why there is none.
///
/// A box opened but not closed counts for nothing, so a completion cut short
/// has an answer only if it had closed a box before.
pub fn answer(completion: &str) -> Result<Found, &'static str> {
    let visible = after_thinking(completion);
    let offset = visible.start;
    let text = &completion[visible.clone()];
    match last_box(text) {
        Some(mut found) => {
            found.range = found.range.start + offset..found.range.end + offset;
            Ok(found)
        }
        None if visible.end < completion.len() => Err("thinking was not finished"),
        None => Err("no closed box"),
    }
}

/// The bytes of `completion` that are no thinking: what follows the last
/// `</think>`, up to a `<think>` that was never closed.
pub fn after_thinking(completion: &str) -> Range<usize> {
    const END: &str = "</think>";
    let start = completion.rfind(END).map_or(0, |at| at + END.len());
    let length = completion[start..]
        .find("<think>")
        .unwrap_or(completion.len() - start);
    start..start + length
}

/// The closed box of `text` that starts last.
pub fn last_box(text: &str) -> Option<Found> {
    boxes(text).pop()
}

/// All closed boxes of `text`, in the order they start. Of nested boxes both
/// are there, the inner one later.
pub fn boxes(text: &str) -> Vec<Found> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    // For each open brace the start and the content's start of the box it
    // opens, or None for any other brace.
    let mut open: Vec<Option<(usize, usize)>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => match box_command(bytes, at) {
                Some(argument) if bytes.get(argument) == Some(&b'{') => {
                    open.push(Some((at, argument + 1)));
                    at = argument + 1;
                }
                Some(argument) => {
                    found.extend(bare_argument(text, at, argument));
                    at = argument;
                }
                // "\\boxed" is a doubled backslash of someone's escaping.
                None if box_command(bytes, at + 1).is_some() => at += 1,
                // Whatever follows is escaped: "\{" opens nothing.
                None => at += 2,
            },
            b'{' => {
                open.push(None);
                at += 1;
            }
            b'}' => {
                at += 1;
                if let Some(Some((start, content))) = open.pop() {
                    found.push(Found {
                        content: text[content..at - 1].trim().to_string(),
                        range: start..at,
                        rule: "last closed box",
                    });
                }
            }
            _ => at += 1,
        }
    }
    found.sort_by_key(|found| found.range.start);
    found
}

/// Whether the text says box anywhere, closed or not.
pub fn mentions_box(text: &str) -> bool {
    let bytes = text.as_bytes();
    (0..bytes.len()).any(|at| box_command(bytes, at).is_some())
}

/// If a box command starts at `at`, where its argument starts.
fn box_command(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?;
    let name = ["\\boxed", "\\fbox"]
        .into_iter()
        .find(|name| rest.starts_with(name.as_bytes()))?;
    let after = &rest[name.len()..];
    // "\boxedtext" would be another command.
    if after.first().is_some_and(u8::is_ascii_alphabetic) {
        return None;
    }
    let space = after.len() - after.trim_ascii_start().len();
    Some(at + name.len() + space)
}

/// `\boxed 5`: an argument without braces. Taken only where it is a number,
/// or where the formula ends with it, for prose has the word `\boxed` too.
fn bare_argument(text: &str, start: usize, argument: usize) -> Option<Found> {
    // An argument is short; the bound keeps a row of such commands linear.
    const LONGEST: usize = 64;
    let rest = &text[argument..];
    let stop = |(at, c): (usize, char)| {
        let closes = ["$", "\\)", "\\]", "\\boxed", "\\fbox"];
        (c.is_whitespace() || closes.iter().any(|end| rest[at..].starts_with(end)))
            .then_some((at, c))
    };
    let (length, end) = match rest.char_indices().take(LONGEST).find_map(stop) {
        Some(found) => found,
        None if rest.chars().nth(LONGEST).is_none() => (rest.len(), '\n'),
        None => return None,
    };
    let content = rest[..length].trim_end_matches(['.', ',', ';', ':', '!', '?']);
    let unsigned = content.trim_start_matches(['-', '+']);
    let number = unsigned.starts_with(|c: char| c.is_ascii_digit())
        && unsigned
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | ',' | '/'));
    let formula = matches!(end, '$' | '\\') && !content.is_empty();
    (number || formula).then(|| Found {
        content: content.to_string(),
        range: start..argument + content.len(),
        rule: "last box, without braces",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(completion: &str) -> Option<String> {
        answer(completion).ok().map(|found| found.content)
    }

    #[test]
    fn finds_the_last_closed_box() {
        for (completion, expected) in [
            (
                r"so \boxed{\frac{1}{\sqrt{2}}}.",
                Some(r"\frac{1}{\sqrt{2}}"),
            ),
            (r"First \boxed{41}. Wait: \boxed{42}", Some("42")),
            (r"\fbox{7} and done", Some("7")),
            ("\\boxed{\n7\n}", Some("7")),
            (r"\boxed {7}", Some("7")),
            (r"\boxed{\boxed{7}}", Some("7")),
            (r"\boxed{\{1, 2\}}", Some(r"\{1, 2\}")),
            (r"\boxed{\left\{ 1 \right.}", Some(r"\left\{ 1 \right.")),
            (r"\\boxed{5}", Some("5")),
            (r"a \\ \boxed{5}", Some("5")),
            (r"\boxed{}", Some("")),
            (r"stray } brace \boxed{3}}", Some("3")),
            (r"{ open \boxed{3}", Some("3")),
            // Not closed, so not there.
            (r"\boxed{12", None),
            (r"\boxed{\frac{1}{2}", None),
            (r"\boxed{41} no, \boxed{4", Some("41")),
            (r"\boxed{12 or \boxed{7}", Some("7")),
            // No braces.
            (r"$\boxed 2$", Some("2")),
            (r"$\boxed2$.", Some("2")),
            (r"is \boxed 12.", Some("12")),
            (r"$\boxed x$", Some("x")),
            (r"\(\boxed\pi\)", Some(r"\pi")),
            // Prose about boxes.
            (r"\boxed{5}, in \boxed form", Some("5")),
            (r"put it in \boxed.", None),
            (r"put it in $\boxed$", None),
            (r"\boxedtext{5}", None),
            ("the answer is 5", None),
            ("", None),
        ] {
            assert_eq!(content(completion).as_deref(), expected, "{completion}");
        }
    }

    #[test]
    fn thinking_is_no_answer() {
        assert_eq!(
            content(r"<think>\boxed{8}</think> \boxed{7}").as_deref(),
            Some("7")
        );
        assert_eq!(
            answer(r"<think>\boxed{8}</think> so eight"),
            Err("no closed box")
        );
        assert_eq!(
            answer(r"<think>\boxed{8}"),
            Err("thinking was not finished")
        );
        assert_eq!(
            content(r"\boxed{6}</think>\boxed{7}<think>\boxed{8}").as_deref(),
            Some("7")
        );
    }

    #[test]
    fn range_is_the_box_in_the_whole_completion() {
        let completion = r"é</think> then \boxed{{x}} end";
        let found = answer(completion).unwrap();
        assert_eq!(&completion[found.range], r"\boxed{{x}}");
    }

    #[test]
    fn hostile_text_takes_linear_time() {
        for unit in [
            "\\boxed{", "\\boxed ", "\\boxed", "{", "}", "\\boxed1", "\\",
        ] {
            let text = unit.repeat(200_000);
            let start = std::time::Instant::now();
            let _ = (answer(&text), mentions_box(&text));
            assert!(start.elapsed().as_secs() < 5, "{unit}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(parts in prop::collection::vec(prop_oneof![
            any::<String>(),
            prop::sample::select(vec![r"\boxed", r"\fbox", "{", "}", "\\", "$", " ", "5", "<think>", "</think>", "é"])
                .prop_map(String::from),
        ], 0..20)) {
            let text = parts.concat();
            for found in boxes(&text) {
                prop_assert!(text[found.range].contains(&found.content));
            }
            let _ = answer(&text);
        }

        /// Whatever balanced content is boxed last comes back.
        #[test]
        fn boxed_content_comes_back(before in "[a-z{}$ ]{0,20}", content in r"[a-z0-9^+]{0,9}(\{[a-z]{0,5}\}){0,3}") {
            let text = format!(r"{before}\boxed{{{content}}}.");
            prop_assert_eq!(last_box(&text).map(|found| found.content), Some(content));
        }
    }
}
