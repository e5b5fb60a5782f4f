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
use super::session::{End, Session, lost};
use crate::transport::{Form, Publication, Sharing};

/// How many requests of a link wait; replies are bounded by what is unsettled. Whoever comes then waits for room, until its
/// deadline.
const BOUND: usize = 1_024;

/// How often the I/O thread gives way to those who are about to send, after the last of
/// them came: some ten microseconds, if it has a processor to itself. With 64 callers,
/// 16 make 4 times as many share a message as 1 does, and half as many calls a second more.
const YIELDS: u32 = 16;

/// The messages of one link that wait.
#[derive(Default)]
pub(super) struct Waiting {
    state: Mutex<State>,
    room: Condvar,
    /// Nothing came with the one that was sent last.
    was_alone: AtomicBool,
}

#[derive(Default)]
struct State {
    messages: Vec<Box<Publication>>,
    /// The I/O thread will take them.
    is_told: bool,
    is_closed: bool,
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
    fn push(&mut self, message: Box<Publication>) -> Added {
        if self.is_closed {
            return Added::Closed;
        }
        self.messages.push(message);
        match std::mem::replace(&mut self.is_told, true) {
            true => Added::More,
            false => Added::First,
        }
    }
}

impl Waiting {
    /// Adds a request. Blocks while there is no room, at most until `deadline`.
    pub(super) fn add(&self, message: Box<Publication>, deadline: Instant) -> Added {
        let mut state = self.state.lock();
        while !state.is_closed && state.messages.len() >= BOUND {
            if self.room.wait_until(&mut state, deadline).timed_out() {
                return Added::TooLate;
            }
        }
        state.push(message)
    }

    /// Adds a reply. Never blocks: there is no more of them than was asked.
    pub(super) fn add_reply(&self, message: Box<Publication>) -> Added {
        self.state.lock().push(message)
    }

    /// Takes those that wait, after letting those come that are just about to.
    fn take(&self) -> Vec<Box<Publication>> {
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
        let messages = {
            let mut state = self.state.lock();
            state.is_told = false;
            std::mem::take(&mut state.messages)
        };
        if messages.len() >= BOUND {
            self.room.notify_all();
        }
        self.was_alone.store(messages.len() == 1, Ordering::Relaxed);
        messages
    }

    fn len(&self) -> usize {
        self.state.lock().messages.len()
    }

    /// Lets go of all, and takes no more.
    pub(super) fn close(&self) {
        let messages = {
            let mut state = self.state.lock();
            state.is_closed = true;
            std::mem::take(&mut state.messages)
        };
        self.room.notify_all();
        drop(messages);
    }
}

impl Session<'_> {
    /// Sends those that wait, each group in one message.
    pub(super) fn gathered(&mut self, link: LinkId) -> Result<(), End> {
        let Some(registered) = self.io.registry.get_mut(link) else {
            return Ok(());
        };
        let mut groups = Group::sort(registered.waiting.take()).into_iter();
        for group in &mut groups {
            if let Err(end) = self.publish_group(link, group) {
                // Taken and not sent: they wait for the next connection.
                let left = groups
                    .flat_map(|group| group.messages)
                    .map(|message| *message);
                self.io.registry.send_first(link, left);
                return Err(end);
            }
        }
        Ok(())
    }

    fn publish_group(&mut self, link: LinkId, mut group: Group) -> Result<(), End> {
        let Some(lane) = self.lanes.get_mut(&link) else {
            self.cannot_send(link);
            return Ok(());
        };
        group.messages.retain_mut(|message| message.start_sending());
        let _armed = self.io.watchdog.arm(self.io.operation_timeout);
        lane.publish_together(group).map_err(lost)
    }
}

/// Messages that share one.
pub(super) struct Group {
    /// Where they go.
    pub(super) key: String,
    pub(super) form: Form,
    pub(super) messages: Vec<Box<Publication>>,
    bytes: usize,
}

impl Group {
    /// Sorts messages by where they go; no group is larger than may share a message.
    fn sort(messages: Vec<Box<Publication>>) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        // The latest group of each key.
        let mut latest: HashMap<String, usize> = HashMap::new();
        for message in messages {
            let bytes = message.body.len();
            let Some(limit) = message.sharing else {
                continue; // others do not come here
            };
            let at = latest.get(&message.routing_key).copied();
            match at.map(|at| &mut groups[at]) {
                Some(group) if group.has_room(bytes, limit) => {
                    group.bytes += bytes;
                    group.messages.push(message);
                }
                _ => {
                    let key = message.routing_key.clone();
                    latest.insert(key.clone(), groups.len());
                    groups.push(Self {
                        key,
                        form: limit.form,
                        messages: vec![message],
                        bytes,
                    });
                }
            }
        }
        groups
    }

    fn has_room(&self, bytes: usize, limit: Sharing) -> bool {
        self.messages.len() < limit.messages && self.bytes + bytes <= limit.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    fn request(key: &str, bytes: usize) -> Box<Publication> {
        Box::new(Publication {
            sharing: Some(Sharing {
                form: Form::Batch,
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
            .map(|group| (&*group.key, group.messages.len()))
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
        assert_eq!(waiting.take().len(), BOUND);
        assert!(matches!(late.join().unwrap(), Added::First));
        waiting.close();
        assert!(matches!(
            waiting.add(request("a", 1), soon()),
            Added::Closed
        ));
        assert!(waiting.take().is_empty());
    }
}
