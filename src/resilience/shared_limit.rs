//! A rate limit whose calls are counted in a store that several processes share.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::keyed::{Bucket, KeyedTable};
use super::lease::{LATE_AFTER, Leases, RETRY_GAP, Taken, ahead};
use super::peers::{CountPeers, Peers};
use super::rate::Rate;
use super::token_source::{LeaseRequest, LeaseTerms, TokenSource};
use super::turns::Turns;
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::log_relay;
use crate::base::thread::NamedThread;
use crate::error::{Error, ErrorKind, Result};

/// The time for which dropping waits for the thread, which may be waiting for the store.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The most keys for which tokens are leased in one round trip.
const MOST_REQUESTS: usize = 100;

/// Requests that are due within this time go along with one that is due now.
const COALESCE_TIME: Duration = Duration::from_millis(2);

/// The interval at which the number of processes is counted again.
const PEERS_INTERVAL: Duration = Duration::from_secs(5);

/// The most keys of a limit.
pub(super) const MOST_KEYS: usize = 10_000;

/// A rate limit that several processes share, as one of them sees it.
///
/// A thread, `coney-limit-NAME`, leases tokens ahead. It starts with the first call, and sleeps while
/// there are none. No lock is held while it waits for the store.
pub(crate) struct SharedLimit {
    shared: Arc<Shared>,
    thread: Mutex<Option<NamedThread>>,
}

struct Shared {
    name: String,
    source: Arc<dyn TokenSource>,
    terms: LeaseTerms,
    state: Mutex<State>,
    /// Wakes the thread.
    work: Condvar,
    /// Wakes the callers that wait for an answer.
    answers: Condvar,
    peers: Peers,
}

struct State {
    keys: KeyedTable<KeyState>,
    /// The keys that may need tokens.
    active: Vec<Arc<str>>,
    /// The moment until which the thread sleeps; `None` while it is awake.
    sleeps_until: Option<Instant>,
    /// True after a request that has failed, until one is answered.
    is_silent: bool,
    /// The moment of the next attempt meanwhile.
    next_attempt: Instant,
    started: bool,
    stopped: bool,
}

/// The state of one key.
struct KeyState {
    leases: Leases,
    turns: Turns,
    /// True if the key is among the active ones.
    is_active: bool,
}

impl Bucket for KeyState {
    fn idle_at(&self) -> Option<Instant> {
        self.leases.idle_at()
    }
}

