//! The messages that this process is handling or has finished, for when the broker redelivers them
//! because the connection was lost before they were settled.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::transport::x_death::{ATTEMPTS, COPIES, REDELIVERIES, REPLAYED};
use crate::transport::{Delivery, Message, Publication};

/// The largest number of finished messages that are remembered. A lost connection leaves at most
/// the prefetch count unsettled; the rest is room for several losses in a row.
const MAX_FINISHED: usize = 1_024;

/// The largest total size of the remembered replies, in bytes.
const MAX_REPLY_BYTES: usize = 4 << 20;

/// The time for which a finished message is remembered.
const FINISHED_TTL: Duration = Duration::from_secs(300);

/// The number of bytes at either end of a body that identify it.
const HASHED_BYTES: usize = 512;

/// The messages of one queue that are being handled or were finished lately.
///
/// A message that is redelivered while its handler still runs is *adopted*: the handler's outcome
/// settles the new delivery. A message that is redelivered after its handler has finished is
/// settled the same way as before. Neither is handled or republished again.
pub(crate) struct Settled {
    state: Mutex<State>,
    hasher: RandomState,
    /// False for a broker in memory, whose sessions never end: there is nothing to remember.
    is_enabled: bool,
}

#[derive(Default)]
struct State {
    running: HashMap<u64, RunningMessage>,
    finished: HashMap<u64, Finished>,
    /// The keys of finished messages in the order of their end, each with the number and the moment
    /// of that end.
    order: VecDeque<(u64, u64, Instant)>,
    last_number: u64,
    /// The total size of the replies in `finished`.
    reply_bytes: usize,
}

struct Finished {
    finish: Finish,
    /// True if a redelivery of the message has been settled.
    is_resettled: bool,
    /// The number of the latest end, as a message may be finished more than once.
    number: u64,
}

struct RunningMessage {
    since: Instant,
    /// The latest redelivery of the message, if any.
    adopted: Option<Delivery>,
    /// True if the message has been reported as running for long.
    is_reported: bool,
}

/// The way a message was settled.
#[derive(Clone)]
pub(super) enum Finish {
    Acked,
    Replied(Box<Publication>),
}

impl Settled {
    pub(crate) fn new(is_enabled: bool) -> Self {
        Self {
            state: Mutex::default(),
            hasher: RandomState::new(),
            is_enabled,
        }
    }

    /// Starts tracking a delivery. Returns it with the key of its message, or without one if the
    /// message is not tracked. Returns `None` if the message is being handled or was finished in
    /// this process: the delivery is then settled as the message is.
    pub(super) fn begin(&self, delivery: Delivery) -> Option<(Delivery, Option<u64>)> {
        let key = match self.is_enabled {
            true => self.key(delivery.message()),
            false => None,
        };
        let Some(key) = key else {
            return Some((delivery, None));
        };
        let redelivered = delivery.is_redelivered()
            || delivery
                .message()
                .properties
                .headers
                .get(REDELIVERIES)
                .is_some();
        let finish = {
            let mut state = self.state.lock();
            let now = Instant::now();
            state.evict(now);
            if redelivered && let Some(finished) = state.finished.get_mut(&key) {
                // The reply is sent only once more: the broker may close the connection for it.
                match std::mem::replace(&mut finished.is_resettled, true) {
                    false => finished.finish.clone(),
                    true => Finish::Acked,
                }
            } else {
                match state.running.entry(key) {
                    Entry::Vacant(vacant) => {
                        vacant.insert(RunningMessage {
                            since: now,
                            adopted: None,
                            is_reported: false,
                        });
                        return Some((delivery, Some(key)));
                    }
                    Entry::Occupied(mut running) if redelivered => {
                        let before = running.get_mut().adopted.replace(delivery);
                        drop(state);
                        // Usually of a session that has ended, where settling has no effect.
                        drop(before);
                        return None;
                    }
                    // Sent twice with the same id: two messages.
                    Entry::Occupied(_) => return Some((delivery, None)),
                }
            }
        };
        log::debug!(target: "coney::worker", "a finished message was redelivered and is settled");
        finish.settle(delivery);
        None
    }

    /// Removes a message that is no longer handled; returns its latest redelivery.
    pub(super) fn untrack(&self, key: u64) -> Option<Delivery> {
        let running = self.state.lock().running.remove(&key);
        running.and_then(|running| running.adopted)
    }

