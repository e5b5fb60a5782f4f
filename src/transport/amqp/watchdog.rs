//! The watchdog of a connection, which ends operations at their timeouts.

use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
#[cfg(target_os = "linux")]
use socket2::SockRef;

use super::observed::Observed;
use crate::base::deadline;

/// The interval at which an operation is checked again while the broker is blocked.
const BLOCKED_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A watchdog that ends operations to which the broker does not answer: amiquip's calls have
/// no timeout, but shutting the socket down ends whatever is blocked on it within milliseconds.
///
/// One thread per connection. It sleeps until an operation is armed, and while
/// operations begin and end it wakes once per limit, not once per operation.
pub(super) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    kill_switch: Option<TcpStream>,
    observed: Option<Arc<Observed>>,
    /// The time at which to shut the socket down, while an operation runs.
    limit: Option<Instant>,
    /// The time until which the thread sleeps; `None` means until woken.
    asleep_until: Option<Instant>,
    fired: bool,
    stop: bool,
    /// The socket's user timeout before [`Watchdog::suspend_user_timeout`].
    user_timeout: Option<Duration>,
}

impl Watchdog {
    pub(super) fn start(number: u64) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new()
            .name(format!("coney-watch-{number}"))
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run()
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Takes over a new connection and guards its first operation.
    pub(super) fn arm_connection(
        &self,
        kill_switch: TcpStream,
        observed: Arc<Observed>,
        limit: Instant,
    ) -> Armed<'_> {
        {
            let mut state = self.shared.state.lock();
            state.kill_switch = Some(kill_switch);
            state.observed = Some(observed);
            state.fired = false;
        }
        self.arm_until(limit)
    }

    /// Guards an operation until the returned value is dropped: after `limit` the socket is shut
    /// down.
    pub(super) fn arm(&self, limit: Duration) -> Armed<'_> {
        self.arm_until(deadline::after(limit))
    }

    /// Suspends or restores TCP's user timeout. For the duration of an alarm the broker leaves
    /// what was sent unread, which TCP must not take for a dead peer. Heartbeats still arrive.
    pub(super) fn suspend_user_timeout(&self, suspend: bool) {
        let mut state = self.shared.state.lock();
        let Some(socket) = &state.kill_switch else {
            return;
        };
        #[cfg(target_os = "linux")]
        {
            let socket = SockRef::from(socket);
            let before = socket.tcp_user_timeout().ok().flatten();
            let timeout = if suspend { None } else { state.user_timeout };
            let _ = socket.set_tcp_user_timeout(timeout);
            if suspend {
                state.user_timeout = before;
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (socket, suspend, &mut state.user_timeout);
    }

    /// Shuts the socket down now.
    pub(super) fn kill(&self) {
        self.shared.state.lock().shut_down();
    }

    /// Returns a function that shuts the socket down from another thread, as
    /// [`kill`](Watchdog::kill) does.
    pub(super) fn killer(&self) -> impl Fn() + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.state.lock().shut_down()
    }

    /// Returns true if the present connection was shut down by the watchdog.
    pub(super) fn fired(&self) -> bool {
        self.shared.state.lock().fired
    }

    fn arm_until(&self, limit: Instant) -> Armed<'_> {
        let outer = self.shared.set_limit(Some(limit));
        Armed {
            watchdog: self,
            outer,
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The guard of an operation, until dropped. A nested operation has its own limit; after it
/// the limit of the outer one applies again.
pub(super) struct Armed<'a> {
    watchdog: &'a Watchdog,
    outer: Option<Instant>,
}

impl Armed<'_> {
    pub(super) fn fired(&self) -> bool {
        self.watchdog.fired()
    }
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        self.watchdog.shared.set_limit(self.outer);
    }
}

impl Shared {
    /// Sets the limit, and wakes the thread if it would sleep past it. Returns
    /// the previous limit.
    fn set_limit(&self, limit: Option<Instant>) -> Option<Instant> {
        let mut state = self.state.lock();
        if let Some(limit) = limit
            && state.asleep_until.is_none_or(|until| limit < until)
        {
            self.wake.notify_one();
        }
        std::mem::replace(&mut state.limit, limit)
    }

    fn run(&self) {
        let mut state = self.state.lock();
        while !state.stop {
            state.asleep_until = state.limit;
            match state.limit {
                None => self.wake.wait(&mut state),
                // The broker is slow because it is short of memory or disk, as it has
                // reported; meanwhile heartbeats show whether it is alive.
                Some(limit) if limit <= Instant::now() && state.is_blocked() => {
                    state.limit = Some(Instant::now() + BLOCKED_CHECK_INTERVAL);
                }
                Some(limit) if limit <= Instant::now() => state.shut_down(),
                Some(limit) => {
                    // Operations that end and begin meanwhile move the limit
                    // only further away, so this thread need not be woken.
                    self.wake.wait_until(&mut state, limit);
                }
            }
        }
    }
}

impl State {
    fn is_blocked(&self) -> bool {
        let observed = self.observed.as_ref();
        observed.is_some_and(|observed| observed.is_blocked())
    }

    fn shut_down(&mut self) {
        self.limit = None;
        self.fired = true;
        if let Some(socket) = &self.kill_switch {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    #[test]
    fn ends_a_blocked_read_and_ignores_finished_operations() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let watchdog = Watchdog::start(0).unwrap();
        let soon = Instant::now() + Duration::from_millis(20);
        let observed = Arc::new(Observed::default());
        let kill_switch = socket.try_clone().unwrap();
        drop(watchdog.arm_connection(kill_switch, Arc::clone(&observed), soon));
        thread::sleep(Duration::from_millis(60));
        assert!(!watchdog.fired(), "a finished operation is not guarded");

        let armed = watchdog.arm(Duration::from_millis(20));
        drop(watchdog.arm(Duration::from_secs(60)));
        assert_eq!(socket.read(&mut [0]).unwrap(), 0, "guarded again");
        assert!(armed.fired());
        drop(armed);

        observed.record_blocked(true);
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let soon = Instant::now() + Duration::from_millis(20);
        let armed = watchdog.arm_connection(socket, observed, soon);
        thread::sleep(Duration::from_millis(60));
        assert!(!armed.fired(), "a blocked broker has not timed out");
    }
}
