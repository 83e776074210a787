//! Guards whole rollouts on the CPU: whatever runs beside a request, however
//! its prompt is cut, and how often it has to step back, it draws the tokens
//! and log-probs that it draws alone, bit for bit, and those are the trainer's.

use std::collections::BTreeMap;
use std::sync::Arc;

use arca::device::Float;
use arca::device::cpu::Cpu;
use arca::episode::{AdapterId, FinishReason};
use arca::model::batch::Batch;
use arca::model::buffers::KvCache;
use arca::model::config::{Group, ModelShape, Module};
use arca::model::engine::Engine;
use arca::model::plan::Capacity;
use arca::rng::{Purpose, Stream};
use arca::rollout::{Completion, Event, KvStore, Request, Rollout, Sampling};
use arca::tokenizer::Tokenizer;

use crate::common::{Sequence, SmallModel, logprobs, push, root, small_shape};

/// As many tokens as the demo's tokenizer has.
fn shape(odd: bool) -> ModelShape {
    ModelShape {
        vocab_size: 512,
        ..small_shape(odd)
    }
}

/// A small model with two adapters, and its pages.
pub struct Bed<A: Float> {
    _model: SmallModel,
    pub engine: Engine<Cpu<A>>,
    pub tokenizer: Arc<Tokenizer>,
}

pub const SEQUENCES: usize = 64;

impl<A: Float> Bed<A> {
    pub fn new(odd: bool) -> Self {
        let model = SmallModel::new(shape(odd), 3);
        let layouts = [
            model.adapter(&Module::ALL, 9, 1),
            model.adapter(&[Module::Q, Module::V, Module::Down], 4, 2),
        ];
        let mut s_width = [0; 4];
        for g in Group::ALL {
            let widths = layouts.iter().map(|(l, _)| l.s_width(g));
            s_width[g as usize] = widths.max().unwrap_or(0);
        }
        let capacity = Capacity {
            rows: 1024,
            saved_rows: 0,
            segments: 512,
            pairs: 4096,
            s_width,
            pages: 0,
            sequences: SEQUENCES,
            positions: 192,
            ..Capacity::default()
        };
        let mut engine = Engine::load(Cpu::<A>::new(), model.path(), capacity, false).unwrap();
        for (layout, params) in layouts {
            engine.add_adapter(layout, &params).unwrap();
        }
        let tokenizer = Tokenizer::load(&root().join("assets/demo")).unwrap();
        Bed {
            _model: model,
            engine,
            tokenizer: Arc::new(tokenizer),
        }
    }

    /// Pages full of NaN: nothing may depend on what nobody wrote.
    pub fn store(&self, pages: usize) -> KvStore<Cpu<A>> {
        let shape = self.engine.shape();
        let mut cache = KvCache::new(&self.engine.device, shape, pages).unwrap();
        for layer in 0..shape.num_layers {
            cache
                .layer_mut(layer)
                .host_mut()
                .fill(A::from_f32(f32::NAN));
        }
        KvStore::new(cache)
    }
}

pub fn sampling(max_tokens: usize) -> Sampling {
    Sampling {
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        max_tokens,
        stop_ids: Vec::new(),
        stop: Arc::new([]),
    }
}

pub fn request(prompt: &[u32], samples: u32, sampling: Sampling, problem: u64) -> Request {
    Request {
        adapter: Some(AdapterId(0)),
        prompt_ids: prompt.to_vec(),
        samples: 0..samples,
        sampling: Arc::new(sampling),
        seed: 5,
        purpose: Purpose::Rollout,
        step: 0,
        problem,
    }
}

/// A request, and what is cancelled of it: a sample after so many tokens.
#[derive(Clone)]
struct Mixed {
    request: Request,
    cancel: Option<(u32, usize)>,
}

