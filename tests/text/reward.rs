//! Guards: what pays and what does not, weights and their order, refusals of
//! a wrong config, and programs of the user's that answer, fail or hang.

use std::time::{Duration, Instant};

use arca::config::RewardConfig;
use arca::episode::{FinishReason, Problem};
use arca::reward::external::External;
use arca::reward::{Grader, RewardItem, RewardSet};

use super::problem;

fn config(functions: &[&str], weights: &[f32], command: &[&str]) -> RewardConfig {
    let owned = |list: &[&str]| list.iter().map(|text| text.to_string()).collect();
    RewardConfig {
        functions: owned(functions),
        weights: weights.to_vec(),
        command: owned(command),
        ..RewardConfig::default()
    }
}

fn item<'a>(problem: &'a Problem, completion: &'a str, completion_tokens: usize) -> RewardItem<'a> {
    RewardItem {
        problem,
        completion,
        finish: FinishReason::Stop,
        completion_tokens,
    }
}

#[test]
fn math_pays_for_the_last_closed_box_alone() {
    let set = RewardSet::from_config(&RewardConfig::default(), 100).unwrap();
    assert_eq!(set.names(), ["math"]);
    let asked = problem("p", "6*7?", "42");
    let empty = problem("e", "?", "");
    let cases = [
        (&asked, r"so \boxed{42}", 1.0),
        (&asked, r"\boxed{41}. No: \boxed{42}.", 1.0),
        (&asked, r"\boxed{42}. No: \boxed{41}.", 0.0),
        (&asked, "The answer is 42.", 0.0),
        (&asked, r"\boxed{}, I mean 42", 0.0),
        // Cut by length: nothing, unless a box had been closed.
        (&asked, r"the answer is \boxed{42", 0.0),
        (&asked, r"\boxed{42}, because", 1.0),
        (&asked, r"<think>\boxed{42}", 0.0),
        (&asked, r"<think>\boxed{42}</think>", 0.0),
        (&asked, r"<think>hm</think>\boxed{42}", 1.0),
        // An empty gold never pays.
        (&empty, r"\boxed{}", 0.0),
        (&empty, r"\boxed{\text{}}", 0.0),
        (&empty, "", 0.0),
    ];
    let items: Vec<_> = cases
        .iter()
        .map(|(problem, completion, _)| RewardItem {
            finish: FinishReason::Length,
            ..item(problem, completion, 100)
        })
        .collect();
    let results = set.score_batch(&items).unwrap();
    for (result, (_, completion, expected)) in results.iter().zip(&cases) {
        assert_eq!(
            result.reward, *expected,
            "{completion}: {:?}",
            result.verdict
        );
        assert_eq!(result.verdict.correct, *expected == 1.0);
        assert_eq!(result.rewards, [*expected]);
    }
    assert_eq!(results[1].verdict.extracted.as_deref(), Some("42"));
    assert_eq!(results[3].verdict.extracted, None);
}

#[test]
fn grade_takes_answers_and_completions() {
    assert!(Grader::default().text("42", "42").correct);
    assert!(Grader::default().text("42", r"it is \boxed{42}").correct);
    assert!(!Grader::default().text("42", r"42 \boxed{").correct);
    assert!(!Grader::default().text("42", "<think> 42").correct);
    assert!(!Grader::default().text("", "").correct);
    assert!(!Grader::default().completion("42", "42").correct);
    assert_eq!(
        Grader::default()
            .text(r"\frac12", " 1/2 ")
            .extracted
            .as_deref(),
        Some("1/2")
    );
}

