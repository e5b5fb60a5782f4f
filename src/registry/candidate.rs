use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use super::Instance;

/// An instance to be picked, and what this process knows of its work.
pub struct Candidate {
    instance: Instance,
    pub(super) dies_at: Instant,
    /// It is kept though the store does not know it.
    is_kept: bool,
    load: Arc<Load>,
    /// Of its id, the same in every process.
    hash: u64,
}

/// What this process has under way at an instance, and how fast it answers. Outlives
/// a refresh of the cache.
#[derive(Default)]
struct Load {
    outstanding: AtomicU32,
    /// Moving average in nanoseconds; zero if it has never answered.
    latency: AtomicU64,
    /// How many of a million answers lately were failures.
    failures: AtomicU32,
    /// When that was measured, in milliseconds of [`millis`].
    measured_at: AtomicU64,
    /// Until when it is picked only if there is no other.
    avoided_until: AtomicU64,
}

/// How much a new latency counts: an eighth.
const SMOOTHING: u64 = 8;

/// A latency counts half after so long without a new one, so that an instance that
/// was slow gets another chance.
const HALF_LIFE: Duration = Duration::from_secs(10);

/// How long an instance is passed over that could not be reached.
const AVOIDED_FOR: Duration = Duration::from_secs(10);

/// Milliseconds since a moment an hour before the first use.
fn millis() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    const HOUR: u64 = 3_600_000;
    u64::try_from(START.elapsed().as_millis()).map_or(u64::MAX, |since| since + HOUR)
}

impl Candidate {
    /// `before` is the same instance as it was known until now.
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

    /// Kept as one that has vanished without being deregistered: until it would have died
    /// anyhow.
    pub(super) fn kept_until_death(&self, now: Instant) -> Option<Arc<Self>> {
        let left = self.dies_at.checked_duration_since(now)?;
        self.kept(now, left)
    }

    /// Kept for so long from `now` on, in which the store may hear of it again; `None` if it
    /// has been kept for as long.
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

    /// The instance.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// How many picks of it this process has under way.
    pub fn outstanding(&self) -> u32 {
        self.load.outstanding.load(Ordering::Relaxed)
    }

    /// How fast it has answered this process lately: a moving average, which fades
    /// to half in 10 s without an answer. `None` before its first answer.
    pub fn latency(&self) -> Option<Duration> {
        let latency = self.load.latency.load(Ordering::Relaxed);
        (latency > 0).then(|| Duration::from_nanos((latency as f64 * self.fading()) as u64))
    }

    /// What part of its answers to this process failed lately for a reason of the
    /// instance's own (a panic, no answer in time), from 0 to 1. A handler's own errors do
    /// not count. Fades to half in 10 s without an answer.
    pub fn failure_rate(&self) -> f64 {
        let rate = f64::from(self.load.failures.load(Ordering::Relaxed)) / 1e6;
        rate * self.fading()
    }

    /// The part of what was measured that still counts, from 0 to 1.
    fn fading(&self) -> f64 {
        let idle = millis().saturating_sub(self.load.measured_at.load(Ordering::Relaxed));
        0.5f64.powf(idle as f64 / HALF_LIFE.as_millis() as f64)
    }

    /// A number for its id and a key's hash that every process agrees on.
    pub(super) fn rank(&self, key: u64) -> u64 {
        mix(self.hash ^ mix(key))
    }

    /// Lets so much time have passed since its last answer.
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
        self.took(after, is_failure);
        self.load.avoided_until.store(0, Ordering::Relaxed);
    }

    fn took(&self, after: Duration, is_failure: bool) {
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

/// Hashes a key as every process does, whatever its version: FNV-1a.
pub(super) fn hash_key(key: &str) -> u64 {
    let mut hasher = Fnv::new();
    key.hash(&mut hasher);
    hasher.finish()
}

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

/// Spreads what FNV leaves close together (the finalizer of MurmurHash3).
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// An instance that was picked. It counts as busy until this is dropped.
///
/// Say what came of it, so that the balancers that go by latency know:
/// [`answered`](PickedInstance::answered) or [`failed`](PickedInstance::failed). Dropping it says nothing.
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

    /// It has answered, as long after it was picked as it is now.
    pub fn answered(self) {
        self.candidate.answered(self.at.elapsed(), false);
    }

    /// It has not answered in the time there was.
    pub(crate) fn was_slow(self) {
        self.candidate.took(self.at.elapsed(), true);
    }

    /// It could not be reached: it is passed over for 10 s, unless there is no
    /// other or it answers.
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
        f.debug_tuple("Pick").field(&self.candidate).finish()
    }
}
