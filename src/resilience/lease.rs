//! The tokens of a shared rate limit that this process has leased for one key.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::gcra::Gcra;
use super::keyed::Bucket;
use super::rate::Rate;

/// The time whose tokens are leased at once.
pub(super) const LEASE_TIME: Duration = Duration::from_millis(50);

/// The time after which unused tokens lapse, counted from the request for them.
const LAPSE_TIME: Duration = Duration::from_millis(100);

/// The least time between two requests for tokens. The random part on top of it mixes the order of
/// the processes: each gets the tokens that have become free since the request before its own.
/// Together they are at most the time of a lease, so that one process can use the whole rate.
const LEAST_GAP: Duration = Duration::from_millis(40);
const RANDOM_GAP: Duration = Duration::from_millis(10);

/// The least time until a request if the last one was answered in full and its tokens are used up:
/// the load has grown.
const EARLY_GAP: Duration = Duration::from_millis(5);

/// The time without an answer after which the process goes on with its share of the rate.
pub(super) const LATE_AFTER: Duration = Duration::from_millis(100);

/// The time until the next request after one that failed.
pub(super) const RETRY_GAP: Duration = Duration::from_millis(500);

/// The delay after the next answer at which callers that wait come back.
const AFTER_ANSWER: Duration = Duration::from_millis(2);

/// The tokens that this process has leased for one key, and the time of its next request for more.
/// Takes the time, and what is random, as arguments.
#[derive(Debug)]
pub(super) struct Leases {
    rate: Rate,
    /// The moments at which tokens lapse, and their numbers, the earliest first.
    tokens: VecDeque<(Instant, u32)>,
    /// The calls since the last request.
    calls: u32,
    /// The times since the last request that a call found no token.
    missed: u32,
    /// The last request, and whether it has an answer.
    asked_at: Option<Instant>,
    is_pending: bool,
    /// The earliest moment of the next request.
    next_ask: Option<Instant>,
    /// The moment from which the share counts, unless an answer comes before.
    late_at: Option<Instant>,
    /// True if the last answer granted less than was asked for: the limit is reached.
    is_short: bool,
    /// The tokens of a typical answer while the limit is reached.
    usual_grant: f64,
    last_call: Option<Instant>,
    /// The share of this process, while there is no answer.
    share: Option<Gcra>,
}

/// The result of looking for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Token,
    /// No token before this moment.
    NotBefore(Instant),
    /// An answer is on its way, or a request is due at once: worth waiting for until this moment.
    Awaited(Instant),
}

