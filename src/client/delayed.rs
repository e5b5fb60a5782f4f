//! Commands that wait in the broker before they go to their service.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ServiceClient;
use super::decode::{CallTarget, no_route};
use crate::error::{Error, ErrorKind, Result};
use crate::topology::{self, DelayPath, LONGEST_DELAY};
use crate::transport::{LinkSpec, NoSink, Publication};

/// Checks the delay of a command; returns it unless it is zero.
pub(super) fn check_delay(
    target: CallTarget<'_>,
    after: Option<Duration>,
) -> Result<Option<Duration>> {
    match after {
        Some(after) if after > LONGEST_DELAY => Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("{target} cannot wait for {after:?}: the longest delay is 30 days"),
        )
        .with_nothing_ran(true)),
        after => Ok(after.filter(|after| !after.is_zero())),
    }
}

impl ServiceClient {
    /// Readdresses a command, so that it waits before it is in its service's queue. The first one
    /// for a service blocks until the broker has bound its queue, at most until `deadline`.
    pub(super) fn delay(
        &self,
        target: CallTarget<'_>,
        publication: &mut Publication,
        after: Duration,
        deadline: Instant,
    ) -> Result<()> {
        let queue = topology::request_queue(target.service);
        if !self.inner.delayed.contains(target.service) {
            self.bind_for_returns(target, &queue, deadline)?;
            self.inner.delayed.insert(target.service);
        }
        let path = DelayPath::of(after);
        publication.exchange = path.exchange().into();
        publication.routing_key = queue;
        publication.properties.headers.extend(path.headers());
        Ok(())
    }

    fn bind_for_returns(
        &self,
        target: CallTarget<'_>,
        queue: &str,
        deadline: Instant,
    ) -> Result<()> {
        let broker = &self.inner.broker;
        let spec = LinkSpec::new(topology::for_returns(queue));
        match broker.open_until(spec, Arc::new(NoSink), Some(deadline)) {
            Ok(handle) => {
                handle.close();
                Ok(())
            }
            Err(error) if error.to_string().contains("NOT_FOUND") => {
                let reason = "NO_ROUTE";
                Err(no_route(&target, target.service, reason, broker.address()))
            }
            Err(error) => Err(target.not_sent(error)),
        }
    }
}
