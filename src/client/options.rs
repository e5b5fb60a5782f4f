use std::time::Duration;

use crate::deadline;
use crate::message::{DEADLINE_HEADER, Headers};

/// The header that marks an asynchronous call.
const ASYNC_HEADER: &str = "async_callback";

/// Options for one call.
///
/// ```
/// use std::time::Duration;
/// use coney::CallOptions;
///
/// let options = CallOptions::new()
///     .timeout(Duration::from_millis(300))
///     .header("trace-id", "4bf92f35");
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    pub(super) timeout: Option<Duration>,
    pub(super) persistent: Option<bool>,
    headers: Vec<(String, String)>,
}

impl CallOptions {
    /// The defaults: the client's timeout, no headers of one's own.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long the call may take in all, from now to the reply. Default: the
    /// client's timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Adds a header to the envelope, for the handler's
    /// [`Context::header`](crate::Context::header).
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Whether the broker keeps the request on disk until it is handled.
    /// Default: true for a blocking call, false for an asynchronous one, as
    /// the wire contract has it.
    pub fn persistent(mut self, persistent: bool) -> Self {
        self.persistent = Some(persistent);
        self
    }

    /// The envelope's headers: the user's first, so that ours prevail.
    pub(super) fn wire_headers(&self, timeout: Duration, is_async: bool) -> Headers<'static> {
        let mut headers = Headers::new();
        for (name, value) in &self.headers {
            headers.insert(name, value);
        }
        if is_async {
            headers.insert(ASYNC_HEADER, &true);
        }
        headers.insert(DEADLINE_HEADER, &deadline::unix_millis_after(timeout));
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_on_the_wire() {
        let options = CallOptions::new()
            .header("a", "1")
            .header("deadline_ms", "0");
        let headers = options.wire_headers(Duration::from_secs(5), true);
        assert_eq!(headers.get::<String>("a").as_deref(), Some("1"));
        assert_eq!(headers.get::<bool>(ASYNC_HEADER), Some(true));
        assert!(headers.get::<u64>(DEADLINE_HEADER) > Some(1_700_000_000_000));
        let plain = CallOptions::new().wire_headers(Duration::ZERO, false);
        assert_eq!(plain.get::<bool>(ASYNC_HEADER), None);
    }
}