#[test]
fn values_are_weighted_in_the_config_s_order() {
    let set = RewardSet::from_config(
        &config(&["length", "math", "format"], &[0.5, 2.0, 0.25], &[]),
        100,
    )
    .unwrap();
    let asked = problem("p", "6*7?", "42");
    let score = |completion, tokens| {
        set.score_batch(&[item(&asked, completion, tokens)])
            .unwrap()
            .remove(0)
    };

    let full = score(r"\boxed{42}", 80);
    assert_eq!(full.rewards, [0.0, 1.0, 1.0]);
    assert_eq!(full.reward, 2.25);
    assert!(full.verdict.correct, "the verdict is math's");
    // DAPO: free to 80 of 100 tokens, then linearly to -1.
    let halfway = score(r"\boxed{1} \boxed{42}", 90);
    assert_eq!(halfway.rewards, [-0.5, 1.0, 0.0]);
    assert_eq!(halfway.reward, 1.75);
    let long = score("no box", 100);
    assert_eq!(long.rewards, [-1.0, 0.0, 0.0]);
    assert_eq!(score("", 81).rewards[0], -0.05);
    assert_eq!(score("", 200).rewards[0], -1.0);
    assert_eq!(set.score_batch(&[]).unwrap(), []);
}

#[test]
fn a_wrong_config_is_refused_with_a_way_out() {
    for (config, part) in [
        (config(&["maths"], &[], &[]), "did you mean \"math\"?"),
        (config(&["Format"], &[], &[]), "did you mean \"format\"?"),
        (
            config(&["accuracy_reward"], &[], &[]),
            "known are math, format, length, external",
        ),
        (config(&[], &[], &[]), "reward.functions is empty"),
        (
            config(&["math"], &[1.0, 2.0], &[]),
            "reward.weights has 2 values for the 1 functions math",
        ),
        (config(&["math"], &[f32::NAN], &[]), "no finite number"),
        (config(&["math", "math"], &[], &[]), "twice"),
        (config(&["external"], &[], &[]), "reward.command"),
        (
            config(&["math"], &[1.0], &["true"]),
            "for the 2 functions math, external",
        ),
    ] {
        let error = format!("{:#}", RewardSet::from_config(&config, 10).err().unwrap());
        assert!(error.contains(part), "{error}");
    }
}

#[cfg(unix)]
mod programs {
    use super::*;

    fn shell(script: &str) -> External {
        External::new(&["sh", "-c", script].map(String::from)).unwrap()
    }

    fn score(
        program: &External,
        count: usize,
        completion: &str,
    ) -> anyhow::Result<Vec<arca::reward::Scored>> {
        let asked = problem("p", "6*7?", "42");
        program.score_batch(&vec![item(&asked, completion, 1); count])
    }

    fn refused(script: &str) -> String {
        format!("{:#}", score(&shell(script), 2, "x").unwrap_err())
    }

