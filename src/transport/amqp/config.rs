use std::fmt;
use std::time::Duration;

use super::{AmqpTransport, DEFAULT_MAX_BODY, url};
use crate::error::{Error, ErrorKind, Result};
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
#[derive(Debug)]
pub struct BrokerBuilder {
    config: Config,
    url_error: Option<Error>,
}

#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) vhost: String,
    pub(super) user: String,
    pub(super) password: Secret,
    pub(super) name: String,
    pub(super) heartbeat: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) operation_timeout: Duration,
    pub(super) reconnect_min: Duration,
    pub(super) reconnect_max: Duration,
    pub(super) reconnect_limit: Option<usize>,
    pub(super) max_body: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host: "localhost".to_owned(),
            port: 5672,
            vhost: "/".to_owned(),
            user: "guest".to_owned(),
            password: "guest".to_owned().into(),
            name: default_name(),
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(10),
            reconnect_min: Duration::from_millis(200),
            reconnect_max: Duration::from_secs(10),
            reconnect_limit: None,
            max_body: DEFAULT_MAX_BODY,
        }
    }
}

impl Config {
    /// Where it connects to, without credentials: for logs and errors.
    pub(super) fn peer(&self) -> String {
        let slash = if self.vhost.starts_with('/') { "" } else { "/" };
        format!("{}:{}{slash}{}", self.host, self.port, self.vhost)
    }

    fn check(&self) -> Result<()> {
        let invalid = |text: &str| Err(Error::new(ErrorKind::InvalidConfig, text));
        if self.heartbeat.subsec_nanos() != 0
            || !(1..=u64::from(u16::MAX)).contains(&self.heartbeat.as_secs())
        {
            return invalid("the heartbeat must be a whole number of seconds from 1 to 65535");
        }
        if self.connect_timeout.is_zero() || self.operation_timeout.is_zero() {
            return invalid("a timeout of zero would never let anything succeed");
        }
        if self.reconnect_min.is_zero() || self.reconnect_max < self.reconnect_min {
            return invalid("the reconnect delays must be over zero, the longest last");
        }
        if self.name.len() > 1_000 || self.vhost.len() > 255 {
            return invalid("the connection name or the virtual host is too long");
        }
        Ok(())
    }
}

impl BrokerBuilder {
    pub(crate) fn new(url: &str) -> Self {
        let mut config = Config::default();
        let url_error = url::parse(url, &mut config).err();
        Self { config, url_error }
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
    /// last, with jitter. Default: 200 ms and 10 s.
    pub fn reconnect_delays(mut self, min: Duration, max: Duration) -> Self {
        self.config.reconnect_min = min;
        self.config.reconnect_max = max;
        self
    }

    /// After how many failed attempts in a row to give up reconnecting;
    /// everything then fails with [`ErrorKind::Closed`]. Default: never.
    pub fn reconnect_limit(mut self, attempts: usize) -> Self {
        self.config.reconnect_limit = Some(attempts);
        self
    }

    /// The largest message body, in bytes, sent or received. A larger one that
    /// arrives ends the connection before it takes any memory. Default: 16 MiB.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.config.max_body = bytes;
        self
    }

    /// Connects. Blocks until connected, at most the connect timeout.
    ///
    /// # Errors
    ///
    /// As [`Broker::connect`].
    pub fn connect(self) -> Result<Broker> {
        if let Some(error) = self.url_error {
            return Err(error);
        }
        self.config.check()?;
        Ok(Broker::over_amqp(AmqpTransport::connect(self.config)?))
    }
}

/// A text that no log and no `{:?}` ever shows.
#[derive(Clone)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

fn default_name() -> String {
    let program = std::env::args_os()
        .next()
        .and_then(|path| {
            let name = std::path::Path::new(&path).file_stem()?;
            Some(name.to_string_lossy().into_owned())
        })
        .unwrap_or_else(|| "coney".to_owned());
    format!("{program} [{}]", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

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
