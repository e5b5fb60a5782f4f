//! The options of calls and commands.

use std::fmt;
use std::time::Duration;

use super::passed_on::PassedOn;
use crate::base::deadline;
use crate::base::moment::Moment;
use crate::message::{ASYNC_HEADER, ATTEMPT_HEADER, DEADLINE_HEADER, Headers, TIMEOUT_HEADER};

/// The kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// A call whose caller blocks.
    Call,
    /// A call that returns a handle.
    AsyncCall,
    /// A request without a reply, which the broker confirms.
    Command,
}

/// The settings of one request, whichever verb sends it.
#[derive(Clone, Default)]
pub(crate) struct RequestOptions {
    pub(crate) timeout: Option<Duration>,
    pub(crate) persistent: Option<bool>,
    pub(crate) idempotent: bool,
    pub(crate) message_id: Option<String>,
    pub(super) instance: Option<String>,
    pub(super) balance_key: Option<String>,
    pub(super) no_retry: bool,
    pub(super) cache: CacheUse,
    /// The time for which a command waits in the broker.
    pub(super) after: Option<Duration>,
    headers: Vec<(String, String)>,
}

/// The use of the response cache by one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum CacheUse {
    #[default]
    Default,
    /// Neither read nor fill it.
    Bypass,
    /// Fill it without reading it.
    Refresh,
}

impl RequestOptions {
    /// Adds a header of the program's.
    pub(crate) fn add_header(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.headers.push((name.into(), value.into()));
    }

    /// Returns the program's headers, in the order in which they were added.
    pub(super) fn header_pairs(&self) -> &[(String, String)] {
        &self.headers
    }

    /// Returns a copy with these headers in place of its own.
    pub(super) fn with_headers(&self, headers: Vec<(String, String)>) -> Self {
        Self {
            headers,
            ..self.clone()
        }
    }

    /// Returns the last header of that name.
    pub(super) fn last_header(&self, name: &str) -> Option<&str> {
        let set = self.headers.iter().rev().find(|(set, _)| set == name);
        set.map(|(_, value)| &**value)
    }

    /// Returns the program's headers.
    pub(crate) fn own_headers(&self) -> Headers<'static> {
        let mut headers = Headers::new();
        for (name, value) in &self.headers {
            headers.insert(name, value);
        }
        headers
    }

    fn has_header(&self, name: &str) -> bool {
        self.headers.iter().any(|(own, _)| own == name)
    }

    /// Returns the envelope's headers: the program's first, so that coney's prevail. Those of
    /// `passed_on` are added unless the program sets them itself.
    pub(super) fn wire_headers(
        &self,
        now: Moment,
        timeout: Duration,
        kind: RequestKind,
        attempt: u32,
        passed_on: Option<&PassedOn>,
    ) -> Headers<'static> {
        let mut headers = self.own_headers();
        for (name, value) in passed_on.into_iter().flat_map(PassedOn::iter) {
            if !self.has_header(name) {
                headers.insert(name, value);
            }
        }
        if attempt > 1 {
            headers.insert(ATTEMPT_HEADER, &attempt);
        }
        if kind == RequestKind::AsyncCall {
            headers.insert(ASYNC_HEADER, &true);
        }
        // A command is carried out however late it arrives.
        if kind != RequestKind::Command {
            let at = deadline::unix_millis(now.since_epoch(), timeout);
            headers.insert(DEADLINE_HEADER, &at);
            let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            headers.insert(TIMEOUT_HEADER, &millis.min(LONGEST_TIMEOUT_MS));
        }
        headers
    }
}

impl fmt::Debug for RequestOptions {
    /// Shows the names of the headers only: headers may hold tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| &**name).collect();
        f.debug_struct("RequestOptions")
            .field("timeout", &self.timeout)
            .field("persistent", &self.persistent)
            .field("idempotent", &self.idempotent)
            .field("message_id", &self.message_id)
            .field("instance", &self.instance)
            .field("balance_key", &self.balance_key)
            .field("after", &self.after)
            .field("headers", &names)
            .finish()
    }
}

/// The longest timeout that is sent, in milliseconds: a year, as for the deadline beside it.
const LONGEST_TIMEOUT_MS: u64 = 365 * 24 * 60 * 60 * 1_000;

/// The options of one call, blocking or asynchronous.
///
/// ```
/// use std::time::Duration;
/// use coney::CallOptions;
///
/// let options = CallOptions::new()
///     .timeout(Duration::from_millis(300))
///     .header("trace-id", "4bf92f35");
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "options have no effect until a call gets them"]
pub struct CallOptions {
    pub(super) request: RequestOptions,
}

