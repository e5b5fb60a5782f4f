//! The renewal of leases on requests whose handlers run for long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::ReplyStore;
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::log_relay;
use crate::base::thread::NamedThread;

/// The time for which dropping waits for the thread, which may be waiting for the store.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The shortest interval between two renewals: a shorter one would keep the store busy with
/// renewals alone.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// The claims of requests in progress, and the thread that renews each every third of its lease.
pub(super) struct Leases {
    shared: Arc<Shared>,
    thread: Option<NamedThread>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    store: Arc<dyn ReplyStore>,
    scope: String,
    lease: Duration,
}

#[derive(Default)]
struct State {
    /// The key and the time of the next renewal, by owner.
    claims: BTreeMap<u64, (Arc<str>, Instant)>,
    stopped: bool,
}

impl Leases {
    /// Starts the thread. `scope` names the server or subscription in logs.
    pub(super) fn start(
        scope: &str,
        store: Arc<dyn ReplyStore>,
        lease: Duration,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            store,
            scope: scope.to_owned(),
            lease,
        });
        let renewing = Arc::clone(&shared);
        let thread = NamedThread::spawn(format!("coney-lease-{scope}"), move || renewing.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Renews this claim regularly from now on.
    pub(super) fn hold(&self, owner: u64, key: &str) {
        let mut state = self.shared.state.lock();
        let next = Instant::now() + self.shared.interval();
        let is_first = state.claims.is_empty();
        state.claims.insert(owner, (key.into(), next));
        if is_first {
            self.shared.changed.notify_one();
        }
    }

    /// Stops renewing the claim.
    pub(super) fn release(&self, owner: u64) {
        self.shared.state.lock().claims.remove(&owner);
    }
}

impl Shared {
    fn interval(&self) -> Duration {
        (self.lease / 3).max(MIN_INTERVAL)
    }

    fn run(&self) {
        let mut state = self.state.lock();
        while !state.stopped {
            // All leases are equally long, so the oldest renewal is due first.
            let next = state.claims.iter().min_by_key(|(_, (_, at))| *at);
            let Some((&owner, (key, at))) = next else {
                self.changed.wait(&mut state);
                continue;
            };
            let (key, at) = (Arc::clone(key), *at);
            if at > Instant::now() {
                self.changed.wait_until(&mut state, at);
                continue;
            }
            drop(state);
            // The store and the logger are user code.
            let is_held = catch(|| self.renew(&key, owner)).unwrap_or_else(|_| {
                log_relay::log(
                    log::Level::Error,
                    "coney::worker",
                    format_args!(
                        "{}: renewing the lease of {key:?} panicked; renewals go on",
                        self.scope
                    ),
                );
                true
            });
            state = self.state.lock();
            match state.claims.get_mut(&owner) {
                Some((_, at)) if is_held => *at = Instant::now() + self.interval(),
                _ => drop(state.claims.remove(&owner)),
            }
        }
    }

    /// Renews one claim; returns false if it has passed to another owner.
    fn renew(&self, key: &str, owner: u64) -> bool {
        let scope = &self.scope;
        match self.store.renew(key, owner, self.lease) {
            Ok(true) => true,
            Ok(false) => {
                log::warn!(
                    target: "coney::worker",
                    "{scope}: the lease of the request {key:?} has ended while its handler runs; \
                     another worker may run it too"
                );
                false
            }
            Err(error) => {
                log::warn!(
                    target: "coney::worker", "{scope}: cannot renew the lease of {key:?}: {error}"
                );
                true
            }
        }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.shared.state.lock().stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join_deadline(deadline::after(JOIN_TIMEOUT));
        }
    }
}
