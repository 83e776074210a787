//! Guards kept prefixes: found while the adapter is as it was, void once it has
//! changed, and never of any influence on what is drawn.

use arca::device::cpu::Cpu;
use arca::episode::AdapterId;
use arca::model::engine::Engine;
use arca::rollout::stats::RolloutStats;
use arca::rollout::{Completion, KvStore, Request, Rollout, generate};

use super::engine::{Bed, request, sampling};

const POLICY: AdapterId = AdapterId(0);

fn sample(
    engine: &mut Engine<Cpu<f32>>,
    store: &mut KvStore<Cpu<f32>>,
    requests: &[Request],
) -> (Vec<Completion>, RolloutStats) {
    let mut rollout = Rollout::new(engine, store, None);
    let done = generate(&mut rollout, requests.to_vec(), &mut |_| Ok(())).unwrap();
    let stats = rollout.stats().clone();
    (done, stats)
}

/// Prompts of 3 full pages and some, for the adapter and the base model.
fn requests() -> Vec<Request> {
    let prompt: Vec<u32> = (0..53).map(|i| i * 7 % 500).collect();
    let adapted = request(&prompt, 4, sampling(20), 0);
    let base = Request {
        adapter: None,
        ..adapted.clone()
    };
    vec![adapted, base]
}

#[test]
fn found_again_and_void_after_a_change() {
    let mut bed = Bed::<f32>::new(false);
    let mut store = bed.store(200);
    let requests = requests();
    let (first, stats) = sample(&mut bed.engine, &mut store, &requests);
    assert_eq!((stats.reused_rows, stats.prefill_rows), (0, 2 * 53));
    // The second time only what follows the last full page is computed.
    let (again, stats) = sample(&mut bed.engine, &mut store, &requests);
    assert_eq!((stats.reused_rows, stats.prefill_rows), (2 * 48, 2 * 5));
    assert_eq!(again, first);

    // A step of training: the adapter's pages are void, the base model's not.
    let before = bed.engine.params(POLICY).unwrap();
    let changed: Vec<f32> = before.iter().map(|p| p * 1.25).collect();
    bed.engine.set_params(POLICY, &changed).unwrap();
    let (after, stats) = sample(&mut bed.engine, &mut store, &requests);
    assert_eq!((stats.reused_rows, stats.prefill_rows), (48, 53 + 5));
    assert_ne!(after[..4], first[..4]);
    assert_eq!(after[4..], first[4..]);
    let mut fresh = bed.store(200);
    assert_eq!(sample(&mut bed.engine, &mut fresh, &requests).0, after);

    // Back to the old parameters: what was computed with them is gone all the same.
    bed.engine
        .update_params(POLICY, |device, ctx, buf| {
            use arca::device::Device;
            let to = arca::device::SliceMut {
                buf,
                start: 0,
                len: before.len(),
            };
            device.upload(ctx, to, &before)
        })
        .unwrap();
    let (back, stats) = sample(&mut bed.engine, &mut store, &requests);
    assert_eq!(stats.reused_rows, 48);
    assert_eq!(back, first);
}

/// Prompts that begin alike share what they have in common, and a prompt that
/// fills its pages exactly still has its last row computed.
#[test]
fn common_beginnings() {
    let mut bed = Bed::<f32>::new(true);
    let mut store = bed.store(200);
    let long: Vec<u32> = (0..64).collect();
    let mut other = long.clone();
    other[40] = 400;
    let requests: Vec<Request> = [&long[..], &other, &long[..48], &long[..20]]
        .iter()
        .zip(0..)
        .map(|(p, i)| request(p, 2, sampling(10), i))
        .collect();
    let mut reused = Vec::new();
    for r in &requests {
        let (kept, stats) = sample(&mut bed.engine, &mut store, std::slice::from_ref(r));
        reused.push(stats.reused_rows);
        let mut fresh = bed.store(20);
        let (alone, _) = sample(&mut bed.engine, &mut fresh, std::slice::from_ref(r));
        assert_eq!(kept, alone);
    }
    assert_eq!(reused, [0, 32, 32, 16]);
}

/// Kept pages give way where others need them.
#[test]
fn kept_pages_give_way() {
    let mut bed = Bed::<f32>::new(false);
    let mut store = bed.store(12);
    for i in 0..20 {
        let prompt: Vec<u32> = (0..40).map(|j| (i * 40 + j) % 500).collect();
        let (done, stats) = sample(
            &mut bed.engine,
            &mut store,
            &[request(&prompt, 2, sampling(30), u64::from(i))],
        );
        assert_eq!(done.len(), 2);
        assert_eq!(stats.reused_rows, 0);
    }
    assert!(!store.pages.prefixes.is_empty());
    assert_eq!(
        store.pages.pool.free() + store.pages.prefixes.len(),
        store.pages.pool.total()
    );
}
