//! Guards the scheduler without any device: on random requests, limits, pools
//! and cancellations every row finds exactly its context in its pages, nobody
//! writes where another reads, decode never waits, service is in order, all
//! pages come back, and no draw depends on any of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arca::episode::{AdapterId, FinishReason};
use arca::model::batch::Batch;
use arca::model::engine::KvVersion;
use arca::ops::decode::PAGE;
use arca::ops::sample::{SampleRequest, Sampled};
use arca::rng::{Purpose, Stream, mix, stream_key};
use arca::rollout::scheduler::{Forward, Limits, Pages, Scheduler};
use arca::rollout::stats::RolloutStats;
use arca::rollout::{Completion, Event, Request, Sampling, pages_of};
use proptest::prelude::*;

const VOCAB: u32 = 50;
const STOP: u32 = 0;
const VERSION: KvVersion = KvVersion {
    epoch: 0,
    adapter: 0,
};

/// What every device would draw: a function of the key and the place alone.
fn token(key: u64, position: u32) -> u32 {
    (mix(key ^ (u64::from(position) << 32)) % u64::from(VOCAB)) as u32
}

/// Memory whose cells hold the token of the position that was written there.
struct Memory {
    cells: Vec<[Option<u32>; PAGE]>,
}

impl Memory {
    fn new(pages: usize) -> Self {
        Memory {
            cells: vec![[None; PAGE]; pages],
        }
    }

    /// Run a forward: copy, write, then read every asked row's whole context.
    fn run(&mut self, forward: &Forward, contexts: &HashMap<u64, Vec<u32>>) -> Vec<Sampled> {
        for &(from, to) in &forward.copies {
            assert_ne!(from, to);
            self.cells[to as usize] = self.cells[from as usize];
        }
        let batch = &forward.batch;
        let mut writer: HashMap<u32, usize> = HashMap::new();
        for (s, (segment, table)) in batch.segments.iter().zip(&batch.pages).enumerate() {
            for row in segment.rows.clone() {
                let position = batch.positions[row] as usize;
                let page = table.page(position / PAGE);
                let other = writer.insert(page, s);
                assert!(
                    other.is_none_or(|o| o == s),
                    "two sequences write page {page}"
                );
                self.cells[page as usize][position % PAGE] = Some(batch.tokens[row]);
            }
        }
        for (s, (segment, table)) in batch.segments.iter().zip(&batch.pages).enumerate() {
            let last = batch.positions[segment.rows.end - 1] as usize;
            for index in 0..=last / PAGE {
                let by = writer.get(&table.page(index));
                assert!(
                    by.is_none_or(|&by| by == s),
                    "a page is read while another sequence writes it"
                );
            }
        }
        let drawn = forward.asked.iter().map(|asked| {
            self.check(batch, asked, contexts);
            Sampled {
                token: token(asked.key, asked.position),
                logprob: -1.0,
                invalid: false,
            }
        });
        drawn.collect()
    }

    fn check(&self, batch: &Batch, asked: &SampleRequest, contexts: &HashMap<u64, Vec<u32>>) {
        let row = asked.row as usize;
        let segment = batch
            .segments
            .iter()
            .position(|s| s.rows.contains(&row))
            .unwrap();
        assert_eq!(row, batch.segments[segment].rows.end - 1);
        let mut context = contexts[&asked.key].clone();
        context.extend((0..asked.position).map(|p| token(asked.key, p)));
        assert_eq!(batch.positions[row] as usize + 1, context.len());
        let table = &batch.pages[segment];
        for (p, &expected) in context.iter().enumerate() {
            let cell = self.cells[table.page(p / PAGE) as usize][p % PAGE];
            assert_eq!(cell, Some(expected), "position {p}");
        }
    }
}

/// What is asked of a scheduler.
#[derive(Clone, Debug)]
struct Workload {
    limits: Limits,
    pages: usize,
    requests: Vec<(Vec<u32>, u32, usize, Option<u32>)>,
    /// (request, sample or all, after so many forwards)
    cancels: Vec<(usize, Option<u32>, usize)>,
    /// How many requests come with each forward.
    arriving: usize,
}

