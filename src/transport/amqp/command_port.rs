//! The way of commands to the I/O thread, and of their results back.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};

use super::command::{Command, CommandSender};
use crate::base::thread::OwnerProcess;
use crate::error::{Error, ErrorKind, Phase, Result};

/// The sending end of a connection's commands, with which a thread waits for their results.
#[derive(Clone)]
pub(super) struct CommandPort {
    pub(super) sender: CommandSender,
    pub(super) peer: Arc<str>,
    /// The process that made the connection. A forked child has none of the threads that
    /// serve the connection, and the socket is the parent's.
    pub(super) owner: OwnerProcess,
}

/// The name prefixes of the threads on which amiquip runs, and so the program's logger may.
const AMIQUIP_THREADS: [&str; 2] = ["amiquip-io", "coney-io-"];

impl CommandPort {
    /// Returns an error where an operation would wait for its own thread, or, in a forked
    /// child, for threads that do not exist there.
    pub(super) fn check_thread(&self) -> Result<()> {
        self.owner.check(&self.peer)?;
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        if AMIQUIP_THREADS.iter().any(|it| name.starts_with(it)) {
            let fault = format!(
                "a logger must not use the connection to {} from the thread {name}: it would wait \
                 for itself; set the log level of amiquip to info",
                self.peer
            );
            return Err(Error::new(ErrorKind::Misuse, fault).with_nothing_ran(true));
        }
        Ok(())
    }

    /// Sends a command; does not wait for it.
    pub(super) fn command(&self, command: Command) -> Result<()> {
        self.sender
            .commands
            .send(command)
            .map_err(|_| self.closed())
    }

    /// Sends a command and blocks until it is executed, at most until `deadline`.
    pub(super) fn execute(
        &self,
        what: &str,
        deadline: Instant,
        command: impl FnOnce(Sender<()>) -> Command,
    ) -> Result<()> {
        self.check_thread()?;
        let (done, is_done) = bounded(1);
        self.command(command(done))?;
        is_done
            .recv_deadline(deadline)
            .map_err(|error| self.no_answer(error.is_timeout(), what))
    }

    /// Sends a command and blocks until its result arrives, at most until `deadline`.
    pub(super) fn query<T>(
        &self,
        what: &str,
        deadline: Instant,
        command: impl FnOnce(Sender<Result<T>>) -> Command,
    ) -> Result<T> {
        self.check_thread()?;
        let (done, result) = bounded(1);
        self.command(command(done))?;
        match result.recv_deadline(deadline) {
            Ok(result) => result,
            Err(error) => Err(self.no_answer(error.is_timeout(), what)),
        }
    }

    pub(super) fn no_answer(&self, timed_out: bool, what: &str) -> Error {
        if timed_out {
            Error::timed_out(
                Phase::Broker,
                format!("{} did not {what} in time", self.peer),
            )
        } else {
            self.closed()
        }
    }

    pub(super) fn no_room(&self) -> Error {
        Error::timed_out(
            Phase::Send,
            format!(
                "timed out waiting for room among the messages to be sent to {}",
                self.peer
            ),
        )
    }

    pub(super) fn closed(&self) -> Error {
        Error::new(
            ErrorKind::Closed,
            format!("the connection to {} has been closed", self.peer),
        )
        .with_nothing_ran(true)
    }
}
