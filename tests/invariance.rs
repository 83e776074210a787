//! Guards that a sequence's numbers are its own: they do not depend on how it
//! is packed, on its neighbours, on base rows or other adapters in the batch,
//! on the physical split of a step, on threads, or on whether its context lies
//! in KV pages. On the CPU most of this holds bit for bit, which is what makes
//! sampler and trainer agree; where sums run in another order the bound is
//! stated.

use std::sync::Arc;

use arca::credit::HiddenChoice;
use arca::device::cpu::Cpu;
use arca::device::{Device, Float};
use arca::episode::AdapterId;
use arca::model::batch::{Batch, PageTable};
use arca::model::buffers::KvCache;
use arca::model::config::Module;
use arca::model::engine::Engine;
use arca::ops::decode::PAGE;
use arca::ops::sample::SampleRequest;
use half::bf16;

use crate::common::{
    Case, Packed, Packing, Sequence, SmallModel, accumulate, case_names, engine, gradients,
    logprobs, max_abs, pack, push, random_groups, rel_l2, small_shape, with_dropout,
};

const TEMPERATURE: f32 = 0.9;

/// Prompts and completions around panel, tile and page sizes.
const LENGTHS: [(usize, &[usize]); 4] = [
    (7, &[5, 1, 9]),
    (16, &[3, 17]),
    (1, &[4, 6, 2, 8]),
    (33, &[16, 31]),
];

/// A small model with two adapters of different rank and modules.
struct Setup {
    _model: SmallModel,
    engine: Engine<Cpu<f32>>,
    wide: AdapterId,
    narrow: AdapterId,
    groups: Vec<Vec<Sequence>>,
}

impl Setup {
    fn new(odd: bool) -> Setup {
        let model = SmallModel::new(small_shape(odd), 11);
        let (wide, wide_params) = model.adapter(&Module::ALL, 17, 1);
        let some = [Module::K, Module::V, Module::O, Module::Up];
        let (narrow, narrow_params) = model.adapter(&some, 3, 2);
        let mut engine = engine::<f32>(model.path(), &[&wide, &narrow]);
        Setup {
            wide: engine.add_adapter(wide, &wide_params).unwrap(),
            narrow: engine.add_adapter(narrow, &narrow_params).unwrap(),
            groups: random_groups(model.shape.vocab_size, 5, &LENGTHS),
            engine,
            _model: model,
        }
    }

    fn logprobs(&mut self, sequences: &[Sequence], adapter: Option<AdapterId>) -> Vec<f32> {
        let packed = pack(sequences, adapter, scoring(1));
        logprobs(&mut self.engine, &packed.batch, TEMPERATURE)
    }
}

fn both() -> impl Iterator<Item = Setup> {
    [false, true].into_iter().map(Setup::new)
}

fn scoring(share: usize) -> Packing {
    Packing {
        share,
        base: false,
        training: false,
    }
}

fn training(share: usize) -> Packing {
    Packing {
        training: true,
        ..scoring(share)
    }
}

/// Any fixed function of a log-prob will do as the loss: -sin(lp)'s slope.
fn coefficients(logprobs: &[f32]) -> Vec<f32> {
    logprobs.iter().map(|lp| -lp.cos()).collect()
}

/// A sequence alone, among others, and in another order has the same bits.
#[test]
fn neighbours_and_order() {
    for mut s in both() {
        let mut sequences = s.groups.concat();
        let mut expected: Vec<Vec<f32>> = sequences
            .iter()
            .map(|q| s.logprobs(std::slice::from_ref(q), Some(s.wide)))
            .collect();
        for _ in 0..2 {
            let packed = pack(&sequences, Some(s.wide), scoring(1));
            let all = logprobs(&mut s.engine, &packed.batch, TEMPERATURE);
            for (pairs, alone) in packed.pairs.iter().zip(&expected) {
                assert_eq!(&all[pairs.clone()], &alone[..]);
            }
            sequences.reverse();
            expected.reverse();
        }
    }
}

