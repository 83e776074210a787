//! The folder of one run: where its files lie.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

use super::durable::{names_in, recover};
pub use super::durable::{replace_dir, write_atomic};
use crate::config::{Config, UsageError};

/// The folder of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Makes the folder of a new run and saves its configuration there:
    /// `requested`, or `runs/<UTC time>-<credit method>-<seed>`. A folder with
    /// anything in it is refused, as runs are never overwritten.
    pub fn create(requested: Option<&Path>, config: &Config) -> anyhow::Result<RunDir> {
        let root = match requested {
            Some(root) => {
                fs::create_dir_all(root)
                    .with_context(|| format!("cannot create the run folder {}", root.display()))?;
                refuse_used(root)?;
                root.to_path_buf()
            }
            None => {
                let (method, seed) = (&config.credit.method, config.train.seed);
                let name = format!("{}-{method}-{seed}", timestamp());
                create_named(Path::new("runs"), &name)?
            }
        };
        let run = RunDir { root };
        run.save_config(config)?;
        run.create_parts()?;
        Ok(run)
    }

    /// Opens the folder of an earlier run to continue it. What a crash left
    /// half replaced is put in order.
    pub fn resume(root: &Path) -> anyhow::Result<RunDir> {
        let run = RunDir::open(root)?;
        run.create_parts()?;
        for folder in [run.root.clone(), run.checkpoints_dir()] {
            recover(&folder)
                .with_context(|| format!("cannot put {} in order", folder.display()))?;
        }
        Ok(run)
    }

    /// Opens the folder of an earlier run to read it.
    pub fn open(root: &Path) -> anyhow::Result<RunDir> {
        let run = RunDir {
            root: root.to_path_buf(),
        };
        if !run.config().is_file() {
            return Err(UsageError::new(format!(
                "{} is not a run folder: it has no config.toml",
                root.display()
            ))
            .into());
        }
        Ok(run)
    }

    /// Writes `config.toml`, the resolved configuration.
    pub fn save_config(&self, config: &Config) -> anyhow::Result<()> {
        write_atomic(&self.config(), config.to_toml()?.as_bytes())
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// One JSON object per step, see [`super::metrics`].
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// What training came to.
    pub fn summary(&self) -> PathBuf {
        self.root.join("summary.json")
    }

    /// The completions of one step.
    pub fn completions(&self, step: usize) -> PathBuf {
        self.completions_dir().join(format!("step_{step:05}.jsonl"))
    }

    /// The latest adapter, in PEFT's layout.
    pub fn adapter(&self) -> PathBuf {
        self.root.join("adapter")
    }

    /// The adapter of the best held-out evaluation.
    pub fn adapter_best(&self) -> PathBuf {
        self.root.join("adapter_best")
    }

    /// The state after `step`, from which a run can continue.
    pub fn checkpoint(&self, step: usize) -> PathBuf {
        self.checkpoints_dir().join(format!("step_{step}"))
    }

    /// The latest checkpoint and its step, if there is one.
    pub fn latest_checkpoint(&self) -> anyhow::Result<Option<(usize, PathBuf)>> {
        let folder = self.checkpoints_dir();
        let names = names_in(&folder)
            .with_context(|| format!("cannot read the folder {}", folder.display()))?;
        let latest = names
            .iter()
            .filter_map(|name| name.to_str()?.strip_prefix("step_")?.parse().ok())
            .max();
        Ok(latest.map(|step| (step, self.checkpoint(step))))
    }

    /// Removes the completions of steps after `step`, which will be run again.
    pub fn forget_completions_after(&self, step: usize) -> anyhow::Result<()> {
        let folder = self.completions_dir();
        let step_of = |name: &OsString| -> Option<usize> {
            let number = name.to_str()?.strip_prefix("step_")?;
            number.strip_suffix(".jsonl")?.parse().ok()
        };
        let names = names_in(&folder)
            .with_context(|| format!("cannot read the folder {}", folder.display()))?;
        for name in names.iter().filter(|name| step_of(name) > Some(step)) {
            let file = folder.join(name);
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        Ok(())
    }

    fn create_parts(&self) -> anyhow::Result<()> {
        for part in [self.completions_dir(), self.checkpoints_dir()] {
            fs::create_dir_all(&part)
                .with_context(|| format!("cannot create {}", part.display()))?;
        }
        Ok(())
    }

    fn completions_dir(&self) -> PathBuf {
        self.root.join("completions")
    }

    fn checkpoints_dir(&self) -> PathBuf {
        self.root.join("checkpoints")
    }
}

/// Refuses a folder with anything in it.
pub(crate) fn refuse_used(root: &Path) -> anyhow::Result<()> {
    let names =
        names_in(root).with_context(|| format!("cannot read the folder {}", root.display()))?;
    if names.is_empty() {
        return Ok(());
    }
    let hint = if ["config.toml", "sweep.toml"]
        .iter()
        .any(|f| root.join(f).is_file())
    {
        "add --resume to continue its run, or name another folder"
    } else {
        "name another one"
    };
    Err(UsageError::new(format!(
        "the run folder {} is not empty and is never overwritten: {hint}",
        root.display()
    ))
    .into())
}

/// Makes `parent/name`, or `parent/name-2` and so on where another run of the
/// same second has it.
pub(crate) fn create_named(parent: &Path, name: &str) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(parent)
        .with_context(|| format!("cannot create the folder {}", parent.display()))?;
    let mut root = parent.join(name);
    for attempt in 2.. {
        match fs::create_dir(&root) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                root = parent.join(format!("{name}-{attempt}"));
            }
            Err(error) => {
                return Err(anyhow::Error::new(error)
                    .context(format!("cannot create the run folder {}", root.display())));
            }
        }
    }
    Ok(root)
}

