//! Which steps to profile, as `--profile-steps` has them.

use std::str::FromStr;

/// Steps from `first` to `last`, both counted in; the first step is 1, as
/// progress and metrics number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRange {
    pub first: usize,
    pub last: usize,
}

impl FromStr for StepRange {
    type Err = String;

    /// `a:b`, or `a` alone.
    fn from_str(text: &str) -> Result<StepRange, String> {
        let number = |part: &str| {
            part.trim()
                .parse::<usize>()
                .map_err(|_| format!("{part:?} is no step: write A:B, as in 3:5, or one step"))
        };
        let (first, last) = match text.split_once(':') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(text)?, number(text)?),
        };
        if first == 0 {
            return Err("the first step is 1".into());
        }
        if last < first {
            return Err(format!("it ends at {last}, before it begins at {first}"));
        }
        Ok(StepRange { first, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_bad_ones_refused() {
        let range = |first, last| Ok(StepRange { first, last });
        assert_eq!("3:5".parse(), range(3, 5));
        assert_eq!("2".parse(), range(2, 2));
        assert_eq!("1:1".parse(), range(1, 1));
        for bad in ["", ":", "0:2", "5:3", "a:b", "1:2:3", "-1:2", "3:", "1.5"] {
            assert!(bad.parse::<StepRange>().is_err(), "{bad}");
        }
    }
}