/// A prompt computed once for its group gives the bits of a prompt per
/// completion. Gradients sum the same terms in another order: within 1e-6.
#[test]
fn shared_prompts() {
    for mut s in both() {
        for group in s.groups.clone() {
            let apart = pack(&group, Some(s.wide), training(1));
            let shared = pack(&group, Some(s.wide), training(group.len()));
            assert!(group.len() == 1 || shared.batch.rows() < apart.batch.rows());
            let (a, ga) = gradients(
                &mut s.engine,
                s.wide,
                &apart.batch,
                TEMPERATURE,
                coefficients,
            );
            let (b, gb) = gradients(
                &mut s.engine,
                s.wide,
                &shared.batch,
                TEMPERATURE,
                coefficients,
            );
            assert_eq!(a, b);
            let error = rel_l2(&gb, &ga);
            assert!(error <= 1e-6, "{error}");
        }
    }
}

fn packed_groups(s: &Setup, groups: &[Vec<Sequence>], how: impl Fn(usize) -> Packing) -> Packed {
    let mut out = Packed::default();
    for group in groups {
        let (rows, pairs) = push(&mut out.batch, group, Some(s.wide), how(group.len()).share);
        out.rows.extend(rows);
        out.pairs.extend(pairs);
    }
    out.batch.saved_rows = out.batch.rows();
    out.batch.grad_pairs = out.batch.pairs.len();
    out
}

/// A step run as one batch or as several, cut between groups, has the same
/// gradient bit for bit: every sum over rows is one chain that the next batch
/// continues.
#[test]
fn splits_at_group_borders() {
    for mut s in both() {
        let groups = s.groups.clone();
        let packed = packed_groups(&s, &groups, training);
        let (_, whole) = gradients(
            &mut s.engine,
            s.wide,
            &packed.batch,
            TEMPERATURE,
            coefficients,
        );
        assert!(whole.iter().any(|g| *g != 0.0));
        for cut in [1, 2, 3] {
            let mut grads = s.engine.device.alloc::<f32>(whole.len()).unwrap();
            for part in groups.chunks(cut) {
                let packed = packed_groups(&s, part, training);
                accumulate(
                    &mut s.engine,
                    s.wide,
                    &packed.batch,
                    TEMPERATURE,
                    coefficients,
                    &mut grads,
                );
            }
            assert_eq!(grads.data, whole, "{cut} groups a batch");
        }
    }
}

/// Cut within groups, the prompt's gradient is summed in parts: one relative
/// L2 over all gradients within 1e-6.
#[test]
fn splits_within_groups() {
    for mut s in both() {
        let groups = s.groups.clone();
        let packed = packed_groups(&s, &groups, training);
        let (_, whole) = gradients(
            &mut s.engine,
            s.wide,
            &packed.batch,
            TEMPERATURE,
            coefficients,
        );
        for most in [1, 2] {
            let mut grads = s.engine.device.alloc::<f32>(whole.len()).unwrap();
            for group in &groups {
                for part in group.chunks(most) {
                    let packed = pack(part, Some(s.wide), training(part.len()));
                    accumulate(
                        &mut s.engine,
                        s.wide,
                        &packed.batch,
                        TEMPERATURE,
                        coefficients,
                        &mut grads,
                    );
                }
            }
            let error = rel_l2(&grads.data, &whole);
            println!("{most} completions a batch: {error:.1e}");
            assert!(error <= 1e-6, "{error}");
        }
    }
}

/// Base rows beside adapted ones change nothing in these, and are what a batch
/// without any adapter computes.
#[test]
fn base_rows() {
    for mut s in both() {
        let sequences = s.groups.concat();
        let without = pack(&sequences, Some(s.wide), training(1));
        let with = pack(
            &sequences,
            Some(s.wide),
            Packing {
                base: true,
                ..training(1)
            },
        );
        let (a, ga) = gradients(
            &mut s.engine,
            s.wide,
            &without.batch,
            TEMPERATURE,
            coefficients,
        );
        let (b, gb) = gradients(&mut s.engine, s.wide, &with.batch, TEMPERATURE, |lp| {
            coefficients(&lp[..with.batch.grad_pairs])
        });
        assert_eq!(a, b[..a.len()]);
        assert_eq!(ga, gb);
        let base = s.logprobs(&sequences, None);
        assert_eq!(base, b[a.len()..]);
    }
}

