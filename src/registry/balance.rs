//! Balancers: which of several instances of a service takes a call.
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
use super::choice::Choice;

/// A policy that picks one of the live and healthy instances of a service.
///
/// Closures from a [`Choice`] to an index implement it too, if they name its type:
/// `|choice: &Choice<'_>| …`. A balancer runs on the threads of the callers and on
/// `coney-callback-NAME`, which may send a batch's calls again: it must not block. A panic in it is
/// a panic in the caller, or, in a batch, the error of the calls concerned.
///
/// ```
/// use coney::balance::Choice;
/// use coney::{Instance, Registry};
///
/// let registry = Registry::memory();
/// let old = registry.register("web", Instance::new().with_version("1"))?;
/// let new = registry.register("web", Instance::new().with_version("2"))?;
/// let newest = |choice: &Choice<'_>| {
///     let mut candidates = choice.candidates().iter();
///     let newest = candidates.position(|one| one.instance().version() == Some("2"));
///     newest.unwrap_or(0)
/// };
/// assert_eq!(registry.pick("web", &newest)?.version(), Some("2"));
/// # Ok::<(), coney::Error>(())
/// ```
pub trait Balancer: Send + Sync {
    /// Returns the index of the candidate to take; an index past the end wraps around.
    ///
    /// A candidate that could not be reached in the last 10 s is not taken: the balancer is
    /// then called again with those that could, if there are any.
    fn pick(&self, choice: &Choice<'_>) -> usize;
}

impl Balancer for Box<dyn Balancer> {
    fn pick(&self, choice: &Choice<'_>) -> usize {
        (**self).pick(choice)
    }
}

impl<F> Balancer for F
where
    F: Fn(&Choice<'_>) -> usize + Send + Sync,
{
    fn pick(&self, choice: &Choice<'_>) -> usize {
        self(choice)
    }
}

/// A balancer that picks any instance, all with the same probability.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

impl Balancer for Random {
    fn pick(&self, choice: &Choice<'_>) -> usize {
        fastrand::usize(..choice.candidates().len())
    }
}

/// A balancer that picks the instances of each service in turn.
#[derive(Debug, Default)]
pub struct RoundRobin {
    /// The next turn, by service.
    turns: RwLock<HashMap<Box<str>, AtomicUsize>>,
}

/// The number of services whose turns are remembered: more than a program calls.
const MOST_SERVICES: usize = 10_000;

impl RoundRobin {
    /// Creates a balancer that begins with each service's first instance.
    pub fn new() -> Self {
        Self::default()
    }

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
    fn pick(&self, choice: &Choice<'_>) -> usize {
        self.turn(choice.service()) % choice.candidates().len()
    }
}

/// A balancer that picks at random in proportion to the
/// [weights](crate::Instance::with_weight).
///
/// An instance with weight 0 is picked only if no other instance has a weight.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weighted;

impl Balancer for Weighted {
    fn pick(&self, choice: &Choice<'_>) -> usize {
        let candidates = choice.candidates();
        let weight = |one: &Arc<Candidate>| u64::from(one.instance().weight());
        let total: u64 = candidates.iter().map(weight).sum();
        if total == 0 {
            return Random.pick(choice);
        }
        let mut at = fastrand::u64(..total);
        let found = candidates.iter().position(|one| {
            let here = at < weight(one);
            at = at.saturating_sub(weight(one));
            here
        });
        found.unwrap_or(0)
    }
}

/// A balancer that picks the instance with the fewest calls of this process in flight; among
/// equals, any.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastOutstanding;

impl Balancer for LeastOutstanding {
    fn pick(&self, choice: &Choice<'_>) -> usize {
        let candidates = choice.candidates();
        // A random start, so that idle processes do not all prefer the first instance.
        let start = fastrand::usize(..candidates.len());
        let round = (start..candidates.len()).chain(0..start);
        let least = round.min_by_key(|&at| candidates[at].outstanding());
        least.unwrap_or(start)
    }
}

/// A balancer that picks the faster of two random instances.
///
/// It compares the latency of the two, multiplied by the calls that this process has in
/// flight there, plus a penalty for the share of replies that are failures. An instance that
/// has not replied yet is tried first, with one call at a time.
///
/// It compares two instances and not all: otherwise every process would pick the fastest at
/// the same moment, and slow it down.
#[derive(Clone, Copy, Debug, Default)]
pub struct LowestLatency;

/// The assumed latency of an instance that has not replied to its first call yet.
const UNKNOWN_LATENCY: Duration = Duration::from_secs(1);

/// The penalty of an instance whose replies are all failures, however fast they are.
const FAILURE_PENALTY: Duration = Duration::from_secs(1);

impl Balancer for LowestLatency {
    fn pick(&self, choice: &Choice<'_>) -> usize {
        let candidates = choice.candidates();
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
                (None, _) => UNKNOWN_LATENCY,
            };
            let failing = FAILURE_PENALTY.mul_f64(one.failure_rate());
            (latency + failing).saturating_mul(one.outstanding().saturating_add(1))
        };
        match cost(second) < cost(first) {
            true => second,
            false => first,
        }
    }
}

