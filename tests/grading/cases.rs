//! Labelled pairs, by other projects and by hand.

use std::collections::BTreeMap;

use arca::reward::{Fallback, Grader, Verdict};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    id: String,
    group: String,
    kind: String,
    gold: String,
    pred: String,
    equal: bool,
}

fn fixture(name: &str) -> String {
    let path = crate::common::fixtures().join("grading").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The labelled cases that the project carries.
pub fn cases() -> Vec<(String, String)> {
    rows()
        .into_iter()
        .map(|case| (case.gold, case.pred))
        .collect()
}

fn rows() -> Vec<Case> {
    fixture("cases.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn judge(case: &Case) -> Verdict {
    let grader = Grader::default();
    match case.kind.as_str() {
        "response" => grader.completion(&case.gold, &case.pred),
        _ => grader.text(&case.gold, &case.pred),
    }
}

/// Guards accuracy by group and that no wrong answer is paid. The shares are
/// what the checker must reach on each kind of case, not what it reaches.
#[test]
fn labelled_cases_are_judged_as_labelled() {
    let wanted = BTreeMap::from([
        ("upstream", 0.97),
        ("hardverify", 0.85),
        ("gsm8k", 1.0),
        ("latex2sympy", 0.80),
        ("own", 0.97),
    ]);
    let mut groups: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut paid = Vec::new();
    for case in rows() {
        let verdict = judge(&case);
        let count = groups.entry(case.group.clone()).or_default();
        count.0 += 1;
        count.1 += usize::from(verdict.correct == case.equal);
        if verdict.correct && !case.equal {
            paid.push(format!("{}: {} for {}", case.id, case.pred, case.gold));
        }
    }
    assert!(paid.is_empty(), "paid for wrong answers: {paid:#?}");
    assert_eq!(groups.len(), wanted.len());
    for (group, (rows, right)) in groups {
        let share = right as f64 / rows as f64;
        assert!(
            share >= wanted[group.as_str()],
            "{group}: {right} of {rows}"
        );
    }
}

/// Guards the policy pair by pair, in both directions where it has two.
#[test]
fn pairs_are_judged_as_their_heading_says() {
    let mut equal = None;
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in fixture("pairs.txt").lines() {
        match line {
            "## equal" => equal = Some(true),
            "## different" => equal = Some(false),
            _ => {
                let (Some(equal), Some((gold, answer))) = (equal, line.split_once(" | ")) else {
                    continue;
                };
                count += 1;
                let verdict = Grader::default().text(gold, answer);
                if verdict.correct != equal {
                    wrong.push(format!("{gold} | {answer}: {}", verdict.rule));
                }
            }
        }
    }
    assert!(count > 300, "only {count} pairs were read");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Guards what `lenient` pays beyond the default, and that it pays no more.
#[test]
fn lenient_pays_the_doubtful_cases() {
    let lenient = Grader {
        lenient: true,
        ..Grader::default()
    };
    for (gold, answer) in [
        (r"\frac{1}{3}", "0.333"),
        (r"\sqrt{2}", "1.414"),
        (r"\pi", "3.14159"),
        ("17", r"17\text{ apples}"),
        ("(1,2)", "1 < x < 2"),
        ("(1,2)", "1,2"),
        ("101_2", "101"),
    ] {
        assert!(
            !Grader::default().text(gold, answer).correct,
            "{gold} | {answer}"
        );
        let verdict = lenient.text(gold, answer);
        assert!(verdict.correct, "{gold} | {answer}: {}", verdict.rule);
    }
    for (gold, answer) in [
        (r"\frac{1}{3}", "0.3"),
        (r"\sqrt{2}", "1.415"),
        ("17", r"18\text{ apples}"),
        ("(1,2)", "2,1"),
        ("5", r"5 \text{ or } 6"),
        ("101_2", "110"),
    ] {
        let verdict = lenient.text(gold, answer);
        assert!(!verdict.correct, "{gold} | {answer}: {}", verdict.rule);
    }
}

/// Guards where an answer is found, and that the verdict says where.
#[test]
fn extraction_is_part_of_the_verdict() {
    let text = r"So $n = \boxed{1}$ or $\boxed{-2}$.";
    let verdict = Grader::default().completion("1,-2", text);
    assert!(verdict.correct, "{}", verdict.rule);
    assert_eq!(verdict.extracted.as_deref(), Some("1, -2"));
    let (from, to) = verdict.position.unwrap();
    assert_eq!(&text[from..to], r"\boxed{1}$ or $\boxed{-2}");

    // The last box alone, where it is taken back or where it is the answer.
    let corrected = r"\boxed{41}. Wait, no: \boxed{42}.";
    assert!(Grader::default().completion("42", corrected).correct);
    assert!(!Grader::default().completion("41,42", corrected).correct);
    assert!(!Grader::default().completion("41", corrected).correct);
    let verdict = Grader::default().completion("42", corrected);
    let (from, to) = verdict.position.unwrap();
    assert_eq!(&corrected[from..to], r"\boxed{42}");
    assert_eq!(verdict.found_by.as_deref(), Some("last closed box"));
}

/// Guards that fallbacks are off by default, and never look past a box.
#[test]
fn fallbacks_are_asked_for() {
    let grader = |fallback| Grader {
        fallback,
        ..Grader::default()
    };
    let said = "Adding up, the final answer is $\\frac{1}{2}$. I hope it is correct.";
    assert!(!grader(Fallback::None).completion("1/2", said).correct);
    assert!(grader(Fallback::Phrase).completion("1/2", said).correct);
    assert!(grader(Fallback::Number).completion("1/2", said).correct);
    for (gold, text, phrase, number) in [
        ("7", "That makes 3 and 7", false, true),
        ("-7", "x is -7.", false, true),
        ("1,234", "Final answer: **1,234**", true, true),
        ("18", "She has 9.\n#### 18", true, true),
        ("42", r"The value is 42. \boxed{}", false, false),
        ("42", r"The answer is 42. \boxed{4", false, false),
        ("42", r"The answer is 42. \boxed{41}", false, false),
        ("42", "<think>the answer is 42", false, false),
    ] {
        let verdict = grader(Fallback::Phrase).completion(gold, text);
        assert_eq!(verdict.correct, phrase, "phrase, {text}: {}", verdict.rule);
        let verdict = grader(Fallback::Number).completion(gold, text);
        assert_eq!(verdict.correct, number, "number, {text}: {}", verdict.rule);
        assert!(!grader(Fallback::None).completion(gold, text).correct);
    }
}

/// Guards that a box which repeats the prompt's words is no answer.
#[test]
fn an_instruction_repeated_is_no_answer() {
    for text in [
        r"I will put it in \boxed{your answer}",
        r"\boxed{answer}",
        r"\boxed{\text{final answer}}",
        r"\boxed{...}",
        r"\boxed{\ldots}",
    ] {
        for gold in ["answer", "your answer", "...", r"\ldots", "5"] {
            assert!(
                !Grader::default().completion(gold, text).correct,
                "{gold}: {text}"
            );
        }
    }
    let twice = r"Put it in \boxed{answer}: \boxed{5}";
    assert!(Grader::default().completion("5", twice).correct);
}
