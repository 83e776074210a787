//! `arca report`: an HTML file, figures and a summary on runs and sweeps.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Outcome;
use super::args::ReportArgs;
use crate::config::UsageError;
use crate::study::report::Report;
use crate::train::summary::command;

const DEFAULT_OUT: &str = "report.html";

/// Runs the verb.
pub fn run(args: ReportArgs) -> anyhow::Result<Outcome> {
    let out = match &args.out {
        Some(out) => out.clone(),
        None => unused(Path::new(DEFAULT_OUT))?,
    };
    if out.is_dir() {
        return Err(
            UsageError::new(format!("--out {} is a folder; name a file", out.display())).into(),
        );
    }
    let figures = args.figures.clone().unwrap_or_else(|| beside(&out));
    if figures.exists() && !figures.is_dir() {
        let message = format!(
            "{} is not a folder: name one with --figures",
            figures.display()
        );
        return Err(UsageError::new(message).into());
    }
    let report = Report::read(&args.runs)?;
    std::fs::write(&out, report.html())
        .with_context(|| format!("cannot write {}", out.display()))?;
    let exported = report.write_figures(&figures)?;
    if let Some(path) = &args.markdown {
        let folder = seen_from(path, &exported.folder);
        std::fs::write(path, report.markdown(&command(), Some(&folder)))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut text = report.text();
    text += &format!(
        "\nreport: {}\nfigures: {} in {}",
        out.display(),
        exported.figures,
        exported.folder.display()
    );
    text += match exported.png {
        true => " (SVG and PNG)\n",
        false => " (SVG only: PNG needs a font, and the system has none)\n",
    };
    super::print(&text)?;
    Ok(Outcome::Done)
}

/// The default file, unless it is there: only a file that is named is
/// overwritten.
fn unused(path: &Path) -> Result<PathBuf, UsageError> {
    match path.exists() {
        false => Ok(path.to_path_buf()),
        true => Err(UsageError::new(format!(
            "{} is there already; name the file with --out to overwrite it",
            path.display()
        ))),
    }
}

/// `folder` as a link in `file` has it: relative where it lies at or below the
/// file's own folder.
fn seen_from(file: &Path, folder: &Path) -> PathBuf {
    let full = |path: &Path| std::path::absolute(path).unwrap_or(path.to_path_buf());
    let (file, folder) = (full(file), full(folder));
    match file.parent().and_then(|p| folder.strip_prefix(p).ok()) {
        Some(relative) => relative.to_path_buf(),
        None => folder,
    }
}

/// `<stem>-figures` beside the file.
fn beside(out: &Path) -> PathBuf {
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!("{stem}-figures"))
}
