//! The setter for back-pressure on commands.

use super::builder::ServiceClientBuilder;

impl ServiceClientBuilder {
    /// Sets the largest number of messages that may wait in the request queue of `service` while
    /// this client sends commands to it. At the bound, [`send`](crate::ServiceClient::send),
    /// [`send_async`](crate::ServiceClient::send_async) and
    /// [`send_batch`](crate::ServiceClient::send_batch) block until the service has taken some, at
    /// most until the command's deadline, and then fail with
    /// [`ErrorKind::Rejected`](crate::ErrorKind::Rejected) and
    /// [`Refusal::Backlog`](crate::resilience::Refusal::Backlog); nothing is sent. Calls are not affected:
    /// their own deadlines bound them. Defaults to no bound.
    ///
    /// So a program that produces work faster than it is done slows down, instead of filling the
    /// broker's disk. The bound is not exact: the
    /// [depth of the queue](crate::Broker::queue_depth) is asked for once a second while
    /// commands are sent, and more often, at most every 50 ms, when the client has used up the room
    /// that the last answer left. What other clients send in the meantime, and what is on its way,
    /// comes on top; commands that a server has moved to the queue of an action with a
    /// [bound](crate::server::ServiceServerBuilder::at_most) do not count. If the depth cannot be asked for, because the connection is lost for example,
    /// commands are sent as without the bound, and the log has a warning.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coney::resilience::Refusal;
    /// use coney::{Broker, SendOptions, ServiceClient, ServiceServer};
    ///
    /// let broker = Broker::memory();
    /// # drop(ServiceServer::builder(&broker, "mailer").respond("mail", |_: String| ()).start()?);
    /// let client = ServiceClient::builder(&broker, "shop")
    ///     .max_backlog("mailer", 2)
    ///     .build()?;
    /// client.send("mailer", "mail", "one")?;
    /// client.send("mailer", "mail", "two")?; // no server of the mailer runs
    /// let options = SendOptions::new().timeout(Duration::from_millis(100));
    /// let error = client.send_with("mailer", "mail", "three", &options).unwrap_err();
    /// assert_eq!(error.refused_by(), Some(Refusal::Backlog));
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn max_backlog(mut self, service: impl Into<String>, messages: usize) -> Self {
        self.backlogs.insert(service.into(), messages);
        self
    }
}
