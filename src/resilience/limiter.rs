//! The admission of requests by a rate limit.

use std::borrow::Cow;
use std::hash::Hasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use siphasher::sip128::{Hasher128, SipHasher13};

use super::gcra::Gcra;
use super::keyed::{Bucket, KeyedTable};
use super::lease::LEASE_TIME;
use super::peers::CountPeers;
use super::rate::Rate;
use super::rate_limit::RateLimit;
use super::shared_limit::{MOST_KEYS, SharedLimit};
use super::turns::Turns;

/// The longest time for which a worker waits for the turn of a request that is about due. A request
/// that comes back a millisecond early would otherwise be put off again, behind all others.
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// The longest key that is kept as it is, in bytes. In place of a longer one its hash is kept.
const LONGEST_KEY: usize = 128;

/// A rate limit with its state: the one of a server's action or of a subscription. The lock is held
/// for one step of the plain structs, and never while anything waits.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: Rate,
    state: LimiterState,
}

#[derive(Debug)]
enum LimiterState {
    Whole(Mutex<LocalState>),
    ByKey(Mutex<KeyedTable<LocalState>>),
    Shared(Arc<SharedLimit>),
}

/// The state of a limit of this process alone, for one key.
#[derive(Debug)]
struct LocalState {
    gcra: Gcra,
    turns: Turns,
}

impl LocalState {
    fn new(rate: &Rate) -> Self {
        Self {
            gcra: Gcra::new(rate),
            turns: Turns::default(),
        }
    }
}

impl Bucket for LocalState {
    fn idle_at(&self) -> Option<Instant> {
        self.gcra.idle_at()
    }
}

impl Limiter {
    /// Creates the state of a limit that is checked: one for each key, or one in all.
    pub(crate) fn new(limit: &RateLimit, has_keys: bool) -> Self {
        let rate = limit.rate();
        let state = match limit.shared_limit() {
            Some(shared) => LimiterState::Shared(shared),
            None if has_keys => LimiterState::ByKey(Mutex::new(KeyedTable::new(MOST_KEYS))),
            None => LimiterState::Whole(Mutex::new(LocalState::new(&rate))),
        };
        Self { rate, state }
    }

    /// Sets the way to count the processes that share the limit.
    pub(crate) fn count_peers_by(&self, count: &CountPeers) {
        if let LimiterState::Shared(shared) = &self.state {
            shared.count_peers_by(count);
        }
    }

    /// Returns the longest time for which a worker waits for the turn of a request that may wait: at
    /// most one of them waits at a time.
    pub(crate) fn pause(&self) -> Duration {
        self.rate.interval().min(LONGEST_PAUSE)
    }

    /// Admits a request now, or reserves a moment for it within `longest_wait`.
    ///
    /// Returns `None` if it may run now. Blocks only for a shared limit whose store is being asked,
    /// for at most a tenth of a second, and not beyond `deadline`.
    ///
    /// # Errors
    ///
    /// The time after which there may be a free moment.
    pub(crate) fn admit(
        &self,
        key: Option<&str>,
        now: Instant,
        longest_wait: Duration,
        deadline: Option<Instant>,
    ) -> Result<Option<Instant>, Duration> {
        match &self.state {
            LimiterState::Whole(state) => state.lock().gcra.reserve(now, longest_wait),
            LimiterState::ByKey(keys) => {
                let key = shortened(key.unwrap_or_default());
                let mut keys = keys.lock();
                let state = keys.entry(&key, now, || LocalState::new(&self.rate));
                state.gcra.reserve(now, longest_wait)
            }
            LimiterState::Shared(shared) => {
                let key = key.map(shortened);
                let until = deadline.unwrap_or_else(|| now + 10 * LEASE_TIME);
                let taken = shared.take(key.as_deref(), until, false);
                // Until the next lease there is nothing to look for.
                taken.map(|()| None).map_err(|wait| wait.max(LEASE_TIME))
            }
        }
    }

    /// Returns the time after which a request comes back that is put off, whose limit may be free
    /// after `wait`: such requests come back one after the other. At most `longest`.
    pub(crate) fn put_off(
        &self,
        key: Option<&str>,
        now: Instant,
        wait: Duration,
        longest: Duration,
    ) -> Duration {
        let interval = self.rate.interval();
        match &self.state {
            LimiterState::Whole(state) => {
                let turns = &mut state.lock().turns;
                turns.take(now, wait, interval, longest)
            }
            LimiterState::ByKey(keys) => {
                let key = shortened(key.unwrap_or_default());
                let mut keys = keys.lock();
                let state = keys.entry(&key, now, || LocalState::new(&self.rate));
                state.turns.take(now, wait, interval, longest)
            }
            LimiterState::Shared(shared) => {
                let key = key.map(shortened);
                shared.put_off(key.as_deref(), now, wait, longest)
            }
        }
    }
}

/// Returns a key, or its hash if it is long.
fn shortened(key: &str) -> Cow<'_, str> {
    if key.len() <= LONGEST_KEY {
        return Cow::Borrowed(key);
    }
    let mut hasher = SipHasher13::new();
    hasher.write(key.as_bytes());
    Cow::Owned(format!("#{:032x}", hasher.finish128().as_u128()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn each_key_has_a_limit_of_its_own() {
        let rate = RateLimit::per_second(10).burst(2);
        let limiter = Limiter::new(&rate, true);
        let now = Instant::now();
        let admit = |key: &str| limiter.admit(Some(key), now, Duration::ZERO, None);
        for key in ["a", "b", &"long".repeat(100)] {
            assert_eq!([admit(key), admit(key)], [Ok(None), Ok(None)]);
            assert_eq!(admit(key), Err(100 * MS));
        }
        assert_eq!(admit(&"other".repeat(100)), Ok(None));
    }

    #[test]
    fn requests_that_are_put_off_come_back_at_the_pace_of_the_limit() {
        let limiter = Limiter::new(&RateLimit::per_second(100).burst(1), false);
        let now = Instant::now();
        assert_eq!(limiter.pause(), 10 * MS);
        assert_eq!(limiter.admit(None, now, limiter.pause(), None), Ok(None));
        let turn = Ok(Some(now + 10 * MS));
        assert_eq!(limiter.admit(None, now, limiter.pause(), None), turn);
        let over = limiter.admit(None, now, limiter.pause(), None);
        assert_eq!(over, Err(20 * MS));
        let longest = 50 * MS;
        let delays = (0..5).map(|_| limiter.put_off(None, now, 20 * MS, longest));
        assert_eq!(
            delays.collect::<Vec<_>>(),
            [20, 30, 40, 50, 50].map(|n| n * MS)
        );
    }

    #[test]
    fn keys_are_shortened_without_being_mixed_up() {
        let long = "k".repeat(LONGEST_KEY + 1);
        assert_eq!(shortened(&long[1..]), &long[1..]);
        assert_eq!(shortened(&long).len(), 33);
        assert_ne!(shortened(&long), shortened(&long.replace('k', "l")));
    }
}
