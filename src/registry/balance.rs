//! Which of several instances to take.
//!
//! ```
//! use coney::{Broker, Registry, ServiceClient, balance::LowestLatency};
//!
//! let registry = Registry::memory();
//! let client = ServiceClient::builder(&Broker::memory(), "shop")
//!     .registry(&registry)
//!     .balancer(LowestLatency)
//!     .build()?;
//! # let _ = client;
//! # Ok::<(), coney::Error>(())
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::Candidate;
use super::candidate::hash_key;

/// Picks one of the living and healthy instances of a service.
///
/// A closure is one too, and a box of one. Called by the threads that call; must neither
/// block nor panic, as it would take the caller with it.
///
/// ```
/// use std::sync::Arc;
/// use coney::{Candidate, Instance, Registry};
///
/// let registry = Registry::memory();
/// let old = registry.register("web", Instance::new().with_version("1"))?;
/// let new = registry.register("web", Instance::new().with_version("2"))?;
/// let newest = |candidates: &[Arc<Candidate>], _key: Option<&str>| {
///     let at = |one: &Arc<Candidate>| one.instance().version() == Some("2");
///     candidates.iter().position(at).unwrap_or(0)
/// };
/// assert_eq!(registry.pick("web", &newest)?.version(), Some("2"));
/// # Ok::<(), coney::Error>(())
/// ```
pub trait Balancer: Send + Sync {
    /// The place of the one to take (beyond the end it is counted round). There is at least one candidate, and they are in
    /// the order of their ids. The key is what the caller gave, if anything. One that could
    /// not be reached lately is replaced by the next that could.
    fn pick(&self, candidates: &[Arc<Candidate>], key: Option<&str>) -> usize;
}

impl Balancer for Box<dyn Balancer> {
    fn pick(&self, candidates: &[Arc<Candidate>], key: Option<&str>) -> usize {
        (**self).pick(candidates, key)
    }
}

impl<F> Balancer for F
where
    F: Fn(&[Arc<Candidate>], Option<&str>) -> usize + Send + Sync,
{
    fn pick(&self, candidates: &[Arc<Candidate>], key: Option<&str>) -> usize {
        self(candidates, key)
    }
}

/// Any of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

impl Balancer for Random {
    fn pick(&self, candidates: &[Arc<Candidate>], _key: Option<&str>) -> usize {
        fastrand::usize(..candidates.len())
    }
}

/// One after the other; made by `RoundRobin::default()`.
#[derive(Debug, Default)]
pub struct RoundRobin {
    /// The turn that is next, by service.
    turns: RwLock<HashMap<Box<str>, AtomicUsize>>,
}

/// The number of services it remembers: more than a program calls.
const MOST_SERVICES: usize = 10_000;

impl RoundRobin {
    fn turn(&self, service: &str) -> usize {
        if let Some(turn) = self.turns.read().get(service) {
            return turn.fetch_add(1, Ordering::Relaxed);
        }
        let mut turns = self.turns.write();
        if turns.len() >= MOST_SERVICES {
            turns.clear();
        }
        let turn = turns.entry(service.into()).or_default();
        turn.fetch_add(1, Ordering::Relaxed)
    }
}

impl Balancer for RoundRobin {
    fn pick(&self, candidates: &[Arc<Candidate>], _key: Option<&str>) -> usize {
        let service = candidates.first().map(|one| one.instance().service());
        self.turn(service.unwrap_or_default()) % candidates.len()
    }
}

/// At random, each as often as its [weight](crate::Instance::with_weight) says; one with
/// weight 0 only if nobody has another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weighted;

impl Balancer for Weighted {
    fn pick(&self, candidates: &[Arc<Candidate>], key: Option<&str>) -> usize {
        let weight = |one: &Arc<Candidate>| u64::from(one.instance().weight());
        let all: u64 = candidates.iter().map(weight).sum();
        if all == 0 {
            return Random.pick(candidates, key);
        }
        let mut at = fastrand::u64(..all);
        let found = candidates.iter().position(|one| {
            let here = at < weight(one);
            at = at.saturating_sub(weight(one));
            here
        });
        found.unwrap_or(0)
    }
}

