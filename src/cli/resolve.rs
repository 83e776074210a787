//! From the command line as it is typed to the configuration it means.
//!
//! A flag that stands for a config key is a shorthand: it becomes an override
//! after every `--set`, so that the resolved configuration tells all.

use std::path::Path;

use clap::ValueEnum;

use super::args::{
    BenchArgs, ConfigArgs, EvalArgs, GenerateArgs, InspectArgs, PlanArgs, ReadConfigArgs,
    ReplayArgs, SamplingArgs, SweepArgs, TrainArgs,
};
use crate::config::{Config, UsageError};
use crate::study::arms::Arms;

/// Overrides that flags stand for.
#[derive(Default)]
struct Shorthands(Vec<String>);

impl Shorthands {
    fn text(mut self, key: &str, value: Option<&str>) -> Self {
        if let Some(value) = value {
            // Quoted, so that a folder named `true` stays a name.
            let quoted = toml::Value::String(value.to_string());
            self.0.push(format!("{key}={quoted}"));
        }
        self
    }

    fn number(mut self, key: &str, value: Option<impl std::fmt::Display>) -> Self {
        if let Some(value) = value {
            self.0.push(format!("{key}={value}"));
        }
        self
    }

    fn sampling(self, sampling: &SamplingArgs) -> Self {
        let greedy = sampling.greedy.then_some(0.0);
        self.number("rollout.temperature", sampling.temperature.or(greedy))
            .number("rollout.top_p", sampling.top_p)
            .number("rollout.top_k", sampling.top_k)
            .number("rollout.min_p", sampling.min_p)
            .number("rollout.max_completion_length", sampling.max_tokens)
            .number("train.seed", sampling.seed)
    }
}

impl ConfigArgs {
    fn load(&self, file: Option<&Path>, shorthands: Shorthands) -> Result<Config, UsageError> {
        Config::load(file, &self.overrides(shorthands))
    }

    fn overrides(&self, shorthands: Shorthands) -> Vec<String> {
        let device = self.device.and_then(|device| device.to_possible_value());
        let flags = shorthands.text("train.device", device.as_ref().map(|d| d.get_name()));
        self.set.iter().cloned().chain(flags.0).collect()
    }
}

impl ReadConfigArgs {
    fn load(&self, shorthands: Shorthands) -> Result<Config, UsageError> {
        let of_run = self.run.as_ref().map(|run| run.join("config.toml"));
        let file = self.common.config.as_deref().or(of_run.as_deref());
        self.common.load(file, shorthands)
    }
}

impl TrainArgs {
    /// The resolved configuration, fit for training. A resumed run keeps its
    /// own; what is given beside `--resume` may change only what does not
    /// change the steps to come.
    pub fn load(&self) -> anyhow::Result<Config> {
        let shorthands = || {
            Shorthands::default()
                .text("model.path", self.model.as_deref())
                .number("train.seed", self.seed)
        };
        let config = match &self.run {
            Some(run) if self.resume => {
                let saved_file = run.join("config.toml");
                let saved = Config::load(Some(&saved_file), &[])?;
                let file = self.common.config.as_deref().unwrap_or(&saved_file);
                let given = self.common.load(Some(file), shorthands())?;
                check_resumable(&saved, &given)?;
                given
            }
            _ => self
                .common
                .load(self.common.config.as_deref(), shorthands())?,
        };
        config.validate_training()?;
        Ok(config)
    }
}

/// Keys that a resumed run may change: how long, how often, where, what is kept.
const RESUMABLE: [&str; 9] = [
    "train.steps",
    "train.device",
    "train.tokens_per_batch",
    "rollout.kv_memory",
    "train.eval_every",
    "train.save_every",
    "eval.samples",
    "eval.limit",
    "log.",
];

fn check_resumable(saved: &Config, given: &Config) -> anyhow::Result<()> {
    let changed: Vec<String> = saved
        .differences(given)?
        .into_iter()
        .filter(|key| !RESUMABLE.iter().any(|prefix| key.starts_with(prefix)))
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(UsageError::new(format!(
        "--resume continues the run with its own configuration, but {} differ{} from its \
         config.toml; start a new run to change {}",
        changed.join(", "),
        if changed.len() == 1 { "s" } else { "" },
        if changed.len() == 1 { "it" } else { "them" },
    ))
    .into())
}

