//! A thread that can be waited for with a deadline.

use std::cell::Cell;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

/// The process in which something was made. A forked child has its memory, and none of its
/// threads: to wait for one there would be for ever.
#[derive(Clone, Copy)]
pub(crate) struct OwnerProcess(u32);

impl OwnerProcess {
    pub(crate) fn current() -> Self {
        Self(std::process::id())
    }

    pub(crate) fn is_another(self) -> bool {
        process_id(Instant::now()) != self.0
    }

    /// The process's number.
    pub(crate) fn id(self) -> u32 {
        self.0
    }
}

/// A fork takes longer than this: it copies the tables of all memory.
const SHORTER_THAN_A_FORK: Duration = Duration::from_micros(10);

/// The id of this process. Asking the system for it takes as long as making an id, and each
/// call needs it several times; so it is not asked for again within a time in which no fork
/// fits.
pub(crate) fn process_id(now: Instant) -> u32 {
    thread_local! {
        static ASKED: Cell<Option<(Instant, u32)>> = const { Cell::new(None) };
    }
    if let Some((at, id)) = ASKED.get()
        && now.saturating_duration_since(at) < SHORTER_THAN_A_FORK
    {
        return id;
    }
    let id = std::process::id();
    ASKED.set(Some((now, id)));
    id
}

pub(crate) struct NamedThread {
    home: OwnerProcess,
    thread: JoinHandle<()>,
    /// Disconnects when it ends.
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
            home: OwnerProcess::current(),
            thread,
            ended,
        })
    }

    /// Waits for it to end; hands it back if it has not by `deadline`. Does not
    /// wait for the thread it is called on.
    pub(crate) fn join_deadline(self, deadline: Instant) -> Result<(), Self> {
        if self.home.is_another() || self.thread.thread().id() == thread::current().id() {
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
    fn is_waited_for_no_longer_than_asked() {
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