/// Several resident adapters, two of them and none in one batch: each row as
/// if its own were the only one.
#[test]
fn resident_adapters() {
    for mut s in both() {
        let choices = [Some(s.wide), None, Some(s.narrow), Some(s.wide)];
        let mut batch = Batch::default();
        let mut places = Vec::new();
        for (group, adapter) in s.groups.iter().zip(choices) {
            places.push(push(&mut batch, group, adapter, group.len()).1);
        }
        let all = logprobs(&mut s.engine, &batch, TEMPERATURE);
        for ((group, adapter), pairs) in s.groups.clone().iter().zip(choices).zip(places) {
            let alone = s.logprobs(group, adapter);
            let first = pairs[0].start;
            assert_eq!(all[first..first + alone.len()], alone);
        }
        // And a model with that adapter alone.
        let some = [Module::K, Module::V, Module::O, Module::Up];
        let (layout, params) = s._model.adapter(&some, 3, 2);
        let mut other = engine::<f32>(s._model.path(), &[&layout]);
        let id = other.add_adapter(layout, &params).unwrap();
        let packed = pack(&s.groups[2], Some(id), scoring(1));
        let alone = logprobs(&mut other, &packed.batch, TEMPERATURE);
        assert_eq!(alone, s.logprobs(&s.groups[2].clone(), Some(s.narrow)));
    }
}

/// The number of threads changes no bit.
#[test]
fn threads() {
    for mut s in both() {
        let groups = s.groups.clone();
        let packed = packed_groups(&s, &groups, training);
        let mut run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                gradients(
                    &mut s.engine,
                    s.wide,
                    &packed.batch,
                    TEMPERATURE,
                    coefficients,
                )
            })
        };
        let one = run(1);
        assert!(one == run(3));
        assert!(one == run(8));
    }
}

/// ARCA's norms of a pair of rows do not depend on the batch either, and the
/// stream after the last layer is the pre-norm state.
#[test]
fn residual_norms() {
    for mut s in both() {
        let how = Packing {
            base: true,
            ..scoring(1)
        };
        let all = pack(&s.groups.concat(), Some(s.wide), how);
        let last = HiddenChoice::Layer(s.engine.shape().num_layers - 1);
        for hidden in [
            HiddenChoice::PostNorm,
            HiddenChoice::PreNorm,
            HiddenChoice::Layer(0),
            last,
        ] {
            let mut norms = |packed: &Packed| {
                let batch = packed.batch.clone();
                let out = s.engine.run_packed(batch, TEMPERATURE, false, Some(hidden));
                out.unwrap().residuals
            };
            let together = norms(&all);
            let group = pack(&s.groups[0], Some(s.wide), Packing { share: 3, ..how });
            let shared = norms(&group);
            // Residual pairs go by sequence, shared prompt rows repeated.
            assert_eq!(shared[..], together[..shared.len()]);
            assert!(together.iter().all(|n| n.is_finite() && *n > 0.0));
            if hidden == last {
                let batch = all.batch.clone();
                let out =
                    s.engine
                        .run_packed(batch, TEMPERATURE, false, Some(HiddenChoice::PreNorm));
                assert_eq!(together, out.unwrap().residuals);
            }
        }
    }
}

/// A group being sampled through KV pages.
struct Sampling {
    prompt: Vec<u32>,
    adapter: Option<AdapterId>,
    /// How many rows the prefill takes at a time.
    chunk: usize,
    lengths: Vec<usize>,
}

