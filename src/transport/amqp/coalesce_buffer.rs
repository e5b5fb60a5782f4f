//! The requests and replies that wait to be sent at the same moment and may be coalesced into
//! one message.
//!
//! There is no timer: the first to be added notifies the I/O thread, and those that are added
//! before it takes them are coalesced. Before it takes them it yields to other threads, as long
//! as that brings more. So a single request that follows a single one leaves at once, and the
//! more threads have something to send, the more requests one message carries.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::message::reply_batch::ReplyBatchWriter;
use crate::transport::{CoalesceLimits, PartialReply, Publication};

/// The number of requests of a link that wait. At the limit, a caller waits for room, until its
/// deadline.
const MOST_REQUESTS: usize = 8_192;

/// The bytes of replies that wait. At the limit, a worker with another reply waits for room.
const MOST_REPLY_BYTES: usize = 16 << 20;

/// The number of times that the I/O thread yields to threads that are about to send, after the
/// last addition: some ten microseconds, if it has a processor to itself. With 64 callers,
/// 16 coalesce 4 times as many requests into a message as 1 does, which makes 1.5 times as many
/// calls a second.
const YIELDS: u32 = 16;

/// The longest time for which the I/O thread yields, however many are added: it may be a while
/// before the thread gets the processor back, and the other links wait for it too.
const LONGEST_YIELDING: Duration = Duration::from_millis(1);

/// The messages of one link that wait to be coalesced.
pub(super) struct CoalesceBuffer {
    state: Mutex<State>,
    room: Condvar,
    /// True if the last message was taken alone.
    was_alone: AtomicBool,
    /// The number of replies that were added and are not sent: the settlements of their requests
    /// must not overtake them.
    unsent_replies: AtomicUsize,
    /// The largest size of a reply batch, in bytes.
    reply_batch_bytes: usize,
}

#[derive(Default)]
struct State {
    messages: Messages,
    /// True if the I/O thread has been notified and will take the messages.
    is_notified: bool,
    is_closed: bool,
}

/// Messages that may be coalesced into one.
#[derive(Default)]
pub(super) struct Messages {
    pub(super) requests: Vec<Box<Publication>>,
    pub(super) replies: BufferedReplies,
}

/// The result of adding a message.
pub(super) enum Added {
    Waits,
    TooLate,
    Closed,
}

impl State {
    /// Notifies the I/O thread, unless it is notified already. Runs with the lock held, so that
    /// a command that another thread sends after its addition comes after the notification.
    fn notify(&mut self, notify: impl FnOnce()) -> Added {
        if !std::mem::replace(&mut self.is_notified, true) {
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
        /// The bytes of a reply batch other than those of its replies.
        const OVERHEAD: usize = 1_024;
        Self {
            state: Mutex::default(),
            room: Condvar::new(),
            was_alone: AtomicBool::new(false),
            unsent_replies: AtomicUsize::new(0),
            reply_batch_bytes: CoalesceLimits::BYTES.min(max_body.saturating_sub(OVERHEAD)),
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

    /// Adds a reply. Blocks while there is no room, at most until the reply's deadline.
    pub(super) fn add_reply(&self, reply: PartialReply<'_>, notify: impl FnOnce()) -> Added {
        match self.wait_for_room(reply.deadline) {
            Ok(mut state) => {
                state.messages.replies.add(reply, self.reply_batch_bytes);
                self.unsent_replies.fetch_add(1, Ordering::SeqCst);
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

    /// Takes the messages, after yielding to the threads that are about to add some.
    pub(super) fn take(&self) -> Messages {
        let was_alone = self.was_alone.load(Ordering::Relaxed);
        let mut before = self.len();
        let mut without_more = 0;
        if before == 0 {
            return self.take_now();
        }
        let end = Instant::now() + LONGEST_YIELDING;
        // A single message that follows a single one is not delayed.
        while without_more < YIELDS
            && before < CoalesceLimits::MESSAGES
            && !(was_alone && before == 1)
            && Instant::now() < end
        {
            thread::yield_now();
            let now = self.len();
            without_more = if now == before { without_more + 1 } else { 0 };
            before = now;
        }
        let messages = self.take_now();
        self.was_alone.store(messages.len() == 1, Ordering::Relaxed);
        messages
    }

    /// Returns true if replies were added that are not sent.
    pub(super) fn has_unsent_replies(&self) -> bool {
        self.unsent_replies.load(Ordering::SeqCst) > 0
    }

    /// Records that replies which were [taken](Self::take) have been sent, or dropped with their
    /// connection.
    pub(super) fn replies_sent(&self, count: usize) {
        self.unsent_replies.fetch_sub(count, Ordering::SeqCst);
    }

    /// Drops the requests whose deadlines have passed. Called while they cannot be sent.
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
            state.is_notified = false;
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

    /// Drops all messages, and accepts no more.
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

/// The replies that wait, by the queue that they go to.
#[derive(Default)]
pub(super) struct BufferedReplies {
    open: HashMap<String, ReplyBatchWriter>,
    /// The batches that are full.
    full: Vec<(String, ReplyBatchWriter)>,
    count: usize,
    bytes: usize,
}

impl BufferedReplies {
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

    /// Returns the number of replies.
    pub(super) fn len(&self) -> usize {
        self.count
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
    fn the_first_notifies_and_one_too_many_waits_for_room() {
        let buffer = Arc::new(CoalesceBuffer::new(1 << 20));
        let mut notified = 0;
        for _ in 0..MOST_REQUESTS {
            let added = buffer.add(request(), soon(), || notified += 1);
            assert!(matches!(added, Added::Waits));
        }
        assert_eq!(notified, 1);
        let added = buffer.add(request(), soon(), || {});
        assert!(matches!(added, Added::TooLate));
        let late = std::thread::spawn({
            let buffer = Arc::clone(&buffer);
            let in_time = soon() + Duration::from_secs(10);
            move || {
                let mut notified = false;
                let added = buffer.add(request(), in_time, || notified = true);
                matches!(added, Added::Waits) && notified
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(buffer.take().requests.len(), MOST_REQUESTS);
        assert!(late.join().unwrap());
        buffer.close();
        let added = buffer.add(request(), soon(), || {});
        assert!(matches!(added, Added::Closed));
        assert_eq!(buffer.take().len(), 0);
    }

    #[test]
    fn reply_batches_are_no_larger_than_a_message_may_be() {
        let buffer = CoalesceBuffer::new(1_024 + 400);
        for (to, bytes) in [("q", 100), ("q", 100), ("r", 100), ("q", 250), ("q", 10)] {
            let reply = PartialReply {
                to,
                correlation_id: "id",
                body: &vec![b'1'; bytes],
                deadline: soon(),
            };
            assert!(matches!(buffer.add_reply(reply, || {}), Added::Waits));
        }
        let mut sent: Vec<_> = buffer
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
