//! Requests, and replies, that wait to be sent at the same moment and may share a message.
//!
//! There is no timer: the first to come has the I/O thread told, and whoever comes
//! before it gets there leaves together. Before it takes them it lets other threads run,
//! as long as that brings more. So a request alone leaves alone and at once, and the more
//! threads have something to send, the more share a message.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::command::LinkId;
use super::convert::Failure;
use super::lane::Lane;
use super::session::{End, Session, lost};
use crate::message::CorrelationId;
use crate::message::bundle::Bundling;
use crate::transport::{Parcel, Publication, Reply, Sharing};

/// How many requests of a link wait; replies are bounded by what is unsettled. Whoever comes then waits for room, until its
/// deadline.
const BOUND: usize = 8_192;

/// How often the I/O thread gives way to those who are about to send, after the last of
/// them came: some ten microseconds, if it has a processor to itself. With 64 callers,
/// 16 make 4 times as many share a message as 1 does, and half as many calls a second more.
const YIELDS: u32 = 16;

/// What waits on one link.
#[derive(Default)]
pub(super) struct Waiting {
    state: Mutex<State>,
    room: Condvar,
    /// Nothing came with the one that was sent last.
    was_alone: AtomicBool,
}

#[derive(Default)]
struct State {
    taken: Taken,
    /// The I/O thread will take them.
    is_told: bool,
    is_closed: bool,
}

/// Messages that are to be sent together.
#[derive(Default)]
struct Taken {
    requests: Vec<Parcel>,
    replies: Replies,
}

/// What became of a message that was to wait.
pub(super) enum Added {
    /// It waits, and the I/O thread has to be told.
    First,
    /// It waits.
    More,
    TooLate,
    Closed,
}

impl State {
    fn tell(&mut self) -> Added {
        match std::mem::replace(&mut self.is_told, true) {
            true => Added::More,
            false => Added::First,
        }
    }
}

impl Taken {
    fn len(&self) -> usize {
        self.requests.len() + self.replies.count
    }
}

impl Waiting {
    /// Adds a request. Blocks while there is no room, at most until `deadline`.
    pub(super) fn add(&self, request: Parcel, deadline: Instant) -> Added {
        let mut state = self.state.lock();
        while !state.is_closed && state.taken.requests.len() >= BOUND {
            if self.room.wait_until(&mut state, deadline).timed_out() {
                return Added::TooLate;
            }
        }
        if state.is_closed {
            return Added::Closed;
        }
        state.taken.requests.push(request);
        state.tell()
    }

    /// Adds a reply. Never blocks: there is no more of them than was asked.
    pub(super) fn add_reply(&self, reply: Reply<'_>) -> Added {
        let mut state = self.state.lock();
        if state.is_closed {
            return Added::Closed;
        }
        state.taken.replies.add(reply);
        state.tell()
    }

    /// Takes those that wait, after letting those come that are just about to.
    fn take(&self) -> Taken {
        let was_alone = self.was_alone.load(Ordering::Relaxed);
        let mut before = self.len();
        let mut in_vain = 0;
        // One that is alone as the one before was is not kept waiting.
        while in_vain < YIELDS && !(was_alone && before == 1) {
            thread::yield_now();
            let now = self.len();
            in_vain = if now == before { in_vain + 1 } else { 0 };
            before = now;
        }
        let taken = {
            let mut state = self.state.lock();
            state.is_told = false;
            std::mem::take(&mut state.taken)
        };
        if taken.requests.len() >= BOUND {
            self.room.notify_all();
        }
        self.was_alone.store(taken.len() == 1, Ordering::Relaxed);
        taken
    }

    fn len(&self) -> usize {
        self.state.lock().taken.len()
    }

    /// Lets go of all, and takes no more.
    pub(super) fn close(&self) {
        let taken = {
            let mut state = self.state.lock();
            state.is_closed = true;
            std::mem::take(&mut state.taken)
        };
        self.room.notify_all();
        drop(taken);
    }
}

impl Session<'_> {
    /// Sends those that wait.
    pub(super) fn gathered(&mut self, link: LinkId) -> Result<(), End> {
        let Some(registered) = self.io.registry.get_mut(link) else {
            return Ok(());
        };
        let Taken { requests, replies } = registered.waiting.take();
        if !self.lanes.contains_key(&link) && !requests.is_empty() {
            self.cannot_send(link);
            return Ok(());
        }
        for bundle in replies.bundles() {
            self.publish_with(link, |lane| lane.publish(bundle, None))?;
        }
        let mut groups = Group::sort(requests).into_iter();
        for mut group in &mut groups {
            group.requests.retain_mut(|request| request.start_sending());
            if let Err(end) = self.publish_with(link, |lane| lane.publish_together(group)) {
                // Taken and not sent: they wait for the next connection.
                let left = groups.flat_map(|group| group.requests);
                self.io
                    .registry
                    .send_first(link, left.map(|request| *request));
                return Err(end);
            }
        }
        Ok(())
    }

    fn publish_with(
        &mut self,
        link: LinkId,
        publish: impl FnOnce(&mut Lane<'_>) -> Result<(), Failure>,
    ) -> Result<(), End> {
        let Some(lane) = self.lanes.get_mut(&link) else {
            return Ok(());
        };
        let _armed = self.io.watchdog.arm(self.io.operation_timeout);
        publish(lane).map_err(lost)
    }
}

