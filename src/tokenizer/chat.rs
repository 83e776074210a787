//! Chat templates: Jinja as `transformers` sets it up, rendered by minijinja.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::Formatter;

use super::read_json;

/// A compiled chat template and the special tokens it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token`... of tokenizer_config.json.
    special_tokens: BTreeMap<String, String>,
    origin: String,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// The template of a model folder: `chat_template.jinja` if there is one,
    /// else the key `chat_template` of tokenizer_config.json (text, or a list
    /// of named texts of which `default` is taken). `None` without either.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let config_file = dir.join("tokenizer_config.json");
        let config = match config_file.is_file() {
            true => read_json(&config_file)?,
            false => serde_json::Value::Null,
        };
        let special_tokens = special_tokens(&config);
        let template_file = dir.join("chat_template.jinja");
        if template_file.is_file() {
            let source = std::fs::read_to_string(&template_file)
                .with_context(|| format!("reading {}", template_file.display()))?;
            let origin = template_file.display().to_string();
            return Self::compile(source, special_tokens, origin).map(Some);
        }
        let origin = format!("{}: key chat_template", config_file.display());
        let source = match &config["chat_template"] {
            serde_json::Value::Null => return Ok(None),
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Array(named) => named
                .iter()
                .find(|entry| entry["name"] == "default")
                .and_then(|entry| entry["template"].as_str())
                .with_context(|| format!("{origin}: the list has no template named \"default\""))?
                .to_string(),
            _ => bail!("{origin}: expected text or a list of named templates"),
        };
        Self::compile(source, special_tokens, origin).map(Some)
    }

    /// Compiles `source`; `origin` names it in errors.
    pub fn compile(
        source: String,
        special_tokens: BTreeMap<String, String>,
        origin: String,
    ) -> Result<Self> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(|error| anyhow!("{error:#}"))?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            // Jinja reads every line break of a template as "\n".
            .add_template_owned(NAME, source.replace("\r\n", "\n"))
            .map_err(|error| anyhow!("{origin}: {error:#}"))?;
        Ok(ChatTemplate {
            environment,
            special_tokens,
            origin,
        })
    }

    /// Renders `messages`. Without tools the template sees no `tools`, and
    /// without `enable_thinking` none of that either.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
        enable_thinking: Option<bool>,
    ) -> Result<String> {
        let mut context: BTreeMap<&str, Value> = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())))
            .collect();
        context.insert("messages", Value::from(Serde(messages)));
        context.insert("add_generation_prompt", add_generation_prompt.into());
        // transformers hands on None for what it was not given.
        let or_none = |given: &[serde_json::Value]| match given.is_empty() {
            true => Value::from(()),
            false => Value::from(Serde(given)),
        };
        context.insert("tools", or_none(tools));
        context.insert("documents", or_none(&[]));
        if let Some(enable_thinking) = enable_thinking {
            context.insert("enable_thinking", enable_thinking.into());
        }
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(context))
            .map_err(|error| anyhow!("{}: {error:#}", self.origin))
    }
}

/// Keys `*_token` of tokenizer_config.json, whose values are text or an
/// object with the text under `content`.
fn special_tokens(config: &serde_json::Value) -> BTreeMap<String, String> {
    let Some(config) = config.as_object() else {
        return BTreeMap::new();
    };
    config
        .iter()
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, value)| {
            let text = value.as_str().or_else(|| value["content"].as_str())?;
            Some((key.clone(), text.to_string()))
        })
        .collect()
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time through a strftime format, as templates that state today's
/// date ask for it.
fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|error| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now({format:?}): {error}"),
        )
    })
}

/// `json.dumps(value, ensure_ascii=False)` with the keyword arguments of
/// transformers' own filter. Jinja's escapes `<`, `>`, `&`, `'` for HTML,
/// which would corrupt a prompt.
fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => {
            let message = "tojson: separators takes two texts";
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    };
    let ensure_ascii = options
        .get::<Option<bool>>("ensure_ascii")?
        .unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| {
        Error::new(ErrorKind::BadSerialization, "tojson").with_source(error)
    };
    let mut value = serde_json::to_value(&value).map_err(failed)?;
    if sort_keys {
        value.sort_all_objects();
    }
    let mut bytes = Vec::new();
    let formatter = PythonJson {
        indent,
        depth: 0,
        item: item.to_string(),
        key: key.to_string(),
        ensure_ascii,
        filled: false,
    };
    value
        .serialize(&mut serde_json::Serializer::with_formatter(
            &mut bytes, formatter,
        ))
        .map_err(failed)?;
    String::from_utf8(bytes)
        .map(Value::from)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, "tojson").with_source(error))
}

