//! Completions with every method's weights: `inspect.jsonl` of a run.

use serde_json::Value;

/// One completion, token by token. All arrays have one value per token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inspected {
    /// Decoded tokens; their ids in angle brackets where the file has no text.
    pub tokens: Vec<String>,
    /// log pi(y_t), or empty.
    pub logprobs: Vec<f64>,
    /// Entropy before y_t in nats, or empty.
    pub entropies: Vec<f64>,
    /// Residual norm of the state that predicts y_t, or empty.
    pub residuals: Vec<f64>,
    /// Weights by method, in the file's order.
    pub weights: Vec<(String, Vec<f64>)>,
    /// What the completion earned.
    pub reward: Option<f64>,
}

/// The rows of a file that lies at `place`, and which of them are no use.
pub fn parse(bytes: &[u8], place: &str) -> (Vec<Inspected>, Vec<String>) {
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        match row(line) {
            Ok(row) => rows.push(row),
            Err(why) => notes.push(format!("{place}:{}: {why}; the row was left out", i + 1)),
        }
    }
    (rows, notes)
}

fn row(line: &[u8]) -> Result<Inspected, String> {
    let value: Value = serde_json::from_slice(line).map_err(|_| "no JSON".to_string())?;
    let tokens: Vec<String> = match value["tokens"].as_array() {
        Some(tokens) => tokens
            .iter()
            .map(|t| t.as_str().unwrap_or_default().to_string())
            .collect(),
        None => value["completion_ids"]
            .as_array()
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .map(|id| format!("\u{27e8}{id}\u{27e9}"))
            .collect(),
    };
    if tokens.is_empty() {
        return Err("neither `tokens` nor `completion_ids`".into());
    }
    let array = |value: &Value, name: &str| -> Result<Vec<f64>, String> {
        let numbers: Vec<f64> = value
            .as_array()
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .map(|x| x.as_f64().unwrap_or(f64::NAN))
            .collect();
        match numbers.len() {
            0 => Ok(numbers),
            n if n == tokens.len() => Ok(numbers),
            n => Err(format!(
                "`{name}` has {n} values for {} tokens",
                tokens.len()
            )),
        }
    };
    let mut weights = Vec::new();
    for (method, of_method) in value["weights"].as_object().into_iter().flatten() {
        let w = array(of_method, method)?;
        if !w.iter().all(|x| x.is_finite() && *x >= 0.0) {
            return Err(format!("weights of {method} that are no numbers from 0 up"));
        }
        if !w.is_empty() {
            weights.push((method.clone(), w));
        }
    }
    if weights.is_empty() {
        return Err("no `weights`".into());
    }
    Ok(Inspected {
        logprobs: array(&value["logprobs"], "logprobs")?,
        entropies: array(&value["entropies"], "entropies")?,
        residuals: array(&value["residuals"], "residuals")?,
        reward: value["reward"].as_f64(),
        weights,
        tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_what_is_wrong_with_them() {
        let text = br#"{"completion_ids":[5,6],"weights":{"arca":[0.25,0.75]},"logprobs":[-1,-2]}
{"tokens":["a","b"],"weights":{"arca":[1.0]}}
{"tokens":["a"],"weights":{"arca":[null]}}
{"tokens":["a"]}
{
"#;
        let (rows, notes) = parse(text, "i.jsonl");
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].tokens, ["\u{27e8}5\u{27e9}", "\u{27e8}6\u{27e9}"]);
        assert_eq!(rows[0].logprobs, [-1.0, -2.0]);
        assert!(rows[0].entropies.is_empty());
        assert_eq!(notes.len(), 4, "{notes:?}");
        assert!(notes[0].contains("i.jsonl:2: `arca` has 1 values for 2 tokens"));
        assert!(notes[3].contains("i.jsonl:5: no JSON"));
    }
}
