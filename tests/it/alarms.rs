//! A broker with a memory alarm: it blocks publishers, and nothing else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coney::transport::{Link, LinkSpec, Publication, QueueOptions, Topology};
use coney::{Broker, ConnectionState, ErrorKind, EventSubscriber, Phase};

use crate::support::outage::{rabbit, sent_within, wait_for, watched, within};
use crate::support::sleepy_service::sleepy_server;
use crate::support::timing::in_time;
use crate::support::{PATIENCE, client, quick, unique};

const MS: Duration = Duration::from_millis(1);

#[test]
fn an_alarm_holds_up_publishing_and_nothing_else() {
    let rabbit = rabbit();
    let rabbit = rabbit.as_ref().unwrap();
    let (broker, states) = watched(rabbit.url());
    let service = unique("nap");
    let (_server, _starts) = sleepy_server(&broker, &service);
    let client = client(&broker);
    client.send(&service, "nap", &1).unwrap();
    // Consumes, on the same connection, messages that the broker itself moves there later.
    let (wait, done) = (unique("wait"), unique("done"));
    let delay = QueueOptions::new()
        .message_ttl(Duration::from_secs(4))
        .dead_letter_to("", &done);
    let topology = Topology::new().queue(&done).queue_with(&wait, delay);
    let link = Link::open(&broker, LinkSpec::new(topology).consume(&done, 1)).unwrap();
    link.publish(Publication::new("", &*wait, b"x".to_vec()), PATIENCE)
        .unwrap();
    let other = quick(rabbit.url());
    let (other_server, _other_starts) = sleepy_server(&other, &unique("nap"));

    rabbit.ctl(&["set_vm_memory_high_watermark", "0.0000001"]);
    // More than the sockets take, so that TCP waits for long, too.
    let large = "x".repeat(1 << 20);
    let large: Vec<_> = (0..20)
        .map(|_| {
            client
                .send_async_with(&service, "nap", &large, &sent_within(PATIENCE))
                .unwrap()
        })
        .collect();
    let timeout = 200 * MS;
    let call = in_time(timeout, "the first call in an alarm", || {
        client.call_with::<u64>(&service, "nap", &1, &within(timeout))
    });
    call.unwrap_err();
    wait_for(&states, |state| {
        matches!(state, ConnectionState::Blocked(_))
    });
    let send = in_time(timeout, "a command in an alarm", || {
        client.send_with(&service, "nap", &1, &sent_within(timeout))
    });
    let error = send.unwrap_err();
    assert_eq!(error.phase(), Some(Phase::Send), "{error}");
    let mut waiting = client
        .send_async_with(&service, "nap", &2, &sent_within(PATIENCE))
        .unwrap();
    assert!(
        link.recv_timeout(PATIENCE).is_some(),
        "deliveries still arrive"
    );
    assert!(waiting.try_wait().is_none());
    let _ = in_time(timeout, "shutdown of a server", || {
        other_server.shutdown(timeout)
    });
    let _ = in_time(timeout, "closing", || other.close(timeout));
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    waiting.wait().unwrap();
    for send in large {
        send.wait().expect("the connection has outlasted the alarm");
    }
    wait_for(&states, |state| *state == ConnectionState::Unblocked);
    assert_eq!(client.call::<u64>(&service, "nap", &1).unwrap(), 1);
}