/// Sample as a scheduler does: prompts prefilled once into pages that the
/// group shares (the last, partly filled page copied for each sample), then
/// all samples of all groups decoded together, one row each, leaving as they
/// finish. Returns tokens and log-probs by group and sample.
fn sample<A: Float>(
    engine: &mut Engine<Cpu<A>>,
    groups: &[Sampling],
) -> Vec<Vec<(Vec<u32>, Vec<f32>)>> {
    let shape = engine.shape().clone();
    let mut cache = KvCache::new(&engine.device, &shape, 64).unwrap();
    // Pages come back dirty from other sequences: nothing may depend on it.
    let dirt = A::from_f32(f32::NAN);
    for layer in 0..shape.num_layers {
        cache.layer_mut(layer).host_mut().fill(dirt);
    }
    let mut free = (0..64u32).rev();
    let mut take = |n: usize| -> Vec<u32> { free.by_ref().take(n).collect() };
    let request = |g: usize, s: usize, row: usize, position: usize| SampleRequest {
        row: row as u32,
        key: (g * 100 + s) as u64,
        position: position as u32,
        temperature: TEMPERATURE,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
    };
    let mut out: Vec<Vec<(Vec<u32>, Vec<f32>)>> = Vec::new();
    let mut tables: Vec<Vec<PageTable>> = Vec::new();
    for (g, group) in groups.iter().enumerate() {
        let full: Arc<[u32]> = take(group.prompt.len() / PAGE).into();
        let partial = group.prompt.len() % PAGE != 0;
        let prefill = PageTable {
            group: full.clone(),
            own: take(usize::from(partial)),
        };
        let mut first = 0;
        for chunk in group.prompt.chunks(group.chunk) {
            let last = first + chunk.len() == group.prompt.len();
            let mut batch = Batch::default();
            batch.push_segment(chunk, &[], group.adapter);
            batch.positions = (first..first + chunk.len()).map(|p| p as u32).collect();
            batch.pages = vec![prefill.clone()];
            let requests: Vec<SampleRequest> = (0..group.lengths.len())
                .filter(|_| last)
                .map(|s| request(g, s, chunk.len() - 1, 0))
                .collect();
            let drawn = engine.run_paged(batch, &mut cache, &requests).unwrap();
            if last {
                let start = |d: &arca::ops::sample::Sampled| (vec![d.token], vec![d.logprob]);
                out.push(drawn.iter().map(start).collect());
            }
            first += chunk.len();
        }
        let table = |&n: &usize| {
            let pages = (group.prompt.len() + n).div_ceil(PAGE) - full.len();
            let own = take(pages);
            if partial {
                engine
                    .copy_page(&mut cache, prefill.own[0], own[0])
                    .unwrap();
            }
            PageTable {
                group: full.clone(),
                own,
            }
        };
        tables.push(group.lengths.iter().map(table).collect());
    }
    loop {
        let (mut batch, mut requests, mut who) = (Batch::default(), Vec::new(), Vec::new());
        for (g, group) in groups.iter().enumerate() {
            for (s, &n) in group.lengths.iter().enumerate() {
                let done = out[g][s].0.len();
                if done == n {
                    continue;
                }
                batch.push_segment(&out[g][s].0[done - 1..], &[], group.adapter);
                let row = batch.rows() - 1;
                batch.positions[row] = (group.prompt.len() + done - 1) as u32;
                batch.pages.push(tables[g][s].clone());
                requests.push(request(g, s, row, done));
                who.push((g, s));
            }
        }
        if who.is_empty() {
            return out;
        }
        let drawn = engine.run_paged(batch, &mut cache, &requests).unwrap();
        for ((g, s), d) in who.into_iter().zip(drawn) {
            assert!(!d.invalid);
            out[g][s].0.push(d.token);
            out[g][s].1.push(d.logprob);
        }
    }
}

