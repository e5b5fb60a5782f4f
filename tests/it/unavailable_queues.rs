//! Quorum queues that do not answer, as after the loss of their leader. RabbitMQ stops the channel
//! of the first message to such a queue for 65 s, longer than these tests take.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coney::{Broker, ErrorKind, HandlerError, SendOptions, ServiceServer};
use crossbeam_channel::{Receiver, unbounded};

use crate::support::server::Server;
use crate::support::{PATIENCE, client, unique};

const MS: Duration = Duration::from_millis(1);

/// Stops the process of a quorum queue.
fn suspend(rabbit: &Server, queue: &str) {
    rabbit.ctl(&["eval", &format!("ok = sys:suspend('%2F_{queue}').")]);
}

/// Starts a server whose action `work` fails at the first attempt; the receiver gets the number of
/// each command at the second one, `delay` ms later.
fn serve(broker: &Broker, service: &str, delay: u32) -> (ServiceServer, Receiver<u32>) {
    let (done, finished) = unbounded();
    let is_first = AtomicBool::new(true);
    let server = ServiceServer::builder(broker, service)
        .handler("work", move |n: u32| {
            if is_first.swap(false, Ordering::SeqCst) {
                return Err(HandlerError::new("not yet"));
            }
            done.send(n).unwrap();
            Ok(())
        })
        .retry_delays([delay * MS, 150 * MS])
        .start()
        .unwrap();
    (server, finished)
}

#[test]
fn an_unavailable_delay_queue_loses_nothing_and_holds_up_no_other() {
    let rabbit = Server::rabbitmq();
    let broker = Broker::connect(rabbit.url()).unwrap();
    let (broken, works) = (unique("broken"), unique("works"));
    let (_broken, broken_done) = serve(&broker, &broken, 50);
    let (_works, works_done) = serve(&broker, &works, 60);
    suspend(&rabbit, "coney.delay.50");
    let client = client(&broker);
    client.send(&broken, "work", &1).unwrap();
    client.send(&works, "work", &2).unwrap();
    // The message for the broken queue goes to that of the next delay.
    assert_eq!(broken_done.recv_timeout(PATIENCE), Ok(1));
    assert_eq!(works_done.recv_timeout(PATIENCE), Ok(2));
}

#[test]
fn commands_to_an_unavailable_queue_hold_up_no_other_and_fail_unsent() {
    let rabbit = Server::rabbitmq();
    let broker = Broker::connect(rabbit.url()).unwrap();
    let [broken, works] = ["broken", "works"].map(|name| {
        let service = unique(name);
        let server = ServiceServer::builder(&broker, &service).quorum_queues();
        drop(server.respond("work", |n: u32| n).start().unwrap());
        service
    });
    suspend(&rabbit, &format!("service.{broken}.request"));
    let client = client(&broker);
    let options = SendOptions::new().timeout(Duration::from_secs(3));
    let send = |service: &str| client.send_with(service, "work", &1, &options);
    let unknown = send(&broken).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::TimedOut, "{unknown}");
    assert!(!unknown.is_safe_to_retry(), "{unknown}");
    send(&works).unwrap();
    // The channel of the broken queue is probed, and then left alone.
    let deadline = Instant::now() + PATIENCE;
    let unsent = loop {
        let error = send(&broken).unwrap_err();
        send(&works).unwrap();
        if error.kind() != ErrorKind::TimedOut {
            break error;
        }
        assert!(Instant::now() < deadline, "{error}");
    };
    assert_eq!(unsent.kind(), ErrorKind::Broker, "{unsent}");
    assert!(unsent.is_safe_to_retry(), "{unsent}");
    assert!(unsent.to_string().contains("is the queue unavailable?"));
}