impl Workload {
    fn request(&self, i: usize) -> Request {
        let (prompt, samples, max_tokens, adapter) = &self.requests[i];
        Request {
            adapter: adapter.map(AdapterId),
            prompt_ids: prompt.clone(),
            samples: 0..*samples,
            sampling: Arc::new(Sampling {
                temperature: 1.0,
                top_p: 1.0,
                top_k: 0,
                min_p: 0.0,
                max_tokens: *max_tokens,
                stop_ids: vec![STOP],
                stop: Arc::new([]),
            }),
            seed: 1,
            purpose: Purpose::Rollout,
            step: 0,
            problem: i as u64,
        }
    }

    fn key(&self, request: usize, sample: u32) -> u64 {
        stream_key(1, Purpose::Rollout, 0, request as u64, u64::from(sample))
    }

    /// The completion that no scheduler may change.
    fn expected(&self, request: usize, sample: u32) -> Vec<u32> {
        let key = self.key(request, sample);
        let mut ids = Vec::new();
        while ids.len() < self.requests[request].2 {
            ids.push(token(key, ids.len() as u32));
            if ids.last() == Some(&STOP) {
                break;
            }
        }
        ids
    }
}

fn workloads() -> impl Strategy<Value = Workload> {
    let request = (0usize..4, 1usize..70, 1u32..6, 1usize..40, 0u32..3);
    (
        (1usize..40, 1usize..12, 1usize..50),
        (7usize..40, 1usize..5, any::<u64>()),
        prop::collection::vec(request, 1..25),
        prop::collection::vec((0usize..25, 0u32..8, 0usize..60), 0..6),
    )
        .prop_map(|(sizes, (pages, arriving, seed), requests, cancels)| {
            let (rows, sequences, prefill_rows) = sizes;
            // Prompts begin with one of a few common texts, or with none.
            let mut random = Stream::new(seed);
            let mut text = |n: usize| -> Vec<u32> { (0..n).map(|_| random.below(VOCAB)).collect() };
            let common: Vec<Vec<u32>> = vec![vec![], text(16), text(33), text(5)];
            let requests: Vec<_> = requests
                .into_iter()
                .map(|(begin, own, samples, new, adapter)| {
                    let mut prompt = [common[begin].clone(), text(own)].concat();
                    prompt.truncate((pages - 1) * PAGE - new);
                    (prompt, samples, new, adapter.checked_sub(1))
                })
                .filter(|r| !r.0.is_empty())
                .collect();
            let n = requests.len();
            Workload {
                limits: Limits {
                    rows,
                    sequences: sequences.min(rows),
                    prefill_rows,
                    positions: 200,
                },
                pages,
                cancels: cancels
                    .into_iter()
                    .filter(|c| c.0 < n)
                    .map(|(request, sample, after)| (request, sample.checked_sub(1), after))
                    .collect(),
                requests,
                arriving,
            }
        })
}

