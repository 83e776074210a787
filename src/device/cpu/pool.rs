//! Spreading independent pieces of work over the cores.
//!
//! A decode step is a hundred pieces of a few microseconds each, where waking
//! a sleeping thread costs as much as the work. Helpers therefore keep looking
//! for the next job for a while before they sleep, and nobody waits for a
//! helper that has not come: the caller works through its job itself, with
//! whoever joins.

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};

use crate::device::Float;

/// Number of threads that [`parallel`] uses: that of the surrounding rayon
/// pool (by default all cores, or RAYON_NUM_THREADS).
pub fn threads() -> usize {
    rayon::current_num_threads().min(MOST)
}

/// Run `f(0..tasks)`, on all cores when `work` (in roughly nanoseconds on one
/// core) outweighs the cost of sharing it. Which thread runs what must not
/// matter to the result. Inside a task, and while another thread has the
/// helpers, everything runs on the caller.
pub fn parallel(tasks: usize, work: usize, f: impl Fn(usize) + Sync + Send) {
    // With helpers awake a job is shared in well under a microsecond; waking
    // one takes several.
    const SHARE: usize = 1_500;
    const WAKE: usize = 10_000;
    if tasks > 1 && work >= SHARE {
        let threads = threads();
        if threads > 1 {
            let pool = POOL.get_or_init(Pool::new);
            if work >= WAKE || pool.asleep.load(Ordering::Relaxed) == 0 {
                return pool.run(tasks, threads.min(tasks) - 1, &f);
            }
        }
    }
    (0..tasks).for_each(f);
}

/// Run over `rows` in contiguous blocks of about equal size.
pub fn parallel_rows(
    rows: usize,
    work_per_row: usize,
    f: impl Fn(std::ops::Range<usize>) + Sync + Send,
) {
    let blocks = (threads() * 4).min(rows).max(1);
    let per = rows.div_ceil(blocks).max(1);
    parallel(rows.div_ceil(per), rows * work_per_row, |i| {
        f(i * per..((i + 1) * per).min(rows))
    });
}

static POOL: OnceLock<Pool> = OnceLock::new();

/// Most threads of one job: what fits the state word's fields.
const MOST: usize = 1 << 15;
/// Looks at the state before a helper sleeps: some 50 to 200 microseconds,
/// longer than the serial stretches between the jobs of a forward.
const LOOKS: usize = 4_000;

/// Fields of the state word: how many helpers are at the job, how many more
/// may join, whether it still takes any, and the job's number.
const ONE_ACTIVE: u64 = 1;
const ACTIVE: u64 = 0xffff;
const ONE_SEAT: u64 = 1 << 16;
const SEATS: u64 = 0x7fff << 16;
const OPEN: u64 = 1 << 31;
const JOB_SHIFT: u32 = 32;
const ONE_JOB: u64 = 1 << JOB_SHIFT;

type Job = dyn Fn() + Sync;

struct Pool {
    state: AtomicU64,
    /// What those who joined run. Changed only by the thread that holds
    /// `busy`, while the state is closed and nobody is active.
    job: UnsafeCell<Option<*const Job>>,
    busy: AtomicBool,
    panicked: AtomicBool,
    asleep: AtomicUsize,
    /// Number of helpers; also what they sleep on.
    helpers: Mutex<usize>,
    wake: Condvar,
}

// SAFETY: `job` is guarded by `state` and `busy` as said there; what it points
// to is Sync.
unsafe impl Sync for Pool {}
// SAFETY: as above.
unsafe impl Send for Pool {}

impl Pool {
    fn new() -> Pool {
        Pool {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            busy: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
            helpers: Mutex::new(0),
            wake: Condvar::new(),
        }
    }

