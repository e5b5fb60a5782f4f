//! The links of a connection that publish with confirms.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::confirm_lanes::{ConfirmLanes, OWN_WINDOW, QUIET_LIMIT, Way};
use super::confirm_tally::{Destination, TallyPlace};
use super::confirmation::{self, ConfirmReceiver, ConfirmWindow};
use super::{ConnectionState, LinkHandle, LinkSpec, NoSink, Publication, Transport};
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::topology::{self, Topology};

/// The largest number of unconfirmed messages; a sender blocks beyond it. At some 200 bytes each
/// they take 3 MiB; idempotent messages keep their bodies until they are confirmed.
const WINDOW: usize = 16_384;

/// The longest time for which a message waits for another lane to open, as the main lane would do.
const OPEN_LIMIT: Duration = Duration::from_secs(1);

/// A connection's links for all messages with publisher confirms: commands, events, and republished
/// messages (retries and dead letters). They are separate from the links of clients and servers,
/// because a channel confirms all its messages or none, and confirming requests and replies too
/// would cost a tenth of the calls. Each link opens on first use, and declares no more than its
/// messages need: a user may lack the permission for anything else.
pub(super) struct ConfirmLinks {
    commands: Lanes,
    events: Lanes,
    republished: Lanes,
    /// Commands and retries with any delay but a configured one.
    delayed: Lanes,
    window: Arc<ConfirmWindow>,
}

type Link = Arc<dyn LinkHandle>;
type Lanes = Mutex<ConfirmLanes<Link>>;

impl ConfirmLinks {
    pub(super) fn new() -> Self {
        Self {
            commands: Lanes::default(),
            events: Lanes::default(),
            republished: Lanes::default(),
            delayed: Lanes::default(),
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
        let peer = transport.address();
        let Some(permit) = self.window.enter(deadline) else {
            return Err(Error::timed_out(
                Phase::Send,
                format!(
                    "timed out waiting for {peer} to confirm one of {WINDOW} messages under way"
                ),
            ));
        };
        let (lanes, topology) = match &*publication.exchange {
            topology::SERVICE_EXCHANGE => (&self.commands, topology::for_requests()),
            topology::EVENT_EXCHANGE => (&self.events, topology::for_events()),
            level if topology::is_delay_level(level) => {
                (&self.delayed, topology::for_delay_levels())
            }
            // The consumer of republished messages has declared their targets.
            _ => (&self.republished, Topology::new()),
        };
        let opener = Opener {
            transport,
            topology,
            deadline,
        };
        let to = Destination {
            exchange: &publication.exchange,
            // The messages of a delay are all for its queue, whatever they are for afterwards.
            routing_key: match topology::is_delay(&publication.exchange) {
                true => "",
                false => &publication.routing_key,
            },
        };
        let (link, place) = opener.way(lanes, to)?;
        let (confirm, confirmation) = confirmation::pair(permit);
        link.publish(publication, Some(confirm.counted(place)), deadline)?;
        Ok(confirmation)
    }
}

/// The opening of links for one message.
struct Opener<'a> {
    transport: &'a dyn Transport,
    topology: Topology,
    deadline: Instant,
}

impl Opener<'_> {
    /// Returns the link for a message, and the message's place in the tally of its lane. Blocks
    /// while links open, and while the destination's own lane is full, at most until the deadline.
    fn way(&self, lanes: &Lanes, to: Destination<'_>) -> Result<(Link, TallyPlace)> {
        loop {
            let now = Instant::now();
            let mut locked = self.lock(lanes)?;
            for unneeded in locked.take_unneeded() {
                unneeded.close();
            }
            let may_open = || self.transport.state() == ConnectionState::Connected;
            match locked.way(to, now, may_open) {
                Way::Link(link, place) => return Ok((link, place)),
                Way::OpenMain => {
                    let link = self.open(self.deadline)?;
                    locked.opened_main(link);
                }
                Way::OpenOwn => match self.open(self.deadline.min(now + OPEN_LIMIT)) {
                    Ok(link) => locked.opened_own(to, link),
                    Err(_) => locked.not_opened(to, Instant::now()),
                },
                Way::ReplaceMain(quiet) => match self.open(self.deadline.min(now + OPEN_LIMIT)) {
                    Ok(link) => {
                        let suspects = locked.opened_main(link);
                        drop(locked); // a logger may publish
                        self.log_replaced(quiet, &suspects);
                    }
                    Err(_) => locked.not_opened(to, Instant::now()),
                },
                Way::Wait(tally) => {
                    drop(locked);
                    let until = self.deadline.min(now + QUIET_LIMIT);
                    tally.wait_until_fewer(OWN_WINDOW, until);
                    if Instant::now() >= self.deadline {
                        return Err(self.too_late());
                    }
                }
                Way::Quiet(quiet) => return Err(self.quiet(to, quiet)),
            }
        }
    }

    fn lock<'l>(&self, lanes: &'l Lanes) -> Result<MutexGuard<'l, ConfirmLanes<Link>>> {
        lanes
            .try_lock_until(self.deadline)
            .ok_or_else(|| self.too_late())
    }

    fn open(&self, deadline: Instant) -> Result<Link> {
        let mut spec = LinkSpec::new(self.topology.clone());
        spec.confirms = true;
        self.transport
            .open(spec, Arc::new(NoSink), deadline)
            .map_err(|error| match error.phase() {
                Some(_) => self.too_late(),
                None => error,
            })
    }

    fn log_replaced(&self, quiet: Duration, suspects: &[String]) {
        log::warn!(
            target: "coney::transport",
            "{} has confirmed nothing on a channel for {quiet:.1?}, which is replaced. If a queue is \
             unavailable, it is that of one of these: {}",
            self.transport.address(),
            suspects.join(", ").escape_debug()
        );
    }

    fn too_late(&self) -> Error {
        let peer = self.transport.address();
        Error::timed_out(
            Phase::Send,
            format!("timed out waiting for {peer} to take messages"),
        )
    }

    fn quiet(&self, to: Destination<'_>, quiet: Duration) -> Error {
        Error::new(
            ErrorKind::Broker,
            format!(
                "{} has confirmed no message to the {} for {quiet:.1?}, so no further one is sent; \
                 is the queue unavailable?",
                self.transport.address(),
                to.name()
            ),
        )
        .with_nothing_ran(true)
    }
}
