use std::fmt;
use std::time::Duration;

use crate::base::deadline;
use crate::message::{DEADLINE_HEADER, Headers, TIMEOUT_HEADER};

/// The header that marks an asynchronous call.
const ASYNC_HEADER: &str = "async_callback";

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Call,
    AsyncCall,
    /// One way: no reply, but a confirmation.
    Command,
}

/// Options for one call, command or event.
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
#[derive(Clone, Default)]
pub struct CallOptions {
    pub(crate) timeout: Option<Duration>,
    pub(crate) persistent: Option<bool>,
    pub(crate) idempotent: bool,
    pub(crate) message_id: Option<String>,
    pub(super) instance: Option<String>,
    pub(super) balance_key: Option<String>,
    headers: Vec<(String, String)>,
}

impl fmt::Debug for CallOptions {
    /// Shows the names of the headers only: headers may hold tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| &**name).collect();
        f.debug_struct("CallOptions")
            .field("timeout", &self.timeout)
            .field("persistent", &self.persistent)
            .field("idempotent", &self.idempotent)
            .field("message_id", &self.message_id)
            .field("instance", &self.instance)
            .field("balance_key", &self.balance_key)
            .field("headers", &names)
            .finish()
    }
}

impl CallOptions {
    /// The defaults: the client's timeout, no headers of one's own.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long the call may take in all, from now to the reply; of a command,
    /// to the broker's confirmation. Default: the client's timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Adds a header to the envelope, for the handler's
    /// [`Context::header`](crate::Context::header).
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Whether the broker keeps the request on disk until it is handled.
    /// Default: true for a blocking call and for a command, false for an
    /// asynchronous call, as the wire contract has it.
    pub fn persistent(mut self, persistent: bool) -> Self {
        self.persistent = Some(persistent);
        self
    }

    /// The request's message id, at most 255 bytes, by which a server
    /// [that remembers](crate::ServiceServerBuilder::deduplicate) knows a repeated one: for
    /// sending again oneself what may or may not have arrived. Default: a new one.
    pub fn message_id(mut self, id: impl Into<String>) -> Self {
        self.message_id = Some(id.into());
        self
    }

    /// The request may run twice: if the connection is lost after it was sent, it
    /// is sent again, with the same message id, until the deadline, instead of
    /// failing with [`ErrorKind::ConnectionLost`](crate::ErrorKind::ConnectionLost).
    /// A server that [remembers](crate::ServiceServerBuilder::deduplicate) message ids
    /// runs it once all the same. Default: false.
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = idempotent;
        self
    }

    /// Addresses a call to one instance of the service, by its id: see
    /// [`Lookup`](crate::Lookup). If it is not there, the call fails at once with
    /// [`ErrorKind::NoRoute`](crate::ErrorKind::NoRoute); what it has not begun when it
    /// shuts down goes to the others. Only instances that were made with a
    /// [registry](crate::ServiceServerBuilder::registry) can be addressed, and only
    /// by calls: a command goes to the service. Default: whoever is free.
    ///
    /// ```
    /// # use coney::{Broker, CallOptions, Registry, ServiceClient, ServiceServer};
    /// # let (broker, registry) = (Broker::memory(), Registry::memory());
    /// # let server = ServiceServer::builder(&broker, "cache")
    /// #     .handler("clear", |()| Ok::<_, String>(true)).registry(&registry).start()?;
    /// # let client = ServiceClient::new(&broker, "admin")?;
    /// for instance in registry.lookup("cache")?.iter() {
    ///     let options = CallOptions::new().instance(instance.id());
    ///     let _: bool = client.call_with("cache", "clear", &(), &options)?;
    /// }
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.instance = Some(id.into());
        self
    }

    /// What the client's [balancer](crate::ServiceClientBuilder::balancer) may go by, such as a
    /// user's id for [`ConsistentHash`](crate::balance::ConsistentHash). Default: nothing.
    pub fn balance_key(mut self, key: impl Into<String>) -> Self {
        self.balance_key = Some(key.into());
        self
    }

    /// The user's headers.
    pub(crate) fn own_headers(&self) -> Headers<'static> {
        let mut headers = Headers::new();
        for (name, value) in &self.headers {
            headers.insert(name, value);
        }
        headers
    }

    /// The envelope's headers: the user's first, so that ours prevail.
    pub(super) fn wire_headers(&self, timeout: Duration, kind: Kind) -> Headers<'static> {
        let mut headers = self.own_headers();
        if kind == Kind::AsyncCall {
            headers.insert(ASYNC_HEADER, &true);
        }
        // A command is to be carried out however late it comes.
        if kind != Kind::Command {
            headers.insert(DEADLINE_HEADER, &deadline::unix_millis_after(timeout));
            let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            headers.insert(TIMEOUT_HEADER, &millis.min(LONGEST_TIMEOUT));
        }
        headers
    }
}

/// A year, as for the deadline beside it.
const LONGEST_TIMEOUT: u64 = 365 * 24 * 60 * 60 * 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_on_the_wire() {
        let options = CallOptions::new()
            .header("a", "1")
            .header("deadline_ms", "0");
        let headers = options.wire_headers(Duration::from_secs(5), Kind::AsyncCall);
        assert_eq!(headers.get::<String>("a").as_deref(), Some("1"));
        assert_eq!(headers.get::<bool>(ASYNC_HEADER), Some(true));
        assert!(headers.get::<u64>(DEADLINE_HEADER) > Some(1_700_000_000_000));
        let plain = CallOptions::new().wire_headers(Duration::ZERO, Kind::Call);
        assert_eq!(plain.get::<bool>(ASYNC_HEADER), None);
        let command = CallOptions::new().wire_headers(Duration::ZERO, Kind::Command);
        assert_eq!(command, Headers::new());
    }
}
