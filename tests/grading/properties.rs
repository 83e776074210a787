//! Properties over random answers.

use arca::reward::{Grader, Verdict};
use proptest::prelude::*;

fn judge(gold: &str, answer: &str) -> Verdict {
    Grader::default().answer(gold, answer)
}

/// A number as MATH writes them.
fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        (-999i64..999).prop_map(|n| n.to_string()),
        (1i64..99, 2i64..99).prop_map(|(a, b)| format!(r"\frac{{{a}}}{{{b}}}")),
        (-99i64..99, 1i64..99).prop_map(|(a, b)| format!("{a}.{b:02}")),
        (2i64..30).prop_map(|n| format!(r"\sqrt{{{n}}}")),
        (2i64..20, 2i64..30).prop_map(|(a, n)| format!(r"{a}\sqrt{{{n}}}")),
        (2i64..20).prop_map(|n| format!(r"{n}\pi")),
    ]
}

/// An expression in x and y.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        number().prop_filter("signs are the operators'", |n| !n.starts_with('-')),
        Just("x".to_string()),
        Just("y".to_string()),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a} + {b}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!(r"({a}) \cdot ({b})")),
            (inner.clone(), 2u32..4).prop_map(|(a, n)| format!("({a})^{{{n}}}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!(r"\frac{{{a}}}{{{b} + 7}}")),
        ]
    })
}

/// An answer of some kind.
fn gold() -> impl Strategy<Value = String> {
    let items = || prop::collection::vec(number(), 2..4).prop_map(|items| items.join(", "));
    prop_oneof![
        number(),
        expression(),
        items(),
        items().prop_map(|items| format!(r"\left( {items} \right)")),
        items().prop_map(|items| format!(r"\{{{items}\}}")),
        (0i64..9, 10i64..20).prop_map(|(a, b)| format!("[{a},{b})")),
        (0i64..9, 10i64..20).prop_map(|(a, b)| format!(r"(-\infty,{a}) \cup ({b},\infty)")),
        (2i64..9, -9i64..9).prop_map(|(a, b)| format!("y = {a}x + {}", b.abs())),
        (1i64..99, 1i64..99)
            .prop_map(|(a, b)| format!(r"\begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}")),
        (8i64..999).prop_map(|n| format!("{n:o}_{{8}}")),
        (1i64..90).prop_map(|n| format!(r"{n}^\circ")),
        (1i64..90).prop_map(|n| format!(r"{n}\text{{ cm}}")),
        (1i64..90).prop_map(|n| format!(r"{n}\%")),
        (1i64..90).prop_map(|n| format!(r"\${n}.50")),
        prop::sample::select(vec!["Monday", "odd", "(C)", "two lines"])
            .prop_map(|word| format!(r"\text{{{word}}}")),
    ]
}

/// Ways to write the same with other looks.
fn rewrites(gold: &str) -> Vec<(&'static str, String)> {
    let no_text = !gold.contains(r"\text");
    let mut list = vec![
        ("braces", format!("{{{gold}}}")),
        ("dollars", format!("${gold}$")),
        ("inline", format!(r"\({gold}\)")),
        ("period", format!("{gold}.")),
        ("space", format!("  {gold}\n")),
        ("box", format!(r"\boxed{{{gold}}}")),
        ("display", format!(r"\displaystyle {gold}")),
        ("dfrac", gold.replace(r"\frac", r"\dfrac")),
        ("tfrac", gold.replace(r"\frac", r"\tfrac")),
        ("thin spaces", gold.replace(' ', r"\,")),
    ];
    // "1, 100" without its space is a number.
    if no_text && !gold.contains(", ") {
        list.push(("no space", gold.replace(' ', "")));
    }
    if no_text {
        list.push(("bold", format!(r"\mathbf{{{gold}}}")));
        list.push(("times", gold.replace(r"\cdot", r"\times")));
    }
    if !gold.contains(r"\left") {
        list.push((
            "sizes",
            gold.replace('(', r"\left(").replace(')', r"\right)"),
        ));
    }
    list
}

