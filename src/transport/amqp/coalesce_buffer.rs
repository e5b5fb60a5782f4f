//! Requests, and replies, that wait to be sent at the same moment and may share a message.
//!
//! There is no timer: the first to come has the I/O thread told, and whoever comes
//! before it gets there leaves together. Before it takes them it lets other threads run,
//! as long as that brings more. So a request alone, after another that was, leaves at once,
//! and the more threads have something to send, the more share a message.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::message::reply_batch::ReplyBatchWriter;
use crate::transport::{CoalesceLimits, PartialReply, Publication};

/// How many requests of a link wait. Whoever comes then waits for room, until its deadline.
const MOST_REQUESTS: usize = 8_192;

/// How many bytes of replies wait. A worker that has another then waits for room.
const MOST_REPLY_BYTES: usize = 16 << 20;

/// How often the I/O thread gives way to those who are about to send, after the last of
/// them came: some ten microseconds, if it has a processor to itself. With 64 callers,
/// 16 make 4 times as many share a message as 1 does, and half as many calls a second more.
const YIELDS: u32 = 16;

/// How long it does so at most, however many come: a processor that is given away may stay
/// away for a while, and others wait for the I/O thread too.
const LONGEST: Duration = Duration::from_millis(1);

/// What waits on one link.
pub(super) struct CoalesceBuffer {
    state: Mutex<State>,
    room: Condvar,
    /// Nothing came with the one that was sent last.
    was_alone: AtomicBool,
    /// How large a bundle may be.
    reply_batch_bytes: usize,
}

#[derive(Default)]
struct State {
    messages: Messages,
    /// The I/O thread will take them.
    is_told: bool,
    is_closed: bool,
}

/// Messages that may share one.
#[derive(Default)]
pub(super) struct Messages {
    pub(super) requests: Vec<Box<Publication>>,
    pub(super) replies: Replies,
}

/// What became of a message that was to wait.
pub(super) enum Added {
    Waits,
    TooLate,
    Closed,
}

impl State {
    /// Has the I/O thread told, unless it is. With the lock held: what another thread does
    /// after it has added something comes after the telling.
    fn notify(&mut self, notify: impl FnOnce()) -> Added {
        if !std::mem::replace(&mut self.is_told, true) {
            notify();
        }
        Added::Waits
    }
}

impl Messages {
    fn len(&self) -> usize {
        self.requests.len() + self.replies.count
    }

    fn is_full(&self) -> bool {
        self.requests.len() >= MOST_REQUESTS || self.replies.bytes >= MOST_REPLY_BYTES
    }
}

impl CoalesceBuffer {
    pub(super) fn new(max_body: usize) -> Self {
        /// For what stands round the replies.
        const FRAME: usize = 1_024;
        Self {
            state: Mutex::default(),
            room: Condvar::new(),
            was_alone: AtomicBool::new(false),
            reply_batch_bytes: CoalesceLimits::BYTES.min(max_body.saturating_sub(FRAME)),
        }
    }

    /// Adds a request. Blocks while there is no room, at most until `deadline`.
    pub(super) fn add(
        &self,
        request: Box<Publication>,
        deadline: Instant,
        notify: impl FnOnce(),
    ) -> Added {
        match self.wait_for_room(deadline) {
            Ok(mut state) => {
                state.messages.requests.push(request);
                state.notify(notify)
            }
            Err(refused) => refused,
        }
    }

    /// The same for a reply.
    pub(super) fn add_reply(&self, reply: PartialReply<'_>, notify: impl FnOnce()) -> Added {
        match self.wait_for_room(reply.deadline) {
            Ok(mut state) => {
                state.messages.replies.add(reply, self.reply_batch_bytes);
                state.notify(notify)
            }
            Err(refused) => refused,
        }
    }

