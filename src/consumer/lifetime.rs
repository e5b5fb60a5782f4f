//! The end of a server or a subscriber, which other threads can wait for.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorKind, Result};

/// The end of a server or a subscriber, and its reason.
#[derive(Debug, Default)]
pub(crate) struct Lifetime {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// True once a shutdown has begun: connections that it closes are no fault.
    is_closing: bool,
    end: Option<End>,
}

#[derive(Clone, Debug)]
enum End {
    ShutDown,
    /// The broker connection was closed for good, for this reason.
    Disconnected(String),
}

impl Lifetime {
    /// Records that a shutdown begins.
    pub(crate) fn closing(&self) {
        self.state.lock().is_closing = true;
    }

    /// Returns true once a shutdown has begun.
    pub(crate) fn is_closing(&self) -> bool {
        self.state.lock().is_closing
    }

    /// Records that the shutdown is complete.
    pub(crate) fn shut_down(&self) {
        self.state.lock().end.get_or_insert(End::ShutDown);
        self.ended.notify_all();
    }

    /// Records that the broker connection was closed for good, unless the shutdown did it.
    pub(crate) fn disconnected(&self, cause: &str) {
        let mut state = self.state.lock();
        if !state.is_closing {
            state.end.get_or_insert(End::Disconnected(cause.to_owned()));
            self.ended.notify_all();
        }
    }

    /// Returns the reason why the broker connection was closed for good, if it was.
    pub(crate) fn disconnect_reason(&self) -> Option<String> {
        match &self.state.lock().end {
            Some(End::Disconnected(cause)) => Some(cause.clone()),
            Some(End::ShutDown) | None => None,
        }
    }

    /// Blocks until the end, at most until `deadline` if there is one; `None` means not yet.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if `owner` has lost its broker.
    pub(crate) fn wait(&self, owner: &str, deadline: Option<Instant>) -> Option<Result<()>> {
        let mut state = self.state.lock();
        while state.end.is_none() {
            match deadline {
                None => self.ended.wait(&mut state),
                Some(deadline) if self.ended.wait_until(&mut state, deadline).timed_out() => break,
                Some(_) => {}
            }
        }
        Some(match state.end.as_ref()? {
            End::ShutDown => Ok(()),
            End::Disconnected(cause) => Err(Error::new(
                ErrorKind::Closed,
                format!("{owner} has ended: its broker connection is closed for good: {cause}"),
            )),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn waiting_ends_with_the_first_end() {
        let lifetime = Lifetime::default();
        assert!(lifetime.wait("s", Some(Instant::now())).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lifetime.wait("s", None));
            lifetime.disconnected("gone");
            assert!(waiting.join().unwrap().unwrap().is_err());
        });
        lifetime.shut_down();
        assert_eq!(lifetime.disconnect_reason().as_deref(), Some("gone"));
        let soon = Instant::now() + Duration::from_secs(60);
        let error = lifetime.wait("math", Some(soon)).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
        assert!(error.to_string().starts_with("math has ended"), "{error}");
    }

    #[test]
    fn a_connection_that_the_shutdown_closes_is_no_fault() {
        let lifetime = Lifetime::default();
        lifetime.closing();
        lifetime.disconnected("closed by the shutdown");
        assert!(lifetime.wait("s", Some(Instant::now())).is_none());
        lifetime.shut_down();
        assert!(lifetime.wait("s", None).unwrap().is_ok());
        assert_eq!(lifetime.disconnect_reason(), None);
    }
}
