//! The encoder and decoder of coney's own AMQP frames: those of messages, their
//! acknowledgements and rejections.
//!
//! All other frames are amiquip's.

mod cursor;
mod decode;
mod encode;
mod long_prefix;
mod properties;
mod reply_queue_name;
mod short_text;
mod table;

pub(super) use self::cursor::{MAX_NESTING, Malformed};
pub(super) use self::decode::{ContentHeader, DeliverMethod, content_header, deliver};
pub(super) use self::encode::{ack, publish, reject};
pub(super) use self::reply_queue_name::ReplyQueueName;
pub(super) use self::short_text::replace_invalid;

#[cfg(test)]
mod codec_tests;
#[cfg(test)]
mod encode_tests;
#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod strategies_tests;
