//! The configuration of a connection: its defaults and its checks.

use std::time::Duration;

use crate::base::secret::Secret;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::DEFAULT_MAX_BODY;

/// The configuration of a connection. Its defaults are documented at the setters of
/// [`BrokerBuilder`](super::BrokerBuilder).
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
    pub(super) initial_connect_timeout: Duration,
    pub(super) max_body: usize,
    /// The largest message over `max_body` that is dead-lettered with its body, in bytes.
    pub(super) max_dead_letter: usize,
    /// The limit on the bytes that wait to be sent.
    pub(super) outgoing_bytes: usize,
    /// The idle timeout of the administration connection.
    pub(super) admin_idle_timeout: Duration,
    /// The time after which the connection ends if it is not used. One that has such a timeout is
    /// not made again after a loss.
    pub(super) idle_timeout: Option<Duration>,
}

/// The idle timeout of the administration connection. Connecting takes some milliseconds, so it is
/// kept between the queries of one task, and not between those of a check that runs once a minute.
const ADMIN_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

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
            initial_connect_timeout: Duration::ZERO,
            max_body: DEFAULT_MAX_BODY,
            max_dead_letter: 32 << 20,
            outgoing_bytes: 32 << 20,
            admin_idle_timeout: ADMIN_IDLE_TIMEOUT,
            idle_timeout: None,
        }
    }
}

impl Config {
    /// Returns `host:port/vhost`, without credentials: for logs and errors.
    pub(super) fn address(&self) -> String {
        let slash = if self.vhost.starts_with('/') { "" } else { "/" };
        format!("{}:{}{slash}{}", self.host, self.port, self.vhost)
    }

    /// Returns the configuration of the administration connection beside this one.
    pub(super) fn administration(&self) -> Self {
        Self {
            name: format!("{} (administration)", self.name),
            initial_connect_timeout: Duration::ZERO,
            idle_timeout: Some(self.admin_idle_timeout),
            ..self.clone()
        }
    }

    /// Returns the name of the connection in log lines.
    pub(super) fn log_name(&self) -> String {
        match self.idle_timeout {
            Some(_) => format!("{} (administration)", self.address()),
            None => self.address(),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let invalid = |text: &str| Err(Error::new(ErrorKind::InvalidConfig, text));
        if self.heartbeat.subsec_nanos() != 0
            || !(1..=u64::from(u16::MAX)).contains(&self.heartbeat.as_secs())
        {
            return invalid("the heartbeat must be a whole number of seconds from 1 to 65535");
        }
        if self.connect_timeout.is_zero() || self.operation_timeout.is_zero() {
            return invalid("connect_timeout and operation_timeout must be longer than zero");
        }
        if self.reconnect_min.is_zero() || self.reconnect_max < self.reconnect_min {
            return invalid(
                "the reconnect delays must be longer than zero, and max no shorter than min",
            );
        }
        if self.outgoing_bytes == 0 {
            return invalid("outgoing_bytes must be at least 1, or no message could be sent");
        }
        if self.name.len() > 1_000 || self.vhost.len() > 255 {
            return invalid(
                "the connection name may have at most 1,000 bytes, the virtual host 255",
            );
        }
        Ok(())
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
