//! The lanes of messages with publisher confirms: which channel a message goes over, so that a
//! destination that does not answer holds up no other.
//!
//! RabbitMQ handles the messages of a channel one after the other, and may stop at one: it
//! registers a channel with a quorum queue before the first message, and waits for 65 s if that
//! queue has no leader. Until then nothing on the channel is confirmed. So messages share the main
//! lane as long as the broker answers. If it does not, a new main lane replaces that one, and each
//! destination that may be the cause gets a lane of its own until the broker confirms a message
//! there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::confirm_tally::{Destination, DestinationId, SharedTally, TallyPlace};

/// The time without an answer after which the broker counts as stuck on a lane. A slow disk makes
/// all of them wait for longer at times, which then costs no more than some channels.
pub(super) const QUIET_LIMIT: Duration = Duration::from_secs(2);

/// The largest number of destinations with lanes of their own: each is a channel.
const MOST_OWN: usize = 32;

/// The largest number of replaced main lanes that still have unconfirmed messages.
const MOST_REPLACED: usize = 8;

/// The largest number of unconfirmed messages on a lane of one destination that has not confirmed
/// any. RabbitMQ stops reading the whole connection when some 400 messages wait for one channel.
pub(super) const OWN_WINDOW: usize = 16;

/// The lanes of one kind of messages; `H` is the handle of a link. A plain struct that is passed
/// the time.
#[derive(Debug)]
pub(super) struct ConfirmLanes<H> {
    main: Option<Lane<H>>,
    /// The destinations that do not use the main lane. Their lanes open with the next message.
    own: BTreeMap<DestinationId, Option<Lane<H>>>,
    /// Former main lanes, open until the broker has answered all their messages.
    replaced: Vec<Lane<H>>,
    /// The time before which the main lane is not replaced, after an attempt that failed.
    keep_main_until: Option<Instant>,
}

#[derive(Debug)]
struct Lane<H> {
    handle: H,
    tally: Arc<SharedTally>,
}

/// The way of a message.
#[derive(Debug)]
pub(super) enum Way<H> {
    /// Over this link, with this place in its tally.
    Link(H, TallyPlace),
    /// Over the main lane, which has to be opened first.
    OpenMain,
    /// Over the lane of its destination, which has to be opened first.
    OpenOwn,
    /// Over a main lane that has to be opened in place of the present one, which has been quiet for
    /// this time.
    ReplaceMain(Duration),
    /// Over the lane of its destination, when that has room for another message.
    Wait(Arc<SharedTally>),
    /// None: the broker has answered nothing from the destination for this time.
    Quiet(Duration),
}

impl<H> Default for ConfirmLanes<H> {
    fn default() -> Self {
        Self {
            main: None,
            own: BTreeMap::new(),
            replaced: Vec::new(),
            keep_main_until: None,
        }
    }
}

impl<H: Clone> ConfirmLanes<H> {
    /// Returns the way of the next message to a destination. Unless `may_open` returns true, it is
    /// one of the open lanes, if there are any.
    pub(super) fn way(
        &self,
        to: Destination<'_>,
        now: Instant,
        may_open: impl Fn() -> bool,
    ) -> Way<H> {
        match self.own.get(&to.id()) {
            Some(Some(own)) => {
                let (quiet, is_full) = own.tally.read(|tally| {
                    let is_full = tally.messages() >= OWN_WINDOW && !tally.is_confirming();
                    (tally.quiet_for(now), is_full)
                });
                return match quiet >= QUIET_LIMIT {
                    true => Way::Quiet(quiet),
                    false if is_full => Way::Wait(Arc::clone(&own.tally)),
                    false => own.enter(to),
                };
            }
            Some(None) if may_open() => return Way::OpenOwn,
            Some(None) | None => {}
        }
        let Some(main) = &self.main else {
            return Way::OpenMain;
        };
        let quiet = main.tally.read(|tally| tally.quiet_for(now));
        let is_kept = self.keep_main_until.is_some_and(|until| now < until)
            || self.replaced.len() >= MOST_REPLACED;
        match quiet >= QUIET_LIMIT && !is_kept && may_open() {
            true => Way::ReplaceMain(quiet),
            false => main.enter(to),
        }
    }

    /// Sets the main lane. Returns the names of the destinations that get lanes of their own: those
    /// with unconfirmed messages on the main lane before, which any of them may have stopped.
    pub(super) fn opened_main(&mut self, handle: H) -> Vec<String> {
        let Some(before) = self.main.replace(Lane::new(handle)) else {
            return Vec::new();
        };
        let suspects = before.tally.read(|tally| tally.destinations());
        self.replaced.push(before);
        let mut names = Vec::new();
        for (id, name) in suspects {
            if self.own.len() < MOST_OWN && !self.own.contains_key(&id) {
                self.own.insert(id, None);
                names.push(name);
            }
        }
        names
    }

    /// Sets the lane of a destination.
    pub(super) fn opened_own(&mut self, to: Destination<'_>, handle: H) {
        self.own.insert(to.id(), Some(Lane::new(handle)));
    }

    /// Records that no lane could be opened: the main lane has to do for `to`, and for some time
    /// for all.
    pub(super) fn not_opened(&mut self, to: Destination<'_>, now: Instant) {
        self.keep_main_until = Some(now + QUIET_LIMIT);
        self.own.remove(&to.id());
    }

    /// Takes the lanes that are not needed any more: those of destinations that the broker confirms
    /// again, and replaced ones without unconfirmed messages. They are to be closed.
    pub(super) fn take_unneeded(&mut self) -> Vec<H> {
        if self.own.is_empty() && self.replaced.is_empty() {
            return Vec::new();
        }
        let mut unneeded = Vec::new();
        self.replaced.retain(|lane| {
            let is_needed = lane.tally.read(|tally| tally.messages() > 0);
            if !is_needed {
                unneeded.push(lane.handle.clone());
            }
            is_needed
        });
        let no_suspicion = self.replaced.is_empty();
        self.own.retain(|_, lane| {
            let Some(lane) = lane else {
                return !no_suspicion;
            };
            let tally = &lane.tally;
            let is_healthy = tally.read(|tally| tally.messages() == 0 && tally.is_confirming());
            if is_healthy {
                unneeded.push(lane.handle.clone());
            }
            !is_healthy
        });
        unneeded
    }
}

impl<H: Clone> Lane<H> {
    fn new(handle: H) -> Self {
        Self {
            handle,
            tally: Arc::default(),
        }
    }

    fn enter(&self, to: Destination<'_>) -> Way<H> {
        Way::Link(self.handle.clone(), self.tally.enter(to))
    }
}

#[cfg(test)]
#[path = "confirm_lanes_tests.rs"]
mod tests;