/// Mixed delimiters of one interval are sized in pairs only.
fn sized(name: &str, gold: &str) -> bool {
    name == "sizes" && gold.contains('[')
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Guards that looks do not matter, with either side as the gold one.
    #[test]
    fn an_answer_equals_itself_in_other_clothes(gold in gold()) {
        for (name, answer) in rewrites(&gold) {
            prop_assume!(!sized(name, &gold));
            let verdict = judge(&gold, &answer);
            prop_assert!(verdict.correct, "{}: {} | {}: {}", name, gold, answer, verdict.rule);
            let verdict = judge(&answer, &gold);
            prop_assert!(verdict.correct, "{}: {} | {}: {}", name, answer, gold, verdict.rule);
        }
    }

    /// Guards that a verdict does not depend on which side is the gold one,
    /// but for the rules that the policy documents as one-directional: units,
    /// rounding, and an inequality for what may be a point.
    #[test]
    fn equality_is_symmetric(a in gold(), b in gold()) {
        let one_way = |text: &str| text.contains(r"\text") || text.contains('.');
        prop_assume!(!one_way(&a) && !one_way(&b));
        prop_assert_eq!(judge(&a, &b).correct, judge(&b, &a).correct, "{} | {}", a, b);
    }

    /// Guards the algebra against a different way of writing a polynomial, and
    /// the refusal of one that differs in a single coefficient.
    #[test]
    fn products_equal_their_expansion(a in -9i64..9, b in -9i64..9, c in 1i64..9, d in -9i64..9) {
        let signed = |n: i64, of: &str| match n < 0 {
            true => format!("- {}{of}", -n),
            false => format!("+ {n}{of}"),
        };
        let factored = format!("({c}x {})({c}x {})", signed(a, "y"), signed(b, "y"));
        let expanded = |last: i64| {
            format!("{}x^2 {} {}", c * c, signed(c * (a + b), "xy"), signed(last, "y^2"))
        };
        prop_assert!(judge(&factored, &expanded(a * b)).correct);
        prop_assert!(judge(&expanded(a * b), &factored).correct);
        prop_assert!(!judge(&factored, &expanded(a * b + d.abs() + 1)).correct);
    }

    /// Guards exact arithmetic of fractions in every spelling.
    #[test]
    fn fractions_are_their_values(a in -500i64..500, b in 1i64..500, k in 1i64..20) {
        let spellings = [
            format!(r"\frac{{{a}}}{{{b}}}"),
            format!("{a}/{b}"),
            format!(r"\dfrac{{{}}}{{{}}}", a * k, b * k),
            format!(r"\frac{{{}}}{{{}}}", -a, -b),
            format!(r"{{{a}}} \over {{{b}}}"),
            format!(r"{a} \div {b}"),
        ];
        let other = format!(r"\frac{{{}}}{{{b}}}", a + 1);
        for gold in &spellings {
            for answer in &spellings {
                prop_assert!(judge(gold, answer).correct, "{} | {}", gold, answer);
            }
            prop_assert!(!judge(gold, &other).correct, "{} | {}", gold, other);
        }
    }

    /// Guards mixed numbers, signs and repeating decimals.
    #[test]
    fn mixed_and_repeating_numbers(whole in 1i64..50, a in 1i64..9, digit in 1i64..9) {
        let mixed = format!(r"{whole}\frac{{{a}}}{{10}}");
        let value = format!(r"\frac{{{}}}{{10}}", whole * 10 + a);
        prop_assert!(judge(&value, &mixed).correct);
        let (negative, minus) = (format!("-{value}"), format!("-{mixed}"));
        prop_assert!(judge(&negative, &minus).correct);
        let product = format!(r"\frac{{{}}}{{10}}", whole * a);
        prop_assert!(judge(&product, &mixed).correct == (whole * a == whole * 10 + a));
        let repeating = format!(r"{whole}.{a}\overline{{{digit}}}");
        let fraction = format!("{}/90", (whole * 10 + a) * 9 + digit);
        prop_assert!(judge(&fraction, &repeating).correct, "{} {}", fraction, repeating);
    }

    /// Guards thousands marks: every style is the integer, and in brackets a
    /// plain comma parts elements.
    #[test]
    fn thousands_marks_round_trip(n in 1_000i64..999_999_999) {
        let plain = n.to_string();
        for mark in [",", "{,}", r",\!", r"\,", " ", r"\ "] {
            let mut marked = String::new();
            for (at, digit) in plain.chars().enumerate() {
                if at > 0 && (plain.len() - at) % 3 == 0 {
                    marked.push_str(mark);
                }
                marked.push(digit);
            }
            prop_assert!(judge(&plain, &marked).correct, "{} | {}", plain, marked);
            prop_assert!(judge(&marked, &plain).correct, "{} | {}", marked, plain);
            if mark == "," {
                let tuple = format!("({marked})");
                prop_assert!(!judge(&plain, &tuple).correct);
            }
        }
    }

    /// Guards integers: equal to themselves alone.
    #[test]
    fn integers_are_equal_only_to_themselves(a in any::<i64>(), b in any::<i64>()) {
        prop_assert_eq!(judge(&a.to_string(), &b.to_string()).correct, a == b);
        let (a, b) = (i128::from(a), i128::from(b));
        let sum = format!("{a} + {}", b.abs());
        prop_assert!(judge(&(a + b.abs()).to_string(), &sum).correct);
        prop_assert!(!judge(&(a + b.abs() + 1).to_string(), &sum).correct);
    }

    /// Guards surds against another form of the same number and a near one.
    #[test]
    fn surds_are_told_from_their_neighbours(a in 1i64..40, b in 2i64..40, c in 1i64..9) {
        let gold = format!(r"\frac{{{a}}}{{{c} + \sqrt{{{b}}}}}");
        let bottom = b - c * c;
        prop_assume!(bottom != 0);
        let same = format!(r"\frac{{{a}(\sqrt{{{b}}} - {c})}}{{{bottom}}}");
        let near = format!(r"\frac{{{a}(\sqrt{{{b}}} - {c})}}{{{bottom}}} + 10^{{-40}}");
        prop_assert!(judge(&gold, &same).correct, "{} | {}", gold, same);
        prop_assert!(!judge(&gold, &near).correct, "{} | {}", gold, near);
    }

    /// Guards sets, tuples and lists: order matters where brackets say so.
    #[test]
    fn order_matters_in_tuples_alone(items in prop::collection::btree_set(-99i64..99, 2..6)) {
        let items: Vec<String> = items.iter().map(i64::to_string).collect();
        let (forth, back) = (items.join(", "), {
            let mut items = items.clone();
            items.reverse();
            items.join(", ")
        });
        prop_assert!(judge(&forth, &back).correct);
        let set = |items: &str| format!(r"\{{{items}\}}");
        prop_assert!(judge(&set(&forth), &set(&back)).correct);
        let tuple = |items: &str| format!("({items})");
        prop_assert!(judge(&tuple(&forth), &tuple(&forth)).correct);
        prop_assert!(!judge(&tuple(&forth), &tuple(&back)).correct);
        prop_assert!(!judge(&tuple(&forth), &set(&forth)).correct);
        let shorter = items[1..].join(", ");
        prop_assert!(!judge(&forth, &shorter).correct);
        prop_assert!(!judge(&set(&forth), &set(&shorter)).correct);
    }

    /// Guards intervals against inequalities and unions against their order.
    #[test]
    fn intervals_are_sets(a in -50i64..0, b in 1i64..50, c in 51i64..99) {
        let union = format!(r"[{a},{b}) \cup ({b},{c}]");
        let swapped = format!(r"({b},{c}] \cup [{a},{b})");
        prop_assert!(judge(&union, &swapped).correct);
        let without = format!(r"[{a},{c}] \setminus \{{{b}\}}");
        prop_assert!(judge(&union, &without).correct);
        let whole = format!("[{a},{c}]");
        prop_assert!(!judge(&union, &whole).correct);
        let inequality = format!(r"{a} \le x \le {c}");
        prop_assert!(judge(&whole, &inequality).correct);
        prop_assert!(judge(&inequality, &whole).correct);
        let open = format!(r"{a} < x \le {c}");
        prop_assert!(!judge(&whole, &open).correct);
    }
}
