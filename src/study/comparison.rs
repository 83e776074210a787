//! Arms against uniform credit of the same rank, on the same problems.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::study::statistics::{Difference, mcnemar, mean, paired_bootstrap, standard_deviation};
use crate::train::evaluate::{Outcomes, as_numbers};

/// An arm that was evaluated.
pub struct Subject<'a> {
    pub name: &'a str,
    pub config: &'a Config,
    pub outcomes: Outcomes,
}

/// One arm, or the mean of its seeds, minus its control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub arm: String,
    /// The uniform arm, of the same seeds.
    pub control: String,
    pub seeds: Vec<u64>,
    pub greedy: Gap,
    /// Exact McNemar test of the greedy answers; of one seed only.
    pub greedy_mcnemar: Option<f64>,
    /// Of the share of right samples (avg@k).
    pub sampled: Gap,
}

/// A difference in accuracy; p by the paired bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    pub difference: f64,
    /// Over problems.
    pub standard_error: f64,
    /// The middle 95 % of the bootstrap.
    pub interval: [f64; 2],
    pub p_value: f64,
}

impl From<Difference> for Gap {
    fn from(d: Difference) -> Gap {
        Gap {
            difference: d.mean,
            standard_error: d.standard_error,
            interval: d.interval,
            p_value: d.p_value,
        }
    }
}

/// One model's accuracy minus another's, on the same problems.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Versus {
    pub greedy: Gap,
    /// Exact McNemar test of the greedy answers.
    pub greedy_mcnemar: f64,
    /// Of the share of right samples (avg@k).
    pub sampled: Gap,
}

impl Versus {
    /// `seed` is the bootstrap's. None where there are no problems.
    pub fn of(a: &Outcomes, b: &Outcomes, seed: u64) -> Option<Versus> {
        let greedy = [a, b].map(|o| as_numbers(&o.greedy));
        let sampled = [a, b].map(Outcomes::accuracy);
        Some(Versus {
            greedy: paired_bootstrap(&greedy[0], &greedy[1], seed)?.into(),
            greedy_mcnemar: mcnemar(&a.greedy, &b.greedy),
            sampled: paired_bootstrap(&sampled[0], &sampled[1], seed)?.into(),
        })
    }
}

/// Arms that differ in their seed alone: accuracies by problem, each the mean
/// over the seeds.
pub struct Family<'a> {
    /// The first one's name without its seed.
    pub name: String,
    pub config: &'a Config,
    pub seeds: Vec<u64>,
    pub greedy: Vec<f64>,
    pub sampled: Vec<f64>,
    /// Standard deviation over seeds of the greedy and the sampled accuracy.
    pub deviation: [f64; 2],
    members: Vec<usize>,
}