/// Prefill and decode through pages against the packed forward over the
/// sampled tokens: the same log-probs bit for bit.
fn paged_equals_packed<A: Float>(odd: bool) {
    let model = SmallModel::new(small_shape(odd), 11);
    let (layout, params) = model.adapter(&Module::ALL, 5, 1);
    let mut engine = engine::<A>(model.path(), &[&layout]);
    let id = Some(engine.add_adapter(layout, &params).unwrap());
    let prompts = random_groups(
        model.shape.vocab_size,
        9,
        &[(7, &[1]), (32, &[1]), (1, &[1]), (37, &[1])],
    );
    let plans = [
        (id, 7, vec![12, 1, 26]),
        (None, 9, vec![20, 3]),
        (id, 4, vec![17]),
        (id, 16, vec![5, 30, 30]),
    ];
    let groups: Vec<Sampling> = prompts
        .iter()
        .zip(plans)
        .map(|(prompt, (adapter, chunk, lengths))| Sampling {
            prompt: prompt[0].prompt.clone(),
            adapter,
            chunk,
            lengths,
        })
        .collect();
    let sampled = sample(&mut engine, &groups);
    let mut batch = Batch::default();
    let mut expected = Vec::new();
    for (group, samples) in groups.iter().zip(&sampled) {
        let sequences: Vec<Sequence> = samples
            .iter()
            .map(|(tokens, _)| Sequence {
                prompt: group.prompt.clone(),
                completion: tokens.clone(),
            })
            .collect();
        push(&mut batch, &sequences, group.adapter, sequences.len());
        expected.extend(samples.iter().flat_map(|(_, lp)| lp.clone()));
    }
    let packed = logprobs(&mut engine, &batch, TEMPERATURE);
    assert_eq!(packed, expected);
    // One sample alone draws what it drew in company.
    let mut alone = groups;
    alone.truncate(1);
    alone[0].lengths.truncate(1);
    assert_eq!(sample(&mut engine, &alone)[0][0], sampled[0][0]);
}

#[test]
fn pages_in_f32() {
    paged_equals_packed::<f32>(false);
    paged_equals_packed::<f32>(true);
}

#[test]
fn pages_in_bf16() {
    paged_equals_packed::<bf16>(false);
    paged_equals_packed::<bf16>(true);
}

/// bf16 activations against the float64 references: within twice what
/// transformers' own bf16 run differs (`measured.hf_bf16_stock`), and
/// gradients that point the same way.
#[test]
fn bf16_is_as_good_as_transformers() {
    let mut seen = 0;
    for name in case_names() {
        let case = Case::load(&name);
        let measured = &case.json["measured"]["hf_bf16_stock"];
        if measured.is_null() {
            continue;
        }
        seen += 1;
        let (mut engine, id) = case.engine::<bf16>();
        let how = Packing {
            share: case.group_size,
            base: true,
            training: true,
        };
        let packed = pack(&case.sequences, Some(id), how);
        let (_, logits) = engine.logits(packed.batch.clone()).unwrap();
        let v = case.shape.vocab_size;
        for (what, rows) in [
            ("lora_logits", &packed.rows),
            ("base_logits", &packed.base_rows),
        ] {
            let mut worst = 0f64;
            for (s, rows) in rows.iter().enumerate() {
                for (t, &row) in rows.iter().enumerate() {
                    let got = &logits[row as usize * v..][..v];
                    worst = worst.max(max_abs(got, case.at_position(what, s, t)));
                }
            }
            let stock = measured[what].as_f64().unwrap();
            println!("{name} {what}: {worst:.3}, transformers {stock:.3}");
            assert!(
                worst <= 2.0 * stock,
                "{name} {what}: {worst} against {stock}"
            );
        }
        let lp = logprobs(&mut engine, &packed.batch, case.temperature());
        let worst = (0..case.sequences.len())
            .map(|s| {
                max_abs(
                    &lp[packed.pairs[s].clone()],
                    case.at_completion("lora_logps", s),
                )
            })
            .fold(0f64, f64::max);
        let stock = measured["lora_logps"].as_f64().unwrap();
        println!("{name} log-probs: {worst:.3}, transformers {stock:.3}");
        assert!(worst <= 2.0 * stock, "{name}: {worst} against {stock}");

        let (mut exact, exact_id) = case.engine::<f32>();
        let slope = |lp: &[f32]| coefficients(&lp[..packed.batch.grad_pairs]);
        let t = case.temperature();
        let (_, a) = gradients(&mut engine, id, &packed.batch, t, slope);
        let (_, b) = gradients(&mut exact, exact_id, &packed.batch, t, slope);
        let error = rel_l2(&a, &b);
        println!("{name} gradients of bf16 against f32: {error:.3}");
        // bf16 keeps 8 bits: about 1 % after this many roundings; far from
        // it, something is wrong.
        assert!(error <= 0.2, "{name}: {error}");
    }
    assert!(seen > 0);
}