/// JSON laid out as Python's `json.dumps` does it.
struct PythonJson {
    indent: Option<usize>,
    depth: usize,
    item: String,
    key: String,
    ensure_ascii: bool,
    /// Whether the container that ends next had any item.
    filled: bool,
}

impl PythonJson {
    fn line_break<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        match self.indent {
            Some(indent) => write!(out, "\n{:width$}", "", width = indent * self.depth),
            None => Ok(()),
        }
    }

    fn open<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &str) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        out.write_all(bracket.as_bytes())
    }

    fn close<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &str) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line_break(out)?;
        }
        self.filled = true;
        out.write_all(bracket.as_bytes())
    }

    fn separate<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.filled = true;
        self.line_break(out)
    }
}

impl Formatter for PythonJson {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, "[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, "]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(out, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, "{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, "}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        out.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        if !self.ensure_ascii {
            return out.write_all(text.as_bytes());
        }
        for unit in text.encode_utf16() {
            match u8::try_from(unit) {
                Ok(byte) if byte.is_ascii() => out.write_all(&[byte])?,
                _ => write!(out, "\\u{unit:04x}")?,
            }
        }
        Ok(())
    }
}

/// `repr(float)`: shortest digits that read back, positional between 1e-4
/// and 1e16, else with a signed exponent of at least two digits.
fn python_float(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 || (1e-4..1e16).contains(&magnitude) {
        return format!("{value:?}");
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, messages: serde_json::Value) -> Result<String> {
        let messages = messages.as_array().cloned().unwrap_or_default();
        let tokens = BTreeMap::from([("eos_token".to_string(), "<end>".to_string())]);
        ChatTemplate::compile(source.into(), tokens, "test".into())?.render(
            &messages,
            &[],
            true,
            None,
        )
    }

    /// Expected values are what CPython prints for the same object.
    #[test]
    fn tojson_is_python_s_dumps() {
        let value = json!([{"b": [1, 2.0, 1e20, 1e-7, 1.5e16, 0.0001, -0.0], "a": {}, "é<&'\"\n\u{1}\u{7f}": null, "t": true, "l": []}]);
        let plain = render("{{ messages[0] | tojson }}", value.clone()).unwrap();
        assert_eq!(
            plain,
            "{\"b\": [1, 2.0, 1e+20, 1e-07, 1.5e+16, 0.0001, -0.0], \"a\": {}, \"é<&'\\\"\\n\\u0001\u{7f}\": null, \"t\": true, \"l\": []}"
        );
        let options = "{{ messages[0] | tojson(indent=2, sort_keys=true, ensure_ascii=true) }}";
        assert_eq!(
            render(options, json!([{"b": [1, {"c": "𝄞"}], "a": {}}])).unwrap(),
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    {\n      \"c\": \"\\ud834\\udd1e\"\n    }\n  ]\n}"
        );
        assert!(render("{{ messages | tojson(default=1) }}", json!([])).is_err());
    }

    #[test]
    fn what_templates_call_is_there() {
        assert_eq!(
            render(
                "{{ messages[0].x.strip().split('|')[-1] }}{{ eos_token }}",
                json!([{"x": " a|b "}])
            )
            .unwrap(),
            "b<end>"
        );
        assert_eq!(
            render("{{ strftime_now('%Y') | length }}", json!([])).unwrap(),
            "4"
        );
        // Blocks leave no blank lines behind, and a tools test sees none.
        assert_eq!(
            render(
                "a\n  {% if tools %}\nyes\n  {% endif %}\nb{{ enable_thinking is defined }}",
                json!([])
            )
            .unwrap(),
            "a\nbFalse"
        );
        let error = render("{{ raise_exception('roles must alternate') }}", json!([])).unwrap_err();
        assert!(
            format!("{error:#}").contains("roles must alternate"),
            "{error:#}"
        );
        assert!(render("{{ strftime_now('%!') }}", json!([])).is_err());
    }
}