    /// Returns the key that identifies a message; `None` if it has no id. The sender's id is not
    /// enough: between its attempts a message goes from queue to queue as copies, each with the
    /// count of copies before it.
    fn key(&self, message: &Message) -> Option<u64> {
        let properties = &message.properties;
        let id = properties
            .message_id
            .as_deref()
            .filter(|id| !id.is_empty())?;
        let headers = &properties.headers;
        let body = &message.body;
        let mut hasher = self.hasher.build_hasher();
        id.hash(&mut hasher);
        properties.correlation_id.hash(&mut hasher);
        for header in [ATTEMPTS, COPIES, REPLAYED] {
            headers.int(header).hash(&mut hasher);
        }
        body.len().hash(&mut hasher);
        hasher.write(&body[..body.len().min(HASHED_BYTES)]);
        hasher.write(&body[body.len().saturating_sub(HASHED_BYTES)..]);
        Some(hasher.finish())
    }

    /// Returns the number of messages that are being handled.
    pub(crate) fn running(&self) -> usize {
        self.state.lock().running.len()
    }

    /// Returns the running times of the messages that have been handled for longer than `limit` and
    /// were not reported before.
    pub(super) fn running_longer_than(&self, limit: Duration) -> Vec<Duration> {
        let mut state = self.state.lock();
        let running = state.running.values_mut();
        let long = running.filter(|it| !it.is_reported && it.since.elapsed() >= limit);
        long.map(|it| {
            it.is_reported = true;
            it.since.elapsed()
        })
        .collect()
    }

    /// Remembers how a message was settled; returns its latest redelivery.
    pub(super) fn finish(&self, key: u64, finish: Finish) -> Option<Delivery> {
        let mut state = self.state.lock();
        let adopted = state.running.remove(&key).and_then(|it| it.adopted);
        state.remember(key, finish, Instant::now());
        adopted
    }
}

impl State {
    fn remember(&mut self, key: u64, finish: Finish, now: Instant) {
        self.reply_bytes += finish.bytes();
        self.last_number += 1;
        let number = self.last_number;
        let finished = Finished {
            finish,
            is_resettled: false,
            number,
        };
        if let Some(before) = self.finished.insert(key, finished) {
            self.reply_bytes -= before.finish.bytes();
        }
        self.order.push_back((key, number, now));
        self.evict(now);
    }

    fn evict(&mut self, now: Instant) {
        while let Some(&(key, number, at)) = self.order.front() {
            let is_fresh = now.saturating_duration_since(at) < FINISHED_TTL;
            if is_fresh && self.order.len() <= MAX_FINISHED && self.reply_bytes <= MAX_REPLY_BYTES {
                return;
            }
            self.order.pop_front();
            if let Entry::Occupied(oldest) = self.finished.entry(key)
                && oldest.get().number == number
            {
                self.reply_bytes -= oldest.remove().finish.bytes();
            }
        }
    }
}

impl Finish {
    fn bytes(&self) -> usize {
        match self {
            Self::Acked => 0,
            Self::Replied(reply) => reply.body.len(),
        }
    }

