//! The tables: one row per group of runs, and its differences to uniform
//! credit.

use super::compare::{self, Difference};
use super::estimate::Estimate;
use super::group::Group;
use super::load::{Run, Study};
use super::marks::Marks;
use super::summary::Heldout;

/// How a number of a column is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Between 0 and 1, three digits after the point.
    Share,
    /// Tokens, one digit.
    Tokens,
}

/// A column of the table of results.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Heading; `@k` becomes the number of samples.
    pub name: &'static str,
    /// How its numbers are written.
    pub form: Form,
    source: Source,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// The held-out evaluation after training.
    Heldout(fn(&Heldout) -> Option<Estimate>),
    /// The mean of a metric over all steps.
    Metric(&'static str),
}

/// The columns, accuracies first.
pub const COLUMNS: [Column; 10] = [
    heldout("greedy", Form::Share, |h| h.greedy),
    heldout("sampled", Form::Share, |h| h.sampled),
    heldout("pass@k", Form::Share, |h| h.pass_at_k),
    heldout("maj@k", Form::Share, |h| h.maj_at_k),
    metric("train reward", "train/reward"),
    metric("Gini", "credit/gini"),
    metric("eff. tokens / T", "credit/effective_token_ratio"),
    metric("max weight", "credit/max_weight"),
    heldout("length", Form::Tokens, |h| single(h.length)),
    heldout("truncated", Form::Share, |h| single(h.truncated)),
];

const fn heldout(
    name: &'static str,
    form: Form,
    value: fn(&Heldout) -> Option<Estimate>,
) -> Column {
    Column {
        name,
        form,
        source: Source::Heldout(value),
    }
}

const fn metric(name: &'static str, key: &'static str) -> Column {
    Column {
        name,
        form: Form::Share,
        source: Source::Metric(key),
    }
}

fn single(value: Option<f64>) -> Option<Estimate> {
    Estimate::of(value)
}

/// A number of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// The mean over seeds.
    pub estimate: Estimate,
    /// The error is over problems, as there is one seed.
    pub over_problems: bool,
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The group's label, or that of the base model.
    pub label: String,
    /// The group; `None` for the base model.
    pub group: Option<usize>,
    /// Rank, exponent and state, where they apply.
    pub settings: [Option<String>; 3],
    /// Runs averaged.
    pub seeds: usize,
    /// One per column.
    pub cells: Vec<Option<Cell>>,
}

/// Differences of a group to uniform credit with the same other settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Contrast {
    /// The group.
    pub group: usize,
    /// The uniform group.
    pub uniform: usize,
    /// Pairs are problems (else seeds).
    pub by_problem: bool,
    /// By the columns of [`CONTRASTS`].
    pub cells: Vec<Option<Difference>>,
}

/// Columns of the differences: the four accuracies and the reward.
pub const CONTRASTS: usize = 5;

/// Both tables.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    /// Base rows first, then the groups in order.
    pub rows: Vec<Row>,
    /// Groups that have a uniform counterpart.
    pub contrasts: Vec<Contrast>,
    /// Samples per problem, where all agree.
    pub samples: Option<u64>,
    /// Held-out problems, where all agree.
    pub problems: Option<u64>,
}

impl Results {
    /// A column's heading with the number of samples.
    pub fn heading(&self, column: &Column) -> String {
        match self.samples {
            Some(k) => column.name.replace("@k", &format!("@{k}")),
            None => column.name.to_string(),
        }
    }
}

/// A run's held-out results: by problem where there are marks.
fn heldout_of(run: &Run) -> Option<Heldout> {
    let trained = run.outcome.trained.clone();
    match &run.marks {
        Some(marks) => {
            let trained = trained.unwrap_or_default();
            Some(Heldout {
                length: trained.length,
                truncated: trained.truncated,
                ..marks.heldout()
            })
        }
        None => trained,
    }
}

/// Works the tables out.
pub fn results(study: &Study, groups: &[Group]) -> Results {
    let runs = &study.runs;
    let mut rows = base_rows(study);
    for (g, group) in groups.iter().enumerate() {
        let members: Vec<&Run> = group.runs.iter().map(|&i| &runs[i]).collect();
        let setting = |key: &str| group.key(key).map(String::from);
        rows.push(Row {
            label: group.label.clone(),
            group: Some(g),
            settings: [
                setting("lora.r"),
                setting("credit.exponent"),
                setting("credit.hidden"),
            ],
            seeds: members.len(),
            cells: COLUMNS.iter().map(|c| cell(c, &members)).collect(),
        });
    }
    let contrasts = (0..groups.len())
        .filter_map(|g| contrast(g, groups, runs))
        .collect();
    let all = |value: fn(&Heldout) -> Option<u64>| {
        let mut values: Vec<u64> = runs.iter().filter_map(|r| value(&heldout_of(r)?)).collect();
        values.sort_unstable();
        values.dedup();
        (values.len() == 1).then(|| values[0])
    };
    Results {
        rows,
        contrasts,
        samples: all(|h| h.samples),
        problems: all(|h| h.problems),
    }
}

fn cell(column: &Column, members: &[&Run]) -> Option<Cell> {
    match column.source {
        Source::Heldout(value) => {
            let of_runs: Vec<Estimate> = members
                .iter()
                .filter_map(|r| value(&heldout_of(r)?))
                .collect();
            let over_seeds = Estimate::of(of_runs.iter().map(|e| e.mean))?;
            Some(match of_runs[..] {
                [one] => Cell {
                    estimate: one,
                    over_problems: one.error.is_some(),
                },
                _ => Cell {
                    estimate: over_seeds,
                    over_problems: false,
                },
            })
        }
        Source::Metric(key) => Some(Cell {
            estimate: Estimate::of(members.iter().filter_map(|r| r.series.mean(key)))?,
            over_problems: false,
        }),
    }
}

