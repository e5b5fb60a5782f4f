//! The exchange and the queue of the dead letters.

use super::{ExchangeKind, Topology};

/// The exchange for all dead letters; the routing key is the queue in which the message died.
pub(crate) const DEAD_EXCHANGE: &str = "dead.exchange";

/// The queue for all dead letters.
pub(crate) const DEAD_QUEUE: &str = "dead.letter";

/// A delivery limit that is never reached. coney counts redeliveries itself, and dead-letters with
/// a reason; the broker, which would drop the message, must not be first.
pub(crate) const NO_DELIVERY_LIMIT: u32 = 2_000_000_000;

/// Returns the topology for publishing and reading dead letters.
pub(crate) fn for_dead_letters() -> Topology {
    Topology::new()
        .exchange(DEAD_EXCHANGE, ExchangeKind::Topic)
        .queue(DEAD_QUEUE)
        .bind(DEAD_QUEUE, DEAD_EXCHANGE, "#")
}
