//! Words: numbers spelt out, units, and text that is an answer by itself.

/// `five` as 5, up to twenty.
pub fn small_number(word: &str) -> Option<u32> {
    const NAMES: [&str; 21] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
        "twenty",
    ];
    NAMES
        .iter()
        .position(|name| *name == word)
        .map(|at| at as u32)
}

/// A text answer with its looks taken away: lower case, letters and digits in
/// order, one space between words. Empty where nothing is left.
///
/// A choice keeps its letter: `\text{(E)}`, `E.` and `(E)` are all `e`.
pub fn key(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut space = false;
    while let Some(c) = chars.next() {
        if c == '\\' {
            let mut name = String::new();
            while let Some(letter) = chars.next_if(char::is_ascii_alphabetic) {
                name.push(letter);
            }
            space = true;
            if STYLES.contains(&name.as_str()) || name.is_empty() {
                if name.is_empty() {
                    chars.next();
                }
                continue;
            }
            if !out.is_empty() {
                out.push(' ');
            }
            out.push('\\');
            out.push_str(match name.as_str() {
                "leq" | "leqslant" => "le",
                "geq" | "geqslant" => "ge",
                "neq" => "ne",
                "dfrac" | "tfrac" => "frac",
                name => name,
            });
        } else if c.is_alphanumeric() {
            if std::mem::take(&mut space) && !out.is_empty() {
                out.push(' ');
            }
            out.extend(c.to_lowercase());
        } else if c == '\'' || c == '{' || c == '}' {
            // Apostrophes and groups part no words.
        } else if "+-*/^=<>|!".contains(c) {
            // Signs that carry meaning stay.
            out.push(c);
            space = false;
        } else {
            space = true;
        }
    }
    out
}

