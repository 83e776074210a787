//! Runs that differ in the seed alone form a group: one row of the table and
//! one line of each figure.

use std::collections::BTreeMap;

use super::load::{Run, Status};
use crate::credit::METHODS;

/// Runs of one setting over seeds.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What tells the group from the others, beginning with the method.
    pub label: String,
    /// The credit method.
    pub method: String,
    /// Indices of the runs that count: those that ended, or all where none did,
    /// one per seed.
    pub runs: Vec<usize>,
    /// Runs that do not count.
    pub left_out: usize,
    /// Whether no run of the group has ended.
    pub unfinished: bool,
    /// The colour: one per method.
    pub colour: usize,
    /// The dash pattern: groups of one method take turns.
    pub dash: usize,
    /// The settings that define it.
    key: BTreeMap<String, String>,
}

/// Keys that may differ within a group: they do not change what is learnt, or
/// are what is averaged over.
const PHYSICAL: [&str; 9] = [
    "train.seed",
    "train.device",
    "train.tokens_per_batch",
    "train.eval_every",
    "train.save_every",
    "rollout.kv_memory",
    "credit.probe_every",
    "eval.",
    "log.",
];

/// Keys that the table has a column for.
const COLUMNS: [(&str, &str); 3] = [
    ("lora.r", "r "),
    ("credit.exponent", "exp "),
    ("credit.hidden", ""),
];

impl Group {
    /// A setting of the group.
    pub fn key(&self, key: &str) -> Option<&str> {
        self.key.get(key).map(String::as_str)
    }

    /// Whether the two agree in all but the credit settings.
    pub fn differs_in_credit_only(&self, other: &Group) -> bool {
        let rest = |g: &Group| -> Vec<(String, String)> {
            g.key
                .iter()
                .filter(|(key, _)| !key.starts_with("credit."))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()
        };
        rest(self) == rest(other)
    }
}

/// Groups the runs that have metrics or a summary: uniform first, methods in
/// the program's order, then by rank.
pub fn groups(runs: &[Run]) -> Vec<Group> {
    let mut found: Vec<Group> = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        if run.series.is_empty() && run.outcome.trained.is_none() && run.marks.is_none() {
            continue;
        }
        let key = setting(run);
        match found.iter_mut().find(|g| g.key == key) {
            Some(group) => group.runs.push(i),
            None => found.push(Group {
                label: String::new(),
                method: run.method().to_string(),
                runs: vec![i],
                left_out: 0,
                unfinished: false,
                colour: 0,
                dash: 0,
                key,
            }),
        }
    }
    for group in &mut found {
        let ended = |&&i: &&usize| runs[i].status == Status::Done;
        let done: Vec<usize> = group.runs.iter().filter(ended).copied().collect();
        group.unfinished = done.is_empty();
        let all = group.runs.len();
        if !done.is_empty() {
            group.runs = done;
        }
        // The same seed again is the same run again, and says nothing new.
        let mut seeds: Vec<&str> = Vec::new();
        group.runs.retain(|&i| {
            let seed = runs[i].seed();
            let new = seed == "?" || !seeds.contains(&seed);
            seeds.push(seed);
            new
        });
        group.left_out = all - group.runs.len();
    }
    let place = |g: &Group| METHODS.iter().position(|m| m.name() == g.method);
    let rank = |g: &Group| g.key("lora.r").and_then(|r| r.parse::<u64>().ok());
    found.sort_by_key(|g| {
        (
            place(g).unwrap_or(usize::MAX),
            g.method.clone(),
            rank(g),
            g.key("credit.exponent").map(String::from),
        )
    });
    label(&mut found);
    paint(&mut found);
    found
}

/// The settings of a run that define its group.
fn setting(run: &Run) -> BTreeMap<String, String> {
    let mut key: BTreeMap<String, String> = run
        .config
        .iter()
        .filter(|(key, _)| !PHYSICAL.iter().any(|p| key.starts_with(p)))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    key.insert("credit.method".into(), run.method().into());
    // Equal weights have no power and look at no state.
    if run.method() == "uniform" {
        for inert in ["credit.exponent", "credit.epsilon", "credit.hidden"] {
            key.remove(inert);
        }
    } else if run.method() != "arca" {
        key.remove("credit.hidden");
    }
    key
}

/// The method, the columns that vary, and of the other keys as many as are
/// needed to tell groups apart.
fn label(groups: &mut [Group]) {
    let varies = |groups: &[&Group], key: &str| {
        let mut values: Vec<Option<&str>> = groups.iter().map(|g| g.key(key)).collect();
        values.sort_unstable();
        values.dedup();
        values.iter().flatten().count() > 1
    };
    let all: Vec<&Group> = groups.iter().collect();
    let varying: Vec<_> = COLUMNS.iter().filter(|(k, _)| varies(&all, k)).collect();
    let mut labels: Vec<String> = Vec::new();
    for group in groups.iter() {
        let mut label = group.method.clone();
        for (key, prefix) in &varying {
            if let Some(value) = group.key(key) {
                label += &format!(" {prefix}{value}");
            }
        }
        if varies(&all, "model.path") {
            let path = group.key("model.path").unwrap_or_default();
            let name = path.trim_end_matches('/').rsplit('/').next();
            let name = name.filter(|n| !n.is_empty()).unwrap_or("demo");
            label += &format!(" {}", clip(name, 24));
        }
        labels.push(label);
    }
    let short = labels.clone();
    for (i, group) in groups.iter().enumerate() {
        let same: Vec<&Group> = (0..groups.len())
            .filter(|&j| short[j] == short[i])
            .map(|j| &groups[j])
            .collect();
        if same.len() < 2 {
            continue;
        }
        let keys = same.iter().flat_map(|g| g.key.keys());
        let mut telling: Vec<&String> = keys.filter(|k| differs(&same, k)).collect();
        telling.sort_unstable();
        telling.dedup();
        for key in telling {
            let name = key.rsplit('.').next().unwrap_or(key);
            let value = group.key(key).unwrap_or("default");
            let value = value.rsplit('/').next().unwrap_or(value);
            let value = if value.is_empty() { "demo" } else { value };
            labels[i] += &format!(" {name} {}", clip(value, 24));
        }
    }
    for (group, label) in groups.iter_mut().zip(labels) {
        group.label = label;
    }
}

fn differs(groups: &[&Group], key: &str) -> bool {
    groups.iter().any(|g| g.key(key) != groups[0].key(key))
}

fn clip(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}\u{2026}", &text[..end]),
        None => text.to_string(),
    }
}

/// A colour per method and a dash pattern per group of it.
fn paint(groups: &mut [Group]) {
    let mut strangers: Vec<String> = Vec::new();
    let mut used: BTreeMap<usize, usize> = BTreeMap::new();
    for group in groups {
        group.colour = match METHODS.iter().position(|m| m.name() == group.method) {
            Some(known) => known,
            None => {
                let known = strangers.iter().position(|s| *s == group.method);
                METHODS.len()
                    + known.unwrap_or_else(|| {
                        strangers.push(group.method.clone());
                        strangers.len() - 1
                    })
            }
        };
        let turn = used.entry(group.colour).or_default();
        group.dash = *turn;
        *turn += 1;
    }
}
