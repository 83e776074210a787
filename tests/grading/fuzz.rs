//! The fuzz target: labelled pairs cut, doubled, spliced and nested. No panic,
//! no verdict above the budget, the same verdict twice and with a gold answer
//! that others have been compared with, and no pay for an empty gold answer.
//!
//! `ARCA_FUZZ_SECONDS=3600 cargo test --release -- --ignored fuzz_for_long`
//! runs it for an hour on all cores; the test of every day for a moment.

use std::time::{Duration, Instant};

use arca::reward::{Fallback, Gold, Grader};
use arca::rng::Stream;

use super::hostile::{cpu_time, limit};

/// What mutations put in.
const PIECES: &[&str] = &[
    "k \\in \\mathbb{Z}",
    ", n \\in \\mathbb{Z}",
    "\\pmod{7}",
    "\\text{ and its permutations}",
    "(A) ",
    "\\text{ ft }",
    "\\text{ million}",
    "\\begin{cases}",
    "\\end{cases}",
    "|x|<",
    "x^2<",
    "\\text{ for some } k",
    "\\text{ to }",
    "①",
    "...",
    "ext{",
    "C",
    "\\frac{",
    "}",
    "{",
    "(",
    ")",
    "[",
    "]",
    "\\{",
    "\\}",
    "|",
    "^",
    "_",
    "!",
    "%",
    "\\%",
    "$",
    "\\$",
    ",",
    ";",
    ":",
    "=",
    "<",
    "\\le ",
    "\\ne ",
    "\\approx ",
    "\\in ",
    "\\cup ",
    "\\cap ",
    "\\setminus ",
    "\\pm ",
    "\\mp ",
    "+",
    "-",
    "*",
    "/",
    "\\cdot ",
    "\\times ",
    "\\div ",
    "x",
    "y",
    "n",
    "e",
    "i",
    "\\pi ",
    "\\infty ",
    "f(",
    "0",
    "1",
    "2",
    "9",
    "10",
    "0.5",
    ".",
    "1,234",
    "\\overline{3}",
    "\\sqrt{",
    "\\sqrt[3]{",
    "\\sin ",
    "\\cos ",
    "\\tan ",
    "\\arcsin ",
    "\\arctan ",
    "\\ln ",
    "\\log_{2}",
    "\\binom{5}{",
    "\\lfloor ",
    "\\rfloor ",
    "\\lceil ",
    "\\rceil ",
    "\\text{",
    "\\text{ or }",
    "\\text{ and }",
    " cm",
    "^\\circ",
    "^{",
    "_{",
    "\\begin{pmatrix}",
    "\\end{pmatrix}",
    "\\\\",
    "&",
    "\\left(",
    "\\right)",
    "\\left.",
    "\\boxed{",
    "\\fbox{",
    "</think>",
    "<think>",
    "\\mathbb{R}",
    "\\sum_{k=1}^{9}",
    "\\ldots ",
    "\\emptyset ",
    "\u{3c0}",
    "\u{b2}",
    "\u{221a}",
    "\u{2212}",
    "\u{1d7d9}",
    "\u{0}",
    "e308",
    "\\gcd(",
    "\\max(",
    "\\mod ",
    "\\choose ",
    "\\over ",
    "99999999999999999999",
    "'",
];

/// A text between the boundaries of its characters, from a random range.
fn cut<'a>(text: &'a str, random: &mut Stream) -> &'a str {
    let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    if ends.is_empty() {
        return "";
    }
    let pick = |random: &mut Stream| ends[random.below(ends.len() as u32) as usize];
    let (a, b) = (pick(random), pick(random));
    &text[a.min(b)..a.max(b)]
}

