//! Which part of a completion is its answer: the last closed box.
//!
//! The box is looked for from the end, where it is in most completions; where
//! boxes there are not closed, one pass over all bytes with a stack of open
//! braces decides, so that no text, well formed or not, takes more than linear
//! time.

use std::ops::Range;

use memchr::{memchr_iter, memchr3, memmem, memrchr};

use super::grade::Fallback;

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
/// the end of thinking, or what `fallback` finds where nothing is boxed. Else
/// a reason why there is none.
///
/// A box opened but not closed counts for nothing, so a completion cut short
/// has an answer only if it had closed a box before, and a completion that
/// leaves its box empty has none at all: no fallback looks past a box.
pub fn answer(completion: &str, fallback: Fallback) -> Result<Found, &'static str> {
    let visible = after_thinking(completion);
    let text = &completion[visible.clone()];
    let found = match last_box(text) {
        Some(found) if found.content.is_empty() => Err("the box is empty"),
        Some(found) if is_placeholder(&found.content) => {
            Err("the box only repeats the instruction")
        }
        Some(found) => Ok(found),
        None if visible.end < completion.len() => Err("thinking was not finished"),
        None if fallback == Fallback::None || mentions_box(text) => Err("no closed box"),
        None => phrase(text)
            .or_else(|| (fallback == Fallback::Number).then(|| last_number(text))?)
            .ok_or("no box, and nothing that the fallback takes for an answer"),
    };
    found.map(|mut found| {
        found.range = found.range.start + visible.start..found.range.end + visible.start;
        found
    })
}

/// Whether a box holds what a prompt asks for ("put your final answer within
/// \boxed{answer}") instead of an answer.
fn is_placeholder(content: &str) -> bool {
    // Each of them is letters or dots; most answers are digits.
    if content.bytes().all(|b| b.is_ascii_digit()) {
        return false;
    }
    let bare: String = content
        .replace("\\text", "")
        .chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ')
        .collect::<String>()
        .to_lowercase();
    let words: Vec<&str> = bare.split_whitespace().collect();
    matches!(
        words.as_slice(),
        ["answer"]
            | ["your" | "the" | "final", "answer"]
            | ["your" | "the", "final", "answer"]
            | ["your", "answer", "here"]
            | ["final", "answer", "here"]
            | ["answer", "here"]
    ) || matches!(
        content,
        "..." | "\\ldots" | "\\dots" | "\\cdots" | "\u{2026}"
    )
}

/// The boxes that stand in the same sentence as the last one, which lies at
/// `last`, joined by commas: "n = \boxed{1} or \boxed{-2}". `None` where there
/// are no two different ones, or where words between them take one back.
pub fn joined(completion: &str, last: &Range<usize>) -> Option<Found> {
    const SENTENCE: usize = 400;
    let mut from = last.end.saturating_sub(SENTENCE);
    while !completion.is_char_boundary(from) {
        from += 1;
    }
    let visible = after_thinking(completion);
    let from = from.max(visible.start);
    if from >= last.end {
        return None;
    }
    // A list needs two commands, and each has these letters in its name.
    memmem::find_iter(&completion.as_bytes()[from..last.end], "box").nth(1)?;
    let mut list: Vec<Found> = boxes(&completion[from..last.end]);
    let mut kept: Vec<Found> = vec![list.pop()?];
    while let Some(mut found) = list.pop() {
        let next = &kept[kept.len() - 1].range;
        if found.range.end > next.start {
            return None;
        }
        let between = &completion[from + found.range.end..from + next.start];
        if !joins(between) {
            break;
        }
        found.range = found.range.start..found.range.end;
        kept.push(found);
    }
    kept.reverse();
    let distinct = kept
        .windows(2)
        .any(|pair| pair[0].content != pair[1].content);
    let content: Vec<&str> = kept.iter().map(|found| found.content.as_str()).collect();
    distinct.then(|| Found {
        content: content.join(", "),
        range: from + kept[0].range.start..last.end,
        rule: "boxes of the last sentence, joined",
    })
}