/// The one with the fewest calls of this process under way; among equals, any.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastOutstanding;

impl Balancer for LeastOutstanding {
    fn pick(&self, candidates: &[Arc<Candidate>], _key: Option<&str>) -> usize {
        // From anywhere round, so that the first is not everybody's first choice.
        let start = fastrand::usize(..candidates.len());
        let round = (start..candidates.len()).chain(0..start);
        let least = round.min_by_key(|&at| candidates[at].outstanding());
        least.unwrap_or(start)
    }
}

/// Of two at random, the one that answers faster, for what it has under way and how
/// much of what it answers are failures. One that has never answered is tried, once at a
/// time, before the others.
///
/// Two, and not all: else every process would run to the fastest at once, and find it
/// slow.
#[derive(Clone, Copy, Debug, Default)]
pub struct LowestLatency;

/// As slow counts one that has not answered its first call yet.
const UNKNOWN: Duration = Duration::from_secs(1);

/// As slow counts one all of whose answers are failures, however fast.
const FAILURE: Duration = Duration::from_secs(1);

impl Balancer for LowestLatency {
    fn pick(&self, candidates: &[Arc<Candidate>], _key: Option<&str>) -> usize {
        let first = fastrand::usize(..candidates.len());
        if candidates.len() == 1 {
            return first;
        }
        let second = (first + fastrand::usize(1..candidates.len())) % candidates.len();
        let cost = |at: usize| {
            let one = &candidates[at];
            let latency = match (one.latency(), one.outstanding()) {
                (Some(latency), _) => latency,
                (None, 0) => Duration::ZERO,
                (None, _) => UNKNOWN,
            };
            let failing = FAILURE.mul_f64(one.failure_rate());
            (latency + failing).saturating_mul(one.outstanding().saturating_add(1))
        };
        match cost(second) < cost(first) {
            true => second,
            false => first,
        }
    }
}

/// The same for the same key, in every process, as long as it is there; when one goes
/// or comes, only its own share of the keys moves (rendezvous hashing). The key is
/// [`CallOptions::balance_key`](crate::CallOptions::balance_key); without one, any.
///
/// ```
/// # use coney::{Broker, CallOptions, Registry, ServiceClient, balance::ConsistentHash};
/// let client = ServiceClient::builder(&Broker::memory(), "shop")
///     .registry(&Registry::memory())
///     .balancer(ConsistentHash)
///     .build()?;
/// let of_user_7 = CallOptions::new().balance_key("user-7");
/// # let _ = (client, of_user_7);
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ConsistentHash;