    #[test]
    fn answers_are_read_line_by_line() {
        let program = shell(
            r#"n=0; while read -r line; do n=$((n+1)); echo "{\"reward\": -0.$n, \"correct\": true, \"rule\": \"r$n\"}"; done"#,
        );
        let scores = score(&program, 3, "x").unwrap();
        let values: Vec<_> = scores
            .iter()
            .map(|scored| (scored.value, scored.verdict.rule.as_str()))
            .collect();
        assert_eq!(values, [(-0.1, "r1"), (-0.2, "r2"), (-0.3, "r3")]);
        assert!(
            scores
                .iter()
                .all(|scored| scored.verdict.correct && !scored.timed_out)
        );
        // Without `correct`, what pays is correct.
        let scores = score(
            &shell(r#"echo '{"reward": 0}'; echo '{"reward": 0.5}'"#),
            2,
            "x",
        )
        .unwrap();
        assert!(!scores[0].verdict.correct && scores[1].verdict.correct);
    }

    #[test]
    fn requests_have_problem_answer_and_completion() {
        let wanted = r#"{"problem":"6*7?","answer":"42","completion":"a\nb"}"#;
        let script = format!(
            "read -r line; if [ \"$line\" = '{wanted}' ]; then echo '{{\"reward\": 1}}'; fi"
        );
        assert_eq!(score(&shell(&script), 1, "a\nb").unwrap()[0].value, 1.0);
    }

    /// More than a pipe holds in both directions and on stderr, read by a
    /// program that takes everything before it writes anything, and by one
    /// that writes before it reads.
    #[test]
    fn full_pipes_do_not_deadlock() {
        let long = "x".repeat(10_000);
        let count = 300;
        let lines = format!(
            "i=0; while [ $i -lt {count} ]; do echo '{{\"reward\": 1}}'; echo {long} >&2; i=$((i+1)); done"
        );
        for script in [
            format!("cat > /dev/null; {lines}"),
            format!("{lines}; cat > /dev/null"),
            lines,
        ] {
            assert_eq!(score(&shell(&script), count, &long).unwrap().len(), count);
        }
    }

    #[test]
    fn a_program_that_hangs_is_killed_and_pays_nothing() {
        let start = Instant::now();
        let program =
            shell(r#"echo '{"reward": 1}'; sleep 60"#).with_limit(Duration::from_millis(300));
        let scores = score(&program, 3, "x").unwrap();
        assert!(start.elapsed() < Duration::from_secs(20));
        // What was answered in time stands.
        let values: Vec<_> = scores.iter().map(|scored| scored.value).collect();
        assert_eq!(values, [1.0, 0.0, 0.0]);
        assert!(
            scores[2].timed_out && scores[2].verdict.rule.contains("time-out"),
            "{:?}",
            scores[2]
        );
        assert!(!scores[2].verdict.correct);
    }

    #[test]
    fn a_program_that_lingers_does_not_hold_up_the_run() {
        let start = Instant::now();
        assert_eq!(
            score(&shell(r#"echo '{"reward": 1}'; sleep 60"#), 1, "x").unwrap()[0].value,
            1.0
        );
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_program_that_does_not_work_stops_the_run() {
        let error = refused(r#"echo '{"reward": 1}'; echo why >&2; exit 3"#);
        assert!(
            error.contains("1 answers to 2")
                && error.contains("exit status: 3")
                && error.contains("why"),
            "{error}"
        );
        assert!(refused("echo hello").contains("found \"hello\""));
        assert!(refused(r#"echo '{"score": 1}'"#).contains("missing field `reward`"));
        assert!(refused(r#"echo '{"reward": NaN}'"#).contains("its answer 1"));
        assert!(refused(r#"echo '{"reward": 1e300}'"#).contains("out of range"));
        assert!(refused(r#"for i in 1 2 3; do echo '{"reward": 1}'; done"#).contains("more lines"));
        let missing = External::new(&["no-such-program-of-arca".to_string()]).unwrap();
        let error = format!("{:#}", score(&missing, 1, "x").unwrap_err());
        assert!(
            error.contains("reward.command") && error.contains("no-such-program-of-arca"),
            "{error}"
        );
    }

    #[test]
    fn a_set_may_mix_programs_and_built_ins() {
        let config = config(
            &["external", "math"],
            &[1.0, 10.0],
            &["sh", "-c", r#"echo '{"reward": 0.5, "rule": "mine"}'"#],
        );
        let set = RewardSet::from_config(&config, 10).unwrap();
        let asked = problem("p", "6*7?", "42");
        let result = set
            .score_batch(&[item(&asked, r"\boxed{42}", 1)])
            .unwrap()
            .remove(0);
        assert_eq!((result.reward, result.rewards), (10.5, vec![0.5, 1.0]));
        assert!(result.verdict.correct && result.verdict.extracted.is_some());
    }

    /// A program needs no name: it comes last, or is the only reward.
    #[test]
    fn a_program_alone_is_enough() {
        for (functions, names) in [
            (&[][..], &["external"][..]),
            (&["math"], &["math", "external"]),
        ] {
            let config = config(functions, &[], &["true"]);
            let set = RewardSet::from_config(&config, 10).unwrap();
            assert_eq!(set.names(), names);
        }
    }
}
