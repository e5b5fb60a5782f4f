//! Named threads that can be joined with a deadline, and the id of the current process.

use std::cell::Cell;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::error::{Error, ErrorKind};

/// The process that created a value. A forked child has a copy of its memory but none of its
/// threads: waiting for one there would block forever.
#[derive(Clone, Copy)]
pub(crate) struct OwnerProcess(u32);

impl OwnerProcess {
    pub(crate) fn current() -> Self {
        Self(std::process::id())
    }

    pub(crate) fn is_another(self) -> bool {
        process_id(Instant::now()) != self.0
    }

    /// Returns an error in a forked child, for a connection to `peer`. Takes no lock.
    pub(crate) fn check(self, peer: &str) -> Result<(), Error> {
        if !self.is_another() {
            return Ok(());
        }
        let fault = format!(
            "the connection to {peer} belongs to the process {}, from which this one was forked; \
             connect after the fork",
            self.0
        );
        Err(Error::new(ErrorKind::Misuse, fault).with_nothing_ran(true))
    }
}

/// The time for which a process id is cached. A fork takes longer than this: it copies the page
/// tables of all memory.
const PROCESS_ID_TTL: Duration = Duration::from_micros(10);

/// Returns the id of this process. The system call takes as long as making a message id, and each
/// call needs it several times, so it is not repeated within a time in which no fork fits.
pub(crate) fn process_id(now: Instant) -> u32 {
    thread_local! {
        static CACHED: Cell<Option<(Instant, u32)>> = const { Cell::new(None) };
    }
    if let Some((at, id)) = CACHED.get()
        && now.saturating_duration_since(at) < PROCESS_ID_TTL
    {
        return id;
    }
    let id = std::process::id();
    CACHED.set(Some((now, id)));
    id
}

pub(crate) struct NamedThread {
    owner: OwnerProcess,
    thread: JoinHandle<()>,
    /// Disconnects when the thread ends.
    ended: Receiver<()>,
}

impl NamedThread {
    /// Starts a thread of this name, which begins with `coney-`.
    pub(crate) fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (alive, ended) = bounded(0);
        let thread = thread::Builder::new().name(name).spawn(move || {
            let _alive: Sender<()> = alive;
            run();
        })?;
        Ok(Self {
            owner: OwnerProcess::current(),
            thread,
            ended,
        })
    }

    /// Returns a channel that disconnects when the thread ends; `None` on the thread itself, and in
    /// a forked child.
    pub(crate) fn end(&self) -> Option<Receiver<()>> {
        let is_own = self.thread.thread().id() == thread::current().id();
        (!is_own && !self.owner.is_another()).then(|| self.ended.clone())
    }

    /// Joins the thread; returns it if it has not ended by `deadline`. Returns `Ok` at once on the
    /// thread itself, and in a forked child.
    pub(crate) fn join_deadline(self, deadline: Instant) -> Result<(), Self> {
        if self.owner.is_another() {
            // Dropping it would detach the thread of the child that has this id now.
            std::mem::forget(self);
            return Ok(());
        }
        if self.thread.thread().id() == thread::current().id() {
            return Ok(());
        }
        if self.ended.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
            return Err(self);
        }
        let _ = self.thread.join();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_ends_at_the_deadline() {
        let (release, gate) = bounded::<()>(0);
        let wait = move || assert!(gate.recv().is_err());
        let running = NamedThread::spawn("coney-test".to_owned(), wait).unwrap();
        let Err(running) = running.join_deadline(Instant::now()) else {
            panic!("it still runs");
        };
        drop(release);
        assert!(
            running
                .join_deadline(Instant::now() + Duration::from_secs(60))
                .is_ok()
        );
    }
}