impl SweepArgs {
    /// The resolved arms. A resumed sweep keeps its own; what is given beside
    /// `--resume` may change what it may change of a run.
    pub fn load(&self) -> anyhow::Result<Arms> {
        let overrides = self.common.overrides(Shorthands::default());
        match (&self.common.config, &self.run) {
            (Some(file), _) => Arms::load(file, &overrides),
            (None, Some(run)) => {
                let file = run.join("sweep.toml");
                if !file.is_file() {
                    return Err(UsageError::new(format!(
                        "{} is not the folder of a sweep: it has no sweep.toml",
                        run.display()
                    ))
                    .into());
                }
                let saved = Arms::load(&file, &[])?;
                let given = Arms::load(&file, &overrides)?;
                for (saved, given) in saved.plans.iter().zip(&given.plans) {
                    check_resumable(&saved.config, &given.config)?;
                }
                Ok(given)
            }
            (None, None) => Err(UsageError::new("name the sweep: --config FILE.toml").into()),
        }
    }
}

impl EvalArgs {
    /// The resolved configuration.
    pub fn load(&self) -> Result<Config, UsageError> {
        let flags = Shorthands::default()
            .text("model.path", self.model.as_deref())
            .text("data.eval", self.data.as_deref())
            .number("eval.samples", self.samples)
            .number("eval.limit", self.limit)
            .sampling(&self.sampling);
        self.config.load(flags)
    }
}

impl GenerateArgs {
    /// The resolved configuration.
    pub fn load(&self) -> Result<Config, UsageError> {
        let flags = Shorthands::default()
            .text("model.path", self.model.as_deref())
            .sampling(&self.sampling);
        self.config.load(flags)
    }
}

impl InspectArgs {
    /// The resolved configuration.
    pub fn load(&self) -> Result<Config, UsageError> {
        let flags = Shorthands::default()
            .text("model.path", self.model.as_deref())
            .number("rollout.temperature", self.temperature)
            .text("credit.hidden", self.hidden.as_deref())
            .number("credit.exponent", self.exponent);
        self.config.load(flags)
    }
}

impl ReplayArgs {
    /// The resolved configuration.
    pub fn load(&self) -> Result<Config, UsageError> {
        self.config
            .load(Shorthands::default().text("model.path", self.model.as_deref()))
    }
}

impl PlanArgs {
    /// The resolved configuration.
    pub fn load(&self) -> Result<Config, UsageError> {
        self.config
            .load(Shorthands::default().text("model.path", self.model.as_deref()))
    }
}

impl BenchArgs {
    /// The resolved configuration.
    pub fn load(&self) -> Result<Config, UsageError> {
        let flags = Shorthands::default()
            .text("model.path", self.model.as_deref())
            .number("lora.r", self.lora_r);
        self.config.load(flags)
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::super::args::{Cli, Verb};
    use super::*;

    fn verb(args: &[&str]) -> Verb {
        Cli::try_parse_from([&["arca"], args].concat())
            .unwrap()
            .verb
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_win_over_set() {
        let Verb::Eval(eval) = verb(&[
            "eval",
            "--model",
            "true",
            "--adapter",
            "a",
            "b",
            "--adapter",
            "c",
            "--greedy",
            "--set",
            "rollout.temperature=0.7",
            "--limit",
            "3",
            "--device",
            "cpu",
        ]) else {
            panic!("eval parses as eval");
        };
        let config = eval.load().unwrap();
        assert_eq!(config.model.path, "true");
        assert_eq!(config.rollout.temperature, 0.0);
        assert_eq!(config.eval.limit, 3);
        assert_eq!(config.train.device, "cpu");
        assert_eq!(eval.adapter.len(), 3);
    }

    #[test]
    fn answers_may_begin_with_a_minus() {
        let Verb::Grade(grade) = verb(&["grade", "--gold", "-3", "--answer", "-x"]) else {
            panic!("grade parses as grade");
        };
        assert_eq!(
            (grade.gold.as_deref(), grade.answer.as_deref()),
            (Some("-3"), Some("-x"))
        );
        assert!(matches!(verb(&["grade", "-"]), Verb::Grade(args) if args.file.is_some()));
    }

    #[test]
    fn a_resumed_run_keeps_its_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let saved = Config::load(None, &["credit.method=arca".into()]).unwrap();
        std::fs::write(dir.path().join("config.toml"), saved.to_toml().unwrap()).unwrap();
        let run = dir.path().to_str().unwrap();
        let resume =
            |more: &[&str]| match verb(&[&["train", "--run", run, "--resume"], more].concat()) {
                Verb::Train(args) => args.load(),
                _ => panic!("train parses as train"),
            };

        assert_eq!(resume(&[]).unwrap(), saved);
        let longer = resume(&["--set", "train.steps=500", "--device", "cpu"]).unwrap();
        assert_eq!(longer.train.steps, 500);

        let error = resume(&["--set", "lora.r=4", "--seed", "3"]).unwrap_err();
        assert!(error.is::<UsageError>());
        assert!(
            error.to_string().contains("lora.r, train.seed differ from"),
            "{error}"
        );
    }
}
