//! The instances that balancers pick from, with what this process measures of them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use super::Instance;

/// An instance that a [`Balancer`](super::Balancer) may pick, with its load and latency as
/// measured by this process.
pub struct Candidate {
    instance: Instance,
    /// The moment at which it counts as dead.
    pub(super) dies_at: Instant,
    /// True if it is kept though the store has lost it.
    is_kept: bool,
    load: Arc<Load>,
    /// A hash of its id, the same in every process.
    hash: u64,
}

/// The calls of this process to an instance: how many are in flight, and how fast and how
/// often they succeed. Survives refreshes of the cache.
#[derive(Default)]
struct Load {
    outstanding: AtomicU32,
    /// A moving average in nanoseconds; zero before the first reply.
    latency: AtomicU64,
    /// A moving average of the failures per million replies.
    failures: AtomicU32,
    /// The time of the last measurement, in milliseconds of [`millis`].
    measured_at: AtomicU64,
    /// The time until which it is picked only if there is no other, in milliseconds of
    /// [`millis`].
    avoided_until: AtomicU64,
}

/// The weight of a new latency in the average: an eighth.
const SMOOTHING: u64 = 8;

/// The time without a reply after which measurements count half, so that an instance that was
/// slow is tried again.
const HALF_LIFE: Duration = Duration::from_secs(10);

/// The time for which an unreachable instance is avoided.
const AVOIDED_FOR: Duration = Duration::from_secs(10);

/// Returns the milliseconds since an hour before the first use: never zero.
fn millis() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    const HOUR: u64 = 3_600_000;
    u64::try_from(START.elapsed().as_millis()).map_or(u64::MAX, |since| since + HOUR)
}

impl Candidate {
    /// Creates a candidate that takes over the measurements of `before`, the same instance in
    /// the previous snapshot.
    pub(super) fn new(instance: Instance, dies_at: Instant, before: Option<&Self>) -> Self {
        let load = before.map(|before| Arc::clone(&before.load));
        let mut hasher = Fnv::new();
        instance.id().hash(&mut hasher);
        Self {
            instance,
            dies_at,
            is_kept: false,
            load: load.unwrap_or_default(),
            hash: hasher.finish(),
        }
    }

    /// Returns a copy that is kept, after the store has lost the instance, until it would count
    /// as dead; `None` if it does so by now.
    pub(super) fn kept_until_death(&self, now: Instant) -> Option<Arc<Self>> {
        let left = self.dies_at.checked_duration_since(now)?;
        self.kept(now, left)
    }

    /// Returns a copy that is kept for `time` from `now` on, so that its heartbeat can be
    /// renewed; `None` if it has been kept for that long already.
    pub(super) fn kept(&self, now: Instant, time: Duration) -> Option<Arc<Self>> {
        if self.is_kept && self.dies_at <= now {
            return None;
        }
        Some(Arc::new(Self {
            instance: self.instance.clone(),
            dies_at: if self.is_kept {
                self.dies_at
            } else {
                now + time
            },
            is_kept: true,
            load: Arc::clone(&self.load),
            hash: self.hash,
        }))
    }

    /// Returns the instance.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Returns the number of picks of it that are in flight in this process.
    pub fn outstanding(&self) -> u32 {
        self.load.outstanding.load(Ordering::Relaxed)
    }

    /// Returns its latency, a moving average of its replies to this process; `None` before its
    /// first reply. The average halves with every 10 s without a reply.
    pub fn latency(&self) -> Option<Duration> {
        let latency = self.load.latency.load(Ordering::Relaxed);
        (latency > 0).then(|| Duration::from_nanos((latency as f64 * self.fading()) as u64))
    }

    /// Returns the share of its replies to this process that failed for a reason of the
    /// instance's own (a panic, no reply in time), from 0 to 1: a moving average, which halves
    /// with every 10 s without a reply. Errors that handlers return do not count.
    pub fn failure_rate(&self) -> f64 {
        let rate = f64::from(self.load.failures.load(Ordering::Relaxed)) / 1e6;
        rate * self.fading()
    }

    /// Returns how much the measurements still count, from 0 to 1.
    fn fading(&self) -> f64 {
        let idle = millis().saturating_sub(self.load.measured_at.load(Ordering::Relaxed));
        0.5f64.powf(idle as f64 / HALF_LIFE.as_millis() as f64)
    }

