//! The arms of a sweep: what `[sweep]` says, resolved to one configuration
//! each.
//!
//! ```toml
//! [sweep]
//! methods = ["uniform", "arca"]    # credit.method
//! ranks = [4, 16]                  # lora.r, with lora.alpha = alpha_over_r * r
//! exponents = [1, 2]               # credit.exponent; uniform has none
//! hidden = ["post-norm"]           # credit.hidden; of methods that look at it
//! seeds = [0, 1, 2]                # train.seed
//!
//! [[sweep.arm]]                    # one more, for every seed; any keys
//! credit.method = "arca"
//! credit.mix = 0.1
//! ```

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;
use toml::{Table, Value};

use crate::config::{Config, Given, UsageError};
use crate::credit::{Credit, method};
use crate::model::peft::decimal;
use crate::train::arm::ArmPlan;

/// `[sweep]` as it is typed. An empty list leaves the key to the rest of the
/// configuration.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SweepTable {
    methods: Vec<String>,
    ranks: Vec<usize>,
    exponents: Vec<f32>,
    hidden: Vec<String>,
    seeds: Vec<u64>,
    /// `lora.alpha` over `lora.r` where the sweep sets the rank alone.
    alpha_over_r: f32,
    arm: Vec<Table>,
}

impl Default for SweepTable {
    fn default() -> Self {
        SweepTable {
            methods: Vec::new(),
            ranks: Vec::new(),
            exponents: Vec::new(),
            hidden: Vec::new(),
            seeds: Vec::new(),
            alpha_over_r: 2.0,
            arm: Vec::new(),
        }
    }
}

/// A sweep, resolved.
#[derive(Clone, Debug)]
pub struct Arms {
    /// What the arms have in common.
    pub base: Config,
    pub plans: Vec<ArmPlan>,
}

/// Keys that arms may not differ in: they share the model in memory, the
/// problems, the rollout budget and the evaluation.
const SHARED: [&str; 10] = [
    "model.",
    "data.",
    "rollout.",
    "reward.",
    "eval.",
    "train.steps",
    "train.prompts_per_step",
    "train.device",
    "train.eval_every",
    "train.save_every",
];

/// The one key of `[rollout]` that is about the update.
const OF_UPDATE: &str = "rollout.mask_truncated";

impl Arms {
    /// Read a configuration with `[sweep]`, and overrides of keys outside and
    /// inside of it.
    ///
    /// # Errors
    /// What cannot be meant: no arms, two of one name, arms that would not
    /// share what they must, and whatever [`Config::load`] refuses.
    pub fn load(file: &Path, overrides: &[String]) -> Result<Arms> {
        let mut given = Given::read(Some(file), overrides)?;
        let Some((table, place)) = given.take_sweep() else {
            return Err(UsageError::new(format!(
                "{}: there is no [sweep]: it names the arms, as in methods = [\"uniform\", \"arca\"]",
                file.display()
            ))
            .into());
        };
        let table: SweepTable = table
            .try_into()
            .map_err(|e| UsageError::new(format!("{place}: [sweep]: {}", e.message())))?;
        let base = given.resolve()?;
        let mut plans = Vec::new();
        for (named, sets) in table.sets(&base)? {
            let draft = named
                .clone()
                .unwrap_or_else(|| "without a name".to_string());
            let config = given.resolve_arm(&draft, &sets)?;
            let name = match named {
                Some(name) => name,
                None => name_of(&config, &base)?,
            };
            plans.push(ArmPlan { name, config });
        }
        let arms = Arms { base, plans };
        arms.check()?;
        Ok(arms)
    }

