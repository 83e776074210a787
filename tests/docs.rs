//! Guards that the documents say what the program does: every key and its
//! default in `docs/config.md`.

use arca::config::Config;
use serde_json::Value;

fn document(name: &str) -> String {
    let path = crate::common::root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// `(key, default)` of each table row: "| `key` | `default` | ...", without a
/// default where the key may be absent.
fn documented() -> Vec<(String, Option<String>)> {
    let quoted = |cell: &str| {
        let text = cell.trim().strip_prefix('`')?.strip_suffix('`')?;
        Some(text.to_string())
    };
    document("docs/config.md")
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|');
            Some((quoted(cells.next()?)?, quoted(cells.next()?)))
        })
        .collect()
}

/// The dotted keys of the default configuration, with null for absent ones.
fn keys() -> Vec<(String, Value)> {
    let Value::Object(tables) = serde_json::to_value(Config::default()).unwrap() else {
        panic!("the configuration is not an object");
    };
    tables
        .into_iter()
        .flat_map(|(table, keys)| {
            let keys = keys.as_object().unwrap().clone();
            keys.into_iter()
                .map(move |(key, value)| (format!("{table}.{key}"), value))
        })
        .collect()
}

#[test]
fn every_key_is_documented_once_and_no_other() {
    let mut documented: Vec<String> = documented().into_iter().map(|(key, _)| key).collect();
    let mut known: Vec<String> = keys().into_iter().map(|(key, _)| key).collect();
    documented.sort();
    known.sort();
    assert_eq!(documented, known);
}

#[test]
fn documented_defaults_are_the_program_s() {
    // A model is named, so that the demo's settings stay out.
    let named = "model.path=x".to_string();
    let plain = Config::load(None, std::slice::from_ref(&named)).unwrap();
    let mut settings = Vec::new();
    for (key, default) in documented() {
        let absent = keys().iter().any(|(k, value)| *k == key && value.is_null());
        assert_eq!(default.is_none(), absent, "{key}: absent or not");
        settings.extend(default.map(|value| format!("{key}={value}")));
    }
    settings.push(named);
    let documented = Config::load(None, &settings).unwrap();
    let wrong = plain.differences(&documented).unwrap();
    assert!(
        wrong.is_empty(),
        "other defaults than documented: {wrong:?}"
    );
}

/// The configuration that the README shows is one.
#[test]
fn the_readme_s_configuration_loads() {
    let text = document("README.md");
    let blocks: Vec<&str> = text
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(!blocks.is_empty());
    let dir = tempfile::tempdir().unwrap();
    for block in blocks {
        let path = dir.path().join("readme.toml");
        std::fs::write(&path, block).unwrap();
        let config = Config::load(Some(&path), &[]).unwrap();
        config.validate_training().unwrap();
    }
}

/// Every verb has its row in the README.
#[test]
fn the_readme_names_every_verb() {
    use clap::CommandFactory;
    let text = document("README.md");
    for verb in arca::cli::args::Cli::command().get_subcommands() {
        let name = verb.get_name();
        assert!(
            text.contains(&format!("| {name} | `arca {name} ")),
            "{name}"
        );
    }
}
