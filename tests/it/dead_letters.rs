//! `DeadLetters`: listing, replaying, purging.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coney::dead_letters::DeadLetter;
use coney::{Broker, CallOptions, DeadLetters, ErrorKind, HandlerError, ServiceServer};
use crossbeam_channel::{Receiver, unbounded};

use crate::support::{PATIENCE, client, eventually, on_both, own_amqp_url, unique};

on_both!(
    letters_stay_in_order_until_they_are_purged,
    a_replayed_letter_has_all_its_attempts_anew,
    replaying_keeps_its_pace_and_its_filter,
    a_replayed_call_is_carried_out_however_late,
    a_letter_whose_queue_is_gone_stays,
    a_rate_of_zero_is_refused,
    letters_of_other_services_hide_none,
);

/// Starts a server that rejects everything until the flag is set.
fn broken(broker: &Broker, service: &str) -> (ServiceServer, Arc<AtomicBool>, Receiver<u32>) {
    let works = Arc::new(AtomicBool::new(false));
    let (ran, runs) = unbounded();
    let server = ServiceServer::builder(broker, service)
        .workers(1)
        .retry_delays([])
        .handler("work", {
            let works = Arc::clone(&works);
            move |n: u32| {
                if !works.load(Ordering::SeqCst) {
                    return Err(HandlerError::new("broken"));
                }
                ran.send(n).unwrap();
                Ok(n)
            }
        })
        .start()
        .unwrap();
    (server, works, runs)
}

fn send(broker: &Broker, service: &str, count: u32) {
    let client = client(broker);
    for n in 0..count {
        client.send(service, "work", &n).unwrap();
    }
}

/// Returns the numbers in a service's letters, in the order of the queue.
fn numbers(dead: &DeadLetters, queue: &str) -> Vec<u32> {
    let letters = dead.list(usize::MAX).unwrap();
    let ours = letters.iter().filter(|letter| letter.queue() == queue);
    ours.map(|letter| letter.payload().unwrap()).collect()
}

fn letters_stay_in_order_until_they_are_purged(broker: &Broker) {
    let service = unique("work");
    let queue = format!("service.{service}.request");
    let _server = broken(broker, &service);
    send(broker, &service, 5);
    let dead = DeadLetters::open(broker).unwrap();
    eventually("five letters", || numbers(&dead, &queue).len() == 5);
    assert_eq!(numbers(&dead, &queue), [0, 1, 2, 3, 4]);
    let letters = dead.list(usize::MAX).unwrap();
    let mut ours = letters.iter().filter(|letter| letter.queue() == queue);
    let third = ours.nth(2).unwrap();
    let id = third.message_id().unwrap();
    let shown = dead.show(id).unwrap().expect("one by its id");
    assert_eq!(shown.body(), third.body());
    let purged = dead.purge(|letter| letter.message_id() == Some(id));
    assert_eq!(purged.unwrap(), 1);
    assert_eq!(numbers(&dead, &queue), [0, 1, 3, 4]);
    assert!(dead.show("no such id").unwrap().is_none());
    assert_eq!(dead.purge(|letter| letter.queue() == queue).unwrap(), 4);
    assert!(numbers(&dead, &queue).is_empty());
}

fn a_replayed_letter_has_all_its_attempts_anew(broker: &Broker) {
    let service = unique("work");
    let queue = format!("service.{service}.request");
    let (_server, works, runs) = broken(broker, &service);
    send(broker, &service, 1);
    let dead = DeadLetters::open(broker).unwrap();
    let replay = || dead.replay(|letter| letter.queue() == queue, 1_000);
    eventually("it has died", || numbers(&dead, &queue) == [0]);
    assert_eq!(replay().unwrap().sent, 1);
    eventually("it has died again", || numbers(&dead, &queue) == [0]);
    let letters = dead.list(usize::MAX).unwrap();
    let letter = letters.iter().find(|letter| letter.queue() == queue);
    assert_eq!(letter.unwrap().attempts(), 1, "counted anew");
    works.store(true, Ordering::SeqCst);
    assert_eq!(replay().unwrap().sent, 1);
    assert_eq!(runs.recv_timeout(PATIENCE), Ok(0));
    assert!(numbers(&dead, &queue).is_empty());
}