impl CallOptions {
    /// Creates options with the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the longest time for the whole call, from now to the reply. Defaults to the
    /// client's [timeout](crate::client::ServiceClientBuilder::timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.request.timeout = Some(timeout);
        self
    }

    /// Adds a header to the envelope; the handler reads it by
    /// [`Context::header`](crate::Context::header).
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.add_header(name, value);
        self
    }

    /// Sets whether the broker keeps the request on disk until it is handled. Defaults to true
    /// for a blocking call and to false for an asynchronous one, as the wire contract has it.
    pub fn persistent(mut self, persistent: bool) -> Self {
        self.request.persistent = Some(persistent);
        self
    }

    /// Sets whether the request may run twice. If so, it is sent again by itself after the
    /// connection was lost, over the next one, until the deadline, with the same message id. A
    /// server that [deduplicates](crate::server::ServiceServerBuilder::deduplicate) runs it
    /// once. Defaults to false: the call fails with
    /// [`ErrorKind::ConnectionLost`](crate::ErrorKind::ConnectionLost).
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.request.idempotent = idempotent;
        self
    }

    /// Sets the message id, by which a server that
    /// [deduplicates](crate::server::ServiceServerBuilder::deduplicate) recognises a repeated
    /// request. Give a retried call the id of the first. At most 255 bytes. Defaults to a new
    /// id for each call.
    pub fn message_id(mut self, id: impl Into<String>) -> Self {
        self.request.message_id = Some(id.into());
        self
    }

    /// Addresses the call to the instance with this registry id instead of the queue that all
    /// instances share. If the instance does not exist, or is unhealthy, the call fails at once
    /// with [`ErrorKind::NoRoute`](crate::ErrorKind::NoRoute); requests that it has not begun
    /// when it shuts down go to the other instances. Only servers with a
    /// [registry](crate::server::ServiceServerBuilder::registry) have instances. Defaults to
    /// the shared queue.
    ///
    /// ```
    /// # use coney::{Broker, CallOptions, Registry, ServiceClient, ServiceServer};
    /// # let (broker, registry) = (Broker::memory(), Registry::memory());
    /// # let server = ServiceServer::builder(&broker, "cache")
    /// #     .respond("clear", |()| true).registry(&registry).start()?;
    /// # let client = ServiceClient::new(&broker, "admin")?;
    /// for instance in registry.lookup("cache")?.iter() {
    ///     let options = CallOptions::new().instance(instance.id());
    ///     let _: bool = client.call_with("cache", "clear", &(), &options)?;
    /// }
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.request.instance = Some(id.into());
        self
    }

    /// Sends the call once, whatever the client's [`Retry`](crate::resilience::Retry) says.
    pub fn no_retry(mut self) -> Self {
        self.request.no_retry = true;
        self
    }

    /// Neither takes the answer from the client's
    /// [response cache](crate::cache::ResponseCache) nor stores it there.
    pub fn no_cache(mut self) -> Self {
        self.request.cache = CacheUse::Bypass;
        self
    }

    /// Calls the service even if the client's [response cache](crate::cache::ResponseCache) has an
    /// answer, and stores the new one.
    pub fn refresh(mut self) -> Self {
        self.request.cache = CacheUse::Refresh;
        self
    }

    /// Sets the key that the client's
    /// [balancer](crate::client::ServiceClientBuilder::balancer) may go by, such as a user's id
    /// for [`ConsistentHash`](crate::balance::ConsistentHash). Defaults to none.
    pub fn balance_key(mut self, key: impl Into<String>) -> Self {
        self.request.balance_key = Some(key.into());
        self
    }
}

/// The options of one command.
///
/// ```
/// use std::time::Duration;
/// use coney::SendOptions;
///
/// let options = SendOptions::new()
///     .timeout(Duration::from_secs(2))
///     .message_id("order-4711-created");
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "options have no effect until a command gets them"]
pub struct SendOptions {
    pub(super) request: RequestOptions,
}

