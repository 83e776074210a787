//! Where the weight sits: position, token classes, other methods.

use super::{Makers, Section, curve};
use crate::study::report::chart::{Chart, Dot, DotRow, Dots, Figure, Line, Lines, Matrix, Point};
use crate::study::report::curves::Axis;
use crate::study::report::palette;

/// Token classes of `credit/class/`.
const CLASSES: [&str; 5] = ["digits", "operators", "words", "box", "other"];

impl Makers<'_> {
    pub(super) fn place(&self) -> Section {
        let mut section = Section::new(
            "place",
            "Where the weight sits",
            "Means over all steps; the dashed line is where equal weights would be.",
        );
        let lines: Vec<Line> = self
            .groups
            .iter()
            .filter_map(|group| {
                let points: Vec<Point> = (0..10)
                    .filter_map(|d| {
                        let share = self.overall(group, &format!("credit/position/decile_{d}"))?;
                        Some(Point {
                            x: f64::from(d + 1),
                            y: share.mean,
                            error: share.error.unwrap_or(0.0),
                        })
                    })
                    .collect();
                (!points.is_empty()).then(|| self.line(group, points))
            })
            .collect();
        let deciles = (!lines.is_empty()).then(|| Figure {
            name: "deciles".into(),
            title: "Weight by position".into(),
            subtitle: "share of the weight in each tenth of the completion".into(),
            chart: Chart::Lines(Lines {
                x_label: "tenth of the completion".into(),
                lines,
                level: Some((0.1, "uniform".into())),
                ..Lines::default()
            }),
        });
        section.add(deciles, "position deciles");
        let ends = self.by_row(
            "ends",
            "First and last token",
            "share of the weight",
            &["first", "last"].map(|e| (format!("{e} token"), format!("credit/position/{e}"))),
        );
        section.add(ends, "first and last token");
        let classes = self.by_row(
            "classes",
            "Weight by token class",
            "share of the weight",
            &CLASSES.map(|c| (c.to_string(), format!("credit/class/{c}"))),
        );
        section.add(classes, "token classes");
        let entropy = curve(
            "top-token-entropy",
            "Entropy at the top-weighted tokens",
            "nats, top 10 % by weight; dotted: all tokens",
            "credit/top_token_entropy",
            false,
        );
        let figure = self.curves(&entropy, Axis::Step).map(|mut figure| {
            self.add_thin(
                &mut figure,
                "train/entropy",
                "all tokens of",
                Some("credit/top_token_entropy"),
            );
            figure
        });
        section.add(figure, "entropy at the top-weighted tokens");
        section.add(self.correlations(), "correlation between methods");
        section
    }

    fn by_row(
        &self,
        name: &str,
        title: &str,
        subtitle: &str,
        keys: &[(String, String)],
    ) -> Option<Figure> {
        let rows: Vec<DotRow> = keys
            .iter()
            .map(|(label, key)| DotRow {
                label: label.clone(),
                dots: self
                    .groups
                    .iter()
                    .filter_map(|group| {
                        let share = self.overall(group, key)?;
                        Some(Dot {
                            label: group.label.clone(),
                            colour: palette::group(group.colour),
                            value: share.mean,
                            error: share.error.unwrap_or(0.0),
                        })
                    })
                    .collect(),
            })
            .filter(|row| !row.dots.is_empty())
            .collect();
        (!rows.is_empty()).then(|| Figure {
            name: name.into(),
            title: title.into(),
            subtitle: subtitle.into(),
            chart: Chart::Dots(Dots {
                rows,
                ..Dots::default()
            }),
        })
    }

    fn correlations(&self) -> Option<Figure> {
        const PREFIX: &str = "credit/correlation/";
        let mut columns: Vec<String> = Vec::new();
        for name in self.runs.iter().flat_map(|r| r.series.names(PREFIX)) {
            if !columns.iter().any(|c| c == name) {
                columns.push(name.to_string());
            }
        }
        let mut matrix = Matrix {
            columns,
            ..Matrix::default()
        };
        for group in self.groups {
            let row: Vec<Option<f64>> = matrix
                .columns
                .iter()
                .map(|name| {
                    let mean = self.overall(group, &format!("{PREFIX}{name}"))?.mean;
                    Some(mean)
                })
                .collect();
            if row.iter().any(Option::is_some) {
                matrix.rows.push(group.label.clone());
                matrix.values.push(row);
            }
        }
        (!matrix.rows.is_empty()).then(|| Figure {
            name: "correlation".into(),
            title: "Agreement between methods".into(),
            subtitle: "Spearman correlation of the trained method's weights (row) with another \
                       method's (column), mean over completions"
                .into(),
            chart: Chart::Matrix(matrix),
        })
    }
}
