//! From numbers to places and back to words.

/// A linear scale with ticks at round numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// The ends, in the data's units.
    pub ends: (f64, f64),
    /// The ends, in pixels.
    pub pixels: (f64, f64),
    step: f64,
}

impl Scale {
    /// A scale over `ends` with about `ticks` ticks.
    pub fn new(ends: (f64, f64), pixels: (f64, f64), ticks: usize) -> Scale {
        let (lo, hi) = ends;
        // A range without width gets some.
        let ends = match hi > lo {
            true => ends,
            false => {
                let half = if lo == 0.0 { 0.5 } else { lo.abs() * 0.1 };
                (lo - half, lo + half)
            }
        };
        let raw = (ends.1 - ends.0) / ticks.max(1) as f64;
        let magnitude = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .into_iter()
            .map(|m| m * magnitude)
            .find(|step| *step >= raw * 0.999)
            .unwrap_or(10.0 * magnitude);
        Scale { ends, pixels, step }
    }

    /// The pixel of a value.
    pub fn at(&self, value: f64) -> f64 {
        let share = (value - self.ends.0) / (self.ends.1 - self.ends.0);
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }

    /// Ticks and their labels.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        let slack = self.step * 1e-6;
        let first = ((self.ends.0 - slack) / self.step).ceil() as i64;
        (first..first + 50)
            .map(|i| i as f64 * self.step)
            .take_while(|x| *x <= self.ends.1 + slack)
            .map(|x| (x, tick(x, self.step)))
            .collect()
    }

    /// Ticks at whole numbers only.
    pub fn whole(mut self) -> Scale {
        self.step = self.step.max(1.0).round();
        self
    }
}

/// The range of values to show: from 0 where that wastes little, with some air.
pub fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let mut ends: Option<(f64, f64)> = None;
    for x in values.filter(|x| x.is_finite()) {
        let (lo, hi) = ends.unwrap_or((x, x));
        ends = Some((lo.min(x), hi.max(x)));
    }
    let (lo, hi) = ends?;
    if lo == 0.0 && hi == 0.0 {
        return Some((0.0, 1.0));
    }
    if lo >= 0.0 && (lo < 0.7 * hi || lo == hi) {
        return Some((0.0, hi * 1.05));
    }
    let air = 0.06 * (hi - lo);
    let below = if lo >= 0.0 {
        (lo - air).max(0.0)
    } else {
        lo - air
    };
    Some((below, hi + air))
}

fn tick(x: f64, step: f64) -> String {
    let (unit, sign) = match x.abs().max(step) {
        m if m >= 1e9 => (1e9, "G"),
        m if m >= 1e6 => (1e6, "M"),
        m if m >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let (x, step) = (x / unit, step / unit);
    if x == 0.0 {
        return "0".into();
    }
    if step < 1e-4 {
        return format!("{x:.1e}");
    }
    let mut digits = 0;
    while digits < 6
        && ((step * 10f64.powi(digits)).fract() > 1e-6)
        && (1.0 - (step * 10f64.powi(digits)).fract() > 1e-6)
    {
        digits += 1;
    }
    format!("{x:.*}{sign}", digits as usize)
}

/// A number with about three significant digits.
pub fn number(x: f64) -> String {
    match x.abs() {
        _ if !x.is_finite() => "\u{2013}".into(),
        0.0 => "0".into(),
        m if m >= 1e5 => compact(x),
        m if m >= 100.0 => format!("{x:.0}"),
        m if m >= 10.0 => format!("{x:.1}"),
        m if m >= 0.9995 => format!("{x:.2}"),
        m if m >= 0.001 => format!("{x:.3}"),
        _ => format!("{x:.1e}"),
    }
}

/// A large number with a suffix.
pub fn compact(x: f64) -> String {
    match x.abs() {
        m if m >= 1e9 => format!("{:.2}G", x / 1e9),
        m if m >= 1e6 => format!("{:.2}M", x / 1e6),
        m if m >= 1e3 => format!("{:.1}k", x / 1e3),
        _ => format!("{x:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_ticks() {
        let texts = |lo, hi| -> Vec<String> {
            let scale = Scale::new((lo, hi), (0.0, 100.0), 4);
            scale.ticks().into_iter().map(|(_, text)| text).collect()
        };
        assert_eq!(texts(0.0, 1.0), ["0", "0.25", "0.50", "0.75", "1.00"]);
        assert_eq!(texts(0.0, 40_000.0), ["0", "10k", "20k", "30k", "40k"]);
        assert_eq!(texts(-1.0, 1.0), ["-1.0", "-0.5", "0", "0.5", "1.0"]);
        assert!(!texts(3.0, 3.0).is_empty());
        assert!(!texts(0.0, 0.0).is_empty());
        let scale = Scale::new((0.0, 2.0), (10.0, 30.0), 4);
        assert_eq!(scale.at(1.0), 20.0);
    }

    #[test]
    fn ranges() {
        assert_eq!(range([].into_iter()), None);
        assert_eq!(range([f64::NAN].into_iter()), None);
        assert_eq!(range([0.2, 1.0].into_iter()), Some((0.0, 1.05)));
        let (lo, hi) = range([0.9, 1.0].into_iter()).unwrap();
        assert!(lo > 0.89 && lo < 0.9 && hi > 1.0);
    }

    #[test]
    fn words() {
        for (x, text) in [
            (0.0, "0"),
            (0.12345, "0.123"),
            (12.34, "12.3"),
            (1234.0, "1234"),
            (1_234_567.0, "1.23M"),
            (0.00001234, "1.2e-5"),
            (f64::NAN, "\u{2013}"),
        ] {
            assert_eq!(number(x), text);
        }
    }
}
