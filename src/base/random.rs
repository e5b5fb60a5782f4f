//! Random numbers for ids: unpredictable, and different after a fork or in a copy of the virtual
//! machine.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use siphasher::sip128::SipHasher24;

use super::moment::Moment;
use super::thread::process_id;

/// A keyed pseudo-random function, with a key from the operating system's entropy.
///
/// Its input is a counter, so that no two numbers of a process have the same input; the process id,
/// which a forked child does not share; and both clocks, which have moved on in a virtual machine
/// that was started from a snapshot. Without the key no output reveals anything about another.
struct Source {
    keyed: SipHasher24,
    start: Instant,
    counter: AtomicU64,
}

static SOURCE: LazyLock<Source> = LazyLock::new(|| Source {
    keyed: SipHasher24::new_with_key(&key()),
    start: Instant::now(),
    counter: AtomicU64::new(0),
});

fn key() -> [u8; 16] {
    let mut key = [0; 16];
    if getrandom::fill(&mut key).is_err() {
        // The standard library has other ways to the same entropy.
        for half in key.chunks_mut(8) {
            half.copy_from_slice(&RandomState::new().hash_one(0).to_ne_bytes());
        }
    }
    key
}

impl Source {
    fn next(&self, process: u32, now: Moment) -> u128 {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        let monotonic = now.at().saturating_duration_since(self.start).as_nanos() as u64;
        let wall = now.since_epoch().as_nanos() as u64;
        let mut input = [0; 28];
        input[..8].copy_from_slice(&counter.to_ne_bytes());
        input[8..16].copy_from_slice(&monotonic.to_ne_bytes());
        input[16..24].copy_from_slice(&wall.to_ne_bytes());
        input[24..].copy_from_slice(&process.to_ne_bytes());
        self.keyed.hash(&input).as_u128()
    }
}

/// Returns a random number that no other process can predict. `now` is the present.
pub(crate) fn random_u128(now: Moment) -> u128 {
    SOURCE.next(process_id(now.at()), now)
}

/// Returns a random number that no other process can predict.
pub(crate) fn random_u64() -> u64 {
    random_u128(Moment::now()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn source(key: [u8; 16], counter: u64) -> Source {
        Source {
            keyed: SipHasher24::new_with_key(&key),
            start: Instant::now(),
            counter: AtomicU64::new(counter),
        }
    }

    /// Parent and child have the same key and the same counter after a fork.
    #[test]
    fn parent_and_forked_child_have_different_numbers() {
        let (parent, child) = (source([7; 16], 5), source([7; 16], 5));
        let parents: HashSet<u128> = (0..1_000)
            .map(|_| parent.next(100, Moment::now()))
            .collect();
        let children: HashSet<u128> = (0..1_000).map(|_| child.next(101, Moment::now())).collect();
        assert_eq!(parents.len() + children.len(), 2_000);
        assert!(parents.is_disjoint(&children));
    }

    /// A snapshot has the same key, counter and process id; only the clocks differ.
    #[test]
    fn copies_of_a_virtual_machine_have_different_numbers() {
        let (one, other) = (source([7; 16], 5), source([7; 16], 5));
        let first = one.next(100, Moment::now());
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert_ne!(first, other.next(100, Moment::now()));
    }

    #[test]
    fn neither_keys_nor_numbers_repeat() {
        assert_ne!(key(), key());
        let numbers: HashSet<u128> = (0..10_000).map(|_| random_u128(Moment::now())).collect();
        assert_eq!(numbers.len(), 10_000);
        // Each bit is set about half of the time.
        for bit in 0..128 {
            let set = numbers.iter().filter(|n| *n >> bit & 1 == 1).count();
            assert!((4_700..5_300).contains(&set), "bit {bit}: {set}");
        }
    }
}
