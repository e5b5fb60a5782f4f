//! Messages that this process has finished, or is still at, when the broker delivers them
//! again because the connection was lost before they were settled.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::transport::x_death::{ATTEMPTS, COPIES, REDELIVERIES, REPLAYED};
use crate::transport::{Delivery, Message, Publication};

/// The number of finished messages that are remembered, the bytes of their replies, and for
/// how long. Unsettled at a loss are no more than the prefetch count; the rest is room for
/// several losses in a row.
const MOST_FINISHED: usize = 1_024;
const MOST_BYTES: usize = 4 << 20;
const REMEMBERED: Duration = Duration::from_secs(300);

/// The part of a body that tells it from others, from either end.
const LOOKED_AT: usize = 512;

/// The messages of one queue: those that are being handled, and those that were finished
/// lately.
///
/// A message that comes back while its handler still runs is *adopted*: the handler's
/// outcome settles it. One that comes back finished is settled the same way. Neither runs
/// again, nor is copied again.
pub(crate) struct Settled {
    state: Mutex<State>,
    hasher: RandomState,
    /// Sessions never end in memory, so there is nothing to remember.
    is_of_use: bool,
}

#[derive(Default)]
struct State {
    running: HashMap<u64, RunningMessage>,
    finished: HashMap<u64, Finished>,
    /// The keys of the finished, each with the number it was finished with.
    order: VecDeque<(u64, u64, Instant)>,
    last: u64,
    bytes: usize,
}

struct Finished {
    finish: Finish,
    /// It has been settled again, after the first time.
    is_settled_again: bool,
    /// Of the latest finish, where a message was finished more than once.
    number: u64,
}

struct RunningMessage {
    since: Instant,
    /// The latest delivery of the message, if it came again.
    adopted: Option<Delivery>,
    is_reported: bool,
}

/// The end of a message.
#[derive(Clone)]
pub(super) enum Finish {
    Acked,
    Replied(Box<Publication>),
}

impl Settled {
    pub(crate) fn new(is_of_use: bool) -> Self {
        Self {
            state: Mutex::default(),
            hasher: RandomState::new(),
            is_of_use,
        }
    }

    /// Begins with a delivery: returns it with the key under which its message is tracked, if
    /// it is. `None` if the message is being handled or was finished here: the delivery is
    /// then settled as the message is.
    pub(super) fn begin(&self, delivery: Delivery) -> Option<(Delivery, Option<u64>)> {
        let key = match self.is_of_use {
            true => self.key(delivery.message()),
            false => None,
        };
        let Some(key) = key else {
            return Some((delivery, None));
        };
        let came_back = delivery.is_redelivered()
            || delivery
                .message()
                .properties
                .headers
                .get(REDELIVERIES)
                .is_some();
        let finish = {
            let mut state = self.state.lock();
            state.forget_old(Instant::now());
            if came_back && let Some(finished) = state.finished.get_mut(&key) {
                // Once more: it may be the reply that the connection is lost of.
                match std::mem::replace(&mut finished.is_settled_again, true) {
                    false => finished.finish.clone(),
                    true => Finish::Acked,
                }
            } else {
                match state.running.entry(key) {
                    Entry::Vacant(vacant) => {
                        vacant.insert(RunningMessage {
                            since: Instant::now(),
                            adopted: None,
                            is_reported: false,
                        });
                        return Some((delivery, Some(key)));
                    }
                    Entry::Occupied(mut running) if came_back => {
                        let before = running.get_mut().adopted.replace(delivery);
                        drop(state);
                        // As a rule of a session that has ended: nothing happens.
                        drop(before);
                        return None;
                    }
                    // Sent twice with one id: two messages.
                    Entry::Occupied(_) => return Some((delivery, None)),
                }
            }
        };
        log::debug!(target: "coney::worker", "a message that was finished is delivered again");
        finish.settle(delivery);
        None
    }

    /// A message is no longer handled: returns the delivery that it came in again.
    pub(super) fn give_up(&self, key: u64) -> Option<Delivery> {
        let running = self.state.lock().running.remove(&key);
        running.and_then(|running| running.adopted)
    }