/// Far more than the sockets and all queues on the way take, through an alarm of five
/// operation timeouts.
#[test]
fn an_alarm_outlasts_no_connection() {
    let rabbit = rabbit();
    let rabbit = rabbit.as_ref().unwrap();
    let (broker, states) = watched(rabbit.url());
    let service = unique("nap");
    let (_server, _starts) = sleepy_server(&quick(rabbit.url()), &service);
    let client = client(&broker);
    client.send(&service, "nap", &0).unwrap();
    let body = "x".repeat(1_000_000);
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.0000001"]);
    thread::scope(|scope| {
        let senders: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    let patient = sent_within(6 * PATIENCE);
                    (0..10).all(|_| client.send_with(&service, "nap", &body, &patient).is_ok())
                })
            })
            .collect();
        wait_for(&states, |state| {
            matches!(state, ConnectionState::Blocked(_))
        });
        let end = Instant::now() + 5_000 * MS;
        while Instant::now() < end {
            let timeout = 200 * MS;
            let call = in_time(timeout, "a call in an alarm", || {
                client.call_with::<u64>(&service, "nap", &1, &within(timeout))
            });
            assert_eq!(call.unwrap_err().kind(), ErrorKind::TimedOut);
        }
        rabbit.ctl(&["set_vm_memory_high_watermark", "0.4"]);
        for sender in senders {
            assert!(sender.join().unwrap(), "each is delivered");
        }
    });
    let lost = states
        .try_iter()
        .filter(|state| matches!(state, ConnectionState::Lost(_)));
    assert_eq!(lost.collect::<Vec<_>>(), []);
}

#[test]
fn a_drain_in_an_alarm_leaves_the_shutdown_its_half() {
    let rabbit = rabbit();
    let rabbit = rabbit.as_ref().unwrap();
    let (broker, states) = watched(rabbit.url());
    let service = unique("nap");
    let (server, _starts) = sleepy_server(&broker, &service);
    let subscriber = EventSubscriber::builder(&broker, &service)
        .listen("nap.*", |_: u64| ())
        .start()
        .unwrap();
    let client = client(&broker);
    client.send(&service, "nap", &0).unwrap();
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.0000001"]);
    let waiting = client.send_async(&service, "nap", &1).unwrap();
    wait_for(&states, |state| {
        matches!(state, ConnectionState::Blocked(_))
    });
    let timeout = 2_000 * MS;
    let drains: [&dyn Fn() -> coney::Result<()>; 2] =
        [&|| server.drain(timeout), &|| subscriber.drain(timeout)];
    for drain in drains {
        let error = in_time(timeout, "a drain in an alarm", drain).unwrap_err();
        assert_eq!(error.phase(), Some(Phase::Shutdown), "{error}");
        // What is left is counted over the administration connection, which publishes nothing and
        // is not blocked; the last acknowledgements wait.
        let unconfirmed = "did not confirm in time that the broker has the last replies";
        assert!(error.to_string().contains(unconfirmed), "{error}");
    }
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    drop(waiting);
}

/// Commands to the I/O thread, of which there may be many in an alarm, do not put that off.
#[test]
fn expired_messages_are_dropped_in_an_alarm() {
    let rabbit = rabbit();
    let rabbit = rabbit.as_ref().unwrap();
    let (sent, states) = crossbeam_channel::unbounded();
    let broker = Broker::builder(rabbit.url())
        .outgoing_bytes(1_000_000)
        .on_state_change(move |state| drop(sent.send(state.clone())))
        .connect()
        .unwrap();
    let (service, client) = (unique("nap"), client(&broker));
    let queue = unique("empty");
    let link = LinkSpec::new(Topology::new().queue(&queue));
    let link = Link::open(&broker, link).unwrap();
    let call = |bytes, timeout| {
        let body = "x".repeat(bytes);
        client.call_async_with::<u64>(&service, "nap", &body, &within(timeout))
    };
    call(1, PATIENCE).unwrap().wait().unwrap_err(); // no such service
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.0000001"]);
    let _waiting = call(1, PATIENCE).unwrap(); // the broker blocks connections that publish
    wait_for(&states, |state| {
        matches!(state, ConnectionState::Blocked(_))
    });
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let _ = link.get(&queue, 5 * MS);
            }
        });
        let expired = call(900_000, 200 * MS).unwrap().wait();
        assert_eq!(expired.unwrap_err().kind(), ErrorKind::TimedOut);
        let next = call(900_000, PATIENCE / 6);
        ended.store(true, Ordering::Relaxed);
        assert!(next.is_ok(), "the room of the expired call is free");
    });
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.4"]);
}
