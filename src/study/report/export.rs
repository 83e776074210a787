//! The figures as files: SVG, and PNG drawn from it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use resvg::{tiny_skia, usvg};

use super::Report;
use super::chart::Figure;
use super::heat;

/// Pixels per SVG unit in PNG files.
const SCALE: f32 = 2.5;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The folder.
    pub folder: PathBuf,
    /// Figures.
    pub figures: usize,
    /// Whether PNG files were written beside the SVG files: they need a font
    /// of the system.
    pub png: bool,
}

/// Writes all figures into `folder`, which is made if need be.
///
/// # Errors
/// A folder or file that cannot be written.
pub fn write(report: &Report, folder: &Path) -> Result<Exported> {
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    let fonts = fonts();
    let heats = heat::figures(&report.study, &report.groups);
    let figures: Vec<&Figure> = report
        .sections
        .iter()
        .flat_map(|s| &s.figures)
        .chain(&heats)
        .collect();
    for figure in &figures {
        let svg = figure.file();
        let path = folder.join(format!("{}.svg", figure.name));
        fs::write(&path, &svg).with_context(|| format!("cannot write {}", path.display()))?;
        if let Some(fonts) = &fonts {
            let path = path.with_extension("png");
            let png = png(&svg, fonts.clone()).with_context(|| path.display().to_string())?;
            fs::write(&path, png).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(Exported {
        folder: folder.to_path_buf(),
        figures: figures.len(),
        png: fonts.is_some(),
    })
}

/// The system's fonts, or `None` where it has none.
fn fonts() -> Option<Arc<usvg::fontdb::Database>> {
    let mut fonts = usvg::fontdb::Database::new();
    fonts.load_system_fonts();
    let has = |name: &str| {
        fonts
            .faces()
            .any(|face| face.families.iter().any(|(family, _)| family == name))
    };
    let pick = |names: &[&str]| -> Option<String> {
        let first = || Some(fonts.faces().next()?.families.first()?.0.clone());
        let known = names.iter().find(|name| has(name));
        known.map(|name| name.to_string()).or_else(first)
    };
    let sans = pick(&[
        "Inter",
        "Helvetica Neue",
        "Helvetica",
        "Arial",
        "Liberation Sans",
        "Noto Sans",
        "DejaVu Sans",
    ])?;
    let mono = pick(&[
        "Menlo",
        "Consolas",
        "DejaVu Sans Mono",
        "Liberation Mono",
        "Noto Sans Mono",
    ])?;
    fonts.set_sans_serif_family(sans);
    fonts.set_monospace_family(mono);
    Some(Arc::new(fonts))
}

fn png(svg: &str, fonts: Arc<usvg::fontdb::Database>) -> Result<Vec<u8>> {
    let options = usvg::Options {
        fontdb: fonts,
        ..usvg::Options::default()
    };
    let tree = usvg::Tree::from_str(svg, &options)?;
    let size = tree.size();
    let pixels = |length: f32| (length * SCALE).ceil() as u32;
    let mut image = tiny_skia::Pixmap::new(pixels(size.width()), pixels(size.height()))
        .ok_or_else(|| anyhow!("the figure has no size"))?;
    image.fill(tiny_skia::Color::WHITE);
    let scale = tiny_skia::Transform::from_scale(SCALE, SCALE);
    resvg::render(&tree, scale, &mut image.as_mut());
    Ok(image.encode_png()?)
}
