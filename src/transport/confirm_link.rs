use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::confirmation::{self, ConfirmReceiver, ConfirmWindow};
use super::{LinkHandle, LinkSpec, NoSink, Publication, Transport};
use crate::error::{Error, Phase, Result};
use crate::topology::{self, Topology};

/// How many messages may be under way without a confirmation. A sender waits
/// for room beyond it. At some 200 bytes each it is 3 MiB; idempotent ones keep
/// their bodies until then.
const WINDOW: usize = 16_384;

/// A connection's links for everything that must be confirmed: commands, events, and what is
/// moved, as retries and dead letters are. They are apart from the links of clients and
/// servers, because a channel confirms all it publishes or nothing, and confirming requests
/// and replies too would cost a tenth of the calls. Each opens when it is first used, and
/// declares no more than what is published over it: a user may be allowed nothing else.
pub(super) struct ConfirmLinks {
    commands: Opened,
    events: Opened,
    moves: Opened,
    window: Arc<ConfirmWindow>,
}

type Opened = Mutex<Option<Arc<dyn LinkHandle>>>;

impl ConfirmLinks {
    pub(super) fn new() -> Self {
        Self {
            commands: Opened::default(),
            events: Opened::default(),
            moves: Opened::default(),
            window: Arc::new(ConfirmWindow::new(WINDOW)),
        }
    }

    /// Hands a message over for sending. Blocks while too many are under way,
    /// at most until `deadline`. An error means that it will not be sent.
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
        let (opened, topology) = match exchange {
            topology::SERVICE_EXCHANGE => (&self.commands, topology::for_requests()),
            topology::EVENT_EXCHANGE => (&self.events, topology::for_events()),
            // Those whose messages are moved have declared where to.
            _ => (&self.moves, Topology::default()),
        };
        let not_yet = || {
            let peer = transport.address();
            Error::timed_out(
                Phase::Send,
                format!("timed out waiting for {peer} to take messages"),
            )
        };
        let mut handle = opened.try_lock_until(deadline).ok_or_else(not_yet)?;
        if let Some(handle) = &*handle {
            return Ok(Arc::clone(handle));
        }
        let mut spec = LinkSpec::new(topology);
        spec.confirms = true;
        let opened =
            transport
                .open(spec, Arc::new(NoSink), deadline)
                .map_err(|error| match error.phase() {
                    Some(_) => not_yet(),
                    None => error,
                })?;
        Ok(Arc::clone(handle.insert(opened)))
    }
}
