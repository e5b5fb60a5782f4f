//! The settings that servers and subscribers share, and the queue that they consume.

use std::sync::Arc;
use std::time::Duration;

use super::{Deduplication, ReplyStore};
use crate::client::ServiceClient;
use crate::error::{Error, ErrorKind, Result};
use crate::topology;
use crate::transport::Message;

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
    pub(crate) reply_store_outage_limit: Duration,
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
            reply_store_outage_limit: Duration::from_secs(30),
            consumer_timeout: Duration::from_secs(30 * 60),
            any_reply_queue: false,
            client: None,
        }
    }
}

/// How long a repeated request waits for the first to end; what deduplicates has a
/// queue for it.
pub(crate) const POSTPONE_FOR: Duration = Duration::from_secs(1);

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
            self.reply_store_outage_limit,
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

/// A queue that is consumed with handlers, and the names that go with it.
pub(crate) struct ConsumedQueue {
    /// Whose it is, for texts.
    pub(crate) owner: String,
    pub(crate) queue: String,
    /// What the names of the queues between attempts begin with.
    pub(crate) stem: String,
    /// Its events are in order, or the queue goes with this process: none of them may leave
    /// it and come back.
    pub(crate) is_ordered: bool,
}

impl ConsumedQueue {
    /// Where what failed waits for its next attempt.
    pub(super) fn retry_queue(&self, delay: Duration) -> String {
        topology::retry_queue(&self.stem, delay)
    }

    /// The place where messages are handled one at a time that a worker may have died of.
    pub(crate) fn suspect_queue(&self) -> String {
        topology::suspect_queue(&self.stem)
    }

    /// Was it taken from there? Copies go there by the default exchange.
    pub(super) fn is_suspect(&self, message: &Message) -> bool {
        message.exchange.is_empty() && message.routing_key == self.suspect_queue()
    }
}
