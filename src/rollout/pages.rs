//! KV pages as leases: taken many or none, given back when the last holder
//! drops them.

use std::sync::{Arc, Mutex, MutexGuard};

/// A pool of page numbers.
#[derive(Clone)]
pub struct PagePool {
    state: Arc<Mutex<State>>,
    total: usize,
}

struct State {
    free: Vec<u32>,
    /// Fewest pages that were ever free since [`PagePool::reset_peak`].
    least_free: usize,
}

/// One page in use. Whoever holds it may read it; who holds it alone may write.
pub struct Page {
    id: u32,
    pool: PagePool,
}

impl PagePool {
    pub fn new(pages: usize) -> Self {
        PagePool {
            state: Arc::new(Mutex::new(State {
                // Taken from the end: low numbers first.
                free: (0..pages as u32).rev().collect(),
                least_free: pages,
            })),
            total: pages,
        }
    }

    pub fn total(&self) -> usize {
        self.total
    }

    /// Pages nobody holds.
    pub fn free(&self) -> usize {
        self.lock().free.len()
    }

    /// Most pages that were held at once since the last [`PagePool::reset_peak`].
    pub fn peak(&self) -> usize {
        self.total - self.lock().least_free
    }

    pub fn reset_peak(&self) {
        let mut state = self.lock();
        state.least_free = state.free.len();
    }

    /// `n` pages, or none at all.
    pub fn take(&self, n: usize) -> Option<Vec<Arc<Page>>> {
        let mut state = self.lock();
        let rest = state.free.len().checked_sub(n)?;
        let ids = state.free.split_off(rest);
        state.least_free = state.least_free.min(rest);
        drop(state);
        let lease = |id| {
            Arc::new(Page {
                id,
                pool: self.clone(),
            })
        };
        Some(ids.into_iter().rev().map(lease).collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The list stays whole whatever a panicking holder did.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Page {
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.pool.lock().free.push(self.id);
    }
}

/// Numbers of pages, in order.
pub fn ids(pages: &[Arc<Page>]) -> Vec<u32> {
    pages.iter().map(|p| p.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back() {
        let pool = PagePool::new(10);
        let a = pool.take(4).unwrap();
        let b = pool.take(6).unwrap();
        assert!(pool.take(1).is_none());
        let mut all = [ids(&a), ids(&b)].concat();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        drop(a);
        assert_eq!(pool.free(), 4);
        assert!(pool.take(5).is_none());
        assert_eq!(pool.free(), 4);
        // A page with two holders comes back with the second.
        let shared = b[0].clone();
        drop(b);
        assert_eq!(pool.free(), 9);
        drop(shared);
        assert_eq!(pool.free(), 10);
        assert_eq!(pool.peak(), 10);
        pool.reset_peak();
        assert_eq!(pool.peak(), 0);
    }
}