impl SharedLimit {
    /// Creates the limit. Starts nothing, and asks nothing.
    pub(super) fn new(
        name: &str,
        rate: Rate,
        source: Arc<dyn TokenSource>,
        set_peers: Option<u32>,
    ) -> Self {
        let most_free = rate.most_at_once().saturating_add(ahead(&rate));
        let state = State {
            keys: KeyedTable::new(MOST_KEYS),
            active: Vec::new(),
            sleeps_until: None,
            is_silent: false,
            next_attempt: Instant::now(),
            started: false,
            stopped: false,
        };
        Self {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                source,
                terms: LeaseTerms { rate, most_free },
                state: Mutex::new(state),
                work: Condvar::new(),
                answers: Condvar::new(),
                peers: Peers::new(set_peers),
            }),
            thread: Mutex::new(None),
        }
    }

    /// Sets the way to count the processes, unless their number is set, for as long as `count` is
    /// kept. The thread counts them every five seconds, while there are calls and the store answers.
    pub(crate) fn count_peers_by(&self, count: &CountPeers) {
        self.shared.peers.count_by(count);
    }

    /// Takes a token for a call; `is_again` if it has looked for one before. Waits for an answer of the store only if one is on its way that may
    /// bring tokens: at most until `until`, and a tenth of a second in all.
    ///
    /// # Errors
    ///
    /// The time after which to look again.
    pub(crate) fn take(
        &self,
        key: Option<&str>,
        until: Instant,
        mut is_again: bool,
    ) -> Result<(), Duration> {
        let key = table_key(key);
        let shared = &*self.shared;
        let mut state = shared.state.lock();
        self.start(&mut state);
        let first = Instant::now();
        let mut now = first;
        loop {
            let taken = shared.take(&mut state, &key, now, is_again);
            match taken {
                Taken::Token => return Ok(()),
                Taken::NotBefore(at) => return Err(at.saturating_duration_since(now)),
                Taken::Awaited(at) => {
                    let end = at.min(until).min(first + LATE_AFTER);
                    if end <= now {
                        let left = at.saturating_duration_since(now);
                        return Err(left.max(Duration::from_millis(1)));
                    }
                    shared.answers.wait_until(&mut state, end);
                    (now, is_again) = (Instant::now(), true);
                }
            }
        }
    }

    /// Returns the time after which a request comes back that is put off, at most `longest`.
    pub(super) fn put_off(
        &self,
        key: Option<&str>,
        now: Instant,
        wait: Duration,
        longest: Duration,
    ) -> Duration {
        let shared = &*self.shared;
        // Each of the processes puts off requests on its own.
        let interval = shared
            .terms
            .rate
            .interval()
            .saturating_mul(shared.peers.get());
        let mut state = shared.state.lock();
        let turns = &mut shared.key_state(&mut state, &table_key(key), now).turns;
        turns.take(now, wait, interval, longest)
    }

    /// Starts the thread with the first call.
    fn start(&self, state: &mut State) {
        if state.started {
            return;
        }
        state.started = true;
        let running = Arc::clone(&self.shared);
        let name = format!("coney-limit-{}", self.shared.name);
        match NamedThread::spawn(name, move || running.run()) {
            Ok(thread) => *self.thread.lock() = Some(thread),
            Err(error) => {
                state.is_silent = true;
                self.shared
                    .log_silence(&format!("cannot start the thread that asks it: {error}"));
            }
        }
    }
}

