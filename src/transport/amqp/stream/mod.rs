//! The socket that amiquip uses: every byte in is checked here, and deliveries leave it.

mod content_collector;
mod frame_guard;
mod guarded_stream;
mod oversized_body;
mod sanitize;
mod start_ok;

pub(super) use self::guarded_stream::GuardedStream;
#[cfg(test)]
pub(super) use self::sanitize::{
    content_header as sanitize_content_header, method as sanitize_method,
};
