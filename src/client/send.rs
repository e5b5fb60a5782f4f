//! Commands: requests without a reply, confirmed by the broker.

use serde::Serialize;

use super::call::{PreparedCall, RequestSpec};
use super::core::ClientCore;
use super::decode::CallTarget;
use super::delayed::check_delay;
use super::options::RequestKind;
use super::pending_confirm::{PendingConfirm, SendTarget};
use super::{SendOptions, ServiceClient};
use crate::base::deadline;
use crate::error::Result;

impl ServiceClient {
    /// Sends a command: a one-way request that must not be lost. Blocks until the broker has
    /// confirmed it, that is, has it on disk in the service's queue, at most the client's
    /// timeout.
    ///
    /// The service carries it out at least once, however late. If its handler fails, it is
    /// tried again, and after the last attempt it is kept among the
    /// [`DeadLetters`](crate::DeadLetters).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRoute`](crate::ErrorKind::NoRoute) if the service has no queue,
    /// [`ErrorKind::Broker`](crate::ErrorKind::Broker) if the broker refuses the message,
    /// [`ErrorKind::ConnectionLost`](crate::ErrorKind::ConnectionLost) or
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) in
    /// [`Phase::Confirm`](crate::Phase::Confirm) if it is unknown whether the broker has
    /// it; and those of [`send_async`](ServiceClient::send_async).
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, ServiceServer};
    /// # let broker = Broker::memory();
    /// # let (done, orders) = std::sync::mpsc::channel();
    /// # let server = ServiceServer::builder(&broker, "order-service")
    /// #     .handler("create_order", move |n: u64| done.send(n)).start()?;
    /// let client = ServiceClient::new(&broker, "shop")?;
    /// client.send("order-service", "create_order", &4711)?;
    /// # assert_eq!(orders.recv().unwrap(), 4711);
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn send(
        &self,
        service: &str,
        action: &str,
        request: &(impl Serialize + ?Sized),
    ) -> Result<()> {
        self.send_with(service, action, request, &SendOptions::new())
    }

    /// Sends a command with options, as [`send`](ServiceClient::send).
    ///
    /// # Errors
    ///
    /// Fails as [`send`](ServiceClient::send) does.
    pub fn send_with(
        &self,
        service: &str,
        action: &str,
        request: &(impl Serialize + ?Sized),
        options: &SendOptions,
    ) -> Result<()> {
        self.send_async_with(service, action, request, options)?
            .wait()
    }

    /// Sends many commands to one action, all under way at once, and blocks until each is
    /// confirmed, at most the client's timeout for all of them. Returns the outcome of each, in
    /// order: `Ok` means on disk, not carried out. Each is a message of its own, as for
    /// [`send`](ServiceClient::send).
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, ServiceServer};
    /// # let broker = Broker::memory();
    /// # let server = ServiceServer::builder(&broker, "order-service")
    /// #     .respond("create_order", |_: u64| ()).start()?;
    /// let client = ServiceClient::new(&broker, "shop")?;
    /// for outcome in client.send_batch("order-service", "create_order", &[4711, 4712]) {
    ///     outcome?;
    /// }
    /// # Ok::<(), coney::Error>(())
    /// ```
    #[must_use = "a command whose outcome is an error is lost"]
    pub fn send_batch<'r, Req: Serialize + 'r>(
        &self,
        service: &str,
        action: &str,
        requests: impl IntoIterator<Item = &'r Req>,
    ) -> Vec<Result<()>> {
        let hurried = self.with_deadline(deadline::after(self.inner.timeout));
        let requests = requests.into_iter();
        let pending: Vec<_> = requests
            .map(|request| hurried.send_async(service, action, request))
            .collect();
        let outcomes = pending.into_iter();
        outcomes.map(|pending| pending?.wait()).collect()
    }

    /// Sends a command and returns before it is confirmed, so that thousands can
    /// be under way. Wait for the confirm through the [`PendingConfirm`].
    ///
    /// Blocks only while the outgoing queue is full, 16,384 messages of this connection are
    /// unconfirmed, or the service has too large a
    /// [backlog](crate::client::ServiceClientBuilder::max_backlog), and before the first command with
    /// a [delay](SendOptions::after), at most the timeout, which runs from now. Commands of one
    /// thread are sent in order.
    ///
    /// # Errors
    ///
    /// Fails if the command was not sent: encoding, names, the timeout, the backlog, a closed
    /// broker.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, ServiceServer};
    /// # let broker = Broker::memory();
    /// # let server = ServiceServer::builder(&broker, "order-service")
    /// #     .respond("create_order", |_: u64| ()).start()?;
    /// let client = ServiceClient::new(&broker, "shop")?;
    /// let pending = (0..100)
    ///     .map(|order| client.send_async("order-service", "create_order", &order))
    ///     .collect::<coney::Result<Vec<_>>>()?;
    /// for confirm in pending {
    ///     confirm.wait()?;
    /// }
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn send_async(
        &self,
        service: &str,
        action: &str,
        request: &(impl Serialize + ?Sized),
    ) -> Result<PendingConfirm> {
        self.send_async_with(service, action, request, &SendOptions::new())
    }

    /// Sends a command with options and returns before it is confirmed, as
    /// [`send_async`](ServiceClient::send_async).
    ///
    /// # Errors
    ///
    /// Fails as [`send_async`](ServiceClient::send_async) does.
    pub fn send_async_with(
        &self,
        service: &str,
        action: &str,
        request: &(impl Serialize + ?Sized),
        options: &SendOptions,
    ) -> Result<PendingConfirm> {
        let target = CallTarget { service, action };
        if let Some(cause) = self.inner.router.closed_cause() {
            return Err(target.closed(&cause));
        }
        target.check()?;
        let options = &options.request;
        let after = check_delay(target, options.after)?;
        let limit = self.deadline_for(options);
        let ClientCore {
            backlogs, broker, ..
        } = &*self.inner;
        let closed = || self.inner.router.closed_cause();
        backlogs.wait(target, broker, limit.deadline, closed)?;
        let spec = RequestSpec::only(target, options, RequestKind::Command, limit);
        let mut request = self.request_with_room(spec, request)?;
        if let Some(after) = after {
            self.delay(target, &mut request.publication, after, limit.deadline)?;
        }
        let bytes = request.publication.body.len();
        let confirmation = broker
            .publish_confirmed(request.publication, limit.deadline)
            .map_err(|error| target.not_sent(error))?;
        let sent_to = SendTarget::Command {
            service: service.to_owned(),
            action: action.to_owned(),
        };
        let PreparedCall { send_state, .. } = request;
        Ok(PendingConfirm::new(
            broker,
            sent_to,
            confirmation,
            send_state,
            limit.timeout,
            bytes,
        ))
    }
}
