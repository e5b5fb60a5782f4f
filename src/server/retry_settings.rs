//! The settings of retries.

use std::time::Duration;

use super::ServiceServerBuilder;
use crate::error::{Error, ErrorKind, Result};

impl ServiceServerBuilder {
    /// Sets the delays before the second attempt at a failed command, the third, and so on;
    /// after the last attempt the command is dead-lettered.
    /// Defaults to 1 s, 5 s, 25 s and 125 s, that is, five attempts. An empty list means one
    /// attempt. A handler may set another delay for one attempt, by
    /// [`HandlerError::retry_after`](crate::HandlerError::retry_after).
    ///
    /// A command is a request without `reply_to`. It waits in a queue of the
    /// broker, `coney.delay.MILLISECONDS`, and not in a worker. All services share these queues;
    /// they are quorum queues with message TTL, which RabbitMQ has from 3.10 on. Up to a tenth of
    /// each delay is cut off at random. Calls are not retried: their callers get the error.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use coney::{Broker, ServiceServer};
    /// let server = ServiceServer::builder(&Broker::memory(), "mailer")
    ///     .handler("mail", |_: String| Err::<(), _>("no network"))
    ///     .retry_delays([Duration::from_secs(10), Duration::from_secs(600)])
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn retry_delays(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        self.options.retry_delays = delays.into_iter().collect();
        self
    }

    /// Sets the delays between the attempts at one action's commands, as
    /// [`retry_delays`](ServiceServerBuilder::retry_delays) does for all actions. Defaults to those.
    ///
    /// [`start`](ServiceServerBuilder::start) fails if the action has no handler. Different
    /// delays cost a queue each, and a server has at most 64 of them: let actions share some.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use coney::{Broker, ServiceServer};
    /// let server = ServiceServer::builder(&Broker::memory(), "mailer")
    ///     .handler("mail", |_: String| Err::<(), _>("no network"))
    ///     .handler("notify", |_: String| Err::<(), _>("no network"))
    ///     .retry_delays_of("mail", [60, 600, 3_600].map(Duration::from_secs))
    ///     .retry_delays_of("notify", [])
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn retry_delays_of(
        mut self,
        action: impl Into<String>,
        delays: impl IntoIterator<Item = Duration>,
    ) -> Self {
        let delays = delays.into_iter().collect();
        self.options.action_delays.insert(action.into(), delays);
        self
    }

    /// Sets the number of redeliveries of a request whose worker process died. One more, and
    /// the request is dead-lettered, and its caller gets the code `poison`. Defaults to 5.
    ///
    /// Only requests that had begun count. A redelivered request is moved to the queue
    /// `service.NAME.suspect`, from which each process handles one at a time. A request that
    /// this process has finished, and could not settle because its connection was lost, is
    /// settled when it is redelivered and not run again.
    pub fn redelivery_limit(mut self, redeliveries: u32) -> Self {
        self.options.redelivery_limit = redeliveries;
        self
    }

    /// Checks that each action with retry delays of its own has a handler.
    pub(super) fn check_actions(&self) -> Result<()> {
        let mut actions = self.options.action_delays.keys();
        match actions.find(|action| !self.handlers.contains_key(*action)) {
            None => Ok(()),
            Some(action) => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "{}: retry delays are set for the action {action:?}, which has no handler",
                    self.service
                ),
            )),
        }
    }
}