    pub(super) fn settle(self, delivery: Delivery) {
        match self {
            Self::Acked => delivery.ack(),
            Self::Replied(reply) => delivery.ack_with(*reply),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumer::Tracked;
    use crate::transport::{DeliveryToken, Disposition, PartialReply, Settler};
    use std::sync::Arc;

    /// A settler that records each settlement with its delivery tag.
    #[derive(Default)]
    struct RecordingSettler(Mutex<Vec<(u64, String)>>);

    impl Settler for RecordingSettler {
        fn settle(&self, _: u64, tag: u64, outcome: Disposition) {
            let text = match outcome {
                Disposition::Ack { reply: None } => "ack".to_owned(),
                Disposition::Ack { reply: Some(reply) } => {
                    format!("reply to {}", reply.routing_key)
                }
                Disposition::Reject { requeue } => format!("reject {requeue}"),
                Disposition::Hold => "hold".to_owned(),
            };
            self.0.lock().push((tag, text));
        }

        fn reply(&self, _: u64, _: u64, _: PartialReply<'_>) {}
    }

    struct Fixture {
        settler: Arc<RecordingSettler>,
        table: Arc<Settled>,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                settler: Arc::default(),
                table: Arc::new(Settled::new(true)),
            }
        }

        fn deliver(
            &self,
            tag: u64,
            redelivered: bool,
            change: impl FnOnce(&mut Message),
        ) -> Delivery {
            let mut message = Message {
                body: b"{}".to_vec(),
                ..Message::default()
            };
            message.properties.message_id = Some("m".to_owned());
            change(&mut message);
            let settler = Arc::clone(&self.settler) as Arc<dyn Settler>;
            let token = DeliveryToken {
                settler,
                session: 1,
                tag,
            };
            Delivery::new(Arc::new(message), redelivered, Some(token))
        }

        fn track(&self, tag: u64, redelivered: bool) -> Option<Tracked> {
            self.table.track(self.deliver(tag, redelivered, |_| {}))
        }

        fn settled(&self) -> Vec<(u64, String)> {
            std::mem::take(&mut self.settler.0.lock())
        }
    }

    fn ack(tag: u64) -> (u64, String) {
        (tag, "ack".to_owned())
    }

    #[test]
    fn a_redelivered_finished_message_is_settled_the_same_way() {
        let on = Fixture::new();
        on.track(1, false)
            .unwrap()
            .ack_with(Publication::new("", "q", Vec::new()));
        assert!(on.track(2, true).is_none());
        let reply = |tag| (tag, "reply to q".to_owned());
        assert_eq!(on.settled(), [reply(1), reply(2)]);
        assert!(on.track(3, false).is_some(), "sent again with the same id");
    }

    #[test]
    fn a_redelivered_running_message_is_adopted() {
        let on = Fixture::new();
        let first = on.track(1, false).unwrap();
        assert!(on.track(2, true).is_none());
        assert!(on.track(3, true).is_none(), "and once more");
        first.ack();
        // The other deliveries are of sessions that have ended, where settling has no effect.
        let acks = on.settled().into_iter().filter(|(_, text)| text == "ack");
        assert_eq!(acks.collect::<Vec<_>>(), [ack(3)]);
        assert!(on.track(4, true).is_none());
        assert_eq!(on.settled(), [ack(4)]);
    }

    #[test]
    fn a_dropped_message_is_requeued_and_handled_again() {
        let on = Fixture::new();
        let first = on.track(1, false).unwrap();
        assert!(on.track(2, true).is_none());
        drop(first);
        let mut settled = on.settled();
        settled.sort();
        let back = |tag| (tag, "reject true".to_owned());
        assert_eq!(settled, [back(1), back(2)]);
        assert!(on.track(3, true).is_some());
    }

    #[test]
    fn another_copy_is_another_message() {
        let on = Fixture::new();
        on.track(1, false).unwrap().ack();
        let changes: [fn(&mut Message); 5] = [
            |message| message.properties.headers.insert(ATTEMPTS, 1),
            |message| message.properties.headers.insert(COPIES, 1),
            |message| message.properties.headers.insert(REPLAYED, 1),
            |message| message.body = b"[]".to_vec(),
            |message| message.properties.message_id = Some("n".to_owned()),
        ];
        for change in changes {
            let delivery = on.deliver(2, true, change);
            assert!(on.table.track(delivery).is_some());
        }
        let nameless = |message: &mut Message| message.properties.message_id = None;
        for _ in 0..2 {
            let tracked = on.table.track(on.deliver(3, true, nameless));
            tracked.expect("it has no id").ack();
        }
    }

    #[test]
    fn the_table_is_bounded_and_long_runs_are_reported_once() {
        let on = Fixture::new();
        for n in 0..2 * MAX_FINISHED {
            let id =
                move |message: &mut Message| message.properties.message_id = Some(n.to_string());
            on.table.track(on.deliver(1, false, id)).unwrap().ack();
        }
        assert_eq!(on.table.state.lock().finished.len(), MAX_FINISHED);
        let big = Publication::new("", "q", vec![0; MAX_REPLY_BYTES + 1]);
        on.track(1, false).unwrap().ack_with(big);
        assert!(on.table.state.lock().finished.is_empty());
        assert_eq!(on.table.state.lock().reply_bytes, 0);

        let _running = on.track(1, false).unwrap();
        assert!(on.table.running_longer_than(FINISHED_TTL).is_empty());
        assert_eq!(on.table.running_longer_than(Duration::ZERO).len(), 1);
        assert!(on.table.running_longer_than(Duration::ZERO).is_empty());
    }
}