fn mutate(text: &str, corpus: &[(String, String)], random: &mut Stream) -> String {
    let mut text = text.to_string();
    for _ in 0..1 + random.below(5) {
        let at = {
            let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            match ends.len() {
                0 => 0,
                n => ends[random.below(n as u32) as usize],
            }
        };
        match random.below(8) {
            0..=2 => {
                let piece = PIECES[random.below(PIECES.len() as u32) as usize];
                text.insert_str(at, piece);
            }
            3 => {
                let gone = cut(&text, random).to_string();
                text = text.replacen(&gone, "", 1);
            }
            4 => {
                let part = cut(&text, random).to_string();
                let times = 1 + random.below(40) as usize;
                if part.len() * times < 4_000 {
                    text.insert_str(at, &part.repeat(times));
                }
            }
            5 => {
                let (gold, answer) = &corpus[random.below(corpus.len() as u32) as usize];
                let other = if random.below(2) == 0 { gold } else { answer };
                let part = cut(other, random).to_string();
                text.insert_str(at, &part);
            }
            6 => {
                let (open, close) = [
                    ("(", ")"),
                    ("{", "}"),
                    ("\\sqrt{", "}"),
                    ("\\frac{1}{", "}"),
                    ("|", "|"),
                    ("2^{", "}"),
                    ("\\sin(", ")"),
                    ("(", ")!"),
                    ("\\{", "\\}"),
                ][random.below(9) as usize];
                let times = 1 + random.below(30) as usize;
                if text.len() + times * 12 < 4_000 {
                    text = format!("{}{text}{}", open.repeat(times), close.repeat(times));
                }
            }
            _ => text.truncate(at),
        }
    }
    text
}

/// Runs one thread's share; the count of verdicts and the slowest.
fn fuzz(seed: u64, time: Duration) -> (usize, Duration, String) {
    let corpus = super::cases::cases();
    let mut random = Stream::new(seed);
    let start = Instant::now();
    let (mut count, mut slowest, mut culprit) = (0, Duration::ZERO, String::new());
    while start.elapsed() < time {
        let (gold, answer) = &corpus[random.below(corpus.len() as u32) as usize];
        let (gold, answer) = match random.below(4) {
            0 => (gold.clone(), mutate(gold, &corpus, &mut random)),
            1 => (gold.clone(), mutate(answer, &corpus, &mut random)),
            2 => (mutate(gold, &corpus, &mut random), answer.clone()),
            _ => {
                let gold = mutate(gold, &corpus, &mut random);
                let answer = mutate(&gold, &corpus, &mut random);
                (gold, answer)
            }
        };
        let grader = Grader {
            lenient: count % 3 == 0,
            fallback: [Fallback::None, Fallback::Phrase, Fallback::Number][count % 3],
        };
        let boxed = count % 2 == 1;
        let completion = format!("So $\\boxed{{{answer}}}$.");
        let judge = || match boxed {
            false => grader.text(&gold, &answer),
            _ => grader.completion(&gold, &completion),
        };
        let before = cpu_time();
        let verdict = judge();
        let mut cost = cpu_time() - before;
        count += 1;
        if cost > limit() / 2 {
            // Once more: the first may have paid for the machine's interrupts.
            let before = cpu_time();
            let again = judge();
            cost = cost.min(cpu_time() - before);
            assert_eq!(
                verdict, again,
                "not the same verdict twice: {gold:?} | {answer:?}"
            );
        }
        if boxed {
            let shared = Gold::new(&gold);
            let _ = grader.completion_of(&shared, "\\boxed{x+1}");
            let again = grader.completion_of(&shared, &completion);
            assert_eq!(verdict, again, "shared: {gold:?} | {answer:?}");
        }
        if cost > slowest {
            (slowest, culprit) = (cost, format!("{gold:?} | {answer:?}"));
        }
        let shown: String = format!("{gold:?} | {answer:?}")
            .chars()
            .take(3_000)
            .collect();
        assert!(cost <= limit(), "{cost:?} for {shown}");
        assert!(!(verdict.correct && verdict.undecided));
        assert!(
            !verdict.correct || !gold.trim().is_empty(),
            "an empty gold paid {answer:?}"
        );
    }
    (count, slowest, culprit)
}

/// Guards against the crashes and stalls that a few seconds find.
#[test]
fn fuzz_for_a_moment() {
    let (count, ..) = fuzz(1, Duration::from_secs(4));
    assert!(count > 100, "only {count} verdicts");
}

/// Guards against those that take longer to find.
#[test]
#[ignore = "runs for ARCA_FUZZ_SECONDS"]
fn fuzz_for_long() {
    let seconds = std::env::var("ARCA_FUZZ_SECONDS").map_or(60, |s| s.parse().unwrap());
    let seed: u64 = std::env::var("ARCA_FUZZ_SEED").map_or(1, |s| s.parse().unwrap());
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let runs: Vec<_> = (0..threads)
        .map(|thread| {
            std::thread::spawn(move || fuzz(seed * 1_000 + thread, Duration::from_secs(seconds)))
        })
        .collect();
    for run in runs {
        let (count, slowest, culprit) = run.join().unwrap();
        println!("{count} verdicts, the slowest {slowest:?}: {culprit}");
    }
}
