//! One cached action: its stored responses, and what makes them invalid.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::cached::Cached;
use super::core::Core;
use super::entries::{Entry, Response};
use super::epoch::Epoch;
use super::invalidation::{EventTarget, Subscriptions};
use super::key::{Key, KeyRef, varied};
use super::standing::{Ages, Standing, Validity};
use super::tags::{Slot, Stamp};
use crate::base::catch::catch;
use crate::base::log_relay;
use crate::client::{CachedAnswer, CachedRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::message::ServiceMessage;
use crate::transport::{Broker, Message};

/// An action whose responses a client caches.
pub(super) struct Action {
    /// The name of the client, and the subscriptions; set once they are open. Dropped first, while
    /// the thread for events runs.
    opened: OnceLock<(String, Option<Subscriptions>)>,
    pub(super) core: Arc<Core>,
    pub(super) settings: Cached,
    number: u64,
    service: String,
    name: String,
    /// The version of all its responses.
    slot: Slot,
    pub(super) epoch: Arc<Epoch>,
    has_warned: AtomicBool,
}

/// A response that may be returned.
pub(super) struct Found {
    pub(super) entry: Arc<Entry>,
    pub(super) is_stale: bool,
}

impl Action {
    pub(super) fn new(core: &Arc<Core>, service: &str, name: &str, settings: Cached) -> Self {
        Self {
            core: Arc::clone(core),
            settings,
            number: core.next_action(),
            service: service.to_owned(),
            name: name.to_owned(),
            slot: core.tags.action(service, name),
            epoch: Arc::default(),
            has_warned: AtomicBool::new(false),
            opened: OnceLock::new(),
        }
    }

    /// Subscribes to the events that invalidate responses.
    pub(super) fn open(
        self: &Arc<Self>,
        broker: &Broker,
        client: &str,
        deadline: Option<Instant>,
    ) -> Result<()> {
        self.settings.check(&self.service, &self.name)?;
        let mut subscriptions = None;
        if !self.settings.events.is_empty() {
            let jobs = self.core.events.jobs(client).map_err(|error| {
                let fault = format!("{client}: cannot start the cache's thread for events");
                Error::new(ErrorKind::Io, fault).with_source(error)
            })?;
            let target = Arc::clone(self) as Arc<dyn EventTarget>;
            let patterns = self.settings.events.iter().map(|event| &*event.pattern);
            let epoch = &self.epoch;
            let opened =
                Subscriptions::open(broker, client, patterns, &target, &jobs, epoch, deadline)?;
            subscriptions = Some(opened);
        }
        let _ = self.opened.set((client.to_owned(), subscriptions));
        Ok(())
    }

    /// Returns the name of the client, for the names of threads.
    pub(super) fn client(&self) -> &str {
        self.opened.get().map_or("", |(client, _)| client)
    }

    /// Encodes the headers on which the response depends.
    pub(super) fn varied(&self, request: &CachedRequest<'_>) -> Vec<u8> {
        varied(
            self.settings
                .vary
                .iter()
                .map(|header| (request.headers)(header)),
        )
    }

    pub(super) fn key<'k>(&self, varied: &'k [u8], payload: &'k str) -> KeyRef<'k> {
        KeyRef {
            action: self.number,
            varied,
            payload,
        }
    }

    /// Returns the stored response, if it may be returned at this time.
    pub(super) fn find(&self, key: KeyRef<'_>, now: Instant) -> Option<Found> {
        let entry = self.core.entries.get(key)?;
        let validity = self.validity(&entry.stamp);
        let is_stale = match entry.ages.standing(entry.age(now), validity) {
            Standing::Fresh => false,
            Standing::Stale => true,
            Standing::Unusable => return None,
        };
        Some(Found { entry, is_stale })
    }

    /// Returns the stored response, if it may stand in for an unavailable service at this time.
    pub(super) fn stand_in(&self, key: KeyRef<'_>, now: Instant) -> Option<CachedAnswer> {
        let entry = self.core.entries.get(key)?;
        let (age, validity) = (entry.age(now), self.validity(&entry.stamp));
        let Response::Text(text) = &entry.response else {
            return None;
        };
        entry
            .ages
            .may_stand_in(age, validity)
            .then(|| CachedAnswer {
                text: Arc::clone(text),
                is_stale: entry.ages.standing(age, validity) != Standing::Fresh,
            })
    }

    /// Stores a response, unless an event may have made it invalid since its request was sent.
    pub(super) fn store(
        &self,
        key: Key,
        response: Response,
        stamp: Stamp,
        ages: Ages,
        since: Instant,
    ) {
        if self.is_unchanged(&stamp) {
            let entry = Entry::new(&key, response, stamp, ages, since);
            self.core.entries.store(key, entry);
        }
    }

    /// Records the versions of everything that the response to a request depends on. Call it before
    /// the request is sent.
    pub(super) fn stamp(&self, payload: &str) -> Stamp {
        let epoch = self.epoch.number();
        let tags = match &self.settings.tags {
            None => Ok(Vec::new()),
            Some(tags) => tags(payload),
        };
        match tags {
            Ok(tags) => {
                let tags = tags.iter().map(|tag| self.tag(tag)).collect();
                self.core.tags.stamp(self.slot, tags, epoch)
            }
            Err(fault) => {
                self.warn_once(format_args!(
                    "a request has no tags, and is not cached: {fault}"
                ));
                Stamp::without_tags()
            }
        }
    }

    /// Returns true if nothing has happened since the stamp that a response depends on.
    pub(super) fn is_unchanged(&self, stamp: &Stamp) -> bool {
        stamp.epoch == self.epoch.number() && self.core.tags.is_current(self.slot, stamp)
    }

    fn validity(&self, stamp: &Stamp) -> Validity {
        if !self.core.tags.is_current(self.slot, stamp) {
            Validity::Invalidated
        } else if self.epoch.is_down() {
            Validity::Disconnected
        } else if self.epoch.number() != stamp.epoch {
            Validity::Missed
        } else {
            Validity::Current
        }
    }

    fn tag(&self, tag: &str) -> Slot {
        self.core.tags.tag(&self.service, &self.name, tag)
    }

    /// Logs a fault of the program's types, once.
    fn warn_once(&self, fault: std::fmt::Arguments<'_>) {
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            let (name, service) = (&self.name, &self.service);
            log_relay::log(
                log::Level::Warn,
                "coney::cache",
                format_args!("{name} of {service}: {fault}"),
            );
        }
    }

    /// Returns the tags of an event.
    fn tags_of(&self, subscription: usize, event: &Message) -> Result<Vec<String>, String> {
        let settings = self.settings.events.get(subscription);
        let Some(tags) = settings.and_then(|event| event.tags.as_ref()) else {
            return Err(String::new());
        };
        if event.oversized().is_some() {
            return Err("it is too large".to_owned());
        }
        let envelope = ServiceMessage::decode(&event.body).map_err(|error| error.to_string())?;
        catch(|| tags(envelope.payload.as_str())).unwrap_or_else(Err)
    }
}

impl EventTarget for Action {
    fn handle(&self, subscription: usize, event: &Message) {
        match self.tags_of(subscription, event) {
            Ok(tags) => {
                for tag in tags {
                    self.core.tags.invalidate(self.tag(&tag));
                }
            }
            Err(fault) => {
                self.core.tags.invalidate(self.slot);
                if !fault.is_empty() {
                    let name = &event.routing_key;
                    self.warn_once(format_args!(
                        "the event {name} invalidates all responses: {fault}"
                    ));
                }
            }
        }
    }
}
