//! Full pages of prompts, kept for the next prompt that begins alike.
//!
//! The keys and values of a page depend on the tokens up to its end and on the
//! weights, and on nothing else: a page is found by its whole prefix, under
//! the adapter *as it was*. Once an adapter has changed, its pages are void.
//! What nobody else holds is given back where pages run short, the longest
//! unused first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::pages::Page;
use crate::episode::AdapterId;
use crate::model::engine::KvVersion;
use crate::ops::decode::PAGE;

/// A node's place in the tree: which node it continues, with which tokens.
type Key = (u64, [u32; PAGE]);
/// Order of eviction: longest unused, and of those the end of a prefix first,
/// so that no kept page is cut off from its beginning.
type Age = (u64, Reverse<usize>, u64);

struct Node {
    id: u64,
    root: u64,
    page: Arc<Page>,
    age: Age,
}

/// Pages by prefix.
#[derive(Default)]
pub struct PrefixCache {
    roots: HashMap<Option<AdapterId>, (KvVersion, u64)>,
    nodes: HashMap<Key, Node>,
    by_age: BTreeMap<Age, Key>,
    next_id: u64,
    clock: u64,
}

impl PrefixCache {
    /// Pages held.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The longest run of known pages that `tokens` begin with, whole pages
    /// only.
    pub fn find(
        &mut self,
        adapter: Option<AdapterId>,
        version: KvVersion,
        tokens: &[u32],
    ) -> Vec<Arc<Page>> {
        self.clock += 1;
        let mut parent = self.root(adapter, version);
        let mut found = Vec::new();
        for chunk in tokens.as_chunks::<PAGE>().0 {
            let key = (parent, *chunk);
            let Some(node) = self.nodes.get_mut(&key) else {
                break;
            };
            self.by_age.remove(&node.age);
            node.age.0 = self.clock;
            self.by_age.insert(node.age, key);
            parent = node.id;
            found.push(node.page.clone());
        }
        found
    }

    /// Remember the pages of `tokens`, computed under the adapter as it is.
    /// A page that is known already stays as it is.
    pub fn insert(
        &mut self,
        adapter: Option<AdapterId>,
        version: KvVersion,
        tokens: &[u32],
        pages: &[Arc<Page>],
    ) {
        self.clock += 1;
        let root = self.root(adapter, version);
        let mut parent = root;
        for (depth, (chunk, page)) in tokens.as_chunks::<PAGE>().0.iter().zip(pages).enumerate() {
            let key = (parent, *chunk);
            if let Some(node) = self.nodes.get(&key) {
                parent = node.id;
                continue;
            }
            self.next_id += 1;
            let id = self.next_id;
            let age = (self.clock, Reverse(depth), id);
            self.by_age.insert(age, key);
            let page = page.clone();
            self.nodes.insert(
                key,
                Node {
                    id,
                    root,
                    page,
                    age,
                },
            );
            parent = id;
        }
    }

    /// Give up the page that was longest unused and that nobody else holds;
    /// false if there is none.
    pub fn evict(&mut self) -> bool {
        let free = |key: &Key| Arc::strong_count(&self.nodes[key].page) == 1;
        let Some((&age, &key)) = self.by_age.iter().find(|(_, key)| free(key)) else {
            return false;
        };
        self.by_age.remove(&age);
        self.nodes.remove(&key);
        true
    }

    /// Forget everything.
    pub fn clear(&mut self) {
        self.roots.clear();
        self.nodes.clear();
        self.by_age.clear();
    }

    /// Where an adapter's prefixes begin. A new version forgets the old one's.
    fn root(&mut self, adapter: Option<AdapterId>, version: KvVersion) -> u64 {
        match self.roots.get(&adapter) {
            Some(&(of, root)) if of == version => return root,
            Some(&(_, old)) => {
                self.nodes.retain(|_, node| node.root != old);
                let nodes = &self.nodes;
                self.by_age.retain(|_, key| nodes.contains_key(key));
            }
            None => {}
        }
        self.next_id += 1;
        self.roots.insert(adapter, (version, self.next_id));
        self.next_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::pages::{PagePool, ids};

    fn tokens(n: usize, seed: u32) -> Vec<u32> {
        (0..n as u32).map(|i| i * 7 + seed).collect()
    }

    const BASE: Option<AdapterId> = None;

    fn version(adapter: u64) -> KvVersion {
        KvVersion { epoch: 0, adapter }
    }

    #[test]
    fn longest_common_beginning() {
        let (pool, mut cache) = (PagePool::new(8), PrefixCache::default());
        let long = tokens(50, 1);
        let pages = pool.take(3).unwrap();
        cache.insert(BASE, version(0), &long, &pages);
        assert_eq!(
            ids(&cache.find(BASE, version(0), &long[..40])),
            ids(&pages[..2])
        );
        let mut other = long.clone();
        other[20] = 999;
        assert_eq!(ids(&cache.find(BASE, version(0), &other)), ids(&pages[..1]));
        assert!(cache.find(BASE, version(0), &tokens(50, 2)).is_empty());
        assert!(cache.find(Some(AdapterId(0)), version(0), &long).is_empty());
        // The same second page after another first one is another page.
        other.copy_from_slice(&long);
        other[0] = 999;
        assert!(cache.find(BASE, version(0), &other).is_empty());
    }

    #[test]
    fn a_changed_adapter_voids_its_pages_alone() {
        let (pool, mut cache) = (PagePool::new(4), PrefixCache::default());
        let prompt = tokens(32, 1);
        let some = Some(AdapterId(3));
        cache.insert(BASE, version(0), &prompt, &pool.take(2).unwrap());
        cache.insert(some, version(1), &prompt, &pool.take(2).unwrap());
        assert_eq!(pool.free(), 0);
        assert!(cache.find(some, version(2), &prompt).is_empty());
        assert_eq!(pool.free(), 2);
        assert_eq!(cache.find(BASE, version(0), &prompt).len(), 2);
        // The old version does not come back either.
        assert!(cache.find(some, version(1), &prompt).is_empty());
    }

    #[test]
    fn ends_are_evicted_first_and_held_pages_never() {
        let (pool, mut cache) = (PagePool::new(5), PrefixCache::default());
        let (a, b) = (tokens(48, 1), tokens(32, 2));
        cache.insert(BASE, version(0), &a, &pool.take(3).unwrap());
        cache.insert(BASE, version(0), &b, &pool.take(2).unwrap());
        let held = cache.find(BASE, version(0), &a[..16]);
        // a's second and third page are the longest unused; the third goes first.
        assert!(cache.evict());
        assert_eq!(cache.find(BASE, version(0), &a).len(), 2);
        for _ in 0..3 {
            assert!(cache.evict());
        }
        assert!(!cache.evict());
        assert_eq!((cache.len(), pool.free()), (1, 4));
        drop(held);
        assert!(cache.evict());
        assert_eq!((cache.len(), pool.free()), (0, 5));
    }
}
