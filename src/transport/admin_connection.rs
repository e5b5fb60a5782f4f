//! The connection of a broker for queries of queues.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::{ConnectionState, LinkHandle, LinkSpec, QueueDepth, Sink, Transport};
use crate::error::{Error, ErrorKind, Result};

/// The administration connection: a second connection for queries of queues, with an I/O thread of
/// its own, which waits for each query as the first connection's must not. It opens with the first
/// query and ends when it has not been used for a while; then the next query opens another. The
/// memory broker answers queries itself.
#[derive(Default)]
pub(super) struct AdminConnection(Mutex<Slot>);

#[derive(Default)]
struct Slot {
    connection: Option<Arc<dyn Transport>>,
    is_closed: bool,
}

/// A connection for one query.
struct Found {
    connection: Arc<dyn Transport>,
    /// True if this query has opened it.
    is_new: bool,
}

impl AdminConnection {
    /// Counts the messages that wait in a queue, and its consumers. Blocks at most until `deadline`.
    pub(super) fn queue_depth(
        &self,
        main: &dyn Transport,
        queue: &str,
        deadline: Instant,
    ) -> Result<QueueDepth> {
        self.run(main, |connection| connection.queue_depth(queue, deadline))
    }

    /// Opens a link. Blocks at most until `deadline`.
    pub(super) fn open(
        &self,
        main: &dyn Transport,
        spec: &LinkSpec,
        sink: &Arc<dyn Sink>,
        deadline: Instant,
    ) -> Result<Arc<dyn LinkHandle>> {
        self.run(main, |connection| {
            connection.open(spec.clone(), Arc::clone(sink), deadline)
        })
    }

    /// Closes the connection, for good. Blocks until its threads have ended, at most until
    /// `deadline`.
    pub(super) fn close(&self, deadline: Instant) -> Result<()> {
        let connection = {
            let mut slot = self.0.lock();
            slot.is_closed = true;
            slot.connection.take()
        };
        connection.map_or(Ok(()), |connection| connection.close(deadline))
    }

    /// Runs a query that changes nothing, once more if the connection has ended before it.
    fn run<T>(
        &self,
        main: &dyn Transport,
        query: impl Fn(&dyn Transport) -> Result<T>,
    ) -> Result<T> {
        let mut is_repeated = false;
        loop {
            let Some(found) = self.find(main)? else {
                return query(main);
            };
            let error = match query(&*found.connection) {
                Err(error) if error.kind() == ErrorKind::Closed => error,
                result => return result,
            };
            if self.0.lock().is_closed {
                return Err(error);
            }
            if found.is_new || is_repeated {
                return Err(found.ended(main.address(), error));
            }
            is_repeated = true;
        }
    }

    /// Returns the present connection, or starts one; `None` if `main` serves as well. Does not
    /// wait until it is connected.
    fn find(&self, main: &dyn Transport) -> Result<Option<Found>> {
        let mut slot = self.0.lock();
        if slot.is_closed {
            let fault = format!("the connection to {} has been closed", main.address());
            return Err(Error::new(ErrorKind::Closed, fault).with_nothing_ran(true));
        }
        if let Some(connection) = &slot.connection
            && !matches!(connection.state(), ConnectionState::Closed(_))
        {
            let connection = Arc::clone(connection);
            let is_new = false;
            return Ok(Some(Found { connection, is_new }));
        }
        let Some(connection) = main.administration()? else {
            return Ok(None);
        };
        let ended = slot.connection.replace(Arc::clone(&connection));
        drop(slot);
        // Its threads have ended or are about to.
        let _ = ended.map(|ended| ended.close(Instant::now()));
        let is_new = true;
        Ok(Some(Found { connection, is_new }))
    }
}

impl Found {
    /// Creates the error of a query whose connection has ended, or was not made.
    fn ended(&self, address: &str, error: Error) -> Error {
        let ConnectionState::Closed(cause) = self.connection.state() else {
            return error;
        };
        let (kind, fault) = match self.is_new {
            true => (ErrorKind::Connect, "cannot be made"),
            false => (ErrorKind::ConnectionLost, "was lost"),
        };
        let text = format!("the administration connection to {address} {fault}: {cause}");
        Error::new(kind, text)
    }
}
