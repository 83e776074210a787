//! Which figures there are, and what goes into them.

mod course;
mod place;

use super::chart::{Chart, Dot, DotRow, Dots, Figure, Line, Lines, Point};
use super::curves::{self, Axis};
use super::estimate::Estimate;
use super::group::Group;
use super::load::{Run, Study};
use super::palette;
use super::results::Results;
use super::summary::Heldout;

/// A part of the report.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Its anchor in the page.
    pub id: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// What a reader should know beforehand.
    pub text: &'static str,
    /// Its figures, of those that have data.
    pub figures: Vec<Figure>,
    /// What was not measured.
    pub missing: Vec<&'static str>,
}

/// A curve over steps.
struct Curve {
    name: &'static str,
    title: &'static str,
    subtitle: &'static str,
    key: &'static str,
    noisy: bool,
}

const fn curve(
    name: &'static str,
    title: &'static str,
    subtitle: &'static str,
    key: &'static str,
    noisy: bool,
) -> Curve {
    Curve {
        name,
        title,
        subtitle,
        key,
        noisy,
    }
}

const LEARNING: [Curve; 7] = [
    curve(
        "entropy",
        "Policy entropy",
        "nats per token",
        "train/entropy",
        false,
    ),
    curve(
        "kl",
        "KL to the reference",
        "k3 estimate, nats per token",
        "train/kl",
        false,
    ),
    curve(
        "grad-norm",
        "Gradient norm",
        "before clipping",
        "train/grad_norm",
        true,
    ),
    curve(
        "length",
        "Completion length",
        "tokens, mean of a step",
        "train/completions/mean_length",
        false,
    ),
    curve(
        "truncated",
        "Cut by length",
        "share of completions",
        "train/completions/clipped_ratio",
        true,
    ),
    curve(
        "zero-variance",
        "Groups without a signal",
        "share of groups whose rewards are all equal",
        "train/frac_reward_zero_std",
        true,
    ),
    curve(
        "learning-rate",
        "Learning rate",
        "",
        "train/learning_rate",
        false,
    ),
];

/// The range of Gini that the paper's poster shades as neither collapsed nor
/// sparse.
const POSTER_BAND: (f64, f64) = (0.25, 0.60);

/// All sections, those without figures too.
pub fn sections(study: &Study, groups: &[Group], results: &Results) -> Vec<Section> {
    let makers = Makers {
        runs: &study.runs,
        groups,
    };
    vec![
        makers.accuracy(results),
        makers.learning(),
        makers.concentration(),
        makers.place(),
        makers.cost(),
        makers.phases(),
        makers.alarms(),
    ]
}

struct Makers<'a> {
    runs: &'a [Run],
    groups: &'a [Group],
}

impl Section {
    fn new(id: &'static str, title: &'static str, text: &'static str) -> Section {
        Section {
            id,
            title,
            text,
            figures: Vec::new(),
            missing: Vec::new(),
        }
    }

    fn add(&mut self, figure: Option<Figure>, what: &'static str) {
        match figure {
            Some(figure) => self.figures.push(figure),
            None => self.missing.push(what),
        }
    }
}

