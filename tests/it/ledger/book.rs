//! The book of the ledger: every message sent, and its end.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::load::{CALL_TIMEOUT, CALLERS};
use crate::support::timing::stall_since;

/// More than any machine sends in a second.
const MESSAGES_PER_SECOND: u64 = 20_000;

const ATTEMPTED: u8 = 1;
const CONFIRMED: u8 = 2;
const DELIVERED: u8 = 4;
const DELIVERED_AGAIN: u8 = 8;
const DEAD: u8 = 16;

/// The number of its latest calls whose runs are known for each caller: more than can be under way.
const KNOWN_CALLS: u64 = 1 << 14;

/// One byte for each message, by its number. All of it is in memory from the start, so that
/// it is not measured as growth.
pub struct Book {
    messages: Vec<AtomicU8>,
    next: AtomicU64,
    delivered: AtomicU64,
    unexpected: AtomicU64,
    pub refused: AtomicU64,
    pub replies: AtomicU64,
    pub failed_calls: AtomicU64,
    /// The calls with more than one attempt.
    pub retried: AtomicU64,
    /// The latest runs of each caller's calls: the number of the call, and the attempt in the
    /// last byte.
    runs: Vec<Vec<AtomicU64>>,
    run_twice: AtomicU64,
    /// The longest delay of a call or command after its deadline, in microseconds, without the
    /// delays that the machine caused.
    latest: AtomicU64,
}

/// The totals of a book.
pub struct Account {
    pub attempted: u64,
    pub confirmed: u64,
    pub delivered: u64,
    pub dead: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub unexpected: u64,
    pub refused: u64,
    pub replies: u64,
    pub failed_calls: u64,
    pub retried: u64,
    pub run_twice: u64,
    pub latest: Duration,
}

impl Book {
    pub fn new(length: Duration) -> Self {
        let capacity = length.as_secs() * MESSAGES_PER_SECOND;
        let mut messages = Vec::new();
        messages.resize_with(capacity as usize, || AtomicU8::new(0));
        for message in &messages {
            message.store(0, Ordering::Relaxed); // allocates its page
        }
        Self {
            messages,
            next: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            unexpected: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            replies: AtomicU64::new(0),
            failed_calls: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            runs: (0..CALLERS)
                .map(|_| (0..KNOWN_CALLS).map(|_| AtomicU64::new(0)).collect())
                .collect(),
            run_twice: AtomicU64::new(0),
            latest: AtomicU64::new(0),
        }
    }

    /// Returns the number of a message that will be sent now.
    pub fn attempt(&self) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.mark(number, ATTEMPTED);
        number
    }

    pub fn confirmed(&self, number: u64) {
        self.mark(number, CONFIRMED);
    }

    pub fn delivered(&self, number: u64) {
        match self.messages.get(number as usize) {
            Some(message) if message.load(Ordering::Relaxed) & ATTEMPTED != 0 => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
                let before = message.fetch_or(DELIVERED, Ordering::Relaxed);
                if before & DELIVERED != 0 {
                    message.fetch_or(DELIVERED_AGAIN, Ordering::Relaxed);
                }
            }
            _ => {
                self.unexpected.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub fn dead(&self, number: u64) {
        self.mark(number, DEAD);
    }

    /// Records that a handler begins to run an attempt at a call that must not run twice. A broker
    /// may deliver one attempt twice, but no retry may follow one that may have run.
    pub fn runs(&self, caller: u64, call: u64, attempt: u32) {
        let run = call << 8 | u64::from(attempt.min(255));
        let known = &self.runs[caller as usize][(call % KNOWN_CALLS) as usize];
        let before = known.fetch_max(run, Ordering::Relaxed);
        if before >> 8 == call && before != run {
            self.run_twice.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records the end of a call.
    pub fn took(&self, since: Instant) {
        self.late(since.elapsed().saturating_sub(CALL_TIMEOUT), since);
    }

    /// Records an end this long after the deadline.
    pub fn late(&self, late: Duration, since: Instant) {
        if !late.is_zero() {
            let late = late.saturating_sub(stall_since(since));
            self.latest
                .fetch_max(late.as_micros() as u64, Ordering::Relaxed);
        }
    }

    /// Returns the number of confirmed messages that have neither arrived nor been dead-lettered.
    pub fn missing(&self) -> u64 {
        self.count(|state| state & CONFIRMED != 0 && state & (DELIVERED | DEAD) == 0)
    }

    /// Returns the numbers of some of them.
    pub fn some_missing(&self) -> Vec<u64> {
        let numbers = 0..self.next.load(Ordering::Relaxed);
        let missing = numbers.filter(|&number| {
            let state = self.messages[number as usize].load(Ordering::Relaxed);
            state & CONFIRMED != 0 && state & (DELIVERED | DEAD) == 0
        });
        missing.take(20).collect()
    }

    pub fn account(&self) -> Account {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Account {
            attempted: self.count(|state| state & ATTEMPTED != 0),
            confirmed: self.count(|state| state & CONFIRMED != 0),
            delivered: self.count(|state| state & DELIVERED != 0),
            dead: self.count(|state| state & DEAD != 0),
            lost: self.missing(),
            duplicated: self.count(|state| state & DELIVERED_AGAIN != 0),
            unexpected: load(&self.unexpected),
            refused: load(&self.refused),
            replies: load(&self.replies),
            failed_calls: load(&self.failed_calls),
            retried: load(&self.retried),
            run_twice: load(&self.run_twice),
            latest: Duration::from_micros(load(&self.latest)),
        }
    }

    fn mark(&self, number: u64, state: u8) {
        self.messages[number as usize].fetch_or(state, Ordering::Relaxed);
    }

    fn count(&self, is: impl Fn(u8) -> bool) -> u64 {
        let used = &self.messages[..self.next.load(Ordering::Relaxed) as usize];
        let states = used.iter().map(|message| message.load(Ordering::Relaxed));
        states.filter(|&state| is(state)).count() as u64
    }
}

impl fmt::Display for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sent = self.next.load(Ordering::Relaxed);
        let delivered = self.delivered.load(Ordering::Relaxed);
        let replies = self.replies.load(Ordering::Relaxed);
        write!(f, "{sent} sent, {delivered} delivered, {replies} replies")
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ledger")?;
        for (what, count) in [
            ("attempted", self.attempted),
            ("refused at once, or not sent", self.refused),
            ("acknowledged", self.confirmed),
            ("delivered", self.delivered),
            ("dead-lettered", self.dead),
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("unexpected", self.unexpected),
            ("calls answered", self.replies),
            ("calls failed", self.failed_calls),
            ("calls retried", self.retried),
            ("calls run twice by a retry", self.run_twice),
        ] {
            writeln!(f, "  {what:<30} {count:>10}")?;
        }
        write!(
            f,
            "  {:<30} {:>10.0?}",
            "the latest, beyond its deadline", self.latest
        )
    }
}
