use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::router::Router;
use super::{Inner, ServiceClient};
use crate::error::{Error, ErrorKind, Result};
use crate::name::check_service;
use crate::topology;
use crate::transport::{Broker, LinkSpec, Sink};

/// Options for a [`ServiceClient`]; made by [`ServiceClient::builder`].
///
/// ```
/// use std::time::Duration;
/// use coney::{Broker, ServiceClient};
///
/// let client = ServiceClient::builder(&Broker::memory(), "order-service")
///     .timeout(Duration::from_secs(2))
///     .max_in_flight(1_000)
///     .build()?;
/// # let _ = client;
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Debug)]
pub struct ServiceClientBuilder {
    broker: Broker,
    name: String,
    timeout: Duration,
    max_in_flight: usize,
}

impl ServiceClientBuilder {
    pub(super) fn new(broker: &Broker, name: &str) -> Self {
        Self {
            broker: broker.clone(),
            name: name.to_owned(),
            timeout: Duration::from_secs(5),
            max_in_flight: 65_536,
        }
    }

    /// How long a call or a command may take where its options do not say.
    /// Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many calls may wait for replies at a time; one more is refused with
    /// [`ErrorKind::Rejected`] before anything is sent. Default: 65,536, at
    /// under 2 KiB each.
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        self.max_in_flight = calls;
        self
    }

    /// Makes the client. Blocks until the broker has made its reply queue, at
    /// most 10 s.
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::new`].
    pub fn build(self) -> Result<ServiceClient> {
        self.build_until(None)
    }

    /// The same, at most until then.
    pub(crate) fn build_until(self, deadline: Option<Instant>) -> Result<ServiceClient> {
        check_service(&self.name)?;
        if self.max_in_flight == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "a client that may have no call in flight can make none",
            ));
        }
        let router = Arc::new(Router::new(self.max_in_flight));
        let sink = Arc::clone(&router) as Arc<dyn Sink>;
        let spec = LinkSpec::new(topology::for_requests()).reply_queue();
        let wire = self.broker.open_until(spec, sink, deadline)?;
        Ok(ServiceClient {
            until: None,
            inner: Arc::new(Inner {
                name: self.name,
                timeout: self.timeout,
                broker: self.broker,
                wire,
                router,
                callbacks: Mutex::new(None),
            }),
        })
    }
}
