//! A metric of a group's runs as one curve with a band.

use std::collections::BTreeMap;

use super::chart::Point;
use super::estimate::Estimate;
use super::group::Group;
use super::load::Run;

/// What a curve runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Optimizer steps.
    Step,
    /// Completion tokens drawn so far.
    Tokens,
    /// Seconds of training so far.
    Seconds,
}

/// Most points of a drawn curve: more than a figure has pixels are averaged.
const MOST: usize = 220;

/// Values by step, one list per run.
pub type ByStep = Vec<Vec<(u64, f64)>>;

/// The values of `key` in the group's runs; runs without any are left out.
pub fn values(group: &Group, runs: &[Run], key: &str) -> ByStep {
    let all = group.runs.iter();
    all.map(|&i| runs[i].series.points(key).collect())
        .filter(|points: &Vec<_>| !points.is_empty())
        .collect()
}

/// Mean and standard error over runs at the steps that all of them have.
/// `places` gives each run's place of a step on another axis.
pub fn mean(values: &ByStep, places: Option<&ByStep>) -> Vec<Point> {
    let mut at: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    for (r, points) in values.iter().enumerate() {
        let place: Option<BTreeMap<u64, f64>> =
            places.map(|p| p.get(r).into_iter().flatten().copied().collect());
        for &(step, y) in points {
            let x = match &place {
                Some(place) => place.get(&step).copied(),
                None => Some(step as f64),
            };
            if let Some(x) = x {
                at.entry(step).or_default().push((x, y));
            }
        }
    }
    at.into_values()
        .filter(|v| v.len() == values.len())
        .filter_map(|v| {
            let x = Estimate::of(v.iter().map(|p| p.0))?.mean;
            let y = Estimate::of(v.iter().map(|p| p.1))?;
            Some(Point {
                x,
                y: y.mean,
                error: y.error.unwrap_or(0.0),
            })
        })
        .collect()
}

/// The group's curve of `key`.
pub fn curve(group: &Group, runs: &[Run], key: &str, axis: Axis) -> Vec<Point> {
    // Both lists over the same runs, so that they can be walked together.
    let having: Vec<&Run> = group
        .runs
        .iter()
        .map(|&i| &runs[i])
        .filter(|r| r.series.points(key).next().is_some())
        .collect();
    let values: ByStep = having
        .iter()
        .map(|r| r.series.points(key).collect())
        .collect();
    let places: Option<ByStep> = match axis {
        Axis::Step => None,
        Axis::Tokens => Some(
            having
                .iter()
                .map(|r| r.series.points("train/num_tokens").collect())
                .collect(),
        ),
        Axis::Seconds => Some(
            having
                .iter()
                .map(|r| r.series.running_total("train/step_time"))
                .collect(),
        ),
    };
    mean(&values, places.as_ref())
}

/// Width of the moving mean for curves of `n` points: a twentieth, odd.
pub fn window(n: usize) -> usize {
    (n / 20).max(1) | 1
}

/// The centred moving mean of values and errors; shorter at the ends.
pub fn smooth(points: &[Point], window: usize) -> Vec<Point> {
    let half = window / 2;
    (0..points.len())
        .map(|i| {
            // As far to one side as to the other, so that the ends are not bent.
            let reach = half.min(i).min(points.len() - 1 - i);
            let near = &points[i - reach..=i + reach];
            let mean = |of: fn(&Point) -> f64| near.iter().map(of).sum::<f64>() / near.len() as f64;
            Point {
                x: points[i].x,
                y: mean(|p| p.y),
                error: mean(|p| p.error),
            }
        })
        .collect()
}

/// At most [`MOST`] points: neighbours are averaged.
pub fn thin_out(points: Vec<Point>) -> Vec<Point> {
    if points.len() <= MOST {
        return points;
    }
    let stride = points.len().div_ceil(MOST);
    let ends = (points[0].x, points[points.len() - 1].x);
    let mut few: Vec<Point> = points
        .chunks(stride)
        .map(|c| {
            let mean = |of: fn(&Point) -> f64| c.iter().map(of).sum::<f64>() / c.len() as f64;
            Point {
                x: mean(|p| p.x),
                y: mean(|p| p.y),
                error: mean(|p| p.error),
            }
        })
        .collect();
    // The axis reaches as far as the run.
    if let [first, .., last] = &mut few[..] {
        (first.x, last.x) = ends;
    }
    few
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_steps_that_all_runs_have() {
        let values = vec![vec![(1, 1.0), (2, 2.0), (3, 9.0)], vec![(1, 3.0), (2, 4.0)]];
        let points = mean(&values, None);
        assert_eq!(points.len(), 2);
        assert_eq!((points[0].x, points[0].y), (1.0, 2.0));
        assert!((points[0].error - 1.0).abs() < 1e-12);
        let places = vec![vec![(1, 10.0), (2, 20.0)], vec![(1, 30.0), (2, 40.0)]];
        let points = mean(&values, Some(&places));
        assert_eq!(points.iter().map(|p| p.x).collect::<Vec<_>>(), [20.0, 30.0]);
    }

    #[test]
    fn smoothing_keeps_a_straight_line_and_its_ends() {
        let line: Vec<Point> = (0..1000)
            .map(|i| Point {
                x: f64::from(i),
                y: f64::from(2 * i),
                error: 0.5,
            })
            .collect();
        let smoothed = smooth(&line, 7);
        assert_eq!(smoothed, line);
        assert_eq!(window(40), 3);
        assert_eq!(window(19), 1);
        assert!(thin_out(line).len() <= MOST);
    }
}
