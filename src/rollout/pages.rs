//! KV pages as leases: taken many or none, given back on drop.

use std::sync::{Arc, Mutex};

/// A pool of page numbers.
#[derive(Clone)]
pub struct PagePool {
    free: Arc<Mutex<Vec<u32>>>,
    total: usize,
}

impl PagePool {
    pub fn new(pages: usize) -> Self {
        PagePool {
            // Taken from the end: low numbers first.
            free: Arc::new(Mutex::new((0..pages as u32).rev().collect())),
            total: pages,
        }
    }

    pub fn total(&self) -> usize {
        self.total
    }

    /// Pages nobody holds.
    pub fn free(&self) -> usize {
        self.lock().len()
    }

    /// `n` pages, or none at all.
    pub fn take(&self, n: usize) -> Option<Lease> {
        let mut free = self.lock();
        let rest = free.len().checked_sub(n)?;
        let pages = free.split_off(rest).into_iter().rev().collect();
        drop(free);
        Some(Lease {
            pages,
            pool: self.clone(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        // The list stays whole whatever a panicking holder did.
        self.free.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Pages in use.
pub struct Lease {
    pages: Vec<u32>,
    pool: PagePool,
}

impl Lease {
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        self.pool.lock().extend(pages.into_iter().rev());
    }
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
        let mut all: Vec<u32> = a.pages().iter().chain(b.pages()).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        drop(a);
        assert_eq!(pool.free(), 4);
        assert!(pool.take(5).is_none());
        assert_eq!(pool.free(), 4);
        drop(b);
        assert_eq!(pool.free(), 10);
    }
}