impl Balancer for ConsistentHash {
    fn pick(&self, candidates: &[Arc<Candidate>], key: Option<&str>) -> usize {
        let Some(key) = key.map(hash_key) else {
            return Random.pick(candidates, None);
        };
        let highest = (0..candidates.len()).max_by_key(|&at| candidates[at].rank(key));
        highest.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Instance;
    use std::time::Instant;

    fn candidates(weights: &[u32]) -> Vec<Arc<Candidate>> {
        let candidate = |(n, &weight): (usize, &u32)| {
            let instance = Instance::new().with_id(format!("i{n}")).with_weight(weight);
            Arc::new(Candidate::new(instance, Instant::now(), None))
        };
        weights.iter().enumerate().map(candidate).collect()
    }

    fn counts(balancer: &dyn Balancer, of: &[Arc<Candidate>], picks: usize) -> Vec<usize> {
        let mut counts = vec![0; of.len()];
        for _ in 0..picks {
            counts[balancer.pick(of, None)] += 1;
        }
        counts
    }

    #[test]
    fn an_instance_that_failed_gets_another_chance() {
        const MS: Duration = Duration::from_millis(1);
        let two = candidates(&[1; 2]);
        for _ in 0..20 {
            two[0].answered(MS, true);
            two[1].answered(2 * MS, false);
        }
        assert!(two[0].failure_rate() > 0.5);
        assert_eq!(counts(&LowestLatency, &two, 100), [0, 100]);
        // Nothing has been heard of it for two minutes, as it is not picked.
        two[0].age(120 * 1_000 * MS);
        assert!(two[0].failure_rate() < 0.001);
        assert_eq!(counts(&LowestLatency, &two, 100), [100, 0]);
        // It answers, and stays.
        for _ in 0..20 {
            two[0].answered(MS, false);
        }
        assert_eq!(counts(&LowestLatency, &two, 100), [100, 0]);
    }

    #[test]
    fn everybody_gets_a_share() {
        let four = candidates(&[1; 4]);
        for count in counts(&RoundRobin::default(), &four, 400) {
            assert_eq!(count, 100);
        }
        let all: [&dyn Balancer; 5] = [
            &Random,
            &Weighted,
            &LeastOutstanding,
            &LowestLatency,
            &ConsistentHash,
        ];
        for balancer in all {
            for count in counts(balancer, &four, 4_000) {
                assert!((800..1_200).contains(&count), "{count} of 4,000");
            }
        }
    }

    #[test]
    fn each_service_has_its_own_round() {
        let of = |service: &str| {
            let candidate = |n: u32| {
                let instance = Instance::new().with_id(format!("i{n}")).registered(service);
                Arc::new(Candidate::new(instance, Instant::now(), None))
            };
            [candidate(0), candidate(1)]
        };
        let (users, orders) = (of("user-service"), of("order-service"));
        let balancer = RoundRobin::default();
        for n in 0..10 {
            assert_eq!(balancer.pick(&users, None), n % 2);
            assert_eq!(balancer.pick(&orders, None), n % 2);
        }
    }

    #[test]
    fn weights_are_shares() {
        let counts = counts(&Weighted, &candidates(&[0, 1, 3]), 4_000);
        assert_eq!(counts[0], 0);
        assert!((800..1_200).contains(&counts[1]), "{counts:?}");
        assert!(Weighted.pick(&candidates(&[0, 0]), None) < 2);
    }

    #[test]
    fn the_busy_and_the_slow_get_less() {
        let three = candidates(&[1; 3]);
        let busy = super::super::PickedInstance::new(&three[1]);
        assert_eq!(counts(&LeastOutstanding, &three, 100)[1], 0);
        drop(busy);
        assert_ne!(counts(&LeastOutstanding, &three, 1_000)[1], 0);
        for (one, ms) in three.iter().zip([1, 50, 2]) {
            one.answered(Duration::from_millis(ms), false);
        }
        assert_eq!(counts(&LowestLatency, &three, 1_000)[1], 0);
        for _ in 0..50 {
            three[0].answered(Duration::from_micros(10), true);
        }
        assert_eq!(
            counts(&LowestLatency, &three, 1_000)[0],
            0,
            "fast, and no use"
        );
    }

    #[test]
    fn a_key_stays_where_it_is_unless_that_goes() {
        let mut five = candidates(&[1; 5]);
        let keys: Vec<String> = (0..1_000).map(|n| format!("user-{n}")).collect();
        let place = |of: &[Arc<Candidate>], key: &str| {
            let at = ConsistentHash.pick(of, Some(key));
            of[at].instance().id().to_owned()
        };
        let before: Vec<_> = keys.iter().map(|key| place(&five, key)).collect();
        let share = before.iter().filter(|id| *id == "i2").count();
        assert!((140..260).contains(&share), "{share} of 1,000");
        five.remove(2);
        for (key, before) in keys.iter().zip(&before) {
            if before != "i2" {
                assert_eq!(place(&five, key), *before, "{key} has moved");
            }
        }
    }
}
