use std::sync::Arc;
use std::time::Duration;

use super::ReplyStore;
use crate::client::ServiceClient;
use crate::error::{Error, ErrorKind, Result};

/// What servers and subscribers can be told alike; the defaults are documented at
/// their builders' setters.
pub(crate) struct Options {
    pub(crate) workers: usize,
    pub(crate) prefetch: u16,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) retry_delays: Vec<Duration>,
    pub(crate) redelivery_limit: u32,
    pub(crate) deduplication: Option<(Arc<dyn ReplyStore>, Duration)>,
    pub(crate) deduplication_lease: Duration,
    pub(crate) client: Option<ServiceClient>,
}

/// More attempts than anybody needs, each with a queue of its own.
const MOST_RETRIES: usize = 20;

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 10,
            prefetch: 10,
            shutdown_timeout: Duration::from_secs(10),
            retry_delays: [1, 5, 25, 125].map(Duration::from_secs).to_vec(),
            redelivery_limit: 5,
            deduplication: None,
            deduplication_lease: Duration::from_secs(60),
            client: None,
        }
    }
}

impl Options {
    /// `owner` is whose they are.
    pub(crate) fn check(&self, owner: &str) -> Result<()> {
        if self.workers == 0 || self.prefetch == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("{owner}: workers and prefetch must be at least 1"),
            ));
        }
        let is_delay = |delay: &Duration| (1..=u32::MAX.into()).contains(&delay.as_millis());
        if self.retry_delays.len() > MOST_RETRIES || !self.retry_delays.iter().all(is_delay) {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "{owner}: there may be {MOST_RETRIES} retry delays, from a millisecond to 49 days"
                ),
            ));
        }
        Ok(())
    }
}
