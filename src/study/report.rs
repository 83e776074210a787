//! One report on any number of runs: a self-contained HTML file, its figures,
//! and a summary for the terminal.
//!
//! ```text
//! load -> group (arms over seeds) -> results, figures -> page, summary
//! ```

pub mod chart;
pub mod compare;
pub mod curves;
pub mod estimate;
pub mod export;
pub mod figures;
pub mod group;
pub mod heat;
pub mod inspected;
pub mod load;
pub mod markdown;
pub mod marks;
pub mod page;
pub mod palette;
pub mod results;
pub mod series;
pub mod speed;
pub mod summary;
pub mod text;

use std::path::{Path, PathBuf};

use figures::Section;
use group::Group;
use load::Study;
use results::Results;

/// Everything the report says, before it is laid out.
pub struct Report {
    /// The runs as read.
    pub study: Study,
    /// Runs that differ in the seed alone, together.
    pub groups: Vec<Group>,
    /// The tables.
    pub results: Results,
    /// The figures, by section.
    pub sections: Vec<Section>,
}

impl Report {
    /// Reads run and sweep folders and works the figures out.
    ///
    /// # Errors
    /// A folder that is missing, or that is neither a run nor a sweep. Files
    /// missing or torn within one become [`Study::notes`] instead.
    pub fn read(folders: &[PathBuf]) -> anyhow::Result<Report> {
        let study = load::read(folders)?;
        let groups = group::groups(&study.runs);
        let results = results::results(&study, &groups);
        let sections = figures::sections(&study, &groups, &results);
        Ok(Report {
            study,
            groups,
            results,
            sections,
        })
    }

    /// The HTML file.
    pub fn html(&self) -> String {
        page::html(self)
    }

    /// The study in Markdown, made by `command`; `figures` is their folder as
    /// seen from the file.
    pub fn markdown(&self, command: &str, figures: Option<&Path>) -> String {
        markdown::markdown(self, command, figures)
    }

    /// The summary for the terminal.
    pub fn text(&self) -> String {
        text::text(self)
    }

    /// Writes every figure as SVG and PNG into `folder`.
    ///
    /// # Errors
    /// A folder or file that cannot be written.
    pub fn write_figures(&self, folder: &Path) -> anyhow::Result<export::Exported> {
        export::write(self, folder)
    }
}
