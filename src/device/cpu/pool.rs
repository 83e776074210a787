//! Spreading independent pieces of work over the cores.

use rayon::prelude::*;

/// Number of threads that [`parallel`] uses.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Run `f(0..tasks)`, on all cores when `work` (in roughly nanoseconds on one
/// core) outweighs the cost of waking them. Which thread runs what must not
/// matter to the result.
pub fn parallel(tasks: usize, work: usize, f: impl Fn(usize) + Sync + Send) {
    const WAKE: usize = 8_000;
    if tasks <= 1 || work < WAKE || threads() == 1 {
        (0..tasks).for_each(f);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(f);
    }
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

    /// # Safety
    /// No live `slice_mut` may overlap, and the slice must not outlive the buffer.
    pub unsafe fn slice(&self, start: usize, len: usize) -> &[T] {
        assert!(start + len <= self.len);
        // SAFETY: in bounds by the check, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.ptr.add(start), len) }
    }
}