/// A formula that nobody reads, without what only changes its looks: what two
/// of them are compared by, for in these every brace may matter.
pub fn shape(text: &str) -> String {
    let mut text = text
        .replace("\\dfrac", "\\frac")
        .replace("\\tfrac", "\\frac");
    for looks in [
        "\\left",
        "\\right",
        "\\limits",
        "\\displaystyle",
        "\\,",
        "\\;",
        "\\!",
    ] {
        text = text.replace(looks, "");
    }
    let mut chars: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    // Braces around all of it.
    let inner = |chars: &[char]| chars.len() > 2 && !chars[1..chars.len() - 1].contains(&'{');
    while chars.first() == Some(&'{') && chars.last() == Some(&'}') && inner(&chars) {
        chars.remove(0);
        chars.pop();
    }
    let mut out = String::with_capacity(chars.len());
    let mut at = 0;
    while at < chars.len() {
        // {x} is x.
        if chars[at] == '{' && chars.get(at + 2) == Some(&'}') {
            out.push(chars[at + 1]);
            at += 3;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

const STYLES: &[&str] = &[
    "text",
    "textbf",
    "textit",
    "textrm",
    "textnormal",
    "texttt",
    "textsf",
    "mbox",
    "hbox",
    "mathrm",
    "mathbf",
    "mathit",
    "mathsf",
    "mathcal",
    "boldsymbol",
    "bm",
    "underline",
    "left",
    "right",
    "operatorname",
    "quad",
    "qquad",
    "boxed",
    "fbox",
    "displaystyle",
];

/// What an amount is measured in.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// One name for a unit's many, with its power: `cm^2`.
    pub name: String,
    /// From the closed list; other words are whatever the writer counted.
    pub known: bool,
}

impl Unit {
    /// Reads the words behind a number, raised to `power` if they are.
    pub fn read(text: &str, power: Option<u32>) -> Option<Unit> {
        let lower = text.to_lowercase();
        let words: Vec<&str> = lower
            .split(|c: char| !c.is_alphabetic() && c != '/')
            .flat_map(|word| word.split_inclusive('/'))
            .flat_map(|word| match word.strip_suffix('/') {
                Some(head) => [head, "per"],
                None => [word, ""],
            })
            .filter(|word| !word.is_empty())
            .collect();
        if words.is_empty() {
            return None;
        }
        let mut known = true;
        let mut parts: Vec<String> = Vec::new();
        let mut exponent = power.unwrap_or(1);
        for word in &words {
            match *word {
                "square" | "sq" | "squared" => exponent = 2,
                "cubic" | "cubed" => exponent = 3,
                "per" | "an" => parts.push("per".into()),
                "of" | "in" if words.len() > 1 => {}
                word => match canonical(word) {
                    Some(name) => parts.push(name.to_string()),
                    None => {
                        known = false;
                        parts.push(word.trim_end_matches('s').to_string());
                    }
                },
            }
        }
        // "degrees Fahrenheit", "US dollars": the first says enough.
        parts.dedup();
        let mut name = match parts.join(" ").as_str() {
            "mi per h" => "mph".to_string(),
            name => name.to_string(),
        };
        if exponent > 1 {
            if name.is_empty() {
                name = "unit".into();
            }
            name = format!("{name}^{exponent}");
        }
        Some(Unit { name, known })
    }

    /// Whether one of the two counts without saying what, "units" or "square
    /// units", and the other measures in that power.
    pub fn is_generic_for(&self, other: &Unit) -> bool {
        let parts = |unit: &Unit| -> (String, String) {
            let (base, power) = unit.name.split_once('^').unwrap_or((&unit.name, "1"));
            (base.to_string(), power.to_string())
        };
        let ((a, p), (b, q)) = (parts(self), parts(other));
        p == q && (a == "unit" || b == "unit") && self.known && other.known
    }

    /// Whether it is the half of a day, which says a clock's time.
    pub fn is_half_of_day(&self) -> bool {
        matches!(self.name.as_str(), "am" | "pm")
    }
}

/// One name for a known unit.
pub fn canonical(word: &str) -> Option<&'static str> {
    UNITS
        .iter()
        .find(|(_, names)| names.contains(&word))
        .map(|(name, _)| *name)
}

/// The units that an answer may carry where the gold answer has none.
const UNITS: &[(&str, &[&str])] = &[
    ("unit", &["unit", "units"]),
    (
        "mm",
        &[
            "mm",
            "millimeter",
            "millimeters",
            "millimetre",
            "millimetres",
        ],
    ),
    (
        "cm",
        &[
            "cm",
            "cms",
            "centimeter",
            "centimeters",
            "centimetre",
            "centimetres",
        ],
    ),
    ("dm", &["dm", "decimeter", "decimeters"]),
    ("m", &["m", "meter", "meters", "metre", "metres"]),
    (
        "km",
        &[
            "km",
            "kms",
            "kilometer",
            "kilometers",
            "kilometre",
            "kilometres",
        ],
    ),
    ("in", &["inch", "inches", "in"]),
    ("ft", &["ft", "foot", "feet"]),
    ("yd", &["yd", "yard", "yards"]),
    ("mi", &["mi", "mile", "miles"]),
    ("mph", &["mph"]),
    ("s", &["s", "sec", "secs", "second", "seconds"]),
    ("min", &["min", "mins", "minute", "minutes"]),
    ("h", &["h", "hr", "hrs", "hour", "hours"]),
    ("day", &["day", "days"]),
    ("week", &["week", "weeks"]),
    ("month", &["month", "months"]),
    ("year", &["year", "years", "yr", "yrs"]),
    ("g", &["g", "gm", "gram", "grams"]),
    ("mg", &["mg", "milligram", "milligrams"]),
    ("kg", &["kg", "kgs", "kilogram", "kilograms"]),
    ("lb", &["lb", "lbs", "pound", "pounds"]),
    ("oz", &["oz", "ounce", "ounces"]),
    ("ton", &["ton", "tons", "tonne", "tonnes"]),
    ("l", &["l", "liter", "liters", "litre", "litres"]),
    ("ml", &["ml", "milliliter", "milliliters", "millilitres"]),
    ("gallon", &["gallon", "gallons", "gal"]),
    ("quart", &["quart", "quarts"]),
    ("pint", &["pint", "pints"]),
    ("cup", &["cup", "cups"]),
    ("acre", &["acre", "acres"]),
    ("hectare", &["hectare", "hectares", "ha"]),
    ("dollar", &["dollar", "dollars", "usd", "bucks"]),
    ("cent", &["cent", "cents"]),
    ("euro", &["euro", "euros"]),
    ("yuan", &["yuan", "rmb"]),
    ("rupee", &["rupee", "rupees"]),
    ("percent", &["percent", "pct", "percentage"]),
    ("degree", &["degree", "degrees", "deg"]),
    ("radian", &["radian", "radians", "rad"]),
    ("j", &["joule", "joules", "j"]),
    ("n", &["newton", "newtons"]),
    ("w", &["watt", "watts"]),
    ("v", &["volt", "volts"]),
    ("hz", &["hz", "hertz"]),
    ("th", &["th", "st", "nd", "rd"]),
    ("time", &["time", "times"]),
    ("way", &["way", "ways"]),
    ("person", &["people", "person", "persons"]),
    ("student", &["student", "students"]),
    ("point", &["point", "points"]),
    ("pm", &["pm"]),
    ("am", &["am"]),
];