    fn check(&self) -> Result<()> {
        if self.base.rollout.refill_zero_variance > 0 {
            return Err(UsageError::new(
                "rollout.refill_zero_variance is above 0: the arms of a sweep would draw unequal \
                 numbers of completions; set it to 0",
            )
            .into());
        }
        for (i, ArmPlan { name, config }) in self.plans.iter().enumerate() {
            check_name(name)?;
            if let Some(other) = self.plans[..i].iter().find(|p| p.name == *name) {
                let same = match other.config == *config {
                    true => "they have the same configuration, so leave one out",
                    false => "give one of them a `name`",
                };
                return Err(UsageError::new(format!(
                    "[sweep]: two arms are called {name}: {same}"
                ))
                .into());
            }
            let differ = config.differences(&self.base)?;
            let shared = |key: &&String| {
                *key != OF_UPDATE && SHARED.iter().any(|prefix| key.starts_with(prefix))
            };
            if let Some(key) = differ.iter().find(shared) {
                return Err(UsageError::new(format!(
                    "sweep arm {name}: {key} must be the same for all arms, which share the model, the \
                     problems, the rollout budget and the evaluation: set it outside of [sweep]"
                ))
                .into());
            }
            config
                .validate_training()
                .map_err(|e| UsageError::new(format!("sweep arm {name}: {e}")))?;
        }
        Ok(())
    }

    /// The resolved sweep as TOML; [`Arms::load`] reads it back equal.
    pub fn to_toml(&self) -> Result<String> {
        let mut out = self.base.to_toml()?;
        for plan in &self.plans {
            out += &format!(
                "\n[[sweep.arm]]\nname = {}\n",
                Value::from(plan.name.clone())
            );
            let changes = plan.config.changes(&self.base)?;
            for (key, value) in &changes {
                out += &format!("{key} = {value}\n");
            }
            // Named even where it is the common one, or it would be asked of
            // the list of seeds.
            if !changes.contains_key(SEED) {
                out += &format!("{SEED} = {}\n", plan.config.train.seed);
            }
        }
        Ok(out)
    }
}

const SEED: &str = "train.seed";

impl SweepTable {
    /// What each arm sets: the grid in the order method, rank, exponent,
    /// hidden, then the listed ones, for one seed after another.
    fn sets(self, base: &Config) -> Result<Vec<(Option<String>, Table)>> {
        let empty = [
            self.methods.is_empty(),
            self.ranks.is_empty(),
            self.exponents.is_empty(),
            self.hidden.is_empty(),
        ];
        let mut sets = Vec::new();
        if empty.contains(&false) || self.arm.is_empty() {
            for set in self.grid(base)? {
                sets.push((None, set));
            }
        }
        for arm in &self.arm {
            let mut arm = flat(arm);
            let name = match arm.remove("name") {
                None => None,
                Some(Value::String(name)) => Some(name),
                Some(other) => {
                    return Err(UsageError::new(format!(
                        "[[sweep.arm]]: name = {other}: it must be text"
                    ))
                    .into());
                }
            };
            self.add_alpha(&mut arm);
            sets.push((name, arm));
        }
        let mut seeded = Vec::new();
        let seeds = match self.seeds.is_empty() {
            true => vec![None],
            false => self.seeds.iter().copied().map(Some).collect(),
        };
        for (i, seed) in seeds.iter().enumerate() {
            for (name, set) in &sets {
                let (mut name, mut set) = (name.clone(), set.clone());
                if set.contains_key(SEED) {
                    // It names its own.
                    if i == 0 {
                        seeded.push((name, set));
                    }
                    continue;
                }
                if let Some(seed) = *seed {
                    let value = i64::try_from(seed).map_err(|_| {
                        UsageError::new(format!("[sweep]: seed {seed}: it must be below 2^63"))
                    })?;
                    set.insert(SEED.into(), value.into());
                    name = name.map(|name| format!("{name}-s{seed}"));
                }
                seeded.push((name, set));
            }
        }
        if seeded.is_empty() {
            return Err(UsageError::new("[sweep] has no arms").into());
        }
        Ok(seeded)
    }

    fn grid(&self, base: &Config) -> Result<Vec<Table>> {
        let methods = match self.methods.is_empty() {
            true => vec![base.credit.method.clone()],
            false => self.methods.clone(),
        };
        let mut sets = Vec::new();
        for name in &methods {
            let method = method(name).map_err(|e| UsageError::new(format!("[sweep]: {e}")))?;
            for rank in options(&self.ranks, true) {
                for exponent in options(&self.exponents, has_exponent(method)) {
                    for hidden in options(&self.hidden, has_hidden(method)) {
                        let mut set = Table::new();
                        set.insert("credit.method".into(), name.clone().into());
                        if let Some(&rank) = rank {
                            set.insert("lora.r".into(), (rank as i64).into());
                        }
                        if let Some(&p) = exponent {
                            set.insert("credit.exponent".into(), decimal(p).into());
                        }
                        if let Some(hidden) = hidden {
                            set.insert("credit.hidden".into(), hidden.clone().into());
                        }
                        self.add_alpha(&mut set);
                        sets.push(set);
                    }
                }
            }
        }
        Ok(sets)
    }