impl<'a> Family<'a> {
    fn new(subjects: &'a [Subject], members: Vec<usize>) -> Family<'a> {
        let first = &subjects[members[0]];
        let average = |of: &dyn Fn(&Outcomes) -> Vec<f64>| {
            let each: Vec<Vec<f64>> = members.iter().map(|&i| of(&subjects[i].outcomes)).collect();
            let by_seed: Vec<f64> = each.iter().map(|v| mean(v)).collect();
            let by_problem: Vec<f64> = (0..each[0].len())
                .map(|p| mean(&each.iter().map(|v| v[p]).collect::<Vec<f64>>()))
                .collect();
            (by_problem, standard_deviation(&by_seed))
        };
        let (greedy, greedy_deviation) = average(&|o| as_numbers(&o.greedy));
        let (sampled, sampled_deviation) = average(&|o| o.accuracy());
        let suffix = format!("-s{}", first.config.train.seed);
        Family {
            name: first
                .name
                .strip_suffix(&suffix)
                .unwrap_or(first.name)
                .to_string(),
            config: first.config,
            seeds: members
                .iter()
                .map(|&i| subjects[i].config.train.seed)
                .collect(),
            greedy,
            sampled,
            deviation: [greedy_deviation, sampled_deviation],
            members,
        }
    }
}

/// The configuration but for its seed.
fn seedless(config: &Config) -> Config {
    let mut config = config.clone();
    config.train.seed = 0;
    config
}

/// Arms by what they have in common beside the seed, in order.
pub fn families<'a>(subjects: &'a [Subject<'a>]) -> Vec<Family<'a>> {
    let mut members: Vec<(Config, Vec<usize>)> = Vec::new();
    for (i, subject) in subjects.iter().enumerate() {
        let config = seedless(subject.config);
        match members.iter_mut().find(|(known, _)| *known == config) {
            Some((_, list)) => list.push(i),
            None => members.push((config, vec![i])),
        }
    }
    members
        .into_iter()
        .map(|(_, list)| Family::new(subjects, list))
        .collect()
}

/// The family with uniform credit at the same rank that is most like this one.
fn control<'a>(family: &Family, all: &'a [Family<'a>]) -> Result<Option<&'a Family<'a>>> {
    if family.config.credit.method == "uniform" {
        return Ok(None);
    }
    let mut best = None;
    for other in all {
        let c = other.config;
        if c.credit.method == "uniform" && c.lora.r == family.config.lora.r {
            let unlike = family.config.differences(c)?.len();
            if best.is_none_or(|(least, _)| unlike < least) {
                best = Some((unlike, other));
            }
        }
    }
    Ok(best.map(|(_, other)| other))
}

/// Every arm against the uniform arm of its seed, and where there are several
/// seeds their means, over the seeds that both have. `seed` is the bootstrap's.
pub fn comparisons(subjects: &[Subject], seed: u64) -> Result<Vec<Comparison>> {
    let all = families(subjects);
    let (mut single, mut pooled) = (Vec::new(), Vec::new());
    for family in &all {
        let Some(control) = control(family, &all)? else {
            continue;
        };
        let mut pairs = Vec::new();
        for &i in &family.members {
            let own = subjects[i].config.train.seed;
            let of_seed = |&&j: &&usize| subjects[j].config.train.seed == own;
            if let Some(&j) = control.members.iter().find(of_seed) {
                pairs.push((i, j));
                let (a, b) = ([i], [j]);
                single.extend(compare(subjects, &a, &b, None, seed));
            }
        }
        if pairs.len() > 1 {
            let (a, b): (Vec<usize>, Vec<usize>) = pairs.into_iter().unzip();
            let names = Some((&family.name[..], &control.name[..]));
            pooled.extend(compare(subjects, &a, &b, names, seed));
        }
    }
    single.extend(pooled);
    Ok(single)
}

fn compare(
    subjects: &[Subject],
    a: &[usize],
    b: &[usize],
    names: Option<(&str, &str)>,
    seed: u64,
) -> Option<Comparison> {
    let (mine, theirs) = (
        Family::new(subjects, a.to_vec()),
        Family::new(subjects, b.to_vec()),
    );
    let (arm, control) = names.unwrap_or((subjects[a[0]].name, subjects[b[0]].name));
    let (first, second) = (&subjects[a[0]].outcomes, &subjects[b[0]].outcomes);
    Some(Comparison {
        arm: arm.to_string(),
        control: control.to_string(),
        greedy: paired_bootstrap(&mine.greedy, &theirs.greedy, seed)?.into(),
        greedy_mcnemar: (a.len() == 1).then(|| mcnemar(&first.greedy, &second.greedy)),
        sampled: paired_bootstrap(&mine.sampled, &theirs.sampled, seed)?.into(),
        seeds: mine.seeds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(method: &str, r: usize, seed: u64) -> Config {
        let mut config = Config::default();
        config.credit.method = method.into();
        config.lora.r = r;
        config.train.seed = seed;
        config
    }

    fn outcomes(greedy: &[u8]) -> Outcomes {
        let greedy: Vec<bool> = greedy.iter().map(|&g| g == 1).collect();
        Outcomes {
            samples: greedy.iter().map(|&g| vec![g, true]).collect(),
            majority: greedy.clone(),
            greedy,
        }
    }

    #[test]
    fn two_models_by_hand() {
        let (a, b) = (outcomes(&[1, 1, 1, 0]), outcomes(&[1, 0, 0, 0]));
        let versus = Versus::of(&a, &b, 1).unwrap();
        assert_eq!(versus.greedy.difference, 0.5);
        assert_eq!(versus.greedy_mcnemar, 0.5);
        // One of two samples is right anyhow.
        assert_eq!(versus.sampled.difference, 0.25);
        // Differences 1, 1, 0, 0: sd sqrt(1/3), / sqrt 4.
        assert!((versus.greedy.standard_error - (1.0f64 / 12.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn arms_meet_uniform_of_their_rank_and_seed() {
        let arms = [
            ("uniform-r4-s0", config("uniform", 4, 0), [1, 0, 0, 0]),
            ("uniform-r16-s0", config("uniform", 16, 0), [1, 1, 0, 0]),
            ("arca-r4-s0", config("arca", 4, 0), [1, 1, 1, 0]),
            ("arca-r16-s0", config("arca", 16, 0), [1, 1, 1, 1]),
            ("uniform-r4-s1", config("uniform", 4, 1), [1, 1, 0, 0]),
            ("arca-r4-s1", config("arca", 4, 1), [1, 0, 1, 0]),
            ("arca-r8-s0", config("arca", 8, 0), [1, 1, 1, 0]),
        ];
        let subjects: Vec<Subject> = arms
            .iter()
            .map(|(name, config, greedy)| Subject {
                name,
                config,
                outcomes: outcomes(greedy),
            })
            .collect();
        let found = comparisons(&subjects, 5).unwrap();
        let pairs: Vec<(&str, &str)> = found.iter().map(|c| (&c.arm[..], &c.control[..])).collect();
        assert_eq!(
            pairs,
            [
                ("arca-r4-s0", "uniform-r4-s0"),
                ("arca-r4-s1", "uniform-r4-s1"),
                ("arca-r16-s0", "uniform-r16-s0"),
                ("arca-r4", "uniform-r4"),
            ]
        );
        // Two wins and no loss: p = 2 / 4.
        assert_eq!(found[0].greedy_mcnemar, Some(0.5));
        assert_eq!(found[0].greedy.difference, 0.5);
        assert_eq!(found[0].sampled.difference, 0.25);
        // Means over seeds: (.75 + .5) / 2 - (.25 + .5) / 2.
        assert_eq!(found[3].greedy.difference, 0.25);
        assert_eq!(found[3].greedy_mcnemar, None);
        assert_eq!(found[3].seeds, [0, 1]);
    }
}
