//! The queues in which messages wait: one for each configured delay, and levels for any other.
//! All services of a platform share them.
//!
//! A message is published to the exchange of a delay with the queue that it is for as its routing
//! key, which it keeps. When it expires in the delay's queue, it is dead-lettered to
//! [`RETURN_EXCHANGE`], where each queue that takes such messages is bound with its own name.
//!
//! What is for a queue that is gone goes to the dead letters, through alternate exchanges. (From the
//! default exchange it would have nowhere to go, and 32 such messages would stop the whole queue: a
//! quorum queue dead-letters no more than that without a confirm.) It waits for a while before:
//! when RabbitMQ starts, its queues may dead-letter before all bindings are there again.
//!
//! The *levels* are queues of 100 ms, 200 ms, 400 ms and so on. A message waits in those whose sum
//! is its delay, the longest first. Its headers say of each level whether it waits there or goes to
//! the next lower one at once. All this is done by the broker.
//!
//! The queues are quorum queues, because only these dead-letter with a confirm: a classic queue
//! that is killed at the wrong moment loses the message that it is dead-lettering.

use std::time::Duration;

use super::dead::{DEAD_EXCHANGE, NO_DELIVERY_LIMIT, for_dead_letters};
use super::{ExchangeKind, QueueOptions, Topology};

/// The exchange through which messages return from their delays: the routing key is a queue.
pub(crate) const RETURN_EXCHANGE: &str = "coney.delay.return";

/// The exchange to which messages go that [`RETURN_EXCHANGE`] has no queue for, and the queue in
/// which they wait for [`SECOND_RETURN`].
const MISSING: &str = "coney.delay.missing";

/// The exchange through which messages return once more: then their queue is gone for certain, or
/// they are in it.
const LAST_RETURN_EXCHANGE: &str = "coney.delay.return.last";

/// The delay of a message before it returns once more. RabbitMQ starts within it.
const SECOND_RETURN: Duration = Duration::from_secs(30);

/// The longest delay of a command, or of another attempt.
pub(crate) const LONGEST_DELAY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The beginning of the names of all exchanges and queues of this file.
const STEM: &str = "coney.delay.";

/// The beginning of the names of the levels' exchanges and queues.
const LEVEL_STEM: &str = "coney.delay.level.";

/// The beginning of the names of the headers that name levels.
const LEVEL_HEADER: &str = "coney-delay-";

/// The delay of level 0, in milliseconds.
const UNIT_MS: u64 = 100;

/// The number of levels: enough for [`LONGEST_DELAY`].
const LEVELS: u32 = 25;

/// The largest number of levels in which a message waits. A delay that would take more is rounded
/// up, by less than 1 %.
const MOST_HOPS: u32 = 8;

/// Returns true if this is the name of an exchange or a queue for delays.
pub(crate) fn is_delay(name: &str) -> bool {
    name.starts_with(STEM)
}

/// Returns true if this is the name of the exchange of a level.
pub(crate) fn is_delay_level(exchange: &str) -> bool {
    exchange.starts_with(LEVEL_STEM)
}

/// Returns true if a header names a level.
pub(crate) fn is_delay_header(name: &str) -> bool {
    name.starts_with(LEVEL_HEADER)
}

/// Returns the name of the exchange and of the queue for a configured delay. The delay is in the
/// name because a queue's arguments cannot be changed.
pub(crate) fn delay_exchange(delay: Duration) -> String {
    format!("{STEM}{}", delay.as_millis())
}

/// Returns the topology of the queues for these delays.
pub(super) fn for_delays(delays: &[Duration]) -> Topology {
    let mut seen = Vec::new();
    let mut topology = Topology::new();
    for &delay in delays {
        if !seen.contains(&delay) {
            seen.push(delay);
            let name = delay_exchange(delay);
            topology = topology
                .exchange(&name, ExchangeKind::Fanout)
                .queue_with(&name, waiting(delay, RETURN_EXCHANGE))
                .bind(&name, &name, "");
        }
    }
    topology
}

/// Returns the topology for messages that return from a delay to `queue`, which must exist.
pub(crate) fn for_returns(queue: &str) -> Topology {
    for_dead_letters().and(returns_to(queue))
}

/// Returns the topology of [`for_returns`] without that of the dead letters.
pub(super) fn returns_to(queue: &str) -> Topology {
    return_exchanges()
        .bind(queue, RETURN_EXCHANGE, queue)
        .bind(queue, LAST_RETURN_EXCHANGE, queue)
}