    fn wait_for_room(&self, deadline: Instant) -> Result<MutexGuard<'_, State>, Added> {
        let mut state = self.state.lock();
        while !state.is_closed && state.messages.is_full() {
            if self.room.wait_until(&mut state, deadline).timed_out() {
                return Err(Added::TooLate);
            }
        }
        match state.is_closed {
            true => Err(Added::Closed),
            false => Ok(state),
        }
    }

    /// Takes those that wait, after letting those come that are just about to.
    pub(super) fn take(&self) -> Messages {
        let was_alone = self.was_alone.load(Ordering::Relaxed);
        let mut before = self.len();
        let mut in_vain = 0;
        if before == 0 {
            return self.take_now();
        }
        let end = Instant::now() + LONGEST;
        // One that is alone as the one before was is not kept waiting.
        while in_vain < YIELDS
            && before < CoalesceLimits::MESSAGES
            && !(was_alone && before == 1)
            && Instant::now() < end
        {
            thread::yield_now();
            let now = self.len();
            in_vain = if now == before { in_vain + 1 } else { 0 };
            before = now;
        }
        let messages = self.take_now();
        self.was_alone.store(messages.len() == 1, Ordering::Relaxed);
        messages
    }

    /// Drops requests whose deadlines have passed, while they cannot be sent.
    pub(super) fn drop_expired(&self) {
        let over = {
            let mut state = self.state.lock();
            let requests = std::mem::take(&mut state.messages.requests).into_iter();
            let (over, left): (Vec<_>, Vec<_>) = requests.partition(|it| it.is_expired());
            state.messages.requests = left;
            over
        };
        if !over.is_empty() {
            self.room.notify_all();
        }
    }

    fn take_now(&self) -> Messages {
        let messages = {
            let mut state = self.state.lock();
            state.is_told = false;
            std::mem::take(&mut state.messages)
        };
        if messages.is_full() {
            self.room.notify_all();
        }
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

/// Replies that wait, by the queue they go to.
#[derive(Default)]
pub(super) struct Replies {
    open: HashMap<String, ReplyBatchWriter>,
    /// Those that are full.
    full: Vec<(String, ReplyBatchWriter)>,
    count: usize,
    bytes: usize,
}

impl Replies {
    fn add(&mut self, reply: PartialReply<'_>, most_bytes: usize) {
        let PartialReply {
            to,
            correlation_id: id,
            body,
            ..
        } = reply;
        self.count += 1;
        self.bytes += ReplyBatchWriter::room_for(id, body);
        match self.open.get_mut(to) {
            Some(open) if open.len_with(id, body) <= most_bytes => open.push(id, body),
            Some(open) => {
                let full = std::mem::replace(open, ReplyBatchWriter::new(id, body));
                self.full.push((to.to_owned(), full));
            }
            None => {
                self.open
                    .insert(to.to_owned(), ReplyBatchWriter::new(id, body));
            }
        }
    }

    pub(super) fn reply_batches(self) -> impl Iterator<Item = Publication> {
        self.full.into_iter().chain(self.open).map(|(to, writer)| {
            let (id, body) = writer.finish();
            let mut publication = Publication::new("", to, body);
            publication.properties.correlation_id = id;
            publication
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn request() -> Box<Publication> {
        Box::new(Publication::new("x", "a", vec![0]))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    #[test]
    fn the_first_has_them_fetched_and_the_last_waits_for_room() {
        let waiting = Arc::new(CoalesceBuffer::new(1 << 20));
        let mut told = 0;
        for _ in 0..MOST_REQUESTS {
            let added = waiting.add(request(), soon(), || told += 1);
            assert!(matches!(added, Added::Waits));
        }
        assert_eq!(told, 1);
        let added = waiting.add(request(), soon(), || {});
        assert!(matches!(added, Added::TooLate));
        let late = std::thread::spawn({
            let waiting = Arc::clone(&waiting);
            let in_time = soon() + Duration::from_secs(10);
            move || {
                let mut told = false;
                let added = waiting.add(request(), in_time, || told = true);
                matches!(added, Added::Waits) && told
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(waiting.take().requests.len(), MOST_REQUESTS);
        assert!(late.join().unwrap());
        waiting.close();
        let added = waiting.add(request(), soon(), || {});
        assert!(matches!(added, Added::Closed));
        assert_eq!(waiting.take().len(), 0);
    }

    #[test]
    fn bundles_are_no_larger_than_a_message_may_be() {
        let waiting = CoalesceBuffer::new(1_024 + 400);
        for (to, bytes) in [("q", 100), ("q", 100), ("r", 100), ("q", 250), ("q", 10)] {
            let reply = PartialReply {
                to,
                correlation_id: "id",
                body: &vec![b'1'; bytes],
                deadline: soon(),
            };
            assert!(matches!(waiting.add_reply(reply, || {}), Added::Waits));
        }
        let mut sent: Vec<_> = waiting
            .take()
            .replies
            .reply_batches()
            .map(|message| {
                let is_alone = message.properties.correlation_id.is_some();
                assert!(message.body.len() <= 400);
                (message.routing_key, is_alone)
            })
            .collect();
        sent.sort_unstable();
        let sent: Vec<_> = sent.iter().map(|(to, alone)| (&**to, *alone)).collect();
        assert_eq!(sent, [("q", false), ("q", false), ("r", true)]);
    }
}