    /// Run all tasks, with up to `seats` helpers.
    fn run(&'static self, tasks: usize, seats: usize, f: &(impl Fn(usize) + Sync)) {
        if self.busy.swap(true, Ordering::Acquire) {
            return (0..tasks).for_each(f);
        }
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= tasks {
                    break;
                }
                f(i);
            }
        };
        let job: *const (dyn Fn() + Sync + '_) = &work;
        // SAFETY: only the lifetime changes; `_closed` is dropped before
        // `work` is, and then no helper has the job any more.
        let job: *const Job = unsafe { std::mem::transmute(job) };
        // SAFETY: this thread holds `busy`, and the last job was closed.
        unsafe { *self.job.get() = Some(job) };
        // The number's top bits fall off, and it begins anew at 0.
        let number = (self.state.load(Ordering::Relaxed) / ONE_JOB + 1) << JOB_SHIFT;
        let open = number | OPEN | (seats as u64 * ONE_SEAT);
        // The order of this store and the load of `asleep` matters: a helper
        // about to sleep does the two the other way round.
        self.state.store(open, Ordering::SeqCst);
        let closed = Closed(self);
        if self.asleep.load(Ordering::SeqCst) > 0 {
            drop(self.lock());
            self.wake.notify_all();
        }
        self.hire(seats);
        work();
        drop(closed);
        if self.panicked.swap(false, Ordering::Relaxed) {
            panic!("a piece of parallel work panicked");
        }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        // A count stays whole whatever a panicking holder did.
        self.helpers.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Have at least `wanted` helpers. Fewer is no error: the caller does it all.
    fn hire(&'static self, wanted: usize) {
        static HIRED: AtomicUsize = AtomicUsize::new(0);
        if HIRED.load(Ordering::Relaxed) >= wanted {
            return;
        }
        let mut helpers = self.lock();
        while *helpers < wanted {
            let spawned = std::thread::Builder::new()
                .name(format!("arca-{}", *helpers + 1))
                .spawn(|| self.help());
            if spawned.is_err() {
                break;
            }
            *helpers += 1;
        }
        HIRED.store(wanted.max(*helpers), Ordering::Relaxed);
    }

    /// A helper's life.
    fn help(&self) {
        let mut done = 0;
        loop {
            let state = self.find(done);
            let joined = state - ONE_SEAT + ONE_ACTIVE;
            if self
                .state
                .compare_exchange_weak(state, joined, Ordering::Acquire, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            done = state / ONE_JOB;
            // SAFETY: the job was set before the state was opened, and stays
            // until this helper is no longer active.
            let job = unsafe { (*self.job.get()).map(|job| &*job) };
            if let Some(job) = job
                && catch_unwind(AssertUnwindSafe(job)).is_err()
            {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.state.fetch_sub(ONE_ACTIVE, Ordering::Release);
        }
    }

    /// Wait for a job after number `done` that has a seat left.
    fn find(&self, done: u64) -> u64 {
        let free = |state: u64| state & OPEN != 0 && state & SEATS != 0 && state / ONE_JOB != done;
        for _ in 0..LOOKS {
            let state = self.state.load(Ordering::Relaxed);
            if free(state) {
                return state;
            }
            spin_loop();
        }
        let mut guard = self.lock();
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let state = loop {
            let state = self.state.load(Ordering::SeqCst);
            if free(state) {
                break state;
            }
            guard = self.wake.wait(guard).unwrap_or_else(|e| e.into_inner());
        };
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        state
    }
}

/// Ends a job, also if its caller panics: nobody joins any more, and all who
/// joined are through.
struct Closed(&'static Pool);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::Relaxed);
        let mut looks = 0;
        while self.0.state.load(Ordering::Acquire) & ACTIVE != 0 {
            looks += 1;
            // A helper that lost its core in mid-task needs one.
            if looks < LOOKS {
                spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        self.0.busy.store(false, Ordering::Release);
    }
}

/// A buffer that several threads write at disjoint places.
pub struct Shared<T> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: only `slice` and `slice_mut` reach the elements, and their contract is
// that nothing is written while another slice over it lives.
unsafe impl<T: Send> Send for Shared<T> {}
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(data: &mut [T]) -> Self {
        Shared {
            ptr: data.as_mut_ptr(),
            len: data.len(),
        }
    }

    /// # Safety
    /// No two live slices may overlap, and none may outlive the buffer.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice_mut(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.len);
        // SAFETY: in bounds by the check, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }

    /// Where the elements from `start` on lie, and how many there are.
    pub fn from(&self, start: usize) -> (*mut T, usize) {
        assert!(start <= self.len);
        // SAFETY: within the buffer or just behind it.
        (unsafe { self.ptr.add(start) }, self.len - start)
    }

    /// # Safety
    /// No live `slice_mut` may overlap, and the slice must not outlive the buffer.
    pub unsafe fn slice(&self, start: usize, len: usize) -> &[T] {
        assert!(start + len <= self.len);
        // SAFETY: in bounds by the check, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.ptr.add(start), len) }
    }
}

impl<T: Float> Shared<T> {
    /// The same buffer, if its elements are f32.
    pub fn as_f32(&self) -> Option<Shared<f32>> {
        // f32 is the only float of four bytes.
        (size_of::<T>() == 4).then(|| Shared {
            ptr: self.ptr.cast(),
            len: self.len,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every task runs once, whoever runs it: from several threads at a time,
    /// nested, and job upon job.
    #[test]
    fn every_task_runs_once() {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 0..2_000 {
                        let tasks = 2 + round % 17;
                        let seen: Vec<AtomicUsize> =
                            (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                        parallel(tasks, usize::MAX, |i| {
                            parallel(2, usize::MAX, |_| {
                                seen[i].fetch_add(1, Ordering::Relaxed);
                            });
                        });
                        assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 2));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        for _ in 0..50 {
            let result = catch_unwind(|| {
                parallel(64, usize::MAX, |i| assert_ne!(i, 40));
            });
            assert!(result.is_err());
        }
        // The pool is still of use.
        let sum = AtomicUsize::new(0);
        parallel(64, usize::MAX, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 64 * 63 / 2);
    }
}