impl Leases {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            tokens: VecDeque::new(),
            calls: 0,
            missed: 0,
            asked_at: None,
            is_pending: false,
            next_ask: None,
            late_at: None,
            is_short: false,
            usual_grant: f64::from(most_leased(&rate)),
            last_call: None,
            share: None,
        }
    }

    /// Takes a token. `is_again` if the call has looked for one before.
    pub(super) fn take(&mut self, now: Instant, is_again: bool) -> Taken {
        self.last_call = Some(now);
        self.calls = self.calls.saturating_add(u32::from(!is_again));
        if self.take_leased(now) {
            return Taken::Token;
        }
        self.missed = self.missed.saturating_add(1);
        let is_due = !self.is_pending && self.next_ask.is_none_or(|at| at <= now);
        let is_awaited = !self.is_short || is_due;
        let late_at = *self.late_at.get_or_insert_with(|| {
            let since = match self.asked_at {
                _ if is_awaited => now,
                Some(asked_at) if self.is_pending => asked_at,
                _ => self.next_ask.map_or(now, |at| at.max(now)),
            };
            since + LATE_AFTER
        });
        if is_awaited {
            return Taken::Awaited(late_at);
        }
        if self.is_pending {
            return Taken::NotBefore(now + AFTER_ANSWER);
        }
        // Callers that wait come back a few at a time, as the tokens do.
        let rounds = f64::from(self.missed - 1) / self.usual_grant.max(0.1);
        let later = LEASE_TIME.mul_f64(rounds.floor().min(1e6));
        let answer = self.next_ask.map_or(now, |at| at.max(now));
        Taken::NotBefore(answer + later + AFTER_ANSWER)
    }

    /// Returns true if no answer came for so long that the share counts.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.late_at.is_some_and(|late_at| late_at <= now)
    }

    /// Takes a token of this process's share of the rate, as one of `peers`.
    pub(super) fn take_of_share(&mut self, now: Instant, peers: u32) -> Taken {
        self.last_call = Some(now);
        self.missed = self.missed.saturating_add(1);
        if self.take_leased(now) {
            return Taken::Token;
        }
        // It begins without a burst: outages that come and go would each grant one.
        let new = || Gcra::used_up(&self.rate.share(peers), now);
        let share = self.share.get_or_insert_with(new);
        match share.reserve(now, Duration::ZERO) {
            Ok(_) => Taken::Token,
            Err(wait) => Taken::NotBefore(now + wait.min(FAR)),
        }
    }

    fn take_leased(&mut self, now: Instant) -> bool {
        while let Some((lapses_at, count)) = self.tokens.front_mut() {
            if *lapses_at > now && *count > 0 {
                *count -= 1;
                return true;
            }
            self.tokens.pop_front();
        }
        false
    }

    /// Returns the moment of the next request for tokens; `None` while none is needed.
    pub(super) fn next_request(&self, now: Instant) -> Option<Instant> {
        if self.is_pending || (self.calls == 0 && self.missed == 0) {
            return None;
        }
        let next_ask = self.next_ask.unwrap_or(now);
        if self.missed == 0 || self.is_short {
            return Some(next_ask);
        }
        let early = self.asked_at.map_or(now, |asked_at| asked_at + EARLY_GAP);
        Some(early.min(next_ask))
    }

    /// Begins a request, and returns the number of tokens to ask for; `None` if those that are left
    /// are enough. With `random` from 0 to 1.
    pub(super) fn ask(&mut self, now: Instant, random: f64) -> Option<u32> {
        let since = self
            .asked_at
            .map(|asked_at| now.saturating_duration_since(asked_at));
        // The calls in a lease's time, at the pace of those since the last request, and a quarter
        // more: what is not used is there for the next time, and less is asked for then. After a
        // pause there is no pace yet.
        let expected = match since {
            Some(since) if since <= LAPSE_TIME => {
                let pace = LEASE_TIME.as_secs_f64() / since.max(EARLY_GAP).as_secs_f64();
                1.25 * pace * f64::from(self.calls)
            }
            _ => 0.0,
        };
        let wanted = (f64::from(self.missed) + expected).ceil();
        let most = most_leased(&self.rate);
        let wanted = (wanted.min(f64::from(most)) as u32).saturating_sub(self.left(now));
        self.asked_at = Some(now);
        self.next_ask = Some(now + LEAST_GAP + RANDOM_GAP.mul_f64(random.clamp(0.0, 1.0)));
        self.calls = 0;
        self.missed = 0;
        self.is_pending = wanted > 0;
        self.is_pending.then_some(wanted)
    }

    /// Takes the answer to a request for `wanted` tokens: the number that is granted, and, if that
    /// is less, the time until another one is free. With `random` from 0 to 1.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        wanted: u32,
        granted: u32,
        next_in: Duration,
        random: f64,
    ) {
        let asked_at = self.asked_at.unwrap_or(now);
        self.is_pending = false;
        self.late_at = None;
        self.share = None;
        self.is_short = granted < wanted;
        if granted > 0 {
            self.tokens.push_back((asked_at + LAPSE_TIME, granted));
        }
        if self.is_short {
            self.usual_grant += (f64::from(granted) - self.usual_grant) / 4.0;
            let spread = RANDOM_GAP.mul_f64(random.clamp(0.0, 1.0));
            let free = now + next_in.min(FAR) + spread;
            self.next_ask = self.next_ask.max(Some(free));
        } else {
            self.usual_grant = self.usual_grant.max(f64::from(granted));
        }
    }

    /// Ends a request that has failed.
    pub(super) fn failed(&mut self, now: Instant) {
        self.is_pending = false;
        self.late_at = None;
        self.is_short = false;
        self.next_ask = Some(now + RETRY_GAP);
        self.asked_at = self.next_ask; // nor is one early
    }

    /// Returns the number of tokens that can still be used.
    fn left(&self, now: Instant) -> u32 {
        let valid = self.tokens.iter().filter(|(lapses_at, _)| *lapses_at > now);
        valid.map(|(_, count)| count).sum()
    }
}

impl Bucket for Leases {
    /// Returns the moment from which there are no tokens left, and no request.
    fn idle_at(&self) -> Option<Instant> {
        Some(self.last_call? + 2 * LAPSE_TIME)
    }
}

/// A time that is as good as for ever, and far from overflowing an `Instant`.
const FAR: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// Returns the largest number of tokens that are leased at once: those of a lease's time, or half of
/// a burst that is larger than usual, so that a few requests can use it.
fn most_leased(rate: &Rate) -> u32 {
    ahead(rate).max(rate.most_at_once() / 2)
}

/// Returns the number of tokens that are given out ahead of their time.
pub(super) fn ahead(rate: &Rate) -> u32 {
    rate.calls_in(LEASE_TIME).max(1)
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