/// Whether what stands between two boxes makes them a list.
fn joins(between: &str) -> bool {
    let bare: String = between
        .replace("\\text", " ")
        .replace("\\quad", " ")
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || "=.?!".contains(c) {
                c
            } else {
                ' '
            }
        })
        .collect();
    let mut words = bare.split_whitespace();
    words.clone().any(|word| matches!(word, "and" | "or"))
        && words.clone().count() <= 6
        && words.all(|word| {
            matches!(
                word,
                "and" | "or" | "=" | "are" | "is" | "also" | "either" | "both"
            ) || word.chars().count() == 1 && word.chars().all(char::is_alphabetic)
        })
        || bare.trim().is_empty() && between.contains(',')
}

/// What follows the last announcement of an answer, up to the end of its
/// line or sentence.
fn phrase(text: &str) -> Option<Found> {
    const PHRASES: [&str; 6] = [
        "final answer is",
        "final answer:",
        "answer is",
        "answer:",
        "final answer**",
        "####",
    ];
    // ASCII lower case keeps every byte where it was.
    let lower = text.to_ascii_lowercase();
    let (at, phrase) = PHRASES
        .iter()
        .filter_map(|phrase| Some((lower.rfind(phrase)? + phrase.len(), phrase)))
        .max_by_key(|(at, phrase)| (*at, phrase.len()))?;
    let rest = &text[at..];
    let skipped = rest.len() - rest.trim_start_matches([' ', ':', '*', '\n']).len();
    let rest = &rest[skipped..];
    let line = rest.split('\n').next().unwrap_or(rest);
    let end = line
        .find(". ")
        .or_else(|| line.find(".$ "))
        .unwrap_or(line.len());
    let content = line[..end].trim().trim_end_matches(['.', '*', ' ']);
    (!content.is_empty()).then(|| Found {
        content: content.to_string(),
        range: at + skipped..at + skipped + end,
        rule: match *phrase {
            "####" => "what follows ####",
            _ => "what follows the last announced answer",
        },
    })
}

/// The last number of a text.
fn last_number(text: &str) -> Option<Found> {
    let bytes = text.as_bytes();
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let part = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'.' | b',' | b'/');
    let mut start = end
        - bytes[..end]
            .iter()
            .rev()
            .take_while(|byte| part(byte))
            .count();
    if start > 0 && bytes[start - 1] == b'-' {
        start -= 1;
    }
    let content = text[start..end].trim_start_matches([',', '/']);
    Some(Found {
        content: content.to_string(),
        range: end - content.len()..end,
        rule: "last number",
    })
}

/// The bytes of `completion` that are no thinking: what follows the last
/// `</think>`, up to a `<think>` that was never closed.
pub fn after_thinking(completion: &str) -> Range<usize> {
    const END: &[u8] = b"</think>";
    let bytes = completion.as_bytes();
    let (mut start, mut open) = (0, None);
    for at in memchr_iter(b'<', bytes) {
        if bytes[at..].starts_with(END) {
            (start, open) = (at + END.len(), None);
        } else if open.is_none() && bytes[at..].starts_with(b"<think>") {
            open = Some(at);
        }
    }
    start..open.unwrap_or(bytes.len())
}

