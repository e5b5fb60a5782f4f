//! The kinds of failure.

use std::fmt;

/// The kinds of failure, by what the caller may do next.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No queue takes the message. For a call or a command: the service's queue does not
    /// exist, because none of its servers has ever run. (Once a server has run, its queue
    /// stays; calls then wait for the next server and time out.) For a call
    /// [addressed](crate::CallOptions::instance) to an instance: the instance does not exist,
    /// or takes no requests now. For a mandatory event: no subscription matches. For the
    /// [depth](crate::Broker::queue_depth) of a queue: it does not exist. Nothing ran; retrying is
    /// safe.
    NoRoute,
    /// The registry has no live and healthy instance of the service. Nothing was
    /// sent; retrying is safe.
    NoInstance,
    /// The connection was closed, or reconnecting was given up, before the request was sent.
    /// Nothing ran; retrying over another connection is safe.
    NotSent,
    /// The deadline passed. [`Error::phase`](crate::Error::phase) says which operation ran out of
    /// time, and so whether the request can have run.
    TimedOut,
    /// The connection was lost after the request was sent: whether it ran, or the
    /// broker has it, is unknown. Retry only requests that may run twice.
    ConnectionLost,
    /// The service replied with an error, usually its handler's: see
    /// [`Error::remote_message`](crate::Error::remote_message) and
    /// [`Error::remote_code`](crate::Error::remote_code).
    Remote,
    /// The service runs but has no handler for the action. Nothing ran.
    UnknownAction,
    /// A limit or policy of this client refused the call or command before anything was sent:
    /// [`Error::refused_by`](crate::Error::refused_by) says which.
    Rejected,
    /// The service refused the request before its handler began, or its handler refused it by
    /// [`HandlerError::busy`](crate::HandlerError::busy) before it did anything: the service is
    /// overloaded, or something that it needs is unavailable. Nothing ran; retry after
    /// [`Error::retry_after`](crate::Error::retry_after).
    Busy,
    /// The payload could not be encoded. Nothing was sent.
    Encode,
    /// A message is larger than the sender, the broker or the receiver takes. If it is the
    /// request, nothing ran; if it is the reply, the handler has run, and
    /// [`Error::is_safe_to_retry`](crate::Error::is_safe_to_retry) is false.
    PayloadTooLarge,
    /// The reply could not be decoded into the requested type:
    /// [`Error::raw_text`](crate::Error::raw_text) has it as it was received. (A request that the
    /// service could not decode is [`ErrorKind::Remote`] with the code `bad_request`.)
    Decode,
    /// A name, URL or option is not valid. Nothing was tried.
    InvalidConfig,
    /// The operating system refused a resource, such as a thread. Nothing was tried; only a
    /// request whose callback could not be watched is on its way.
    Io,
    /// No connection could be made: host, port, credentials or virtual host.
    Connect,
    /// The broker refused an operation, for example declaring a queue that
    /// exists with other properties, or taking a command into a full queue.
    Broker,
    /// The registry's store failed: it does not answer, or refuses.
    Registry,
    /// The broker, client, server or subscriber has been closed.
    Closed,
    /// The program used the library in a way that cannot work: a call that would wait for itself
    /// (from a logger on the AMQP library's thread, or a handler that shuts down its own server),
    /// a connection of the process from which this one was forked, a reply that was taken already
    /// or belongs to another batch. [`Error::is_safe_to_retry`](crate::Error::is_safe_to_retry) is
    /// true only where nothing was sent.
    Misuse,
}

impl ErrorKind {
    /// Returns the name of the kind in snake case, for labels of metrics and fields of logs.
    ///
    /// ```
    /// assert_eq!(coney::ErrorKind::TimedOut.as_str(), "timed_out");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::NoInstance => "no_instance",
            Self::NotSent => "not_sent",
            Self::TimedOut => "timed_out",
            Self::ConnectionLost => "connection_lost",
            Self::Remote => "remote",
            Self::UnknownAction => "unknown_action",
            Self::Rejected => "rejected",
            Self::Busy => "busy",
            Self::Encode => "encode",
            Self::PayloadTooLarge => "payload_too_large",
            Self::Decode => "decode",
            Self::InvalidConfig => "invalid_config",
            Self::Io => "io",
            Self::Connect => "connect",
            Self::Broker => "broker",
            Self::Registry => "registry",
            Self::Closed => "closed",
            Self::Misuse => "misuse",
        }
    }
}

impl fmt::Display for ErrorKind {
    /// Writes the name of the kind in snake case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The limit or policy of a client that refused a call or a command.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Too many calls are in flight: of the
    /// [client](crate::client::ServiceClientBuilder::max_in_flight), or to
    /// [one service](crate::resilience::Resilience::max_in_flight).
    InFlight,
    /// The [`RateLimit`](crate::resilience::RateLimit) has no token before the deadline.
    RateLimit,
    /// The circuit [`Breaker`](crate::resilience::Breaker) is open.
    Breaker,
    /// The [`Throttle`](crate::resilience::Throttle) holds calls back from a busy service.
    Throttle,
    /// Too many messages [wait](crate::client::ServiceClientBuilder::max_backlog) for the service of
    /// a command.
    Backlog,
    /// A [layer](crate::client::CallLayer) of the client.
    Layer,
}

impl Refusal {
    /// Returns the name in snake case, for labels of metrics and fields of logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InFlight => "in_flight",
            Self::RateLimit => "rate_limit",
            Self::Breaker => "breaker",
            Self::Throttle => "throttle",
            Self::Backlog => "backlog",
            Self::Layer => "layer",
        }
    }
}

impl fmt::Display for Refusal {
    /// Writes the name in snake case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The operation that ran out of time.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Waiting for the connection, or for room in the outgoing queue: the request never left
    /// this process.
    Send,
    /// Waiting for the reply: the request was sent and may have run.
    Reply,
    /// Waiting for the publisher confirm of a command or an event: it was sent, and the
    /// broker may have it.
    Confirm,
    /// Waiting for the broker to carry out an operation, such as declaring a queue.
    Broker,
    /// Waiting for running handlers to finish during a shutdown.
    Shutdown,
}
