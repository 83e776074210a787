//! Answers in words that say the same: "Yes." and "yes, it is possible".

/// Whether two keys (see `words::key`) say the same.
pub fn same(gold: &str, answer: &str) -> bool {
    if gold == answer {
        return !gold.is_empty();
    }
    let (a, b) = (content(gold), content(answer));
    if !a.is_empty() && a == b {
        return true;
    }
    yes_or_no(gold, answer) || subject(gold, answer)
}

/// Whether a key says that there is nothing: "there are no such numbers".
pub fn says_none(key: &str) -> bool {
    const WORDS: [&str; 25] = [
        "no",
        "none",
        "such",
        "there",
        "are",
        "is",
        "solution",
        "solutions",
        "real",
        "integer",
        "exist",
        "exists",
        "number",
        "numbers",
        "pair",
        "pairs",
        "value",
        "values",
        "of",
        "function",
        "functions",
        "integers",
        "the",
        "them",
        "roots",
    ];
    let words: Vec<&str> = key.split_whitespace().collect();
    let negative = words.iter().any(|word| matches!(*word, "no" | "none"));
    negative
        && (words.len() > 1 || key == "none")
        && words.len() <= 8
        && words
            .iter()
            .all(|word| WORDS.contains(word) || word.len() == 1)
}

/// The words that carry the meaning, in the singular.
fn content(key: &str) -> Vec<&str> {
    const ENDINGS: [&str; 5] = [
        " wins the game",
        " has a winning strategy",
        " will win",
        " wins",
        " numbers",
    ];
    let key = ENDINGS
        .iter()
        .find_map(|ending| key.strip_suffix(ending))
        .unwrap_or(key);
    let words: Vec<&str> = key.split_whitespace().collect();
    let single = |word: &str| word.chars().count() == 1;
    // "A B" is two letters.
    let letters = words.iter().all(|word| single(word));
    words
        .iter()
        .filter(|word| {
            letters
                || !matches!(
                    **word,
                    "the" | "a" | "an" | "on" | "is" | "are" | "all" | "there"
                )
        })
        .map(|word| match word.len() > 3 {
            true => word.strip_suffix('s').unwrap_or(word),
            false => word,
        })
        .collect()
}

/// One side is yes or no, the other says that and explains.
fn yes_or_no(gold: &str, answer: &str) -> bool {
    let explains = |short: &str, long: &str| {
        matches!(short, "yes" | "no")
            && long.strip_prefix(short).is_some_and(|rest| {
                let starts = rest.split_whitespace().next().is_some_and(|word| {
                    matches!(
                        word,
                        "it" | "there"
                            | "this"
                            | "that"
                            | "they"
                            | "we"
                            | "he"
                            | "she"
                            | "the"
                            | "such"
                            | "because"
                            | "since"
                            | "always"
                    )
                });
                rest.starts_with(' ')
                    && starts
                    && !rest.split_whitespace().any(|word| {
                        matches!(
                            word,
                            "yes"
                                | "no"
                                | "not"
                                | "or"
                                | "but"
                                | "maybe"
                                | "cannot"
                                | "unless"
                                | "if"
                        )
                    })
            })
    };
    // "No, it is not possible" explains a no by a not.
    let denies = |short: &str, long: &str| {
        short == "no"
            && long.strip_prefix("no ").is_some_and(|rest| {
                [
                    "it is not",
                    "it is impossible",
                    "they are not",
                    "it does not",
                    "this is not",
                ]
                .iter()
                .any(|start| rest.starts_with(start))
                    && !rest
                        .split_whitespace()
                        .any(|word| matches!(word, "yes" | "or" | "but"))
            })
    };
    explains(gold, answer) || explains(answer, gold) || denies(gold, answer) || denies(answer, gold)
}

/// The gold answer is a sentence and the answer names who it is about:
/// "Petya will receive the last token" and "Petya".
fn subject(gold: &str, answer: &str) -> bool {
    let words: Vec<&str> = gold.split_whitespace().collect();
    let [first, verb, _, ..] = words.as_slice() else {
        return false;
    };
    let verbs = ["will", "wins", "has", "can", "gets", "receives", "won"];
    let common = [
        "the", "a", "an", "it", "he", "she", "they", "this", "that", "all", "any", "no", "none",
        "yes", "there", "each", "every", "one", "nobody", "everyone", "who",
    ];
    let turned = [
        "not", "no", "or", "and", "never", "nor", "neither", "but", "if", "unless",
    ];
    answer == *first
        && answer.len() > 1
        && verbs.contains(verb)
        && !common.contains(first)
        && !words.iter().any(|word| turned.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_that_say_the_same() {
        for (gold, answer, expected) in [
            ("yes", "yes it is possible", true),
            ("yes", "yes and no", false),
            ("no solution", "no", false),
            ("no", "no it is not possible", true),
            ("yes", "no it is possible", false),
            ("petya will receive the last token", "petya", true),
            ("petya will not receive the last token", "petya", false),
            ("petya will receive it", "vasya", false),
            ("alice", "alice wins", true),
            ("alice", "alice loses", false),
            ("alice", "alice or bob", false),
            ("all primes", "prime numbers", true),
            ("all primes", "all odd primes", false),
            ("a b", "b", false),
            ("wednesday", "on wednesday", true),
            ("odd", "not odd", false),
            ("", "", false),
            ("the", "the the", false),
        ] {
            assert_eq!(same(gold, answer), expected, "{gold} | {answer}");
        }
    }

    #[test]
    fn nothing_in_words() {
        for (key, expected) in [
            ("no solution", true),
            ("there are no solutions", true),
            ("no such integers exist", true),
            ("none", true),
            ("no", false),
            ("no triangle", false),
            ("real numbers", false),
        ] {
            assert_eq!(says_none(key), expected, "{key}");
        }
    }
}