/// A balancer that picks the same instance for the same key, in every process (rendezvous
/// hashing).
///
/// When an instance comes or goes, only its share of the keys moves. The key is
/// [`CallOptions::balance_key`](crate::CallOptions::balance_key); without one it picks at
/// random.
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
    fn pick(&self, choice: &Choice<'_>) -> usize {
        let Some(key) = choice.key().map(hash_key) else {
            return Random.pick(choice);
        };
        let candidates = choice.candidates();
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
            counts[balancer.pick(&Choice::new("web", of, None))] += 1;
        }
        counts
    }

    #[test]
    fn an_instance_that_failed_is_picked_again_later() {
        const MS: Duration = Duration::from_millis(1);
        let two = candidates(&[1; 2]);
        for _ in 0..20 {
            two[0].answered(MS, true);
            two[1].answered(2 * MS, false);
        }
        assert!(two[0].failure_rate() > 0.5);
        assert_eq!(counts(&LowestLatency, &two, 100), [0, 100]);
        // It has not replied for two minutes, as it is not picked.
        two[0].age(120 * 1_000 * MS);
        assert!(two[0].failure_rate() < 0.001);
        assert_eq!(counts(&LowestLatency, &two, 100), [100, 0]);
        // Its replies are no failures now.
        for _ in 0..20 {
            two[0].answered(MS, false);
        }
        assert_eq!(counts(&LowestLatency, &two, 100), [100, 0]);
    }

    #[test]
    fn every_instance_gets_a_share() {
        let four = candidates(&[1; 4]);
        for count in counts(&RoundRobin::new(), &four, 400) {
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
    fn each_service_has_its_own_turns() {
        let two = candidates(&[1; 2]);
        let balancer = RoundRobin::new();
        for n in 0..10 {
            for service in ["user-service", "order-service"] {
                assert_eq!(balancer.pick(&Choice::new(service, &two, None)), n % 2);
            }
        }
    }

    #[test]
    fn picks_are_proportional_to_weights() {
        let counts = counts(&Weighted, &candidates(&[0, 1, 3]), 4_000);
        assert_eq!(counts[0], 0);
        assert!((800..1_200).contains(&counts[1]), "{counts:?}");
        let without_weight = candidates(&[0, 0]);
        assert!(Weighted.pick(&Choice::new("web", &without_weight, None)) < 2);
    }

    #[test]
    fn busy_slow_and_failing_instances_get_less() {
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
        let picked = counts(&LowestLatency, &three, 1_000)[0];
        assert_eq!(picked, 0, "fast, but failing");
    }

    #[test]
    fn a_key_moves_only_if_its_instance_goes() {
        let mut five = candidates(&[1; 5]);
        let keys: Vec<String> = (0..1_000).map(|n| format!("user-{n}")).collect();
        let place = |of: &[Arc<Candidate>], key: &str| {
            let at = ConsistentHash.pick(&Choice::new("web", of, Some(key)));
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