fn replaying_keeps_its_pace_and_its_filter(broker: &Broker) {
    let service = unique("work");
    let queue = format!("service.{service}.request");
    let (_server, works, runs) = broken(broker, &service);
    send(broker, &service, 12);
    let dead = DeadLetters::open(broker).unwrap();
    eventually("all have died", || numbers(&dead, &queue).len() == 12);
    works.store(true, Ordering::SeqCst);
    let start = Instant::now();
    let mut picked = 0;
    let first_ten = |letter: &DeadLetter| {
        picked += u32::from(letter.queue() == queue);
        letter.queue() == queue && picked <= 10
    };
    assert_eq!(dead.replay(first_ten, 20).unwrap().sent, 10);
    // Nine pauses of 50 ms.
    assert!(
        start.elapsed() >= Duration::from_millis(400),
        "{:?}",
        start.elapsed()
    );
    for _ in 0..10 {
        runs.recv_timeout(PATIENCE).unwrap();
    }
    assert_eq!(numbers(&dead, &queue).len(), 2, "two are left");
    dead.purge(|letter| letter.queue() == queue).unwrap();
}

fn a_replayed_call_is_carried_out_however_late(broker: &Broker) {
    let service = unique("work");
    let queue = format!("service.{service}.request");
    let nothing = ServiceServer::builder(broker, &service).start().unwrap();
    let timeout = Duration::from_secs(2);
    let options = CallOptions::new().timeout(timeout).message_id("call-17");
    let start = Instant::now();
    let client = client(broker);
    let error = client
        .call_with::<u32>(&service, "work", &17, &options)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownAction);
    let dead = DeadLetters::open(broker).unwrap();
    eventually("it is kept", || numbers(&dead, &queue) == [17]);
    drop(nothing);
    eventually("its deadline is over", || start.elapsed() > timeout);
    let (_server, works, runs) = broken(broker, &service);
    works.store(true, Ordering::SeqCst);
    let replayed = dead.replay(|letter| letter.queue() == queue, 1_000);
    assert_eq!(replayed.unwrap().sent, 1);
    assert_eq!(runs.recv_timeout(PATIENCE), Ok(17));
    assert_eq!(client.unclaimed_replies(), 0);
}

fn a_letter_whose_queue_is_gone_stays(broker: &Broker) {
    use coney::transport::{Link, LinkSpec, Publication, Topology};
    let gone = unique("gone");
    let dead = DeadLetters::open(broker).unwrap();
    let link = Link::open(broker, LinkSpec::new(Topology::new())).unwrap();
    // As from a peer that sets only the header with the queue.
    let letter = Publication::new("dead.exchange", gone.clone(), b"?".to_vec());
    link.publish(letter, PATIENCE).unwrap();
    eventually("it is a letter", || {
        let found = dead.find(|letter| letter.queue() == gone, 1);
        found.unwrap().len() == 1
    });
    let replayed = dead.replay(|letter| letter.queue() == gone, 1_000).unwrap();
    assert_eq!((replayed.sent, replayed.unroutable), (0, 1), "it stays");
    assert_eq!(dead.purge(|letter| letter.queue() == gone).unwrap(), 1);
}

fn a_rate_of_zero_is_refused(broker: &Broker) {
    let dead = DeadLetters::open(broker).unwrap();
    let error = dead.replay(|_| true, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
}

/// A scan holds the letters that it reads, so that another one at the same time would miss some.
#[test]
fn scans_run_one_at_a_time() {
    let (url, service) = (own_amqp_url(), unique("work"));
    let broker = Broker::connect(&url).unwrap();
    let (_server, ..) = broken(&broker, &service);
    send(&broker, &service, 5);
    let queue = format!("service.{service}.request");
    let dead = DeadLetters::open(&broker).unwrap();
    eventually("five letters", || numbers(&dead, &queue).len() == 5);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let dead = DeadLetters::open(&Broker::connect(&url).unwrap()).unwrap();
                for _ in 0..5 {
                    assert_eq!(numbers(&dead, &queue), [0, 1, 2, 3, 4]);
                }
            });
        }
    });
    assert_eq!(dead.purge(|letter| letter.is_of(&service)).unwrap(), 5);
}

fn letters_of_other_services_hide_none(broker: &Broker) {
    let (many, one) = (unique("many"), unique("one"));
    let (_first, _second) = (broken(broker, &many), broken(broker, &one));
    send(broker, &many, 200);
    let dead = DeadLetters::open(broker).unwrap();
    eventually("they are there", || {
        dead.find(|letter| letter.is_of(&many), usize::MAX)
            .unwrap()
            .len()
            == 200
    });
    send(broker, &one, 1);
    eventually("and so is it", || {
        dead.find(|letter| letter.is_of(&one), 1).unwrap().len() == 1
    });
    let theirs = |letter: &DeadLetter| letter.is_of(&many) || letter.is_of(&one);
    assert_eq!(dead.purge(theirs).unwrap(), 201);
}