fn keys(seed: u64) -> impl Fn(usize, usize) -> u64 {
    move |sequence, position| seed + (sequence * 1000 + position) as u64
}

/// Probability 0 is no dropout: the same bits forward, the same gradient up
/// to the order of one addition.
#[test]
fn dropout_of_nothing() {
    for mut s in both() {
        let sequences = s.groups.concat();
        let plain = pack(&sequences, Some(s.wide), training(1));
        let mut masked = plain.clone();
        with_dropout(&mut masked, 0.0, keys(1));
        let (a, ga) = gradients(
            &mut s.engine,
            s.wide,
            &plain.batch,
            TEMPERATURE,
            coefficients,
        );
        let (b, gb) = gradients(
            &mut s.engine,
            s.wide,
            &masked.batch,
            TEMPERATURE,
            coefficients,
        );
        assert_eq!(a, b);
        assert!(rel_l2(&gb, &ga) <= 1e-6);
    }
}

/// A mask belongs to its row's key: equal keys, equal bits, wherever the row
/// stands; other keys, other masks; base rows have none.
#[test]
fn dropout_masks_follow_keys() {
    for mut s in both() {
        let group = s.groups[0].clone();
        let twins = vec![group[0].clone(); 2];
        let how = Packing {
            base: true,
            ..scoring(1)
        };
        let mut packed = pack(&twins, Some(s.wide), how);
        let clean = logprobs(&mut s.engine, &packed.batch, TEMPERATURE);
        let n = group[0].completion.len();

        with_dropout(&mut packed, 0.3, |_, position| position as u64);
        let same = logprobs(&mut s.engine, &packed.batch, TEMPERATURE);
        assert_eq!(same[..n], same[n..2 * n]);
        assert_ne!(same[..n], clean[..n]);
        assert_eq!(same[2 * n..], clean[2 * n..]);

        with_dropout(&mut packed, 0.3, keys(7));
        let different = logprobs(&mut s.engine, &packed.batch, TEMPERATURE);
        assert_ne!(different[..n], different[n..2 * n]);

        // A prompt shared or repeated under the same keys, and the order of
        // sequences, change nothing.
        let key = |sequence: usize, position: usize| match position {
            p if p < group[0].prompt.len() => p as u64,
            p => (1 + sequence * 1000 + p) as u64,
        };
        let mut apart = pack(&group, Some(s.wide), scoring(1));
        with_dropout(&mut apart, 0.3, key);
        let mut shared = pack(&group, Some(s.wide), scoring(3));
        with_dropout(&mut shared, 0.3, key);
        let a = logprobs(&mut s.engine, &apart.batch, TEMPERATURE);
        assert_eq!(a, logprobs(&mut s.engine, &shared.batch, TEMPERATURE));
        let mut turned = group.clone();
        turned.reverse();
        let mut packed = pack(&turned, Some(s.wide), scoring(1));
        with_dropout(&mut packed, 0.3, |q, p| key(group.len() - 1 - q, p));
        let b = logprobs(&mut s.engine, &packed.batch, TEMPERATURE);
        for (q, pairs) in packed.pairs.iter().enumerate() {
            assert_eq!(
                b[pairs.clone()],
                a[apart.pairs[group.len() - 1 - q].clone()]
            );
        }
    }
}