/// One row for each base model: that of the sweep, else the mean over the
/// runs (their samples are drawn with their seeds).
fn base_rows(study: &Study) -> Vec<Row> {
    let mut models: Vec<&str> = Vec::new();
    for run in &study.runs {
        if !models.contains(&run.model()) {
            models.push(run.model());
        }
    }
    let of_sweeps: Vec<&Heldout> = study
        .sweeps
        .iter()
        .filter_map(|s| s.base.as_ref())
        .collect();
    let mut rows = Vec::new();
    for model in &models {
        let of_runs: Vec<&Heldout> = study
            .runs
            .iter()
            .filter(|r| r.model() == *model)
            .filter_map(|r| r.outcome.base.as_ref())
            .collect();
        let bases = match (&of_sweeps[..], models.len()) {
            ([sweep], 1) => vec![*sweep],
            _ => of_runs,
        };
        let Some(first) = bases.first() else { continue };
        let cells = COLUMNS
            .iter()
            .map(|column| {
                let Source::Heldout(value) = column.source else {
                    return None;
                };
                let mean = Estimate::of(bases.iter().filter_map(|b| Some(value(b)?.mean)))?;
                let error = value(first)?.error;
                Some(Cell {
                    estimate: Estimate { error, ..mean },
                    over_problems: error.is_some(),
                })
            })
            .collect();
        rows.push(Row {
            label: match models.len() {
                1 => "base model".to_string(),
                _ => format!("base: {model}"),
            },
            group: None,
            settings: [None, None, None],
            seeds: 0,
            cells,
        });
    }
    rows
}

fn contrast(g: usize, groups: &[Group], runs: &[Run]) -> Option<Contrast> {
    let group = &groups[g];
    if group.method == "uniform" {
        return None;
    }
    let uniform = groups
        .iter()
        .position(|u| u.method == "uniform" && u.differs_in_credit_only(group))?;
    let members = |group: &Group| -> Vec<&Run> { group.runs.iter().map(|&i| &runs[i]).collect() };
    let (mine, theirs) = (members(group), members(&groups[uniform]));
    let kinds: [fn(&Marks) -> &[f64]; CONTRASTS - 1] =
        [|m| &m.greedy, |m| &m.sampled, |m| &m.pass, |m| &m.maj];
    let by_problem: Vec<Option<Difference>> = kinds
        .iter()
        .map(|of| {
            let (a, b) = (mean_marks(&mine, *of)?, mean_marks(&theirs, *of)?);
            if a.0 != b.0 {
                return None;
            }
            compare::paired(&a.1, &b.1)
        })
        .collect();
    let paired = by_problem.iter().any(Option::is_some);
    let mut cells: Vec<Option<Difference>> = match paired {
        true => by_problem,
        false => COLUMNS[..CONTRASTS - 1]
            .iter()
            .map(|column| by_seed(column, &mine, &theirs))
            .collect(),
    };
    cells.push(by_seed(&COLUMNS[CONTRASTS - 1], &mine, &theirs));
    Some(Contrast {
        group: g,
        uniform,
        by_problem: paired,
        cells,
    })
}

/// Marks by problem, averaged over seeds; `None` unless all runs have marks on
/// the same problems.
fn mean_marks(runs: &[&Run], of: fn(&Marks) -> &[f64]) -> Option<(Vec<String>, Vec<f64>)> {
    let marks: Vec<&Marks> = runs.iter().filter_map(|r| r.marks.as_ref()).collect();
    let first = marks.first()?;
    let same = |m: &&Marks| m.problems == first.problems && of(m).len() == of(first).len();
    if marks.len() != runs.len() || of(first).is_empty() || !marks.iter().all(same) {
        return None;
    }
    let mean = (0..of(first).len())
        .map(|i| marks.iter().map(|m| of(m)[i]).sum::<f64>() / marks.len() as f64)
        .collect();
    Some((first.problems.to_vec(), mean))
}

/// A column's values of runs with the same seed.
fn twins(column: &Column, mine: &[&Run], theirs: &[&Run]) -> Vec<(f64, f64)> {
    let value = |run: &Run| cell(column, &[run]).map(|c| c.estimate.mean);
    mine.iter()
        .filter_map(|run| {
            let twin = theirs.iter().find(|other| other.seed() == run.seed())?;
            Some((value(run)?, value(twin)?))
        })
        .collect()
}

impl Contrast {
    /// The difference in a column of the table, seed by seed.
    pub fn each_seed(&self, column: &Column, groups: &[Group], runs: &[Run]) -> Vec<f64> {
        let of = |g: usize| -> Vec<&Run> { groups[g].runs.iter().map(|&i| &runs[i]).collect() };
        let pairs = twins(column, &of(self.group), &of(self.uniform));
        pairs.into_iter().map(|(a, b)| a - b).collect()
    }
}

/// Differences of runs with the same seed; too few for a test.
fn by_seed(column: &Column, mine: &[&Run], theirs: &[&Run]) -> Option<Difference> {
    let pairs = twins(column, mine, theirs);
    let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
    Some(Difference {
        p: None,
        ..compare::paired(&a, &b)?
    })
}
