//! Asynchronous calls.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::decode::CallTarget;
use super::{CallOptions, PendingReply, ServiceClient};
use crate::error::Result;

impl ServiceClient {
    /// Sends the request and returns a handle, not a future: wait for the reply through
    /// the [`PendingReply`], or give it to a callback by [`PendingReply::then`].
    ///
    /// Blocks only while the outgoing queue is full, at most the timeout, which runs from now.
    ///
    /// # Errors
    ///
    /// Fails if the request cannot be sent: encoding, names, the limit on calls in flight, the
    /// timeout, a closed client.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, ServiceServer};
    /// # let broker = Broker::memory();
    /// # let server = ServiceServer::builder(&broker, "math")
    /// #     .respond("double", |n: u64| n * 2).start()?;
    /// # let client = ServiceClient::new(&broker, "order-service")?;
    /// let first = client.call_async::<u64>("math", "double", &1)?;
    /// let second = client.call_async::<u64>("math", "double", &2)?;
    /// assert_eq!(first.wait()? + second.wait()?, 6);
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn call_async<Resp: DeserializeOwned>(
        &self,
        service: &str,
        action: &str,
        request: &(impl Serialize + ?Sized),
    ) -> Result<PendingReply<Resp>> {
        self.call_async_with(service, action, request, &CallOptions::new())
    }

    /// Sends the request with options and returns a handle, as
    /// [`call_async`](ServiceClient::call_async).
    ///
    /// # Errors
    ///
    /// Fails as [`call_async`](ServiceClient::call_async) does.
    pub fn call_async_with<Resp: DeserializeOwned>(
        &self,
        service: &str,
        action: &str,
        request: &(impl Serialize + ?Sized),
        options: &CallOptions,
    ) -> Result<PendingReply<Resp>> {
        let target = CallTarget { service, action };
        let started = self.start_async(target, request, &options.request)?;
        Ok(PendingReply::new(started))
    }
}
