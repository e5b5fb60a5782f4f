//! The links of a connection that publish with confirms.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::confirmation::{self, ConfirmReceiver, ConfirmWindow};
use super::{LinkHandle, LinkSpec, NoSink, Publication, Transport};
use crate::error::{Error, Phase, Result};
use crate::topology::{self, Topology};

/// The largest number of unconfirmed messages; a sender blocks beyond it. At some 200 bytes each
/// they take 3 MiB; idempotent messages keep their bodies until they are confirmed.
const WINDOW: usize = 16_384;

/// A connection's links for all messages with publisher confirms: commands, events, and republished
/// messages (retries and dead letters). They are separate from the links of clients and servers,
/// because a channel confirms all its messages or none, and confirming requests and replies too
/// would cost a tenth of the calls. Each link opens on first use, and declares no more than its
/// messages need: a user may lack the permission for anything else.
pub(super) struct ConfirmLinks {
    commands: LazyLink,
    events: LazyLink,
    republished: LazyLink,
    window: Arc<ConfirmWindow>,
}

type LazyLink = Mutex<Option<Arc<dyn LinkHandle>>>;

impl ConfirmLinks {
    pub(super) fn new() -> Self {
        Self {
            commands: LazyLink::default(),
            events: LazyLink::default(),
            republished: LazyLink::default(),
            window: Arc::new(ConfirmWindow::new(WINDOW)),
        }
    }

    /// Publishes a message with a confirm. Blocks while too many messages are unconfirmed, at most
    /// until `deadline`. An error means that the message will not be sent.
    pub(super) fn publish(
        &self,
        transport: &dyn Transport,
        publication: Publication,
        deadline: Instant,
    ) -> Result<ConfirmReceiver> {
        let handle = self.handle(&publication.exchange, transport, deadline)?;
        let Some(permit) = self.window.enter(deadline) else {
            return Err(Error::timed_out(
                Phase::Send,
                format!(
                    "timed out waiting for {} to confirm one of {WINDOW} messages under way",
                    transport.address()
                ),
            ));
        };
        let (confirm, confirmation) = confirmation::pair(permit);
        handle.publish(publication, Some(confirm), deadline)?;
        Ok(confirmation)
    }

    fn handle(
        &self,
        exchange: &str,
        transport: &dyn Transport,
        deadline: Instant,
    ) -> Result<Arc<dyn LinkHandle>> {
        let (link, topology) = match exchange {
            topology::SERVICE_EXCHANGE => (&self.commands, topology::for_requests()),
            topology::EVENT_EXCHANGE => (&self.events, topology::for_events()),
            // The consumer of republished messages has declared their targets.
            _ => (&self.republished, Topology::new()),
        };
        let not_yet = || {
            let peer = transport.address();
            Error::timed_out(
                Phase::Send,
                format!("timed out waiting for {peer} to take messages"),
            )
        };
        let mut handle = link.try_lock_until(deadline).ok_or_else(not_yet)?;
        if let Some(handle) = &*handle {
            return Ok(Arc::clone(handle));
        }
        let mut spec = LinkSpec::new(topology);
        spec.confirms = true;
        let link = transport
            .open(spec, Arc::new(NoSink), deadline)
            .map_err(|error| match error.phase() {
                Some(_) => not_yet(),
                None => error,
            })?;
        Ok(Arc::clone(handle.insert(link)))
    }
}