impl SendOptions {
    /// Creates options with the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the longest time from now to the publisher confirm. Defaults to the client's
    /// [timeout](crate::client::ServiceClientBuilder::timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.request.timeout = Some(timeout);
        self
    }

    /// Adds a header to the envelope; the handler reads it by
    /// [`Context::header`](crate::Context::header).
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.add_header(name, value);
        self
    }

    /// Sets whether the broker keeps the command on disk until it is handled. Defaults to true.
    pub fn persistent(mut self, persistent: bool) -> Self {
        self.request.persistent = Some(persistent);
        self
    }

    /// Sets whether the command may run twice. If so, it is sent again by itself after the
    /// connection was lost before the confirm, over the next one, until the deadline, with the
    /// same message id. A server that
    /// [deduplicates](crate::server::ServiceServerBuilder::deduplicate) runs it once. Defaults
    /// to false: sending fails with
    /// [`ErrorKind::ConnectionLost`](crate::ErrorKind::ConnectionLost).
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.request.idempotent = idempotent;
        self
    }

    /// Sets the message id, by which a server that
    /// [deduplicates](crate::server::ServiceServerBuilder::deduplicate) recognises a repeated
    /// command. At most 255 bytes. Defaults to a new id for each command.
    pub fn message_id(mut self, id: impl Into<String>) -> Self {
        self.request.message_id = Some(id.into());
        self
    }

    /// Sets the time for which the command waits in the broker, from the confirm on, before the
    /// service can handle it: at least `delay`, and up to 1 % or 100 ms longer. At most 30 days.
    /// Defaults to no delay.
    ///
    /// The command is confirmed as any other, and survives restarts of the broker; neither this
    /// program nor the service has to run meanwhile. It waits in queues that all services share,
    /// `coney.delay.level.0` to `.24`: 100 ms, 200 ms, 400 ms and so on. A command whose service has
    /// no queue any more when it is due goes to the [`DeadLetters`](crate::DeadLetters).
    ///
    /// The first command with a delay declares these queues, and the first one to a service binds
    /// its queue to their exchange, which needs
    /// more permissions than other commands, and takes up to a second.
    ///
    /// ```
    /// use std::time::Duration;
    /// # use coney::{Broker, ServiceServer};
    /// use coney::{SendOptions, ServiceClient};
    /// # let broker = Broker::memory();
    /// # let (done, orders) = std::sync::mpsc::channel();
    /// # let server = ServiceServer::builder(&broker, "order-service")
    /// #     .handler("cancel_unpaid", move |n: u64| done.send(n)).start()?;
    ///
    /// let client = ServiceClient::new(&broker, "shop")?;
    /// # let minute = 2;
    /// # let in_half_an_hour = SendOptions::new().after(Duration::from_millis(30 * minute));
    /// # client.send_with("order-service", "cancel_unpaid", &1, &in_half_an_hour)?;
    /// # assert_eq!(orders.recv().unwrap(), 1);
    /// let in_half_an_hour = SendOptions::new().after(Duration::from_secs(30 * 60));
    /// client.send_with("order-service", "cancel_unpaid", &4711, &in_half_an_hour)?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn after(mut self, delay: Duration) -> Self {
        self.request.after = Some(delay);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_on_the_wire() {
        let options = CallOptions::new()
            .header("a", "1")
            .header("deadline_ms", "0")
            .request;
        let (now, timeout) = (Moment::now(), Duration::from_secs(5));
        let headers = options.wire_headers(now, timeout, RequestKind::AsyncCall, 1, None);
        assert_eq!(headers.get::<String>("a").as_deref(), Some("1"));
        assert_eq!(headers.get::<bool>(ASYNC_HEADER), Some(true));
        assert!(headers.get::<u64>(DEADLINE_HEADER) > Some(1_700_000_000_000));
        let default = RequestOptions::default();
        let plain = default.wire_headers(now, Duration::ZERO, RequestKind::Call, 2, None);
        assert_eq!(plain.get::<u32>(ATTEMPT_HEADER), Some(2));
        assert_eq!(plain.get::<bool>(ASYNC_HEADER), None);
        let command = default.wire_headers(now, Duration::ZERO, RequestKind::Command, 1, None);
        assert_eq!(command, Headers::new());
    }

    #[test]
    fn headers_are_passed_on_unchanged_unless_the_call_sets_them() {
        let mut request = Headers::new();
        request.insert("a", &"1");
        request.insert("b", &vec![1.50, 2.0]);
        request.insert("secret", &"s");
        let names = ["a", "b", "missing"].map(str::to_owned);
        let passed_on = PassedOn::from_request(&names, &request);
        let options = CallOptions::new().header("a", "own").request;
        let (now, kind, passed_on) = (Moment::now(), RequestKind::Command, passed_on.as_ref());
        let sent = options.wire_headers(now, Duration::ZERO, kind, 1, passed_on);
        assert_eq!(sent.as_str(), r#"{"a":"own","b":[1.5,2.0]}"#);
        assert!(PassedOn::from_request(&names[2..], &request).is_none());
    }
}
