//! The size limit of AMQP frames.

/// The largest frame size to negotiate, in bytes; RabbitMQ's default.
pub(super) const FRAME_MAX: u32 = 131_072;