/// Random in everything that a request may differ in.
fn mixed(count: usize, tokenizer: &Tokenizer, random: &mut Stream) -> Vec<Mixed> {
    let ids =
        |n: usize, random: &mut Stream| -> Vec<u32> { (0..n).map(|_| random.below(500)).collect() };
    let common = ids(20, random);
    (0..count)
        .map(|i| {
            let own = 1 + random.below(60) as usize;
            let begin = random.below(21) as usize * usize::from(random.below(3) == 0);
            let prompt = [&common[..begin], &ids(own, random)].concat();
            // Half of them go on to their length, which is what pages run out by.
            let long = random.below(2) == 0;
            let length = if long { 50 } else { 0 } + random.below(50);
            let mut s = sampling(1 + length as usize);
            s.temperature = [1.0, 0.0, 0.7, 1.5][random.below(4) as usize];
            s.top_k = [0, 0, 5][random.below(3) as usize];
            s.top_p = [1.0, 1.0, 0.8][random.below(3) as usize];
            s.min_p = [0.0, 0.0, 0.1][random.below(3) as usize];
            if !long && random.below(2) == 0 {
                s.stop_ids = ids(20, random);
            }
            if !long && random.below(3) == 0 {
                // Two letters, so that they may come in one token or in two.
                let text: String = tokenizer.decode(&ids(40, random), true).unwrap();
                let letters: Vec<char> = text.chars().filter(char::is_ascii_graphic).collect();
                s.stop = letters
                    .chunks_exact(2)
                    .take(12)
                    .map(|pair| pair.iter().collect())
                    .collect();
            }
            let samples = 1 + random.below(4) * random.below(2);
            let cancel = (random.below(4) == 0)
                .then(|| (random.below(samples), 1 + random.below(12) as usize));
            let mut request = request(&prompt, samples, s, i as u64);
            request.adapter =
                [None, Some(AdapterId(0)), Some(AdapterId(1))][random.below(3) as usize];
            Mixed { request, cancel }
        })
        .collect()
}

type Done = BTreeMap<(usize, u32), Completion>;

/// Submit some requests at first and two with every forward; run to the end.
fn run<A: Float>(rollout: &mut Rollout<Cpu<A>>, requests: &[Mixed], at_first: usize) -> Done {
    let mut done = Done::new();
    let mut drawn: BTreeMap<(usize, u32), usize> = BTreeMap::new();
    let mut waiting = requests.iter();
    let mut next = at_first;
    loop {
        for m in waiting.by_ref().take(next) {
            rollout.submit(m.request.clone()).unwrap();
        }
        next = 2;
        let mut due = Vec::new();
        let mut note = |event: Event| {
            match event {
                Event::Token {
                    request, sample, ..
                } => {
                    let n = drawn.entry((request, sample)).or_default();
                    *n += 1;
                    if requests[request].cancel == Some((sample, *n)) {
                        due.push((request, sample));
                    }
                }
                Event::Finished(_) => {}
                Event::Complete { completions, .. } => {
                    for c in completions {
                        assert!(done.insert((c.request, c.sample), c).is_none());
                    }
                }
            }
            Ok(())
        };
        let more = rollout.step(&mut note).unwrap();
        for (request, sample) in std::mem::take(&mut due) {
            let mut note = |event: Event| {
                if let Event::Complete { completions, .. } = event {
                    for c in completions {
                        assert!(done.insert((c.request, c.sample), c).is_none());
                    }
                }
                Ok(())
            };
            rollout.cancel(request, Some(sample), &mut note).unwrap();
        }
        if !more && waiting.len() == 0 {
            return done;
        }
    }
}

/// A stop string ends a sample with the first token that completes it, and
/// nothing else does.
fn check_end(c: &Completion, s: &Sampling, tokenizer: &Tokenizer) {
    let holds_stop = |ids: &[u32]| {
        let bytes: Vec<u8> = ids
            .iter()
            .filter_map(|&id| tokenizer.token_bytes(id))
            .flatten()
            .collect();
        s.stop
            .iter()
            .any(|stop| bytes.windows(stop.len()).any(|w| w == stop.as_bytes()))
    };
    let Some((last, before)) = c.ids.split_last() else {
        return;
    };
    assert!(!holds_stop(before) && !before.iter().any(|id| s.stop_ids.contains(id)));
    let stopped = holds_stop(&c.ids) || s.stop_ids.contains(last);
    assert_eq!(stopped, c.finish == FinishReason::Stop, "{c:?}");
    let full = c.ids.len() == s.max_tokens;
    assert!(c.finish != FinishReason::Length || full);
}

