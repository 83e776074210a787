//! Texts made to stall, to crash or to cheat a checker.

use std::time::Duration;

use arca::reward::Grader;
use rustix::time::{ClockId, clock_gettime};

/// What the machine may take for one verdict: 10 ms of CPU, and more without
/// optimisation.
pub fn limit() -> Duration {
    Duration::from_millis(if cfg!(debug_assertions) { 200 } else { 10 })
}

/// CPU time of this thread: others' work on the machine does not count.
pub fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// The shortest of a few measurements of one verdict, which must not pay: other
/// tests keep the cores and their caches busy.
pub fn cost(gold: &str, text: &str) -> (Duration, arca::reward::Verdict) {
    let mut best = Duration::MAX;
    let mut verdict = Default::default();
    for _ in 0..10 {
        let start = cpu_time();
        verdict = Grader::default().text(gold, text);
        best = best.min(cpu_time() - start);
        if best < limit() / 4 {
            break;
        }
    }
    (best, verdict)
}

/// Guards the budget: deep, tall, long and broken texts, as answer and as gold.
#[test]
fn hostile_texts_are_judged_in_time() {
    let many = |part: &str, n: usize| part.repeat(n);
    let mut texts = vec![
        many("(", 3_000),
        many("(", 3_000) + "1" + &many(")", 3_000),
        many("{", 4_000) + &many("}", 4_000),
        many(r"\frac{", 2_000),
        many(r"\frac{1}{", 500) + "2" + &many("}", 500),
        many(r"\sqrt{", 500) + "2" + &many("}", 500),
        many(r"\left(", 1_000),
        many("|", 3_000),
        many("|x|", 2_000),
        many("-", 8_000) + "1",
        many("+-", 4_000) + "1",
        many("!", 2_000),
        "5".to_string() + &many("!", 50),
        many("1+", 4_000) + "1",
        many("x+", 4_000) + "x",
        many("2^", 400) + "2",
        "9^{9^{9^9}}".into(),
        "2^{10000000}".into(),
        "10^{10^{10}}".into(),
        "(10^9)!".into(),
        "((5!)!)!".into(),
        r"\binom{1000000}{500000}".into(),
        r"\sum_{k=1}^{100000} k^{k}".into(),
        r"\sum_{k=1}^{1000} \sum_{j=1}^{1000} \sum_{i=1}^{1000} k".into(),
        r"\prod_{k=1}^{90000} k".into(),
        many("1", 10_000),
        many("1", 10_000) + "/" + &many("3", 1_000),
        "0.".to_string() + &many("3", 10_000),
        r"0.\overline{".to_string() + &many("142857", 100) + "}",
        many("9", 5_000) + "^{3}",
        r"\sqrt{".to_string() + &many("7", 4_000) + "}",
        r"\sqrt[97]{".to_string() + &many("7", 900) + "}",
        many(r"\sin(", 90) + "x" + &many(")", 90),
        many(r"\ln(", 90) + "2" + &many(")", 90),
        many(r"e^{", 90) + "x" + &many("}", 90),
        many(r"\sqrt{2+", 80) + "2" + &many("}", 80),
        many(r"\sqrt{x_1}+", 900) + "1",
        many(r"\sin x \cos y +", 500) + "1",
        many("1,", 4_000) + "1",
        many(r"\pm 1,", 1_000) + "1",
        // Found by fuzzing: every choice of signs is a copy of the tuple.
        "(".to_string() + &many(r"\pm 1, ", 4) + &many(r"p\sqrt{0}, ", 80) + "1)",
        "(".to_string() + &many(r"\pm 1, ", 3) + &many(r"p\sqrt{0}, ", 60) + "1)",
        "(".to_string() + &many(r"\pm 1,", 40) + "1)",
        many(r"\pm", 2_000) + "1",
        many("(1,2),", 1_500) + "(1,2)",
        many(r"[0,1]\cup", 1_000) + "[2,3]",
        many(r"x<1 \text{ or } ", 800) + "x>2",
        many("1<", 3_000) + "x",
        many("x=", 3_000) + "1",
        r"\begin{pmatrix}".to_string() + &many(r"1&2\\", 2_000) + r"\end{pmatrix}",
        many(r"\begin{pmatrix}", 500),
        many(r"\text{a}", 3_000),
        many(r"\text{", 2_000),
        many("a_", 3_000) + "1",
        "a".to_string() + &many("_{b", 2_000) + &many("}", 2_000),
        many(r"\\", 4_000),
        many("\\", 4_001),
        many("^", 4_000),
        many("x^{y", 1_000) + &many("}", 1_000),
        many("\u{0}", 3_000),
        many("\u{200b}", 3_000) + "5",
        many("\u{b2}", 3_000),
        many("\u{1d7d9}", 3_000),
        many("a\u{301}", 3_000),
        many("$", 8_000),
        many("1 ", 4_000),
        many("1 000 ", 1_500),
        many(r"\frac12", 1_500),
        "{".repeat(90) + "1" + &"}".repeat(90),
        many(r"\{1,", 500) + &many(r"\}", 500),
        many("x", 11_000),
        many("xyz^2", 2_000),
        "gcd(".to_string() + &many("12,", 3_000) + "18)",
        r"x^{800}-1".into(),
        many("(x+1)", 2_000),
        "(x+1)^{100000}".into(),
        "(x+y+z)^{4000}".into(),
        "x^{y^{z^{w}}}".into(),
        r"\lfloor 10^{300} \sqrt{2} \rfloor".into(),
        r"\sin(10^{40})".into(),
        r"\tan(\frac{\pi}{2})".into(),
        r"\frac{1}{2004!}".into(),
        r"\frac{2000!}{1999!} + \sqrt{2}".into(),
        "1.7976931348623157e308".into(),
        "1e999".into(),
        many("1e999*", 300) + "1",
        "5".to_string() + &many("!", 11_000),
        "7".to_string() + &many("%", 11_000),
        "x".to_string() + &many("^2", 5_000),
        "x".to_string() + &many("'", 11_000),
        "30".to_string() + &many("°", 5_000),
        "1*".to_string() + &many("-", 11_000) + "1",
        "2^".to_string() + &many("-", 11_000) + "1",
        r"\frac".to_string() + &many("-", 11_000) + "12",
        many(r"1\mod ", 1_500) + "1",
        many(r"\mathbb{R}\setminus", 500) + r"\{0\}",
        many(r"\sin", 2_000) + "x",
        many(r"\sqrt", 2_000) + "x",
        many(r"\sin^2", 1_500) + "x",
        many(r"\log_", 2_000) + "x",
        many("f(", 3_000) + "x" + &many(")", 3_000),
        many(r"\max(1,", 1_500) + "x" + &many(")", 1_500),
        many("x_", 3_000) + "1",
        many("C_", 3_000) + "1",
        many(r"\mathbf", 1_500) + "x",
        many(r"\text{\mathrm{", 700) + &many("}", 1_400),
        many(r"x \in ", 1_000) + "y",
        many(r"x \Rightarrow ", 700) + "y",
        many("1:", 5_000) + "1",
        many(r"\$", 5_000) + "1",
        "1".to_string() + &many(" cm", 3_000),
    ];
    texts.push("x".repeat(2_000_000));
    texts.push(r"\boxed{".repeat(200_000));
    texts.push(format!(r"\boxed{{{}}}", "y+".repeat(400_000)));
    let golds = [
        "1",
        r"\sqrt{2}",
        "x",
        "1,2",
        "(1,2)",
        r"[0,1]\cup[2,3]",
        "y=2x",
        r"\text{odd}",
    ];
    let mut slow = Vec::new();
    for text in &texts {
        for gold in golds {
            for (gold, answer) in [(gold, text.as_str()), (text.as_str(), gold)] {
                let (cost, _) = cost(gold, answer);
                // Reading megabytes for a box takes its time by length alone.
                let allowance = Duration::from_nanos(8 * text.len() as u64);
                if cost > limit() + allowance {
                    let shown: String = text.chars().take(40).collect();
                    slow.push(format!("{cost:?}: {shown} against {gold:.20}"));
                }
            }
        }
        // Two hostile sides at once.
        let (cost, _) = cost(text, &format!("{text} "));
        if cost > limit() + Duration::from_nanos(16 * text.len() as u64) {
            let shown: String = text.chars().take(40).collect();
            slow.push(format!("{cost:?}: {shown} against itself"));
        }
    }
    assert!(slow.is_empty(), "over the budget: {slow:#?}");
}

