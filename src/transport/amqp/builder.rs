use std::fmt;
use std::time::Duration;

use super::config::Config;
use super::state_listener::Listener;
use super::{AmqpTransport, ConnectionState, url};
use crate::error::{Error, Result};
use crate::transport::Broker;

/// Options for a connection to RabbitMQ; made by
/// [`Broker::builder`](crate::Broker::builder).
///
/// ```no_run
/// use std::time::Duration;
/// use coney::Broker;
///
/// let broker = Broker::builder("amqp://localhost")
///     .connection_name("order-service")
///     .connect_timeout(Duration::from_secs(3))
///     .connect()?;
/// # let _ = broker;
/// # Ok::<(), coney::Error>(())
/// ```
pub struct BrokerBuilder {
    config: Config,
    listener: Option<Listener>,
    url_error: Option<Error>,
}

impl Broker {
    /// Connects to RabbitMQ with the default options.
    ///
    /// The URL is `amqp://user:password@host:port/vhost`; what is left out is
    /// `guest`, `guest`, `localhost`, `5672` and `/`. It may end in
    /// `?heartbeat=SECONDS&connection_timeout=MILLISECONDS&name=NAME`. Blocks until connected,
    /// at most the connect timeout of 10 s. Starts the connection's threads.
    /// Later losses of the connection are repaired in the background.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) if the URL
    /// cannot be used, [`ErrorKind::Connect`](crate::ErrorKind::Connect) if no
    /// connection can be made. Neither ever contains the password.
    ///
    /// ```no_run
    /// let broker = coney::Broker::connect("amqp://localhost")?;
    /// # let _ = broker;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn connect(url: &str) -> Result<Self> {
        Self::builder(url).connect()
    }

    /// Options for a connection to RabbitMQ: see [`BrokerBuilder`].
    pub fn builder(url: &str) -> BrokerBuilder {
        BrokerBuilder::new(url)
    }
}

impl BrokerBuilder {
    pub(crate) fn new(url: &str) -> Self {
        let mut config = Config::default();
        let url_error = url::parse(url, &mut config).err();
        Self {
            config,
            listener: None,
            url_error,
        }
    }

    /// The name RabbitMQ's management shows for the connection. Default:
    /// program name and process id.
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// How long connecting may take in all: name resolution, TCP, login.
    /// Default: 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.config.connect_timeout = timeout;
        self
    }

    /// How long the broker may take over one operation before the connection
    /// is given up as dead. Default: 10 s.
    pub fn operation_timeout(mut self, timeout: Duration) -> Self {
        self.config.operation_timeout = timeout;
        self
    }

    /// The heartbeat asked for, in whole seconds; the broker may ask for less.
    /// A silent broker is noticed after two of them. Default: 10 s.
    pub fn heartbeat(mut self, interval: Duration) -> Self {
        self.config.heartbeat = interval;
        self
    }

    /// The delays between attempts to reconnect: the first, doubling up to the
    /// last, each with up to as much again at random, so that a thousand programs do
    /// not come back in step. While nothing listens at the address (the connection is
    /// refused) there is an attempt a second at least. Default: 200 ms and 10 s.
    pub fn reconnect_delays(mut self, min: Duration, max: Duration) -> Self {
        self.config.reconnect_min = min;
        self.config.reconnect_max = max;
        self
    }

    /// After how many failed attempts in a row to give up reconnecting;
    /// everything then fails with [`ErrorKind::Closed`](crate::ErrorKind::Closed). Default: never.
    pub fn reconnect_limit(mut self, attempts: usize) -> Self {
        self.config.reconnect_limit = Some(attempts);
        self
    }

    /// For how long [`connect`](BrokerBuilder::connect) keeps trying if the
    /// broker cannot be reached: with the delays and the limit of reconnects.
    /// `Duration::MAX` is for ever. Default: zero, that is, one attempt.
    pub fn initial_connect_timeout(mut self, for_at_most: Duration) -> Self {
        self.config.first_connect = for_at_most;
        self
    }

    /// Has `listener` told what becomes of the connection, from the first attempt
    /// on, each change once and in order.
    ///
    /// It runs on a thread of its own, `coney-state-N`, which ends with the
    /// connection. While it blocks, up to 1,024 changes wait; later ones are
    /// dropped. A panic in it is logged.
    ///
    /// ```no_run
    /// use coney::{Broker, ConnectionState};
    ///
    /// let broker = Broker::builder("amqp://localhost")
    ///     .on_state_change(|state| match state {
    ///         ConnectionState::Lost(cause) => eprintln!("RabbitMQ is gone: {cause}"),
    ///         other => eprintln!("{other:?}"),
    ///     })
    ///     .connect()?;
    /// # let _ = broker;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn on_state_change<F>(mut self, listener: F) -> Self
    where
        F: Fn(&ConnectionState) + Send + 'static,
    {
        self.listener = Some(Box::new(listener));
        self
    }

    /// The largest message body, in bytes, sent or received. A larger one that arrives is
    /// read and not kept: a request is dead-lettered with the reason `too_large` and
    /// answered with an error, a reply is an error for its caller, and a raw
    /// [`Link`](crate::transport::Link) gets an empty body. Default: 16 MiB.
    ///
    /// Where the broker's `max_message_size` is smaller, that is the limit, from the first
    /// message on that the broker refuses.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.config.max_body = bytes;
        self
    }

    /// Sets the largest message over [`max_body`](BrokerBuilder::max_body) that is
    /// dead-lettered with its body, in bytes. One such body is held in memory at a time. Of
    /// larger ones the properties are kept, and the letter says what it lacks. Defaults to
    /// 32 MiB.
    pub fn max_dead_letter(mut self, bytes: usize) -> Self {
        self.config.max_dead_letter = bytes;
        self
    }

    /// Sets how many bytes of messages may wait to be sent, or to be confirmed where they
    /// may have to be sent again: beside the bound on their number, 1,024. Who sends more
    /// waits for room, until its deadline. Defaults to 32 MiB.
    pub fn outgoing_bytes(mut self, bytes: usize) -> Self {
        self.config.outgoing_bytes = bytes;
        self
    }

    /// Connects. Blocks until connected, at most the connect timeout; with
    /// [`initial_connect_timeout`](BrokerBuilder::initial_connect_timeout), so much longer.
    ///
    /// # Errors
    ///
    /// As [`Broker::connect`].
    pub fn connect(self) -> Result<Broker> {
        if let Some(error) = self.url_error {
            return Err(error);
        }
        self.config.check()?;
        Ok(Broker::over(AmqpTransport::connect(
            self.config,
            self.listener,
        )?))
    }
}

impl fmt::Debug for BrokerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn debug_never_shows_the_password() {
        let builder = BrokerBuilder::new("amqp://u:hunter2@h/");
        assert!(!format!("{builder:?}").contains("hunter2"));
    }

    #[test]
    fn options_that_cannot_work_are_refused_before_connecting() {
        let builder = || BrokerBuilder::new("amqp://localhost:1/");
        let ms = Duration::from_millis;
        for bad in [
            builder().heartbeat(Duration::ZERO),
            builder().heartbeat(ms(1_500)),
            builder().connect_timeout(Duration::ZERO),
            builder().reconnect_delays(ms(200), ms(100)),
            builder().connection_name("x".repeat(1_001)),
        ] {
            assert_eq!(bad.connect().unwrap_err().kind(), ErrorKind::InvalidConfig);
        }
    }
}