/// The closed box of `text` that starts last.
///
/// The pass of [`boxes`] stops at each box command, whatever stands before it,
/// and what closes its brace depends on what stands behind it alone. So each
/// command can be judged by itself, the last one first.
pub fn last_box(text: &str) -> Option<Found> {
    // Each command that is not closed costs a look at all the rest.
    const TRIES: usize = 4;
    let bytes = text.as_bytes();
    let mut end = bytes.len();
    let mut tries = 0;
    while let Some(at) = memrchr(b'\\', &bytes[..end]) {
        end = at;
        let Some(argument) = box_command(bytes, at) else {
            continue;
        };
        if tries == TRIES {
            return boxes(text).pop();
        }
        tries += 1;
        let found = match bytes.get(argument) {
            Some(b'{') => {
                closing(bytes, argument + 1).map(|close| braced(text, at, argument + 1, close))
            }
            _ => bare_argument(text, at, argument),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Where the brace closes whose content starts at `from`.
fn closing(bytes: &[u8], from: usize) -> Option<usize> {
    let mut open = 1usize;
    let mut at = from;
    loop {
        at += memchr3(b'\\', b'{', b'}', bytes.get(at..)?)?;
        match bytes[at] {
            b'\\' => at = behind_backslash(bytes, at),
            b'{' => (at, open) = (at + 1, open + 1),
            _ if open == 1 => return Some(at),
            _ => (at, open) = (at + 1, open - 1),
        }
    }
}

/// Where reading goes on behind a backslash: before a box's argument, before a
/// box command, or behind what is escaped.
fn behind_backslash(bytes: &[u8], at: usize) -> usize {
    match box_command(bytes, at) {
        Some(argument) => argument,
        // "\\boxed" is a doubled backslash of someone's escaping.
        None if box_command(bytes, at + 1).is_some() => at + 1,
        // Whatever follows is escaped: "\{" opens nothing.
        None => at + 2,
    }
}

/// The box that starts at `start` and has a content in braces.
fn braced(text: &str, start: usize, content: usize, close: usize) -> Found {
    Found {
        content: text[content..close].trim().to_string(),
        range: start..close + 1,
        rule: "last closed box",
    }
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
    while let Some(skipped) = bytes
        .get(at..)
        .and_then(|rest| memchr3(b'\\', b'{', b'}', rest))
    {
        at += skipped;
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
                None => at = behind_backslash(bytes, at),
            },
            b'{' => {
                open.push(None);
                at += 1;
            }
            _ => {
                if let Some(Some((start, content))) = open.pop() {
                    found.push(braced(text, start, content, at));
                }
                at += 1;
            }
        }
    }
    found.sort_by_key(|found| found.range.start);
    found
}

/// Whether the text says box anywhere, closed or not.
pub fn mentions_box(text: &str) -> bool {
    let bytes = text.as_bytes();
    memchr_iter(b'\\', bytes).any(|at| box_command(bytes, at).is_some())
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
        answer(completion, Fallback::None)
            .ok()
            .map(|found| found.content)
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
            (r"\boxed{}", None),
            (r"The value is 42. \boxed{}", None),
            (r"\boxed{5} \boxed{}", None),
            (r"put it in \boxed{your answer}", None),
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
            answer(r"<think>\boxed{8}</think> so eight", Fallback::None),
            Err("no closed box")
        );
        assert_eq!(
            answer(r"<think>\boxed{8}", Fallback::None),
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
        let found = answer(completion, Fallback::None).unwrap();
        assert_eq!(&completion[found.range], r"\boxed{{x}}");
    }

    #[test]
    fn hostile_text_takes_linear_time() {
        for unit in [
            "\\boxed{", "\\boxed ", "\\boxed", "{", "}", "\\boxed1", "\\",
        ] {
            let text = unit.repeat(200_000);
            let start = std::time::Instant::now();
            let _ = (answer(&text, Fallback::Number), mentions_box(&text));
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
            let _ = answer(&text, Fallback::Number);
        }

        /// Reading from the end finds what one pass from the start finds.
        #[test]
        fn the_last_box_is_the_last_of_all(parts in prop::collection::vec(prop::sample::select(vec![
            r"\boxed", r"\boxed{", r"\boxed{7}", r"\fbox", r"\fbox {", "{", "{", "}", "}", "\\", "\\\\", r"\{", r"\}", "$", " ", "\n",
            "5", "x", ".", "boxed", "box", "é", r"\)",
        ]), 0..24)) {
            let text = parts.concat();
            prop_assert_eq!(last_box(&text), boxes(&text).pop(), "{}", text);
        }

        /// One pass over the tags finds what two searches find.
        #[test]
        fn thinking_is_the_last_to_end(parts in prop::collection::vec(prop::sample::select(vec![
            "<think>", "</think>", "<", "</", "think>", "é", "a",
        ]), 0..12)) {
            let text = parts.concat();
            let start = text.rfind("</think>").map_or(0, |at| at + "</think>".len());
            let end = text[start..].find("<think>").map_or(text.len(), |at| start + at);
            prop_assert_eq!(after_thinking(&text), start..end, "{}", text);
        }

        /// Whatever balanced content is boxed last comes back.
        #[test]
        fn boxed_content_comes_back(before in "[a-z{}$ ]{0,20}", content in r"[a-z0-9^+]{0,9}(\{[a-z]{0,5}\}){0,3}") {
            let text = format!(r"{before}\boxed{{{content}}}.");
            prop_assert_eq!(last_box(&text).map(|found| found.content), Some(content));
        }
    }
}