/// The time in UTC as `20260131-235959`.
pub(crate) fn timestamp() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    utc(seconds)
}

fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a date of the Gregorian calendar, in eras of 400 years from
    // 0000-03-01 (H. Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}{month:02}{day:02}-{:02}{:02}{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utc_knows_the_calendar() {
        assert_eq!(utc(0), "19700101-000000");
        assert_eq!(utc(951_827_696), "20000229-123456");
        assert_eq!(utc(1_767_225_599), "20251231-235959");
        assert_eq!(utc(4_107_542_400), "21000301-000000");
    }

    #[test]
    fn a_used_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        RunDir::create(Some(&root), &Config::default()).unwrap();
        let error = RunDir::create(Some(&root), &Config::default()).unwrap_err();
        assert!(error.is::<UsageError>());
        assert!(error.to_string().contains("--resume"), "{error}");
        RunDir::resume(&root).unwrap();
        assert!(RunDir::resume(dir.path()).is_err());
    }

    #[test]
    fn same_second_gets_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let first = create_named(dir.path(), "a").unwrap();
        let second = create_named(dir.path(), "a").unwrap();
        assert_eq!(first, dir.path().join("a"));
        assert_eq!(second, dir.path().join("a-2"));
    }

    #[test]
    fn the_latest_checkpoint_is_the_highest_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(Some(&dir.path().join("run")), &Config::default()).unwrap();
        assert_eq!(run.latest_checkpoint().unwrap(), None);
        for name in ["step_9", "step_10", "step_11.tmp-7"] {
            fs::create_dir(run.checkpoints_dir().join(name)).unwrap();
        }
        assert_eq!(
            run.latest_checkpoint().unwrap(),
            Some((10, run.checkpoint(10)))
        );
    }

    #[test]
    fn completions_of_later_steps_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(Some(&dir.path().join("run")), &Config::default()).unwrap();
        for step in 1..=3 {
            fs::write(run.completions(step), "").unwrap();
        }
        run.forget_completions_after(2).unwrap();
        assert_eq!(
            [1, 2, 3].map(|step| run.completions(step).exists()),
            [true, true, false]
        );
    }
}
