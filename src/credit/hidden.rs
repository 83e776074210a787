//! Which hidden state ARCA compares.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};

/// `credit.hidden`: the state whose change by the adapter is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HiddenChoice {
    /// After the final RMSNorm: the LM head's input.
    #[default]
    PostNorm,
    /// The last layer's residual stream, before the final RMSNorm.
    PreNorm,
    /// The residual stream after this layer, from 0.
    Layer(usize),
}

impl HiddenChoice {
    /// Refuses a layer that a model of `layers` layers does not have.
    pub fn check(self, layers: usize) -> Result<()> {
        if let HiddenChoice::Layer(layer) = self {
            ensure!(
                layer < layers,
                "credit.hidden is layer:{layer}, but the model's layers are 0 to {}",
                layers.saturating_sub(1)
            );
        }
        Ok(())
    }
}

impl FromStr for HiddenChoice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "post-norm" => return Ok(HiddenChoice::PostNorm),
            "pre-norm" => return Ok(HiddenChoice::PreNorm),
            _ => {}
        }
        match text.strip_prefix("layer:").map(str::parse) {
            Some(Ok(layer)) => Ok(HiddenChoice::Layer(layer)),
            _ => bail!("credit.hidden is \"{text}\": it must be post-norm, pre-norm or layer:N"),
        }
    }
}

impl fmt::Display for HiddenChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HiddenChoice::PostNorm => f.write_str("post-norm"),
            HiddenChoice::PreNorm => f.write_str("pre-norm"),
            HiddenChoice::Layer(layer) => write!(f, "layer:{layer}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in ["post-norm", "pre-norm", "layer:0", "layer:27"] {
            assert_eq!(text.parse::<HiddenChoice>().unwrap().to_string(), text);
        }
        for text in [
            "", "postnorm", "layer", "layer:", "layer:-1", "layer:x", "27",
        ] {
            assert!(text.parse::<HiddenChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn layers_are_counted_from_zero() {
        assert!(HiddenChoice::Layer(27).check(28).is_ok());
        assert!(HiddenChoice::Layer(28).check(28).is_err());
        assert!(HiddenChoice::PreNorm.check(0).is_ok());
    }
}
