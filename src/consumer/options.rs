//! The settings that servers and subscribers have in common, and the queue that they consume.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::load::LoadOptions;
use super::{Deduplication, HandlerLayer, ReplyStore, Retries};
use crate::client::ServiceClient;
use crate::error::{Error, ErrorKind, Result};
use crate::message::is_reserved_header;
use crate::topology;
use crate::transport::Message;

/// The settings that servers and subscribers have in common. The defaults are documented at their
/// builders' setters.
pub(crate) struct Options {
    pub(crate) load: LoadOptions,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) retry_delays: Vec<Duration>,
    /// The retry delays of single actions.
    pub(crate) action_delays: HashMap<String, Vec<Duration>>,
    pub(crate) redelivery_limit: u32,
    pub(crate) deduplication: Option<(Arc<dyn ReplyStore>, Duration)>,
    pub(crate) deduplication_lease: Duration,
    pub(crate) reply_store_outage_limit: Duration,
    /// The longest time for which the broker lets a delivery be unacknowledged.
    pub(crate) consumer_timeout: Duration,
    pub(crate) any_reply_queue: bool,
    pub(crate) client: Option<ServiceClient>,
    /// The layers around each handler, the outermost first.
    pub(crate) layers: Vec<Arc<dyn HandlerLayer>>,
    /// The names of the headers that nested calls pass on.
    pub(crate) propagate: Vec<String>,
}

/// The largest number of retry delays in a list.
const MAX_RETRIES: usize = 20;

/// The largest number of different delays in all lists of a server or subscriber. Each has a queue.
const MAX_DELAYS: usize = 64;

impl Default for Options {
    fn default() -> Self {
        Self {
            load: LoadOptions::default(),
            shutdown_timeout: Duration::from_secs(10),
            retry_delays: [1, 5, 25, 125].map(Duration::from_secs).to_vec(),
            action_delays: HashMap::new(),
            redelivery_limit: 5,
            deduplication: None,
            deduplication_lease: Duration::from_secs(60),
            reply_store_outage_limit: Duration::from_secs(30),
            consumer_timeout: Duration::from_secs(30 * 60),
            any_reply_queue: false,
            client: None,
            layers: Vec::new(),
            propagate: Vec::new(),
        }
    }
}

/// The delay of a repeated request while the first one is being handled. Servers and subscribers
/// that deduplicate use the queue of this delay.
pub(crate) const POSTPONE_DELAY: Duration = Duration::from_secs(1);

/// The parking delay if no retry delays are set.
const PARKING_DELAY: Duration = Duration::from_secs(60);

impl Options {
    /// Returns the delay for messages that cannot be processed or dead-lettered now: the longest
    /// retry delay.
    fn parking_delay(&self) -> Duration {
        parking_delay(&self.retry_delays)
    }

    /// Returns the delays of all queues in which messages wait between attempts; `own` are the
    /// retry delays of a subscription that does not use those of all.
    pub(crate) fn queue_delays(&self, own: Option<&[Duration]>) -> Vec<Duration> {
        let mut delays: Vec<Duration> = match own {
            Some(own) => own.to_vec(),
            None => self.delay_lists().flatten().copied().collect(),
        };
        delays.push(parking_delay(own.unwrap_or(&self.retry_delays)));
        delays.extend(self.deduplication.is_some().then_some(POSTPONE_DELAY));
        delays
    }

    fn delay_lists(&self) -> impl Iterator<Item = &Vec<Duration>> {
        self.action_delays.values().chain([&self.retry_delays])
    }

    /// Returns the retries of messages that wait in the broker, or, if they are `held`, in this
    /// process.
    pub(crate) fn retries(&self, are_held: bool) -> Retries {
        Retries {
            are_held,
            delays: self.retry_delays.clone(),
            of_actions: self.action_delays.clone(),
            parking: self.parking_delay(),
        }
    }

    /// Starts deduplicating the requests of `scope`, if a reply store is set.
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
                ErrorKind::Io,
                format!("{scope}: cannot start a thread for its reply store"),
            )
            .with_source(error)
        })
    }

    /// Checks the settings. `owner` is the service that they belong to.
    pub(crate) fn check(&self, owner: &str) -> Result<()> {
        self.load.check(owner)?;
        for delays in self.delay_lists() {
            check_retry_delays(owner, delays)?;
        }
        check_number_of_delays(owner, self.delay_lists().flatten())?;
        if let Some(name) = self.propagate.iter().find(|name| is_reserved_header(name)) {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "{owner}: the header {name:?} cannot be passed on: coney sets it itself for \
                     each request; remove it from `propagate`"
                ),
            ));
        }
        Ok(())
    }
}

/// Returns the delay for messages that cannot be processed or dead-lettered now: the longest of the
/// retry delays.
pub(crate) fn parking_delay(retry_delays: &[Duration]) -> Duration {
    let longest = retry_delays.iter().max();
    longest.copied().unwrap_or(PARKING_DELAY)
}

/// Checks a list of retry delays.
pub(crate) fn check_retry_delays(owner: &str, delays: &[Duration]) -> Result<()> {
    let is_delay = |delay: &Duration| (1..=u32::MAX.into()).contains(&delay.as_millis());
    if delays.len() <= MAX_RETRIES && delays.iter().all(is_delay) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidConfig,
        format!("{owner}: at most {MAX_RETRIES} retry delays are allowed, of 1 ms to 49 days"),
    ))
}

/// Checks that all retry delays of a server or a subscriber do not need too many queues.
pub(crate) fn check_number_of_delays<'d>(
    owner: &str,
    delays: impl Iterator<Item = &'d Duration>,
) -> Result<()> {
    let different = delays.collect::<HashSet<_>>().len();
    if different <= MAX_DELAYS {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidConfig,
        format!(
            "{owner}: its retry delays are {different} different ones; at most {MAX_DELAYS} are \
             allowed, as each has a queue"
        ),
    ))
}

/// A queue that is consumed with handlers, and the names derived from it.
pub(crate) struct ConsumedQueue {
    /// The service that consumes the queue, for logs and errors.
    pub(crate) owner: String,
    pub(crate) queue: String,
    /// The beginning of the name of its suspect queue.
    pub(crate) stem: String,
    /// True if no message may leave the queue and be republished to it: the events are in order, or
    /// the queue is deleted with this process.
    pub(crate) is_ordered: bool,
}

impl ConsumedQueue {
    /// Returns the name of the queue in which messages that may be poison are handled one at a
    /// time.
    pub(crate) fn suspect_queue(&self) -> String {
        topology::suspect_queue(&self.stem)
    }

    /// Returns true if a message was delivered from the suspect queue. Copies go there through the
    /// default exchange.
    pub(super) fn is_suspect(&self, message: &Message) -> bool {
        message.exchange.is_empty() && message.routing_key == self.suspect_queue()
    }
}
