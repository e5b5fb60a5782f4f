//! The interface between services and a broker, and raw access to the broker.
//!
//! A *link* is an AMQP channel that outlives reconnects: it declares what it needs, publishes, and
//! consumes from one queue. [`ServiceClient`](crate::ServiceClient) and
//! [`ServiceServer`](crate::ServiceServer) are built on links alone. [`Link`] offers the same to
//! programs, for peers that do not follow coney's contract.

mod admin_connection;
pub(crate) mod amqp;
pub(crate) mod broker;
mod confirm_lanes;
mod confirm_link;
mod confirm_tally;
mod confirmation;
pub(crate) mod connection_state;
mod delivery;
mod header;
mod limits;
mod link;
mod link_spec;
pub(crate) mod memory;
mod publication;
mod queue_depth;
mod room;
mod send_state;
mod traits;
pub(crate) mod x_death;

pub(crate) use self::broker::Broker;
pub(crate) use self::confirmation::{ConfirmOutcome, ConfirmReceiver, ConfirmSender};
pub(crate) use self::connection_state::ConnectionState;
pub use self::delivery::Delivery;
pub(crate) use self::delivery::{DeliveryToken, Disposition, PartialReply, Replier, Settler};
pub use self::header::{HeaderIter, HeaderTable, HeaderValue};
pub(crate) use self::limits::{DEFAULT_MAX_BODY, Limits};
pub use self::link::Link;
pub(crate) use self::link_spec::LinkSource;
pub use self::link_spec::LinkSpec;
pub(crate) use self::publication::{
    CoalesceLimits, LONGEST_EXPIRATION, LargeBody, Oversized, is_large,
};
pub use self::publication::{Message, Properties, Publication, RareProperties, Returned};
pub use self::queue_depth::QueueDepth;
pub(crate) use self::room::{Budget, Room};
pub(crate) use self::send_state::SendState;
pub(crate) use self::traits::{LinkHandle, NoSink, Refused, Sink, Transport};
pub use crate::topology::{ExchangeKind, QueueOptions, Topology};
