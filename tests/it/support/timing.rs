//! Deadlines on a machine that is busy with other tests.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The time that a call may take beyond its deadline on a machine that is not busy, as in the
/// ledger.
pub const GRACE: Duration = Duration::from_millis(100);

/// The time that any operation may take beyond its deadline among the threads of other tests and
/// programs: far less than a wait without a deadline.
pub const SLACK: Duration = Duration::from_secs(5);

/// Returns the longest time since `since` by which the machine delayed a thread that only sleeps.
/// No code can be faster than that.
pub fn stall_since(since: Instant) -> Duration {
    static STALLS: OnceLock<(Instant, [AtomicU64; SECONDS])> = OnceLock::new();
    let (start, stalls) = STALLS.get_or_init(|| {
        thread::spawn(|| {
            let (start, stalls) = STALLS.wait();
            loop {
                let before = Instant::now();
                thread::sleep(STEP);
                let stall = before.elapsed().saturating_sub(STEP);
                let second = start.elapsed().as_secs() as usize % SECONDS;
                stalls[(second + 1) % SECONDS].store(0, Ordering::Relaxed);
                stalls[second].fetch_max(stall.as_millis() as u64, Ordering::Relaxed);
            }
        });
        (Instant::now(), [const { AtomicU64::new(0) }; SECONDS])
    });
    let from = since.saturating_duration_since(*start).as_secs() as usize;
    let to = start.elapsed().as_secs() as usize;
    let worst = (from.max(to.saturating_sub(SECONDS - 2))..=to)
        .map(|second| stalls[second % SECONDS].load(Ordering::Relaxed))
        .max();
    Duration::from_millis(worst.unwrap_or(0))
}

/// The number of seconds that are recorded.
const SECONDS: usize = 120;
const STEP: Duration = Duration::from_millis(5);

/// Runs `act`, and fails the test if that takes longer than `timeout`.
pub fn in_time<T>(timeout: Duration, what: &str, act: impl FnOnce() -> T) -> T {
    stall_since(Instant::now()); // the measuring begins with the first call
    let start = Instant::now();
    let result = act();
    let took = start.elapsed();
    let allowed = timeout + SLACK + stall_since(start);
    assert!(took <= allowed, "{what} took {took:?} of {timeout:?}");
    result
}
