//! The socket that amiquip uses: every byte in is checked here, every byte out counted.

mod frame;
mod frame_guard;
mod guarded_stream;
mod observed;
mod oversized_body;
mod sanitize;
mod start_ok;

pub(super) use self::frame::FRAME_MAX;
pub(super) use self::guarded_stream::GuardedStream;
pub(super) use self::observed::Observed;
#[cfg(test)]
pub(super) use self::sanitize::{
    content_header as sanitize_content_header, method as sanitize_method,
};
