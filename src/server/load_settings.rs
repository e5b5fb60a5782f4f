//! The settings of workers and overload.

use std::time::Duration;

use super::ServiceServerBuilder;
use crate::consumer::{BulkheadSetup, Scaling, Shed, WorkerCount};
use crate::error::{Error, ErrorKind, Result};
use crate::topology;

impl ServiceServerBuilder {
    /// Sets the number of worker threads that run handlers: a number, or a range within which it
    /// follows the load as [`scaling`](ServiceServerBuilder::scaling) says. Handlers that call
    /// their own service need more than one; in a range, each that waits for such a call has
    /// another worker in its place, up to the highest number. Defaults to 10.
    ///
    /// ```
    /// use coney::{Broker, ServiceServer};
    ///
    /// let server = ServiceServer::builder(&Broker::memory(), "math")
    ///     .respond("double", |n: u64| n * 2)
    ///     .workers(2..=32)
    ///     .start()?;
    /// assert_eq!(server.load().workers, 2);
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn workers(mut self, workers: impl Into<WorkerCount>) -> Self {
        self.options.load.workers = workers.into();
        self
    }

    /// Sets how the number of workers follows the load, if it is a
    /// [range](ServiceServerBuilder::workers). Defaults to [`Scaling::new`].
    pub fn scaling(mut self, scaling: Scaling) -> Self {
        self.options.load.scaling = scaling;
        self
    }

    /// Sets the number of unacknowledged requests that the broker sends ahead, from each queue.
    /// Fewer than workers leaves workers idle; more wait in this process instead of going to
    /// another server. Defaults to the number of workers, to at least 10 if that is fixed, and to
    /// twice the number of workers with [`shed`](ServiceServerBuilder::shed). With a range of
    /// workers it follows their number upwards even if it is set, and is one higher for the
    /// instance's own queue.
    pub fn prefetch(mut self, prefetch: u16) -> Self {
        self.options.load.prefetch = Some(prefetch);
        self
    }

    /// Sets load shedding: while requests would wait for too long, calls are answered as
    /// [`ErrorKind::Busy`](crate::ErrorKind::Busy) at once. Commands are never refused. Defaults to
    /// none. A thread, `coney-load-SERVICE`, counts the messages that wait, only while all workers
    /// are busy.
    ///
    /// A call whose caller has less time left than its action usually takes is answered as expired,
    /// and its handler does not run; so it is with a range of workers, or a bound of an action.
    ///
    /// ```
    /// use coney::server::Shed;
    /// use coney::{Broker, ServiceServer};
    ///
    /// let server = ServiceServer::builder(&Broker::memory(), "math")
    ///     .respond("double", |n: u64| n * 2)
    ///     .shed(Shed::new())
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn shed(mut self, shed: Shed) -> Self {
        self.options.load.shed = Some(shed);
        self
    }

    /// Sets the number of requests of one action that this server runs at the same time, so that
    /// the others find free workers. Defaults to no bound of its own for any action.
    ///
    /// A few more requests wait in this process, fewer than half of the prefetch, which is larger by
    /// as many unless it is set: none if it is set to 2 or less. Calls beyond
    /// those are answered as [`ErrorKind::Busy`](crate::ErrorKind::Busy), with the usual time of the
    /// action as the time to wait. Commands beyond those are moved to a queue of their own,
    /// `service.NAME.class.ACTION`, from which servers with the bound take them as they have
    /// places; that uses up no attempt. A command that has waited there for 5 minutes goes through
    /// the service's queue again, so none is left behind when the bound is removed. Items of a
    /// batch wait for their places.
    ///
    /// ```
    /// use coney::{Broker, ServiceServer};
    ///
    /// let server = ServiceServer::builder(&Broker::memory(), "shop")
    ///     .respond("price", |article: u64| article * 100)
    ///     .respond("report", |year: u32| format!("sales of {year}"))
    ///     .at_most("report", 2)
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn at_most(mut self, action: &str, requests: usize) -> Self {
        self.bounds.retain(|(bounded, _)| bounded != action);
        self.bounds.push((action.to_owned(), requests));
        self
    }

    /// Sets the time after which a handler is overdue. It is logged once as a warning, with the name
    /// of its thread; the server's [`state`](crate::ServiceServer::state) shows it until it returns;
    /// and its worker is replaced by another, since a thread cannot be stopped, as long as no more
    /// are replaced than there may be workers. The prefetch grows by one for each that is replaced.
    /// Defaults to none.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.options.load.handler_timeout = Some(timeout);
        self
    }

    /// Returns the settings of the actions with bounds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for a bound of zero, or of an action without a handler.
    pub(super) fn bulkheads(&self) -> Result<Vec<BulkheadSetup>> {
        let setup = |(action, limit): &(String, usize)| {
            let fault = if *limit == 0 {
                "nothing could ever run: set it to at least 1"
            } else if !self.handlers.contains_key(action) {
                "there is no handler for it"
            } else {
                return Ok(BulkheadSetup {
                    action: action.clone(),
                    limit: u16::try_from(*limit).unwrap_or(u16::MAX),
                    queue: topology::class_queue(&self.service, action),
                });
            };
            let service = &self.service;
            let text = format!("{service}: at_most({action:?}, {limit}): {fault}");
            Err(Error::new(ErrorKind::InvalidConfig, text))
        };
        self.bounds.iter().map(setup).collect()
    }
}
