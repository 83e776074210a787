//! Writes that are never torn: aside, synced, renamed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Writes a file so that a reader, and a crash at any moment, sees the old
/// contents or the new ones, never a part.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let aside = beside(path, TMP);
    let written = write_synced(&aside, bytes)
        .and_then(|()| fs::rename(&aside, path))
        .and_then(|()| sync_parent(path));
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Makes the folder `path` anew: `fill` writes into a folder beside it, which
/// takes its place once all of it is on the disk.
///
/// A crash between the two renames leaves no `path` but both versions beside
/// it; [`recover`] then puts the new one in place.
pub fn replace_dir(
    path: &Path,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let aside = beside(path, TMP);
    let replaced = fill_synced(&aside, fill).and_then(|()| Ok(swap_in(&aside, path)?));
    if replaced.is_err() {
        let _ = fs::remove_dir_all(&aside);
    }
    replaced.with_context(|| format!("cannot write the folder {}", path.display()))
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn fill_synced(
    folder: &Path,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    remove_dir(folder)?;
    fs::create_dir_all(folder)?;
    fill(folder)?;
    Ok(sync_tree(folder)?)
}

/// Marks of the folders that [`replace_dir`] keeps for a moment: being
/// written, complete, and the one replaced.
const TMP: &str = "tmp";
const NEW: &str = "new";
const OLD: &str = "old";

fn swap_in(aside: &Path, path: &Path) -> io::Result<()> {
    if !path.exists() {
        fs::rename(aside, path)?;
        return sync_parent(path);
    }
    let (new, old) = (beside(path, NEW), beside(path, OLD));
    fs::rename(aside, &new)?;
    fs::rename(path, &old)?;
    fs::rename(&new, path)?;
    sync_parent(path)?;
    remove_dir(&old)
}

/// Finishes or undoes what writes of an ended process left in `folder`.
pub fn recover(folder: &Path) -> io::Result<()> {
    let names = names_in(folder)?;
    // The new version first: with it in place the old one is not needed.
    for mark in [NEW, OLD, TMP] {
        for name in names.iter().filter_map(|name| name.to_str()) {
            let Some(target) = left_behind(name, mark) else {
                continue;
            };
            let (left, target) = (folder.join(name), folder.join(target));
            if mark != TMP && !target.exists() {
                fs::rename(&left, &target)?;
                sync_parent(&target)?;
            } else if left.is_dir() {
                fs::remove_dir_all(&left)?;
            } else {
                fs::remove_file(&left)?;
            }
        }
    }
    Ok(())
}

/// `adapter` for `adapter.new-123`.
fn left_behind<'a>(name: &'a str, mark: &str) -> Option<&'a str> {
    let (rest, process) = name.rsplit_once('-')?;
    let (target, of) = rest.rsplit_once('.')?;
    (of == mark && process.parse::<u32>().is_ok()).then_some(target)
}

/// `path` with `.mark-<process>` after its name.
fn beside(path: &Path, mark: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{mark}-{}", std::process::id()));
    path.with_file_name(name)
}

/// The names of what lies in `folder`.
pub(super) fn names_in(folder: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_tree(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        for name in names_in(path)? {
            sync_tree(&path.join(name))?;
        }
    }
    File::open(path)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_contents() {
        let dir = tempfile::tempdir().unwrap();
        let adapter = dir.path().join("adapter");
        let fill = |text: &'static str| {
            move |at: &Path| Ok(fs::write(at.join("weights"), text).map(|_| ())?)
        };
        replace_dir(&adapter, fill("one")).unwrap();
        replace_dir(&adapter, fill("two")).unwrap();
        let failed = replace_dir(&adapter, |at| {
            fs::write(at.join("weights"), "three")?;
            anyhow::bail!("the disk is full")
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(adapter.join("weights")).unwrap(), "two");
        assert_eq!(names_in(dir.path()).unwrap(), ["adapter"]);
    }

    /// Every moment a crash can hit: between any two of the renames.
    #[test]
    fn resume_recovers_a_half_replaced_folder() {
        for (present, expected) in [
            (&["adapter", "adapter.tmp-1"][..], "adapter"),
            (&["adapter", "adapter.new-1"], "adapter"),
            (&["adapter.new-1", "adapter.old-1"], "adapter.new-1"),
            (&["adapter", "adapter.old-1"], "adapter"),
            (&["adapter.old-1"], "adapter.old-1"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for name in present {
                fs::create_dir(dir.path().join(name)).unwrap();
                fs::write(dir.path().join(name).join("origin"), name).unwrap();
            }
            recover(dir.path()).unwrap();
            assert_eq!(names_in(dir.path()).unwrap(), ["adapter"]);
            let origin = dir.path().join("adapter").join("origin");
            assert_eq!(fs::read_to_string(origin).unwrap(), expected);
        }
    }
}