    /// Tells a message from others. Its sender's id is not enough: between its attempts a
    /// message goes from queue to queue as copies, each with the count of copies before it.
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
        hasher.write(&body[..body.len().min(LOOKED_AT)]);
        hasher.write(&body[body.len().saturating_sub(LOOKED_AT)..]);
        Some(hasher.finish())
    }

    /// The number of messages that are being handled.
    pub(crate) fn running(&self) -> usize {
        self.state.lock().running.len()
    }

    /// Those that have been handled for longer than `limit` and were not reported before:
    /// for how long.
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

    /// Remembers how a message ended; returns the delivery that it came in again.
    pub(super) fn finish(&self, key: u64, finish: Finish) -> Option<Delivery> {
        let mut state = self.state.lock();
        let adopted = state.running.remove(&key).and_then(|it| it.adopted);
        state.remember(key, finish, Instant::now());
        adopted
    }
}

impl State {
    fn remember(&mut self, key: u64, finish: Finish, now: Instant) {
        self.bytes += finish.bytes();
        self.last += 1;
        let number = self.last;
        let finished = Finished {
            finish,
            is_settled_again: false,
            number,
        };
        if let Some(before) = self.finished.insert(key, finished) {
            self.bytes -= before.finish.bytes();
        }
        self.order.push_back((key, number, now));
        self.forget_old(now);
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some(&(key, number, at)) = self.order.front() {
            let is_young = now.saturating_duration_since(at) < REMEMBERED;
            if is_young && self.order.len() <= MOST_FINISHED && self.bytes <= MOST_BYTES {
                return;
            }
            self.order.pop_front();
            if let Entry::Occupied(oldest) = self.finished.entry(key)
                && oldest.get().number == number
            {
                self.bytes -= oldest.remove().finish.bytes();
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

    /// Notes what is settled, by tag.
    #[derive(Default)]
    struct Broker(Mutex<Vec<(u64, String)>>);

    impl Settler for Broker {
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
        broker: Arc<Broker>,
        table: Arc<Settled>,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                broker: Arc::default(),
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
            let settler = Arc::clone(&self.broker) as Arc<dyn Settler>;
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
            std::mem::take(&mut self.broker.0.lock())
        }
    }

    fn ack(tag: u64) -> (u64, String) {
        (tag, "ack".to_owned())
    }

    #[test]
    fn what_was_finished_is_settled_the_same_way_when_it_comes_again() {
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
    fn what_is_still_handled_is_adopted() {
        let on = Fixture::new();
        let first = on.track(1, false).unwrap();
        assert!(on.track(2, true).is_none());
        assert!(on.track(3, true).is_none(), "and once more");
        first.ack();
        // The others are of sessions that have ended, where settling does nothing.
        let acks = on.settled().into_iter().filter(|(_, text)| text == "ack");
        assert_eq!(acks.collect::<Vec<_>>(), [ack(3)]);
        assert!(on.track(4, true).is_none());
        assert_eq!(on.settled(), [ack(4)]);
    }

    #[test]
    fn what_was_given_up_goes_back_and_runs_again() {
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
    fn is_bounded_and_reports_once() {
        let on = Fixture::new();
        for n in 0..2 * MOST_FINISHED {
            let id =
                move |message: &mut Message| message.properties.message_id = Some(n.to_string());
            on.table.track(on.deliver(1, false, id)).unwrap().ack();
        }
        assert_eq!(on.table.state.lock().finished.len(), MOST_FINISHED);
        let big = Publication::new("", "q", vec![0; MOST_BYTES + 1]);
        on.track(1, false).unwrap().ack_with(big);
        assert!(on.table.state.lock().finished.is_empty());
        assert_eq!(on.table.state.lock().bytes, 0);

        let _running = on.track(1, false).unwrap();
        assert!(on.table.running_longer_than(REMEMBERED).is_empty());
        assert_eq!(on.table.running_longer_than(Duration::ZERO).len(), 1);
        assert!(on.table.running_longer_than(Duration::ZERO).is_empty());
    }
}
