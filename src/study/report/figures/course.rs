//! How the runs went: seconds by part of a step, and alarms.

use super::{Makers, Section};
use crate::study::report::chart::{Bar, Bars, Chart, Figure, Segment, Span, Strip, Strips};
use crate::study::report::palette;

/// Parts of a step, in the order they run.
const PHASES: [&str; 6] = [
    "rollout",
    "reward",
    "score",
    "forward",
    "backward",
    "optimizer",
];

impl Makers<'_> {
    pub(super) fn phases(&self) -> Section {
        let mut section = Section::new(
            "phases",
            "Where the time goes",
            "Seconds of a step, means over steps and seeds. Rewards are worked out while others are \
             still drawn; shown is what is left to wait for.",
        );
        let bars: Vec<Bar> = self
            .groups
            .iter()
            .filter_map(|group| {
                let whole = self.overall(group, "train/step_time")?.mean;
                let mut segments: Vec<Segment> = PHASES
                    .iter()
                    .enumerate()
                    .filter_map(|(i, phase)| {
                        Some(Segment {
                            label: phase.to_string(),
                            colour: palette::phase(i),
                            value: self.overall(group, &format!("time/{phase}"))?.mean,
                        })
                    })
                    .collect();
                let known: f64 = segments.iter().map(|s| s.value).sum();
                segments.push(Segment {
                    label: "rest".into(),
                    colour: palette::phase(PHASES.len()),
                    value: (whole - known).max(0.0),
                });
                Some(Bar {
                    label: group.label.clone(),
                    segments,
                })
            })
            .collect();
        let figure = (!bars.is_empty()).then(|| Figure {
            name: "phases".into(),
            title: "Seconds per step".into(),
            subtitle: "by part of the step".into(),
            chart: Chart::Bars(Bars {
                bars,
                x_label: "seconds".into(),
            }),
        });
        section.add(figure, "phase times");
        section
    }

    pub(super) fn alarms(&self) -> Section {
        let mut section = Section::new(
            "alarms",
            "Alarms and failures",
            "credit/alarm: weights collapsed to uniform, or spuriously sparse.",
        );
        let mut measured = false;
        let mut rows = Vec::new();
        let mut steps = (f64::INFINITY, f64::NEG_INFINITY);
        for run in self.runs {
            let mut spans: Vec<Span> = Vec::new();
            for (step, alarm) in run.series.points("credit/alarm") {
                measured = true;
                let step = step as f64;
                steps = (steps.0.min(step), steps.1.max(step));
                let kind = match alarm {
                    1.0 => 0,
                    2.0 => 1,
                    _ => continue,
                };
                match spans.last_mut() {
                    Some(span) if span.kind == kind && span.to + 1.0 >= step => span.to = step,
                    _ => spans.push(Span {
                        from: step,
                        to: step,
                        kind,
                    }),
                }
            }
            if !spans.is_empty() {
                rows.push(Strip {
                    label: run.name.clone(),
                    spans,
                });
            }
        }
        let figure = (!rows.is_empty()).then(|| Figure {
            name: "alarms".into(),
            title: "Alarms".into(),
            subtitle: "runs that had any".into(),
            chart: Chart::Strips(Strips {
                rows,
                kinds: vec![
                    ("collapsed to uniform".into(), "var(--cold)".into()),
                    ("spuriously sparse".into(), "var(--heat)".into()),
                ],
                steps,
            }),
        });
        match (figure, measured) {
            (Some(figure), _) => section.figures.push(figure),
            (None, true) => section.text = "No alarm in any run.",
            (None, false) => section.missing.push("alarms (credit/alarm)"),
        }
        section
    }
}