/// A thousand requests of random lengths, stops, samplings, adapters and
/// cancellations, in a pool that has them step back again and again: each is
/// what it is alone, nothing is lost, and every page comes back.
#[test]
fn a_thousand_mixed_requests() {
    let mut bed = Bed::<f32>::new(false);
    let tokenizer = bed.tokenizer.clone();
    let requests = mixed(1000, &tokenizer, &mut Stream::new(77));
    let mut store = bed.store(48);
    let mut rollout =
        Rollout::new(&mut bed.engine, &mut store, Some(tokenizer.clone())).with_prefill_rows(48);
    let together = run(&mut rollout, &requests, 300);
    let stats = rollout.stats().clone();
    let samples: usize = requests.iter().map(|m| m.request.samples.len()).sum();
    assert_eq!(together.len(), samples);
    assert!(
        stats.preemptions > 100,
        "{} stepped back",
        stats.preemptions
    );
    assert!(stats.reused_rows > 0);
    assert!(stats.peak_pages() <= 48);
    store.pages.prefixes.clear();
    assert_eq!(store.pages.pool.free(), 48);
    let mut ends = BTreeMap::new();
    for c in together.values() {
        *ends.entry(format!("{:?}", c.finish)).or_insert(0) += 1;
    }
    assert!(
        ends.len() == 3 && ends.values().all(|&n| n > 100),
        "{ends:?}"
    );

    for c in together.values() {
        let s = &requests[c.request].request.sampling;
        check_end(c, s, &tokenizer);
    }

    let mut alone_store = bed.store(64);
    for (i, m) in requests.iter().enumerate() {
        alone_store.pages.prefixes.clear();
        let tokenizer = Some(tokenizer.clone());
        let mut rollout = Rollout::new(&mut bed.engine, &mut alone_store, tokenizer);
        for ((_, sample), mut c) in run(&mut rollout, std::slice::from_ref(m), 1) {
            c.request = i;
            assert_eq!(c, together[&(i, sample)]);
        }
    }
}

/// One sample alone; among 64; after stepping back; with its prompt shared,
/// found in pages, or computed for itself; in chunks of any size: the same
/// tokens and log-probs, which are those of the trainer's packed forward.
fn invariance<A: Float>(odd: bool) {
    let mut bed = Bed::<A>::new(odd);
    let mut random = Stream::new(4);
    let mut ids = |n: usize| -> Vec<u32> { (0..n).map(|_| random.below(500)).collect() };
    let lengths = [37, 16, 1, 50, 33, 64, 5, 47];
    let prompts: Vec<Vec<u32>> = lengths.iter().map(|&n| ids(n)).collect();
    let requests: Vec<Request> = prompts
        .iter()
        .zip(0..)
        .map(|(p, i)| {
            let mut r = request(p, 8, sampling(40), i);
            r.adapter = [Some(AdapterId(0)), None, Some(AdapterId(1))][i as usize % 3];
            r
        })
        .collect();
    let mut sample = |requests: &[Request], pages: usize, chunk: usize| {
        let mut store = bed.store(pages);
        let mut rollout = Rollout::new(&mut bed.engine, &mut store, None).with_prefill_rows(chunk);
        let done = arca::rollout::generate(&mut rollout, requests.to_vec(), &mut |_| Ok(()));
        let stats = rollout.stats().clone();
        (done.unwrap(), stats)
    };
    let (all, stats) = sample(&requests, 400, 512);
    assert_eq!(stats.steps.iter().map(|s| s.live).max(), Some(64));
    assert_eq!(stats.preemptions, 0);

    let (squeezed, stats) = sample(&requests, 60, 512);
    assert!(stats.preemptions > 20, "{}", stats.preemptions);
    assert_eq!(squeezed, all);
    for chunk in [1, 7, 16, 100] {
        assert_eq!(sample(&requests, 400, chunk).0, all, "chunks of {chunk}");
    }
    // Each sample by itself, with a prompt of its own.
    let apart: Vec<Request> = requests
        .iter()
        .flat_map(|r| {
            (0..8).map(|s| Request {
                samples: s..s + 1,
                ..r.clone()
            })
        })
        .collect();
    let (unshared, stats) = sample(&apart, 800, 512);
    assert!(stats.prefill_rows > lengths.iter().sum());
    for (i, r) in apart.iter().enumerate() {
        let (alone, _) = sample(std::slice::from_ref(r), 20, 512);
        for c in [&alone[0], &unshared[i]] {
            assert_eq!((&c.ids, &c.logprobs), (&all[i].ids, &all[i].logprobs));
        }
    }

    let mut batch = Batch::default();
    let mut expected = Vec::new();
    for (r, group) in requests.iter().zip(all.chunks(8)) {
        let sequences: Vec<Sequence> = group
            .iter()
            .map(|c| Sequence {
                prompt: r.prompt_ids.clone(),
                completion: c.ids.clone(),
            })
            .collect();
        push(&mut batch, &sequences, r.adapter, 8);
        expected.extend(group.iter().flat_map(|c| c.logprobs.clone()));
        if batch.rows() > 600 {
            let whole = std::mem::take(&mut batch);
            let packed = logprobs(&mut bed.engine, &whole, 1.0);
            assert_eq!(packed, std::mem::take(&mut expected));
        }
    }
    assert_eq!(logprobs(&mut bed.engine, &batch, 1.0), expected);
}