/// Guards that giving up is said, and pays nothing.
#[test]
fn over_the_budget_is_undecided_and_wrong() {
    let sum = r"\sqrt{x_1}+".repeat(900) + "1";
    for (gold, answer) in [
        (sum.as_str(), format!("1+{}", &sum[..sum.len() - 2])),
        ("1", "(".repeat(500) + "1" + &")".repeat(500)),
        ("1", "1".repeat(20_000) + "x"),
    ] {
        let verdict = Grader::default().text(gold, &answer);
        assert!(!verdict.correct);
        assert!(verdict.undecided, "{}", verdict.rule);
        assert!(verdict.rule.starts_with("undecided"), "{}", verdict.rule);
    }
}

/// Guards that exactness does not end where machine numbers do.
#[test]
fn numbers_of_any_size_are_told_apart() {
    for (gold, near, same) in [
        ("2^{100}", "2^{100}+1", "1267650600228229401496703205376"),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", r"2^{-99}"),
        ("10^{50}", "10^{50}+1", "100^{25}"),
        (
            r"\frac{1}{2004!}",
            r"\frac{1}{2006!}",
            r"\frac{2005}{2005!}",
        ),
        ("2^{2008}-2", "2^{2008}-1", r"2(2^{2007}-1)"),
        (r"\sqrt{2}", r"\sqrt{2}+10^{-60}", r"\frac{2}{\sqrt{2}}"),
        (
            r"2^{200}+\sqrt{2}",
            r"2^{200}+\sqrt{3}",
            r"\sqrt{2}+4^{100}",
        ),
        (r"\sqrt[3]{2}", r"\sqrt[3]{2}+10^{-50}", r"2^{1/3}"),
        ("3^{2007}", "3^{2007}+1", r"3\cdot 9^{1003}"),
    ] {
        let grader = Grader::default();
        let verdict = grader.text(gold, near);
        assert!(!verdict.correct, "{gold} | {near}: {}", verdict.rule);
        assert!(!verdict.undecided, "{gold} | {near}: {}", verdict.rule);
        let verdict = grader.text(gold, same);
        assert!(verdict.correct, "{gold} | {same}: {}", verdict.rule);
    }
}