    /// Returns its rank for the hash of a key, the same in every process.
    pub(super) fn rank(&self, key: u64) -> u64 {
        mix(self.hash ^ mix(key))
    }

    /// Moves its last reply into the past.
    #[cfg(test)]
    pub(super) fn age(&self, time: Duration) {
        let back = time.as_millis() as u64;
        self.load.measured_at.fetch_sub(back, Ordering::Relaxed);
    }

    pub(super) fn is_avoided(&self) -> bool {
        let until = self.load.avoided_until.load(Ordering::Relaxed);
        until > 0 && until > millis()
    }

    pub(super) fn answered(&self, after: Duration, is_failure: bool) {
        self.measure(after, is_failure);
        self.load.avoided_until.store(0, Ordering::Relaxed);
    }

    /// Adds one latency and its outcome to the averages.
    fn measure(&self, after: Duration, is_failure: bool) {
        let (rate, new) = (&self.load.failures, if is_failure { 1_000_000 } else { 0 });
        let before = (self.failure_rate() * 1e6) as u32;
        rate.store(before - before / 8 + new / 8, Ordering::Relaxed);
        let after = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX).max(1);
        let average = match self.latency() {
            None => after,
            Some(before) => {
                let before = u64::try_from(before.as_nanos()).unwrap_or(u64::MAX);
                (before - before / SMOOTHING).saturating_add(after / SMOOTHING)
            }
        };
        self.load.latency.store(average.max(1), Ordering::Relaxed);
        self.load.measured_at.store(millis(), Ordering::Relaxed);
    }
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate")
            .field("instance", &self.instance)
            .field("outstanding", &self.outstanding())
            .field("latency", &self.latency())
            .finish_non_exhaustive()
    }
}

/// Hashes a key with FNV-1a, the same in every process and version.
pub(super) fn hash_key(key: &str) -> u64 {
    let mut hasher = Fnv::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// The hash function FNV-1a.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Spreads hashes that FNV leaves close to each other: the finalizer of MurmurHash3.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// An instance that was picked. It counts as busy until this is dropped.
///
/// Report the outcome with [`answered`](PickedInstance::answered) or
/// [`failed`](PickedInstance::failed), for balancers that go by latency. Dropping it reports
/// nothing.
///
/// ```
/// use coney::{Instance, Registry, balance::LeastOutstanding};
///
/// let registry = Registry::memory();
/// let web = registry.register("web", Instance::new().with_host("10.0.0.7"))?;
/// let pick = registry.pick("web", &LeastOutstanding)?;
/// println!("GET http://{}/", pick.host().unwrap_or("localhost"));
/// pick.answered();
/// # Ok::<(), coney::Error>(())
/// ```
pub struct PickedInstance {
    candidate: Arc<Candidate>,
    at: Instant,
}

impl PickedInstance {
    pub(super) fn new(candidate: &Arc<Candidate>) -> Self {
        let outstanding = &candidate.load.outstanding;
        outstanding.fetch_add(1, Ordering::Relaxed);
        Self {
            candidate: Arc::clone(candidate),
            at: Instant::now(),
        }
    }

    /// Reports that the instance has answered. Its latency is the time since the pick.
    pub fn answered(self) {
        self.candidate.answered(self.at.elapsed(), false);
    }

    /// Reports that the instance has not answered in time.
    pub(crate) fn was_slow(self) {
        self.candidate.measure(self.at.elapsed(), true);
    }

    /// Reports that the instance could not be reached. It is avoided for 10 s, unless there is
    /// no other or it answers meanwhile.
    pub fn failed(self) {
        let until = millis().saturating_add(AVOIDED_FOR.as_millis() as u64);
        let load = &self.candidate.load;
        load.avoided_until.store(until, Ordering::Relaxed);
    }
}

impl Deref for PickedInstance {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        &self.candidate.instance
    }
}

impl Drop for PickedInstance {
    fn drop(&mut self) {
        let outstanding = &self.candidate.load.outstanding;
        outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for PickedInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PickedInstance")
            .field(&self.candidate)
            .finish()
    }
}