#[test]
fn company_changes_nothing_in_f32() {
    invariance::<f32>(false);
    invariance::<f32>(true);
}

#[test]
fn company_changes_nothing_in_bf16() {
    invariance::<half::bf16>(false);
}

/// Logits that are no numbers stop the rollout with the sample's name, and its
/// pages come back.
#[test]
fn bad_logits_are_named() {
    let mut bed = Bed::<f32>::new(false);
    let len = bed.engine.adapter(AdapterId(1)).layout.len();
    let bad = vec![f32::NAN; len];
    bed.engine.set_params(AdapterId(1), &bad).unwrap();
    let mut store = bed.store(40);
    let mut rollout = Rollout::new(&mut bed.engine, &mut store, None);
    let mut broken = request(&[1, 2, 3], 2, sampling(5), 1);
    broken.adapter = Some(AdapterId(1));
    rollout
        .submit(request(&[4; 20], 3, sampling(9), 0))
        .unwrap();
    rollout.submit(broken).unwrap();
    let error = rollout.run(&mut |_| Ok(())).unwrap_err().to_string();
    assert_eq!(
        error,
        "request 1, sample 0: the logits of token 0 are NaN or infinite"
    );
    drop(rollout);
    store.pages.prefixes.clear();
    assert_eq!(store.pages.pool.free(), 40);
}

/// Stop strings need somebody who can read tokens.
#[test]
fn stop_strings_need_a_tokenizer() {
    let mut bed = Bed::<f32>::new(false);
    let mut store = bed.store(40);
    let mut rollout = Rollout::new(&mut bed.engine, &mut store, None);
    let stop = Sampling {
        stop: Arc::new(["x".to_string()]),
        ..sampling(5)
    };
    let error = rollout.submit(request(&[1], 1, stop, 0)).unwrap_err();
    assert!(error.to_string().contains("no tokenizer.json"), "{error}");
}

/// A request is handed over with its last sample, while others go on, and in
/// order of its samples.
#[test]
fn complete_requests_leave_at_once() {
    let mut bed = Bed::<f32>::new(false);
    let mut store = bed.store(100);
    let mut rollout = Rollout::new(&mut bed.engine, &mut store, None);
    for (i, new) in [30, 4, 12].into_iter().enumerate() {
        rollout
            .submit(request(&[1, 2, 3 + i as u32], 5, sampling(new), i as u64))
            .unwrap();
    }
    let (mut forwards, mut order) = (0, Vec::new());
    let mut more = true;
    while more {
        more = rollout
            .step(&mut |event| {
                if let Event::Complete {
                    request,
                    completions,
                } = event
                {
                    let samples: Vec<u32> = completions.iter().map(|c| c.sample).collect();
                    assert_eq!(samples, [0, 1, 2, 3, 4]);
                    assert!(completions.iter().all(|c| c.finish == FinishReason::Length));
                    order.push((request, forwards));
                }
                Ok(())
            })
            .unwrap();
        forwards += 1;
    }
    assert_eq!(order, [(1, 3), (2, 11), (0, 29)]);
}
