use std::time::Duration;

use crate::base::secret::Secret;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::DEFAULT_MAX_BODY;

/// Everything a connection is made with; the defaults are documented at
/// [`BrokerBuilder`](super::BrokerBuilder)'s setters.
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
    pub(super) first_connect: Duration,
    pub(super) max_body: usize,
    /// The largest message over `max_body` that is dead-lettered whole.
    pub(super) max_dead_letter: usize,
    /// The bytes that may wait to be sent.
    pub(super) outgoing_bytes: usize,
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
            first_connect: Duration::ZERO,
            max_body: DEFAULT_MAX_BODY,
            max_dead_letter: 32 << 20,
            outgoing_bytes: 32 << 20,
        }
    }
}

impl Config {
    /// Where it connects to, without credentials: for logs and errors.
    pub(super) fn address(&self) -> String {
        let slash = if self.vhost.starts_with('/') { "" } else { "/" };
        format!("{}:{}{slash}{}", self.host, self.port, self.vhost)
    }

    pub(super) fn check(&self) -> Result<()> {
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
        if self.outgoing_bytes == 0 {
            return invalid("without room for what is to be sent, nothing could be");
        }
        if self.name.len() > 1_000 || self.vhost.len() > 255 {
            return invalid("the connection name or the virtual host is too long");
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
