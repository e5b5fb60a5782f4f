//! Commands: one way, confirmed by the broker.

use serde::Serialize;

use super::call::PreparedCall;
use super::decode::CallTarget;
use super::options::Kind;
use super::{CallOptions, PendingConfirm, SendTarget, ServiceClient};
use crate::base::deadline;
use crate::error::{Error, ErrorKind, Result};

impl ServiceClient {
    /// Sends a command: a request whose sender wants no reply but certainty that
    /// it is not lost. Blocks until the broker has confirmed it, that is, has put
    /// it on disk in the service's queue, at most the client's timeout.
    ///
    /// The service carries it out at least once, however late; where that fails
    /// it is tried again, and kept among the [`DeadLetters`](crate::DeadLetters) in
    /// the end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRoute`](crate::ErrorKind::NoRoute) if the service has no queue,
    /// [`ErrorKind::Broker`](crate::ErrorKind::Broker) if the broker refuses the message,
    /// [`ErrorKind::ConnectionLost`](crate::ErrorKind::ConnectionLost) or
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) in
    /// [`Phase::Confirm`](crate::Phase::Confirm) if it is not known whether it has
    /// it; and as [`send_async`](ServiceClient::send_async).
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
    pub fn send<Req>(&self, service: &str, action: &str, request: &Req) -> Result<()>
    where
        Req: Serialize + ?Sized,
    {
        self.send_with(service, action, request, &CallOptions::new())
    }

    /// [`send`](ServiceClient::send) with options.
    ///
    /// # Errors
    ///
    /// As [`send`](ServiceClient::send).
    pub fn send_with<Req>(
        &self,
        service: &str,
        action: &str,
        request: &Req,
        options: &CallOptions,
    ) -> Result<()>
    where
        Req: Serialize + ?Sized,
    {
        self.send_async_with(service, action, request, options)?
            .wait()
    }

    /// Sends many commands to one action, all under way at once, and blocks until each is
    /// confirmed, at most the client's timeout for all of them. Says what became of each, in
    /// order: `Ok` is on disk, not carried out. Each is a message of its own, as for
    /// [`send`](ServiceClient::send), and kept among the dead letters if nobody can carry it
    /// out.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, ServiceServer};
    /// # let broker = Broker::memory();
    /// # let server = ServiceServer::builder(&broker, "order-service")
    /// #     .handler("create_order", move |_: u64| Ok::<_, String>(())).start()?;
    /// let client = ServiceClient::new(&broker, "shop")?;
    /// for outcome in client.send_batch("order-service", "create_order", &[4711, 4712]) {
    ///     outcome?;
    /// }
    /// # Ok::<(), coney::Error>(())
    /// ```
    #[must_use = "a command of which this says that it failed is lost"]
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
    /// be under way. The [`PendingConfirm`] tells what became of this one.
    ///
    /// Blocks only while too many wait to be sent, or 16,384 of this connection
    /// to be confirmed, at most the timeout, which runs from now. Commands of one
    /// thread are sent in order.
    ///
    /// # Errors
    ///
    /// What can go wrong before the command is under way: encoding, names, the
    /// timeout, a closed broker. It was not sent then.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, ServiceServer};
    /// # let broker = Broker::memory();
    /// # let server = ServiceServer::builder(&broker, "order-service")
    /// #     .handler("create_order", move |_: u64| Ok::<_, String>(())).start()?;
    /// let client = ServiceClient::new(&broker, "shop")?;
    /// let pending = (0..100)
    ///     .map(|order| client.send_async("order-service", "create_order", &order))
    ///     .collect::<coney::Result<Vec<_>>>()?;
    /// for send in pending {
    ///     send.wait()?;
    /// }
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn send_async<Req>(
        &self,
        service: &str,
        action: &str,
        request: &Req,
    ) -> Result<PendingConfirm>
    where
        Req: Serialize + ?Sized,
    {
        self.send_async_with(service, action, request, &CallOptions::new())
    }

    /// [`send_async`](ServiceClient::send_async) with options.
    ///
    /// # Errors
    ///
    /// As [`send_async`](ServiceClient::send_async).
    pub fn send_async_with<Req>(
        &self,
        service: &str,
        action: &str,
        request: &Req,
        options: &CallOptions,
    ) -> Result<PendingConfirm>
    where
        Req: Serialize + ?Sized,
    {
        let target = CallTarget { service, action };
        if let Some(cause) = self.inner.router.closed_cause() {
            return Err(target.closed(&cause));
        }
        if options.instance.is_some() {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "{service}.{action} is a command, which is for the service and would be lost \
                     with one instance"
                ),
            ));
        }
        target.check()?;
        let limit = self.deadline_for(options);
        let request = self.request_with_room(target, request, options, Kind::Command, limit)?;
        let broker = &self.inner.broker;
        let bytes = request.publication.body.len();
        let confirmation = broker
            .publish_confirmed(request.publication, limit.deadline)
            .map_err(|error| target.not_sent(error))?;
        let what = SendTarget::Command {
            service: service.to_owned(),
            action: action.to_owned(),
        };
        let PreparedCall { send_state, .. } = request;
        Ok(PendingConfirm::new(
            broker,
            what,
            confirmation,
            send_state,
            limit.timeout,
            bytes,
        ))
    }
}