impl Makers<'_> {
    fn line(&self, group: &Group, points: Vec<Point>) -> Line {
        Line {
            label: group.label.clone(),
            colour: palette::group(group.colour),
            dash: group.dash,
            thin: false,
            points,
        }
    }

    /// Curves of one metric, a line per group that has it.
    fn curves(&self, c: &Curve, axis: Axis) -> Option<Figure> {
        let mut widest = 1;
        let lines: Vec<Line> = self
            .groups
            .iter()
            .filter_map(|group| {
                let mut points = curves::curve(group, self.runs, c.key, axis);
                if c.noisy {
                    let window = curves::window(points.len());
                    widest = widest.max(window);
                    points = curves::smooth(&points, window);
                }
                (!points.is_empty()).then(|| self.line(group, curves::thin_out(points)))
            })
            .collect();
        let mut subtitle = c.subtitle.to_string();
        if widest > 1 {
            subtitle += &format!("; moving mean over {widest} steps");
        }
        self.figure(c.name, c.title, &subtitle, axis, lines)
    }

    fn figure(
        &self,
        name: &str,
        title: &str,
        subtitle: &str,
        axis: Axis,
        lines: Vec<Line>,
    ) -> Option<Figure> {
        let x_label = match axis {
            Axis::Step => "step",
            Axis::Tokens => "completion tokens",
            Axis::Seconds => "seconds of training",
        };
        (!lines.is_empty()).then(|| Figure {
            name: name.into(),
            title: title.into(),
            subtitle: subtitle.into(),
            chart: Chart::Lines(Lines {
                x_label: x_label.into(),
                lines,
                ..Lines::default()
            }),
        })
    }

    fn accuracy(&self, results: &Results) -> Section {
        let mut section = Section::new(
            "accuracy",
            "Held-out accuracy",
            "After training. Bars are one standard error: over seeds, or over problems where there \
             is one seed.",
        );
        for (column, name, title) in [
            (0, "greedy", "Greedy accuracy"),
            (1, "sampled", "Accuracy of samples"),
            (2, "pass-at-k", "pass@k"),
            (3, "maj-at-k", "maj@k"),
        ] {
            let title = match results.samples {
                Some(k) => title.replace("@k", &format!("@{k}")),
                None => title.to_string(),
            };
            let rows: Vec<DotRow> = results
                .rows
                .iter()
                .filter_map(|row| {
                    let group = &self.groups[row.group?];
                    let estimate = row.cells[column]?.estimate;
                    Some(DotRow {
                        label: row.label.clone(),
                        dots: vec![Dot {
                            label: row.label.clone(),
                            colour: palette::group(group.colour),
                            value: estimate.mean,
                            error: estimate.error.unwrap_or(0.0),
                        }],
                    })
                })
                .collect();
            let bases: Vec<f64> = results
                .rows
                .iter()
                .filter(|row| row.group.is_none())
                .filter_map(|row| Some(row.cells[column]?.estimate.mean))
                .collect();
            let level = match bases[..] {
                [base] => Some((base, "base model".to_string())),
                _ => None,
            };
            let figure = (!rows.is_empty()).then(|| Figure {
                name: format!("accuracy-{name}"),
                title,
                subtitle: "share of held-out problems".into(),
                chart: Chart::Dots(Dots {
                    rows,
                    level,
                    values: true,
                }),
            });
            section.add(figure, name);
        }
        section
    }

    fn learning(&self) -> Section {
        let mut section = Section::new(
            "learning",
            "Learning",
            "Lines are means over seeds, bands one standard error.",
        );
        let reward = curve(
            "reward",
            "Training reward",
            "mean of a step's completions",
            "train/reward",
            true,
        );
        section.add(self.curves(&reward, Axis::Step), "reward");
        let sampled: fn(&Heldout) -> Option<Estimate> = |h| h.sampled;
        for (name, title, key, of) in [
            (
                "heldout-sampled",
                "Held-out accuracy, sampled",
                "eval/sampled_accuracy",
                sampled,
            ),
            (
                "heldout-greedy",
                "Held-out accuracy, greedy",
                "eval/greedy_accuracy",
                |h| h.greedy,
            ),
        ] {
            section.add(self.held_out(name, title, key, of), title);
        }
        for c in &LEARNING {
            section.add(self.curves(c, Axis::Step), c.title);
        }
        section
    }

    /// Evaluations during training, with the base model at step 0 and the
    /// final one at the end.
    fn held_out(
        &self,
        name: &str,
        title: &str,
        key: &str,
        of: fn(&Heldout) -> Option<Estimate>,
    ) -> Option<Figure> {
        let lines: Vec<Line> = self
            .groups
            .iter()
            .filter_map(|group| {
                let values: curves::ByStep = group
                    .runs
                    .iter()
                    .map(|&i| &self.runs[i])
                    .map(|run| {
                        let mean = |h: &Option<Heldout>| Some(of(h.as_ref()?)?.mean);
                        let mut points: Vec<(u64, f64)> = run.series.points(key).collect();
                        if let Some(base) = mean(&run.outcome.base) {
                            points.insert(0, (0, base));
                        }
                        let last = run.series.steps.last().copied();
                        if let (Some(last), Some(trained)) = (last, mean(&run.outcome.trained))
                            && points.last().is_none_or(|p| p.0 < last)
                        {
                            points.push((last, trained));
                        }
                        points
                    })
                    .filter(|points| !points.is_empty())
                    .collect();
                let points = curves::mean(&values, None);
                (!points.is_empty()).then(|| self.line(group, curves::thin_out(points)))
            })
            .collect();
        self.figure(name, title, "share of held-out problems", Axis::Step, lines)
    }

    fn concentration(&self) -> Section {
        let mut section = Section::new(
            "concentration",
            "How concentrated the weights are",
            "Gini 0 and effective tokens 1 are uniform weights; Gini near 1 with few effective tokens \
             is one token. Means over all scored completions of a step.",
        );
        let gini = curve(
            "gini",
            "Gini",
            "of a completion's weights",
            "credit/gini",
            false,
        );
        let gini = self.curves(&gini, Axis::Step).map(|mut figure| {
            if let Chart::Lines(lines) = &mut figure.chart {
                let (lo, hi) = POSTER_BAND;
                lines.band = Some((
                    lo,
                    hi,
                    "middle regime .25\u{2013}.60 (paper's poster)".into(),
                ));
                lines.ends = Some((0.0, 1.0));
            }
            figure
        });
        section.add(gini, "Gini");
        for c in [
            curve(
                "effective-tokens",
                "Effective tokens / T",
                "1 / (T sum of squared weights)",
                "credit/effective_token_ratio",
                false,
            ),
            curve(
                "max-weight",
                "Largest weight",
                "of a completion",
                "credit/max_weight",
                false,
            ),
            curve(
                "fallback",
                "Fallback to uniform",
                "share of completions whose scores are all 0",
                "credit/uniform_fallback_frac",
                false,
            ),
        ] {
            section.add(self.curves(&c, Axis::Step), c.title);
        }
        let residual = curve(
            "residual",
            "Residual norm",
            "mean over tokens; dotted: noise floor (rounding alone)",
            "credit/residual_norm_mean",
            false,
        );
        let figure = self.curves(&residual, Axis::Step).map(|mut figure| {
            self.add_thin(
                &mut figure,
                "credit/residual_noise_floor",
                "noise floor of",
                Some("credit/residual_norm_mean"),
            );
            figure
        });
        section.add(figure, residual.title);
        section
    }

    /// A thin line of another metric beside each group's line; `only_with`: for
    /// groups that have this metric too.
    fn add_thin(&self, figure: &mut Figure, key: &str, what: &str, only_with: Option<&str>) {
        let Chart::Lines(chart) = &mut figure.chart else {
            return;
        };
        for group in self.groups {
            let has = |key: &str| !curves::values(group, self.runs, key).is_empty();
            if only_with.is_some_and(|key| !has(key)) {
                continue;
            }
            let points = curves::curve(group, self.runs, key, Axis::Step);
            if !points.is_empty() {
                chart.lines.push(Line {
                    label: format!("{what} {}", group.label),
                    thin: true,
                    ..self.line(group, curves::thin_out(points))
                });
            }
        }
    }

    /// Mean over steps, then over the group's runs.
    fn overall(&self, group: &Group, key: &str) -> Option<Estimate> {
        Estimate::of(
            group
                .runs
                .iter()
                .filter_map(|&i| self.runs[i].series.mean(key)),
        )
    }

    fn cost(&self) -> Section {
        let mut section = Section::new(
            "cost",
            "Reward for tokens and time",
            "The same rewards over what they cost.",
        );
        for (name, title, axis) in [
            ("reward-tokens", "Reward by tokens", Axis::Tokens),
            ("reward-seconds", "Reward by time", Axis::Seconds),
        ] {
            let reward = curve(name, title, "training reward", "train/reward", true);
            section.add(self.curves(&reward, axis), title);
        }
        section
    }
}
