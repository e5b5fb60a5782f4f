use std::sync::Arc;
use std::time::Duration;

use super::{Deduplication, POSTPONE_FOR, ReplyStore};
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
    pub(crate) deduplication_patience: Duration,
    /// The broker's limit on the time a delivery may be unacknowledged.
    pub(crate) consumer_timeout: Duration,
    pub(crate) any_reply_queue: bool,
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
            deduplication_patience: Duration::from_secs(30),
            consumer_timeout: Duration::from_secs(30 * 60),
            any_reply_queue: false,
            client: None,
        }
    }
}

/// The place where messages wait that cannot be processed now, if no retry delays are given.
const PARKING_DELAY: Duration = Duration::from_secs(60);

impl Options {
    /// The delay of the queue for messages that cannot be processed now, or that the dead
    /// letters do not take: the longest retry delay.
    pub(crate) fn parking_delay(&self) -> Duration {
        let longest = self.retry_delays.iter().max();
        longest.copied().unwrap_or(PARKING_DELAY)
    }

    /// The delays of all queues in which messages wait between attempts.
    pub(crate) fn queue_delays(&self) -> Vec<Duration> {
        let mut delays = self.retry_delays.clone();
        delays.push(self.parking_delay());
        delays.extend(self.deduplication.is_some().then_some(POSTPONE_FOR));
        delays
    }

    /// Starts using the reply store, if there is one, for requests of `scope`.
    pub(crate) fn start_deduplication(&self, scope: &str) -> Result<Option<Arc<Deduplication>>> {
        let Some((store, ttl)) = &self.deduplication else {
            return Ok(None);
        };
        let started = Deduplication::start(
            scope,
            Arc::clone(store),
            *ttl,
            self.deduplication_lease,
            self.deduplication_patience,
        );
        started.map(|it| Some(Arc::new(it))).map_err(|error| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("{scope}: cannot start a thread for its reply store"),
            )
            .with_source(error)
        })
    }

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
