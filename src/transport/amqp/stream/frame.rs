//! The size of AMQP frames.

/// What both sides must not exceed; RabbitMQ's own default.
pub(in crate::transport::amqp) const FRAME_MAX: u32 = 131_072;
