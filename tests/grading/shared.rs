//! A gold answer that is read once for a group of completions.

use std::time::{Duration, Instant};

use arca::reward::{Gold, Grader};

/// Completions of a group.
const GROUP: usize = 16;

/// Guards that a verdict does not depend on who else is compared with the
/// gold answer, nor on the order. Prints what sharing it saves.
#[test]
fn a_shared_gold_answer_gives_the_same_verdicts() {
    let cases = super::cases::cases();
    let (mut alone, mut together) = (Duration::ZERO, Duration::ZERO);
    let mut count = 0;
    for (at, (gold, answer)) in cases.iter().enumerate() {
        // Its own answer, then those of the rows behind it and the gold itself.
        let others = (1..GROUP - 1).map(|step| &cases[(at + step) % cases.len()].1);
        let completions: Vec<String> = std::iter::once(answer)
            .chain(others)
            .chain([gold])
            .map(|answer| format!("So $\\boxed{{{answer}}}$."))
            .collect();
        for grader in [
            Grader::default(),
            Grader {
                lenient: true,
                ..Grader::default()
            },
        ] {
            let start = Instant::now();
            let wanted: Vec<_> = completions
                .iter()
                .map(|text| grader.completion(gold, text))
                .collect();
            alone += start.elapsed();
            let start = Instant::now();
            let shared = Gold::new(gold);
            let found: Vec<_> = completions
                .iter()
                .map(|text| grader.completion_of(&shared, text))
                .collect();
            together += start.elapsed();
            assert_eq!(wanted, found, "{gold}");
            count += completions.len();
        }
    }
    println!(
        "{count} verdicts in groups of {GROUP}: {:.2} us each with its own reading, {:.2} us shared",
        alone.as_secs_f64() * 1e6 / count as f64,
        together.as_secs_f64() * 1e6 / count as f64,
    );
}