    /// Who sets the rank alone gets the scale with it.
    fn add_alpha(&self, set: &mut Table) {
        if let (Some(r), false) = (
            set.get("lora.r").and_then(Value::as_integer),
            set.contains_key("lora.alpha"),
        ) {
            let alpha = decimal(self.alpha_over_r) * r as f64;
            set.insert("lora.alpha".into(), alpha.into());
        }
    }
}

/// The choices, or none to make: where there are none, or where they would make
/// no difference.
fn options<T>(choices: &[T], matter: bool) -> Vec<Option<&T>> {
    match matter && !choices.is_empty() {
        true => choices.iter().map(Some).collect(),
        false => vec![None],
    }
}

fn has_exponent(method: &dyn Credit) -> bool {
    method.name() != "uniform"
}

fn has_hidden(method: &dyn Credit) -> bool {
    let needs = method.needs();
    needs.residuals || needs.hidden_states
}

/// Nested tables to dotted keys.
fn flat(table: &Table) -> Table {
    let mut out = Table::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) if !inner.is_empty() => {
                for (key, value) in flat(inner) {
                    out.insert(format!("{name}.{key}"), value);
                }
            }
            value => {
                out.insert(name.clone(), value.clone());
            }
        }
    }
    out
}

/// `arca-r16-p2-s0`: method, rank, exponent, the state it looks at where that is
/// not the usual one, what else is not as in `base`, seed.
fn name_of(config: &Config, base: &Config) -> Result<String> {
    let credit = &config.credit;
    let method = method(&credit.method).map_err(|e| UsageError::new(format!("[sweep]: {e}")))?;
    let mut name = format!("{}-r{}", credit.method, config.lora.r);
    if has_exponent(method) {
        name += &format!("-p{}", credit.exponent);
    }
    if has_hidden(method) && credit.hidden != "post-norm" {
        name += &format!("-{}", credit.hidden);
    }
    for (key, value) in config.changes(base)? {
        let named = [
            "credit.method",
            "credit.exponent",
            "credit.hidden",
            "lora.r",
            SEED,
        ];
        let usual = key == "lora.alpha" && config.lora.alpha == 2.0 * config.lora.r as f32;
        if !named.contains(&key.as_str()) && !usual {
            let short = key.rsplit('.').next().unwrap_or(&key);
            let value = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            name += &format!("-{short}-{value}");
        }
    }
    name += &format!("-s{}", config.train.seed);
    let plain = |c: char| match c.is_ascii_alphanumeric() || "._-".contains(c) {
        true => c,
        false => '-',
    };
    Ok(name.chars().map(plain).collect())
}