/// Run it all; completions and counts.
fn run(w: &Workload) -> (BTreeMap<(usize, u32), Completion>, RolloutStats) {
    let mut pages = Pages::new(w.pages);
    let mut memory = Memory::new(w.pages);
    let mut scheduler = Scheduler::new(w.limits);
    let mut contexts = HashMap::new();
    let mut done: BTreeMap<(usize, u32), Completion> = BTreeMap::new();
    let mut complete = BTreeSet::new();
    // By request, the forward that drew its first token.
    let mut first_tokens: BTreeMap<usize, usize> = BTreeMap::new();
    let mut live: BTreeSet<u64> = BTreeSet::new();
    let (mut submitted, mut forwards) = (0, 0);
    loop {
        for _ in 0..w.arriving {
            if submitted < w.requests.len() {
                let request = w.request(submitted);
                for sample in request.samples.clone() {
                    contexts.insert(w.key(submitted, sample), request.prompt_ids.clone());
                }
                let index = scheduler
                    .submit(request, VERSION, &pages, &|| None)
                    .unwrap();
                assert_eq!(index, submitted);
                submitted += 1;
            }
        }
        let mut ended = Vec::new();
        let mut note = |event: Event| {
            match event {
                Event::Token { .. } => panic!("a cancelled sample drew a token"),
                Event::Finished(c) => {
                    ended.push(w.key(c.request, c.sample));
                    let before = done.insert((c.request, c.sample), c.clone());
                    assert!(before.is_none(), "a sample ended twice");
                }
                Event::Complete {
                    request,
                    completions,
                } => {
                    let samples: Vec<u32> = completions.iter().map(|c| c.sample).collect();
                    let all: Vec<u32> = (0..w.requests[request].1).collect();
                    assert_eq!(samples, all);
                    assert!(complete.insert(request));
                }
            }
            Ok(())
        };
        for &(request, sample, after) in &w.cancels {
            if after == forwards && request < submitted {
                scheduler.cancel(request, sample, &mut note).unwrap();
            }
        }
        let stepped_back = scheduler.stats().preemptions;
        let Some(forward) = scheduler.plan(&mut pages).unwrap() else {
            // All that came was cancelled; more may come.
            assert_eq!(complete.len(), submitted);
            if submitted < w.requests.len() {
                live.clear();
                continue;
            }
            break;
        };
        forwards += 1;
        assert!(forward.batch.rows() <= w.limits.rows);
        assert!(forward.asked.len() <= w.limits.sequences);
        let asked: BTreeSet<u64> = forward.asked.iter().map(|a| a.key).collect();
        assert_eq!(asked.len(), forward.asked.len());
        for key in &ended {
            live.remove(key);
        }
        ended.clear();
        if scheduler.stats().preemptions == stepped_back {
            // Whoever runs draws in every forward.
            assert!(live.is_subset(&asked), "a running sample had to wait");
        }
        let chunks = forward.batch.segments.iter().map(|s| s.rows.len());
        let rows: usize = chunks.filter(|&n| n > 1).sum();
        assert!(rows <= w.limits.prefill_rows);
        let drawn = memory.run(&forward, &contexts);
        let (_, _, taken) = forward.split();
        let mut ended = Vec::new();
        scheduler
            .advance(taken, &drawn, 0.0, &mut pages, &mut |event| {
                if let Event::Finished(c) = &event {
                    ended.push(w.key(c.request, c.sample));
                }
                match event {
                    Event::Token { request, .. } => {
                        first_tokens.entry(request).or_insert(forwards);
                    }
                    Event::Finished(c) => {
                        assert!(done.insert((c.request, c.sample), c.clone()).is_none());
                    }
                    Event::Complete { request, .. } => assert!(complete.insert(request)),
                }
                Ok(())
            })
            .unwrap();
        live = asked;
        for key in ended {
            live.remove(&key);
        }
        assert!(forwards < 100_000, "no end");
    }
    // Nobody was overtaken on the way to the first token.
    assert!(first_tokens.values().is_sorted(), "{first_tokens:?}");
    assert_eq!(complete.len(), w.requests.len());
    pages.prefixes.clear();
    assert_eq!(pages.pool.free(), w.pages, "pages were lost");
    (done, scheduler.stats().clone())
}

fn check(w: &Workload) -> Result<RolloutStats, TestCaseError> {
    let (done, stats) = run(w);
    for (i, r) in w.requests.iter().enumerate() {
        for sample in 0..r.1 {
            let c = &done[&(i, sample)];
            let expected = w.expected(i, sample);
            match c.finish {
                FinishReason::Cancelled => prop_assert!(expected.starts_with(&c.ids)),
                FinishReason::Stop => {
                    prop_assert_eq!(&c.ids, &expected);
                    prop_assert_eq!(c.ids.last(), Some(&STOP));
                }
                FinishReason::Length => {
                    prop_assert_eq!(&c.ids, &expected);
                    prop_assert_eq!(c.ids.len(), r.2);
                }
            }
            prop_assert_eq!(c.logprobs.len(), c.ids.len());
        }
    }
    Ok(stats)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_row_finds_its_context(w in workloads()) {
        check(&w)?;
    }
}

fn plain(prompt: usize, samples: u32, new: usize) -> (Vec<u32>, u32, usize, Option<u32>) {
    (
        (0..prompt as u32).map(|i| 1 + i % 40).collect(),
        samples,
        new,
        None,
    )
}

