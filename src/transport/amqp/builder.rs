//! The options of a connection to RabbitMQ.

use std::fmt;
use std::time::Duration;

use super::config::Config;
use super::state_listener::Listener;
use super::{AmqpTransport, url};
use crate::error::{Error, Result};
use crate::transport::Broker;
use crate::transport::ConnectionState;

/// The options of a connection to RabbitMQ, created by
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
#[must_use = "a builder does nothing until `connect`"]
pub struct BrokerBuilder {
    config: Config,
    listener: Option<Listener>,
    url_error: Option<Error>,
}

impl Broker {
    /// Connects to RabbitMQ with the default options.
    ///
    /// The URL is `amqp://user:password@host:port/vhost`; the components default to
    /// `guest`, `guest`, `localhost`, `5672` and `/`. It may end in
    /// `?heartbeat=SECONDS&connection_timeout=MILLISECONDS&name=NAME`. Blocks until connected,
    /// at most the connect timeout of 10 s. Starts the connection's threads, which
    /// reconnect in the background whenever the connection is lost later.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) if the URL
    /// cannot be used, and with [`ErrorKind::Connect`](crate::ErrorKind::Connect) if no
    /// connection can be made. The error never contains the password.
    ///
    /// ```no_run
    /// let broker = coney::Broker::connect("amqp://localhost")?;
    /// # let _ = broker;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn connect(url: &str) -> Result<Self> {
        Self::builder(url).connect()
    }

    /// Returns the options of a connection to RabbitMQ, with their defaults: see
    /// [`BrokerBuilder`].
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

    /// Sets the connection name that RabbitMQ's management UI shows. Defaults to the
    /// program's name and process id.
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Sets the time limit of an attempt to connect: name resolution, TCP and login in
    /// all. Defaults to 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.config.connect_timeout = timeout;
        self
    }

    /// Sets the time limit of one operation of the broker; a connection that exceeds it
    /// counts as dead and is closed. Defaults to 10 s.
    pub fn operation_timeout(mut self, timeout: Duration) -> Self {
        self.config.operation_timeout = timeout;
        self
    }

    /// Sets the heartbeat interval to request, in whole seconds; the broker may lower it.
    /// A silent broker is detected after two intervals. Defaults to 10 s.
    pub fn heartbeat(mut self, interval: Duration) -> Self {
        self.config.heartbeat = interval;
        self
    }

    /// Sets the shortest and the longest delay between attempts to reconnect. Defaults to
    /// 200 ms and 10 s.
    ///
    /// The delay starts at `min` and doubles up to `max`. Up to as much again is added to
    /// each at random, so that a thousand programs do not reconnect in step. While the
    /// connection is refused, because no process listens at the address, there is at least
    /// one attempt a second.
    pub fn reconnect_delays(mut self, min: Duration, max: Duration) -> Self {
        self.config.reconnect_min = min;
        self.config.reconnect_max = max;
        self
    }

    /// Sets the number of failed attempts in a row after which reconnecting is given up;
    /// every operation then fails with [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    /// Defaults to no limit.
    pub fn reconnect_limit(mut self, attempts: usize) -> Self {
        self.config.reconnect_limit = Some(attempts);
        self
    }

    /// Sets the time for which [`connect`](BrokerBuilder::connect) retries if the broker
    /// cannot be reached, with the delays and the limit of reconnects. `Duration::MAX` sets
    /// no time limit. Defaults to zero, that is, one attempt.
    pub fn initial_connect_timeout(mut self, timeout: Duration) -> Self {
        self.config.initial_connect_timeout = timeout;
        self
    }

    /// Calls `listener` on every change of the connection's state, from the first attempt
    /// to connect on, once for each change and in order.
    ///
    /// The listener runs on a thread of its own, `coney-state-N`, which ends with the
    /// connection. While the listener blocks, up to 1,024 changes wait; later ones are
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

    /// Sets the largest message body that is sent or received, in bytes. Defaults to 16 MiB.
    ///
    /// A larger body that arrives is read and not passed on: a request is dead-lettered with
    /// the reason `too_large` and gets an error reply, a reply becomes an error for its
    /// caller, and a raw [`Link`](crate::transport::Link) receives an empty body.
    ///
    /// Where the broker's `max_message_size` is smaller, it becomes the limit as soon as the
    /// broker has refused a message.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.config.max_body = bytes;
        self
    }

    /// Sets the largest message over [`max_body`](BrokerBuilder::max_body) that is
    /// dead-lettered with its body, in bytes. Defaults to 32 MiB.
    ///
    /// One such body is held in memory at a time. Of a larger message the properties are
    /// kept, and the dead letter records that the body is missing.
    pub fn max_dead_letter(mut self, bytes: usize) -> Self {
        self.config.max_dead_letter = bytes;
        self
    }

    /// Sets the limit on the bytes of messages that wait to be sent, or to be confirmed
    /// where they may have to be sent again. Defaults to 32 MiB.
    ///
    /// Their number has a limit too, 1,024. At either limit, sending blocks until there is
    /// room, at most until its deadline.
    pub fn outgoing_bytes(mut self, bytes: usize) -> Self {
        self.config.outgoing_bytes = bytes;
        self
    }

    /// Sets the time after which the administration connection ends if it is not used. Defaults to
    /// 30 s.
    ///
    /// Queues are counted ([`Broker::queue_depth`]), dead letters are scanned and messages are
    /// [got](crate::transport::Link::get) over this second connection, with threads of its own, so
    /// that the first one never waits for them. It opens when it is first needed. A program that
    /// counts a queue every minute can keep it open by a longer timeout.
    pub fn admin_idle_timeout(mut self, timeout: Duration) -> Self {
        self.config.admin_idle_timeout = timeout;
        self
    }

    /// Connects to RabbitMQ. Blocks until connected, at most the connect timeout plus the
    /// [`initial_connect_timeout`](BrokerBuilder::initial_connect_timeout).
    ///
    /// # Errors
    ///
    /// Fails with the errors of [`Broker::connect`], and with
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) if an option is out of
    /// its range.
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
    fn debug_output_does_not_contain_the_password() {
        let builder = BrokerBuilder::new("amqp://u:hunter2@h/");
        assert!(!format!("{builder:?}").contains("hunter2"));
    }

    #[test]
    fn invalid_options_are_refused_before_connecting() {
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