/// The name is that of a folder.
fn check_name(name: &str) -> Result<(), UsageError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !name.is_empty() && name.chars().all(plain) && !name.starts_with('.') && name != "base" {
        return Ok(());
    }
    Err(UsageError::new(format!(
        "[[sweep.arm]]: name = \"{name}\": it names a folder, so it takes letters, digits, `-`, `_` and `.` \
         (not at its beginning); `base` is the base model"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Arms> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sweep.toml");
        std::fs::write(&path, text).unwrap();
        Arms::load(&path, &[])
    }

    fn names(arms: &Arms) -> Vec<&str> {
        arms.plans.iter().map(|p| &p.name[..]).collect()
    }

    fn refusal(text: &str) -> String {
        let error = load(text).err().unwrap_or_else(|| panic!("{text}"));
        assert!(error.is::<UsageError>(), "{error}");
        error.to_string()
    }

    #[test]
    fn a_grid_leaves_out_what_makes_no_difference() {
        let arms = load(
            "[sweep]\nmethods = [\"uniform\", \"surprisal\", \"arca\"]\nranks = [4, 16]\n\
             exponents = [1, 2]\nhidden = [\"post-norm\", \"pre-norm\"]\nseeds = [0, 7]\n",
        )
        .unwrap();
        // Per rank and seed: 1 uniform, 2 surprisal, 4 arca.
        assert_eq!(arms.plans.len(), 2 * 2 * 7);
        let names = names(&arms);
        assert_eq!(
            names[..3],
            ["uniform-r4-s0", "uniform-r16-s0", "surprisal-r4-p1-s0"]
        );
        assert!(names.contains(&"arca-r16-p2-pre-norm-s7"));
        let arm = |name: &str| &arms.plans.iter().find(|p| p.name == name).unwrap().config;
        let one = arm("arca-r4-p2-s7");
        assert_eq!((one.lora.r, one.lora.alpha), (4, 8.0));
        assert_eq!((one.credit.exponent, one.train.seed), (2.0, 7));
        assert_eq!(arm("uniform-r16-s0").lora.alpha, 32.0);
    }

    #[test]
    fn listed_arms_take_any_key_and_every_seed() {
        let arms = load(
            "[optimizer]\nlearning_rate = 1e-3\n[sweep]\nseeds = [1, 2]\nalpha_over_r = 1\n\
             [[sweep.arm]]\nlora.r = 8\ncredit.method = \"arca\"\n\
             [[sweep.arm]]\noptimizer.learning_rate = 3e-3\n\
             [[sweep.arm]]\nname = \"mine\"\n\"credit.mix\" = 0.5\n\
             [[sweep.arm]]\ntrain.seed = 9\nlora.r = 8\nlora.alpha = 5\n",
        )
        .unwrap();
        assert_eq!(
            names(&arms),
            [
                "arca-r8-p1-alpha-8.0-s1",
                "uniform-r16-learning_rate-0.003-s1",
                "mine-s1",
                "uniform-r8-alpha-5.0-s9",
                "arca-r8-p1-alpha-8.0-s2",
                "uniform-r16-learning_rate-0.003-s2",
                "mine-s2",
            ]
        );
        assert_eq!(arms.plans[2].config.credit.mix, 0.5);
        assert_eq!(arms.plans[0].config.optimizer.learning_rate, 1e-3);
    }

    #[test]
    fn the_resolved_sweep_reads_back_equal() {
        let text = "[train]\nseed = 3\n[lora]\ndropout = 0.05\n[sweep]\nmethods = [\"uniform\", \"arca\"]\n\
                    ranks = [4]\n[[sweep.arm]]\nlora.dropout = 0.1\nlora.init_from = \"somewhere\"\n\
                    lora.target_modules = [\"q_proj\"]\n";
        let arms = load(text).unwrap();
        let again = load(&arms.to_toml().unwrap()).unwrap();
        assert_eq!(names(&arms), names(&again));
        assert_eq!(arms.base, again.base);
        for (a, b) in arms.plans.iter().zip(&again.plans) {
            assert_eq!(a.config, b.config, "{}", a.name);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, part) in [
            ("[train]\nsteps = 3\n", "there is no [sweep]"),
            ("[sweep]\nmethod = [\"arca\"]\n", "unknown field `method`"),
            ("[sweep]\nmethods = [\"acra\"]\n", "did you mean \"arca\""),
            (
                "[sweep]\nranks = [4, 4]\n",
                "called uniform-r4-s0: they have the same",
            ),
            ("[sweep]\nranks = [0]\n", "lora.r = 0"),
            (
                "[[sweep.arm]]\ntrain.steps = 3\n",
                "train.steps must be the same",
            ),
            (
                "[[sweep.arm]]\ndata.train = \"x\"\n",
                "data.train must be the same",
            ),
            ("[[sweep.arm]]\nlora.rank = 3\n", "unknown key `lora.rank`"),
            ("[[sweep.arm]]\nname = \"a/b\"\n", "names a folder"),
            (
                "[rollout]\nrefill_zero_variance = 2\n[sweep]\nranks = [4]\n",
                "refill_zero_variance",
            ),
            (
                "[rollout]\ntop_p = 0.9\n[sweep]\nranks = [4]\n",
                "allow_truncated_sampling",
            ),
        ] {
            let message = refusal(text);
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    /// Elsewhere the table would be overlooked.
    #[test]
    fn other_verbs_refuse_the_table() {
        let error = Config::load(None, &["sweep.ranks=[4]".into()]).unwrap_err();
        assert!(error.to_string().contains("arca sweep"), "{error}");
    }
}