fn return_exchanges() -> Topology {
    Topology::new()
        .exchange_or(LAST_RETURN_EXCHANGE, ExchangeKind::Direct, DEAD_EXCHANGE)
        .exchange(MISSING, ExchangeKind::Fanout)
        .exchange_or(RETURN_EXCHANGE, ExchangeKind::Direct, MISSING)
        .queue_with(MISSING, waiting(SECOND_RETURN, LAST_RETURN_EXCHANGE))
        .bind(MISSING, MISSING, "")
}

/// Returns the topology of all levels.
pub(crate) fn for_delay_levels() -> Topology {
    let mut topology = for_dead_letters().and(return_exchanges());
    let mut below = RETURN_EXCHANGE.to_owned();
    for level in 0..LEVELS {
        let name = level_exchange(level);
        topology = topology
            .exchange(&name, ExchangeKind::Headers)
            .queue_with(&name, waiting(level_delay(level), &below))
            .bind_headers(&name, &name, [(level_header(level), WAIT)])
            .bind_exchange(&below, &name, (level_header(level), SKIP));
        below = name;
    }
    topology
}

/// Returns the options of a queue from which messages go to `exchange` after `delay`.
fn waiting(delay: Duration, exchange: &str) -> QueueOptions {
    QueueOptions::new()
        .quorum(NO_DELIVERY_LIMIT)
        .message_ttl(delay)
        .dead_letter_through(exchange)
}

fn level_exchange(level: u32) -> String {
    format!("{LEVEL_STEM}{level}")
}

fn level_header(level: u32) -> String {
    format!("{LEVEL_HEADER}{level}")
}

/// The texts of a level's header. Both are bindings, so that a message whose binding is missing
/// stays where it is, and skips nothing.
const WAIT: &str = "wait";
const SKIP: &str = "skip";

fn level_delay(level: u32) -> Duration {
    Duration::from_millis(UNIT_MS << level)
}

/// The way of a message through the levels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DelayPath {
    /// The delay in units of level 0: bit `n` stands for level `n`.
    units: u64,
}

impl DelayPath {
    /// Creates the way of a message that is to wait for `delay`, or for up to 1 % or 100 ms longer;
    /// at most for [`LONGEST_DELAY`].
    pub(crate) fn of(delay: Duration) -> Self {
        let delay = delay.min(LONGEST_DELAY);
        let millis = u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        let units = millis.div_ceil(UNIT_MS).max(1);
        let step = 1 << (units.ilog2() + 1).saturating_sub(MOST_HOPS);
        Self {
            units: units.next_multiple_of(step),
        }
    }

    /// Returns the exchange to publish to.
    pub(crate) fn exchange(&self) -> String {
        level_exchange(self.units.ilog2())
    }

    /// Returns the headers to publish with.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (String, &'static str)> {
        let levels = 0..=self.units.ilog2();
        levels.map(|level| match self.units & (1 << level) {
            0 => (level_header(level), SKIP),
            _ => (level_header(level), WAIT),
        })
    }

    /// Returns the time for which the message waits.
    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(self.units * UNIT_MS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_levels_are_few_and_reach_the_longest_delay() {
        let topology = for_delay_levels();
        let queues = topology.queues().filter(|queue| is_delay(queue)).count();
        assert_eq!(queues, 26, "and one for messages whose queue is gone");
        let longest = DelayPath::of(LONGEST_DELAY);
        assert_eq!(longest.exchange(), "coney.delay.level.24");
        assert_eq!(DelayPath::of(2 * LONGEST_DELAY), longest);
    }

    #[test]
    fn delays_that_are_used_twice_have_one_queue() {
        let [second, minute] = [1, 60].map(Duration::from_secs);
        let topology = for_delays(&[second, minute, second]);
        let queues: Vec<&str> = topology.queues().collect();
        assert_eq!(queues, ["coney.delay.1000", "coney.delay.60000"]);
    }

    proptest! {
        #[test]
        fn no_delay_is_cut_short_or_much_longer(millis in 0_u64..2_592_000_000, nanos in 0_u64..2) {
            let delay = Duration::from_millis(millis) + Duration::from_nanos(nanos);
            let path = DelayPath::of(delay);
            prop_assert!(path.delay() >= delay.min(LONGEST_DELAY));
            let most = delay + (delay / 100).max(Duration::from_millis(UNIT_MS));
            prop_assert!(path.delay() <= most, "{:?}", path.delay());
            let headers: Vec<(String, &str)> = path.headers().collect();
            let hops = headers.iter().filter(|(_, text)| *text == WAIT).count();
            prop_assert!((1..=MOST_HOPS as usize).contains(&hops));
            prop_assert!(headers.iter().all(|(name, _)| is_delay_header(name)));
            let highest = headers.last().unwrap().0.replace(LEVEL_HEADER, LEVEL_STEM);
            prop_assert_eq!(highest, path.exchange());
            prop_assert!(is_delay_level(&path.exchange()));
        }
    }
}