/// The pool holds one sample at a time of the eight: each comes to its end all
/// the same.
#[test]
fn one_sample_at_a_time() {
    let w = Workload {
        limits: Limits {
            rows: 64,
            sequences: 8,
            prefill_rows: 16,
            positions: 100,
        },
        pages: 4,
        requests: vec![plain(20, 8, 40)],
        cancels: Vec::new(),
        arriving: 1,
    };
    assert_eq!(pages_of(20 + 40 - 1), 4);
    let stats = check(&w).unwrap();
    assert!(stats.preemptions > 0);
}

/// A prompt costs its rows once, whatever the number of its samples, and as
/// many operations; only the partly filled page is copied, by all but one.
#[test]
fn a_prompt_is_computed_once_for_its_group() {
    let stats = |samples| {
        let w = Workload {
            limits: Limits {
                rows: 256,
                sequences: 64,
                prefill_rows: 16,
                positions: 100,
            },
            pages: 500,
            requests: vec![plain(41, samples, 30), (vec![7; 23], samples, 30, None)],
            cancels: Vec::new(),
            arriving: 2,
        };
        check(&w).unwrap()
    };
    let shape = crate::common::small_shape(false);
    let (one, many) = (stats(1), stats(16));
    assert_eq!(many.prefill_rows, 41 + 23);
    assert_eq!(many.prefill_pairs, 41 * 42 / 2 + 23 * 24 / 2);
    assert_eq!(one.prefill_flops(&shape), many.prefill_flops(&shape));
    assert_eq!(many.preemptions, 0);
    // A sample that ends with its first token writes nothing.
    assert!(
        many.copied_pages <= 30 && many.copied_pages >= 26,
        "{many:?}"
    );
}

/// With a page for everybody's longest completion, nobody steps back, and
/// nobody waits for pages.
#[test]
fn whole_reservation_never_steps_back() {
    let each = pages_of(30 + 50 - 1);
    let w = Workload {
        limits: Limits {
            rows: 128,
            sequences: 16,
            prefill_rows: 64,
            positions: 100,
        },
        pages: 16 * each,
        requests: (0..40).map(|i| plain(30 - i % 7, 4, 50)).collect(),
        cancels: Vec::new(),
        arriving: 40,
    };
    let stats = check(&w).unwrap();
    assert_eq!(stats.preemptions, 0);
    let live: Vec<usize> = stats.steps.iter().map(|s| s.live).collect();
    assert!(
        live.iter().filter(|&&n| n >= 13).count() * 2 > live.len(),
        "{live:?}"
    );
}

/// What could never be served is refused when it is submitted.
#[test]
fn what_cannot_be_served_is_refused() {
    let pages = Pages::new(3);
    let mut scheduler = Scheduler::new(Limits {
        rows: 8,
        sequences: 8,
        prefill_rows: 8,
        positions: 60,
    });
    let w = |prompt: usize, new: usize| Workload {
        limits: Limits {
            rows: 8,
            sequences: 8,
            prefill_rows: 8,
            positions: 60,
        },
        pages: 3,
        requests: vec![plain(prompt, 1, new)],
        cancels: Vec::new(),
        arriving: 1,
    };
    let mut refusal = |prompt, new| {
        let request = w(prompt, new).request(0);
        let result = scheduler.submit(request, VERSION, &pages, &|| None);
        result.unwrap_err().to_string()
    };
    let too_long = refusal(40, 20);
    assert!(
        too_long.contains("need 4 KV pages; there are 3"),
        "{too_long}"
    );
    let beyond = refusal(40, 22);
    assert!(
        beyond.contains("over the planned context of 60"),
        "{beyond}"
    );
    assert!(refusal(0, 5).contains("empty prompt"));
    assert!(refusal(5, 0).contains("at least one token"));
    // The last token is drawn, but never computed: 49 + 0 positions fit 3 pages.
    let fits = w(29, 20).request(0);
    assert!(scheduler.submit(fits, VERSION, &pages, &|| None).is_ok());
}
