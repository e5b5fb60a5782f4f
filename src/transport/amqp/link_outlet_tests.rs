//! Tests of a link's outlet over a real socket.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::*;
use crate::transport::SendState;
use crate::transport::amqp::frame_writer::{RunningWriter, connected};

struct Fixture {
    running: RunningWriter,
    peer: TcpStream,
    observed: Arc<Observed>,
    unsettled: Arc<Unsettled>,
    outlet: LinkOutlet,
}

impl Fixture {
    fn new(is_numbered: bool) -> Self {
        let (running, peer) = connected();
        let fixture = Self {
            running,
            peer,
            observed: Arc::default(),
            unsettled: Arc::default(),
            outlet: LinkOutlet::default(),
        };
        fixture.outlet.open(OpenChannel {
            session: 7,
            channel: 3,
            frame_max: 0,
            reply_queue: None,
            is_numbered,
            writer: Arc::clone(fixture.running.writer()),
            observed: Arc::clone(&fixture.observed),
            unsettled: Arc::clone(&fixture.unsettled),
        });
        fixture.running.writer().open_to_all();
        fixture
    }

    /// Asserts that these bytes are the next ones that arrive.
    fn expect(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut expected = Vec::new();
        encode(&mut expected);
        let mut read = vec![0; expected.len()];
        self.peer.read_exact(&mut read).unwrap();
        assert_eq!(read, expected);
    }

    fn settle(&self, tag: u64, outcome: Disposition) -> Settled {
        self.outlet.try_settle(7, tag, outcome)
    }
}

fn message(key: &str) -> Publication {
    Publication::new("", key, b"body".to_vec())
}

#[test]
fn messages_and_settlements_leave_in_their_order_and_settlements_once() {
    let mut fixture = Fixture::new(false);
    fixture.unsettled.insert(1);
    fixture.unsettled.insert(2);
    assert!(fixture.outlet.try_publish(&mut message("first")));
    let reply = Some(Box::new(message("reply")));
    assert!(matches!(
        fixture.settle(1, Disposition::Ack { reply }),
        Settled::Done
    ));
    for _ in 0..2 {
        fixture.settle(2, Disposition::Reject { requeue: true });
    }
    fixture.settle(99, Disposition::Ack { reply: None });
    assert!(fixture.outlet.try_publish(&mut message("last")));
    fixture.expect(|out| {
        frames::publish(out, 3, 0, &message("first"), None);
        frames::publish(out, 3, 0, &message("reply"), None);
        frames::ack(out, 3, 1);
        frames::reject(out, 3, 2, true);
        frames::publish(out, 3, 0, &message("last"), None);
    });
}

#[test]
fn deliveries_of_another_session_or_of_a_closed_channel_are_not_settled() {
    let mut fixture = Fixture::new(false);
    fixture.unsettled.insert(1);
    let ack = || Disposition::Ack { reply: None };
    assert!(matches!(
        fixture.outlet.try_settle(6, 1, ack()),
        Settled::Done
    ));
    assert_eq!(fixture.unsettled.len(), 1);
    fixture.settle(1, ack());
    fixture.expect(|out| frames::ack(out, 3, 1));
    fixture.outlet.close();
    assert!(matches!(fixture.settle(1, ack()), Settled::Done));
    assert!(!fixture.outlet.try_publish(&mut message("q")));
    assert!(fixture.outlet.publish(&message("q"), None).is_err());
}

#[test]
fn nothing_is_sent_past_a_blocked_broker_a_full_writer_or_the_numbers_of_confirms() {
    let fixture = Fixture::new(false);
    let ack = || Disposition::Ack { reply: None };
    fixture.unsettled.insert(1);
    fixture.observed.record_blocked(true);
    assert!(!fixture.outlet.try_publish(&mut message("q")));
    assert!(matches!(fixture.settle(1, ack()), Settled::NotNow(_)));
    fixture.observed.record_blocked(false);
    let large = Publication::new("", "q", vec![0; 100_000]);
    while fixture.outlet.try_publish(&mut large.clone()) {}
    let is_settled = matches!(fixture.settle(1, ack()), Settled::Done);
    assert!(is_settled, "settlements have more room than messages");
    assert!(!Fixture::new(true).outlet.try_publish(&mut message("q")));
}

#[test]
fn a_message_that_its_owner_has_abandoned_is_not_sent() {
    let mut fixture = Fixture::new(false);
    let mut abandoned = message("abandoned");
    let send_state = Arc::new(SendState::until(Instant::now() + Duration::from_secs(60)));
    assert!(send_state.abandon());
    abandoned.send_state = Some(send_state);
    assert!(fixture.outlet.try_publish(&mut abandoned));
    assert!(fixture.outlet.try_publish(&mut message("next")));
    fixture.expect(|out| frames::publish(out, 3, 0, &message("next"), None));
}

#[test]
fn a_delivery_that_is_settled_makes_room_for_one_that_waits() {
    let fixture = Fixture::new(false);
    fixture.unsettled.insert(1);
    fixture.unsettled.set_waiting(1);
    let settled = fixture.settle(1, Disposition::Ack { reply: None });
    assert!(matches!(settled, Settled::MakesRoom));
    fixture.unsettled.insert(2);
    fixture.settle(2, Disposition::Hold);
    assert_eq!(fixture.unsettled.len(), 0);
    assert!(!fixture.unsettled.is_empty());
    assert_eq!(fixture.unsettled.take_all(), (true, Vec::new()));
}