impl Shared {
    fn key_state<'a>(&self, state: &'a mut State, key: &str, now: Instant) -> &'a mut KeyState {
        state.keys.entry(key, now, || KeyState {
            leases: Leases::new(self.terms.rate),
            turns: Turns::default(),
            is_active: false,
        })
    }

    fn take(&self, state: &mut State, key: &str, now: Instant, is_again: bool) -> Taken {
        let (is_silent, next_attempt) = (state.is_silent, state.next_attempt);
        let sleeps_until = state.sleeps_until;
        let KeyState {
            leases, is_active, ..
        } = self.key_state(state, key, now);
        let taken = match is_silent || leases.is_late(now) {
            true => leases.take_of_share(now, self.peers.get()),
            false => leases.take(now, is_again),
        };
        let Some(due) = leases.next_request(now) else {
            return taken;
        };
        let is_new = !std::mem::replace(is_active, true);
        if is_new {
            state.active.push(key.into());
        }
        let due = if is_silent { next_attempt } else { due };
        if sleeps_until.is_some_and(|until| due < until) {
            state.sleeps_until = None;
            self.work.notify_one();
        }
        taken
    }

    /// Asks for tokens whenever some are needed.
    fn run(&self) {
        let mut next_count = Instant::now();
        let mut state = self.state.lock();
        while !state.stopped {
            let now = Instant::now();
            let wake_at = if state.is_silent && now < state.next_attempt {
                Some(state.next_attempt)
            } else {
                let (requests, wake_at) = due_requests(&mut state, now);
                if !requests.is_empty() {
                    state = self.ask(state, &requests);
                    let is_useful = !state.is_silent || !self.peers.is_known();
                    if now >= next_count && is_useful {
                        next_count = now + PEERS_INTERVAL;
                        drop(state);
                        self.peers.count();
                        state = self.state.lock();
                    }
                    continue;
                }
                wake_at
            };
            state.sleeps_until = Some(wake_at.unwrap_or_else(|| deadline::after(Duration::MAX)));
            match wake_at {
                Some(at) => drop(self.work.wait_until(&mut state, at)),
                None => self.work.wait(&mut state),
            }
            state.sleeps_until = None;
        }
    }

    /// Leases tokens, and wakes the callers that wait for them.
    fn ask<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        requests: &[(Arc<str>, u32)],
    ) -> MutexGuard<'a, State> {
        drop(state);
        let wanted = requests.iter().map(|(key, wanted)| LeaseRequest {
            key: key.strip_prefix(KEYED),
            wanted: *wanted,
        });
        let wanted: Vec<LeaseRequest<'_>> = wanted.collect();
        let leased = catch(|| self.source.lease(&self.name, &self.terms, &wanted));
        let leased = leased.unwrap_or_else(|panic| {
            let fault = format!("asking {} panicked: {panic}", self.source.describe());
            Err(Error::new(ErrorKind::Registry, fault))
        });
        let mut state = self.state.lock();
        let now = Instant::now();
        match leased {
            Ok(leases) => {
                for ((key, wanted), lease) in requests.iter().zip(leases) {
                    if let Some(of_key) = state.keys.get_mut(key) {
                        let granted = lease.granted.min(*wanted);
                        let random = fastrand::f64();
                        let of_key = &mut of_key.leases;
                        of_key.answered(now, *wanted, granted, lease.next_in, random);
                    }
                }
                if std::mem::replace(&mut state.is_silent, false) {
                    self.log_answer();
                }
            }
            Err(error) => {
                for (key, _) in requests {
                    if let Some(of_key) = state.keys.get_mut(key) {
                        of_key.leases.failed(now);
                    }
                }
                state.next_attempt = now + RETRY_GAP;
                if !std::mem::replace(&mut state.is_silent, true) {
                    self.log_silence(&error.to_string());
                }
            }
        }
        self.answers.notify_all();
        state
    }

    fn log_silence(&self, fault: &str) {
        // On another thread: a logger that panics must not end this one.
        log_relay::log(
            log::Level::Warn,
            "coney::limit",
            format_args!(
                "the rate limit {:?} is counted by this process alone, as one of {}: {fault}",
                self.name,
                self.peers.get()
            ),
        );
    }

    fn log_answer(&self) {
        log_relay::log(
            log::Level::Info,
            "coney::limit",
            format_args!(
                "the rate limit {:?} is shared again: {} answers",
                self.name,
                self.source.describe()
            ),
        );
    }
}

/// Begins the requests that are due, and returns them; or the moment at which the next one is.
fn due_requests(state: &mut State, now: Instant) -> (Vec<(Arc<str>, u32)>, Option<Instant>) {
    // One request shows whether the store answers again.
    let most = if state.is_silent { 1 } else { MOST_REQUESTS };
    let (mut requests, mut next) = (Vec::new(), None::<Instant>);
    let State { keys, active, .. } = state;
    active.retain(|key| {
        let Some(of_key) = keys.get_mut(key) else {
            return false;
        };
        let due = of_key.leases.next_request(now);
        of_key.is_active = due.is_some();
        let Some(due) = due else { return false };
        if due <= now && requests.len() < most {
            let wanted = of_key.leases.ask(now, fastrand::f64());
            requests.extend(wanted.map(|wanted| (Arc::clone(key), wanted)));
        } else {
            let due = due.max(now + COALESCE_TIME);
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        true
    });
    (requests, next)
}

impl Drop for SharedLimit {
    fn drop(&mut self) {
        self.shared.state.lock().stopped = true;
        self.shared.work.notify_all();
        if let Some(thread) = self.thread.get_mut().take() {
            let _ = thread.join_deadline(deadline::after(JOIN_TIMEOUT));
        }
    }
}

impl fmt::Debug for SharedLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedLimit")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}

/// The start of the keys of a limit with keys, in the table. The limit without has the empty one.
const KEYED: char = ':';

fn table_key(key: Option<&str>) -> Cow<'_, str> {
    key.map_or(Cow::Borrowed(""), |key| Cow::Owned(format!("{KEYED}{key}")))
}