/// Replies that wait, by the queue they go to.
#[derive(Default)]
struct Replies {
    open: HashMap<String, Bundling>,
    /// Those that are full.
    full: Vec<(String, Bundling)>,
    count: usize,
}

impl Replies {
    fn add(&mut self, reply: Reply<'_>) {
        let Reply { to, id, body } = reply;
        self.count += 1;
        match self.open.get_mut(to) {
            Some(open) if open.len() + body.len() <= Sharing::BYTES => open.push(id, body),
            Some(open) => {
                let full = std::mem::replace(open, Bundling::new(id, body));
                self.full.push((to.to_owned(), full));
            }
            None => {
                self.open.insert(to.to_owned(), Bundling::new(id, body));
            }
        }
    }

    fn bundles(self) -> impl Iterator<Item = Publication> {
        self.full
            .into_iter()
            .chain(self.open)
            .map(|(to, bundling)| {
                let (id, body) = bundling.finish();
                let mut publication = Publication::new("", to, body);
                publication.properties.correlation_id = id.map(CorrelationId::to_text);
                publication
            })
    }
}

/// Requests that share a message.
pub(super) struct Group {
    /// Where they go.
    pub(super) key: String,
    pub(super) requests: Vec<Parcel>,
    bytes: usize,
}

impl Group {
    /// Sorts requests by where they go; no group is larger than may share a message.
    fn sort(requests: Vec<Parcel>) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        // The latest group of each key.
        let mut latest: HashMap<String, usize> = HashMap::new();
        for request in requests {
            let bytes = request.body.len();
            let Some(limit) = request.sharing else {
                continue; // others do not come here
            };
            // Most often they all go one way.
            let last = groups
                .last()
                .filter(|group| group.key == request.routing_key);
            let at = match last {
                Some(_) => Some(groups.len() - 1),
                None => latest.get(&request.routing_key).copied(),
            };
            match at.map(|at| &mut groups[at]) {
                Some(group) if group.has_room(bytes, limit) => {
                    group.bytes += bytes;
                    group.requests.push(request);
                }
                _ => {
                    let key = request.routing_key.clone();
                    latest.insert(key.clone(), groups.len());
                    groups.push(Self {
                        key,
                        requests: vec![request],
                        bytes,
                    });
                }
            }
        }
        groups
    }

    fn has_room(&self, bytes: usize, limit: Sharing) -> bool {
        self.requests.len() < limit.messages && self.bytes + bytes <= limit.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    fn request(key: &str, bytes: usize) -> Parcel {
        Box::new(Publication {
            sharing: Some(Sharing {
                messages: 3,
                bytes: 100,
            }),
            ..Publication::new("x", key, vec![0; bytes])
        })
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    #[test]
    fn groups_go_one_way_and_are_bounded() {
        let small = ["a", "b", "a", "a", "a"].map(|key| request(key, 10));
        let large = ["b", "b"].map(|key| request(key, 95));
        let groups = Group::sort(small.into_iter().chain(large).collect());
        let shapes: Vec<_> = groups
            .iter()
            .map(|group| (&*group.key, group.requests.len()))
            .collect();
        assert_eq!(shapes, [("a", 3), ("b", 1), ("a", 1), ("b", 1), ("b", 1)]);
    }

    #[test]
    fn the_first_has_them_fetched_and_the_last_waits_for_room() {
        let waiting = Arc::new(Waiting::default());
        assert!(matches!(waiting.add(request("a", 1), soon()), Added::First));
        for _ in 1..BOUND {
            assert!(matches!(waiting.add(request("a", 1), soon()), Added::More));
        }
        assert!(matches!(
            waiting.add(request("a", 1), soon()),
            Added::TooLate
        ));
        let late = std::thread::spawn({
            let waiting = Arc::clone(&waiting);
            move || waiting.add(request("a", 1), soon() + Duration::from_secs(10))
        });
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(waiting.take().requests.len(), BOUND);
        assert!(matches!(late.join().unwrap(), Added::First));
        waiting.close();
        assert!(matches!(
            waiting.add(request("a", 1), soon()),
            Added::Closed
        ));
        assert_eq!(waiting.take().len(), 0);
    }
}
