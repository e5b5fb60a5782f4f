//! The seam between services and a broker, and raw access to the broker.
//!
//! A *link* is one conversation with the broker, an AMQP channel that outlives
//! reconnects: it declares what it needs, publishes, and consumes from one
//! queue. [`ServiceClient`](crate::ServiceClient) and
//! [`ServiceServer`](crate::ServiceServer) are written over links and know
//! nothing else. [`Link`] gives programs the same thing, for peers that do not
//! follow coney's contract.

pub(crate) mod amqp;
mod broker;
mod confirm_link;
mod confirmation;
mod delivery;
mod header;
mod limits;
mod link;
mod link_spec;
pub(crate) mod memory;
mod publication;
mod room;
mod send_state;
mod traits;
pub(crate) mod x_death;

pub use crate::message::Body;
pub use crate::topology::{ExchangeKind, QueueOptions, Topology};
pub use amqp::{BrokerBuilder, ConnectionState};
pub use broker::Broker;
pub(crate) use confirmation::{ConfirmOutcome, ConfirmReceiver, ConfirmSender};
pub use delivery::Delivery;
pub(crate) use delivery::{DeliveryToken, Disposition, PartialReply, Replier, Settler};
pub use header::{HeaderTable, HeaderValue};
pub(crate) use limits::{DEFAULT_MAX_BODY, Limits};
pub use link::Link;
pub use link_spec::LinkSpec;
pub(crate) use link_spec::Source;
pub(crate) use publication::{CoalesceLimits, LONGEST_EXPIRATION, LargeBody, Oversized, is_large};
pub use publication::{Message, Properties, Publication, RareProperties, Returned};
pub(crate) use room::{Budget, Room};
pub(crate) use send_state::SendState;
pub(crate) use traits::{LinkHandle, NoSink, Refused, Sink, Transport};
