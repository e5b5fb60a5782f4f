//! Messages over the limit of a receiver or of the broker: nothing else is affected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coney::{
    Broker, CallOptions, ConnectionState, DeadLetters, ErrorKind, ServiceClient, ServiceServer,
};
use crossbeam_channel::{Receiver, unbounded};

use crate::support::dead_letters::{dead_letter, letters_of};
use crate::support::server::Server;
use crate::support::{PATIENCE, client, eventually, own_amqp_url, unique};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Connects with a limit of small messages; the receiver gets the changes of state.
fn small(url: &str) -> (Broker, Receiver<ConnectionState>) {
    let (sent, states) = unbounded();
    let broker = Broker::builder(url)
        .max_body(64 * KIB)
        .max_dead_letter(256 * KIB)
        .on_state_change(move |state| drop(sent.send(state.clone())))
        .connect()
        .unwrap();
    (broker, states)
}

fn was_lost(states: &Receiver<ConnectionState>) -> bool {
    states
        .try_iter()
        .any(|state| matches!(state, ConnectionState::Lost(_)))
}

fn mirror(broker: &Broker, service: &str) -> ServiceServer {
    ServiceServer::builder(broker, service)
        .respond("echo", |text: String| text)
        .respond("repeat", |n: usize| "x".repeat(n))
        .start()
        .unwrap()
}

#[test]
fn a_request_over_the_limit_is_dead_lettered_and_the_service_goes_on() {
    let url = own_amqp_url();
    let (broker, states) = small(&url);
    let service = unique("mirror");
    let _server = mirror(&broker, &service);
    let caller = client(&Broker::connect(&url).unwrap());
    for n in 0..5 {
        let large = "x".repeat(100 * KIB + n);
        let error = caller.call::<String>(&service, "echo", &large).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PayloadTooLarge, "{error}");
        assert!(error.is_safe_to_retry(), "nothing ran");
        assert!(error.to_string().contains("max_body"), "{error}");
        let echoed: String = caller.call(&service, "echo", "small").unwrap();
        assert_eq!(echoed, "small");
    }
    let letter = dead_letter(&Broker::connect(&url).unwrap(), &service);
    assert_eq!(letter.reason(), "too_large");
    assert_eq!(letter.action(), Some("echo"));
    assert!(letter.body().len() > 100 * KIB, "it is kept whole");
    assert_eq!(letter.left_out(), None);
    // Several at once, of which one body is held at a time.
    let large = "y".repeat(200 * KIB);
    let pending: Vec<_> = (0..10)
        .map(|_| caller.call_async::<String>(&service, "echo", &large))
        .collect();
    for pending in pending {
        let error = pending.unwrap().wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PayloadTooLarge, "{error}");
    }
    let all = Broker::connect(&url).unwrap();
    eventually("all of them are kept", || {
        letters_of(&all, &service).len() == 14
    });
    assert!(
        letters_of(&all, &service)
            .iter()
            .all(|it| it.body().len() > 100 * KIB)
    );
    assert!(!was_lost(&states));
}

#[test]
fn beyond_the_second_limit_the_letter_says_what_it_lacks() {
    let url = own_amqp_url();
    let (broker, states) = small(&url);
    let service = unique("mirror");
    let _server = mirror(&broker, &service);
    let caller = client(&Broker::connect(&url).unwrap());
    caller.send(&service, "echo", &"x".repeat(3 * MIB)).unwrap();
    let letter = dead_letter(&Broker::connect(&url).unwrap(), &service);
    assert_eq!(letter.reason(), "too_large");
    assert!(letter.body().is_empty());
    assert!(
        letter.left_out().unwrap().contains("body of 3"),
        "{letter:?}"
    );
    assert!(!was_lost(&states));
}

#[test]
fn a_large_letter_does_not_keep_others_from_being_looked_at() {
    let url = own_amqp_url();
    let (broker, states) = small(&url);
    let service = unique("mirror");
    let server = mirror(&broker, &service);
    let caller = client(&Broker::connect(&url).unwrap());
    caller
        .send(&service, "echo", &"x".repeat(100 * KIB))
        .unwrap();
    caller.send(&service, "no such action", &1).unwrap();
    let whole = Broker::connect(&url).unwrap();
    eventually("both are there", || letters_of(&whole, &service).len() == 2);
    // With this connection's limit the large one has no body, and stays when it is replayed.
    let letters = letters_of(&broker, &service);
    assert_eq!(letters.len(), 2);
    let is_whole = |letter: &coney::dead_letters::DeadLetter| !letter.body().is_empty();
    assert_eq!(letters.iter().filter(|letter| is_whole(letter)).count(), 1);
    server.shutdown(PATIENCE).unwrap();
    let dead = DeadLetters::open(&broker).unwrap();
    let replayed = dead.replay(|letter| letter.is_of(&service), 100).unwrap();
    assert_eq!((replayed.sent, replayed.unroutable), (1, 1));
    assert_eq!(dead.purge(|letter| letter.is_of(&service)).unwrap(), 1);
    assert!(!was_lost(&states));
}

#[test]
fn a_reply_over_the_limit_is_its_callers_error_alone() {
    let (url, service) = (own_amqp_url(), unique("mirror"));
    let _server = mirror(&Broker::connect(&url).unwrap(), &service);
    let (broker, states) = small(&url);
    let client = client(&broker);
    let beside = client
        .call_async::<String>(&service, "repeat", &10)
        .unwrap();
    let error = client
        .call::<String>(&service, "repeat", &(100 * KIB))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PayloadTooLarge, "{error}");
    assert!(!error.is_safe_to_retry(), "its handler has run");
    assert_eq!(beside.wait().unwrap().len(), 10);
    assert_eq!(
        client
            .call::<String>(&service, "repeat", &20)
            .unwrap()
            .len(),
        20
    );
    assert!(!was_lost(&states));
}

#[test]
fn the_brokers_own_limit_is_learnt_and_costs_nothing_else() {
    let rabbit = Server::rabbitmq_with(&["max_message_size = 2097152"]);
    let (sent, states) = unbounded();
    let broker = Broker::builder(rabbit.url())
        .on_state_change(move |state| drop(sent.send(state.clone())))
        .connect()
        .unwrap();
    let service = unique("mirror");
    let ran = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&ran);
    let _server = ServiceServer::builder(&broker, &service)
        .respond("echo", |text: String| text)
        .respond("repeat", move |n: usize| {
            count.fetch_add(1, Ordering::SeqCst);
            "x".repeat(n)
        })
        .respond("nap", |ms: u64| {
            std::thread::sleep(Duration::from_millis(ms));
            ms
        })
        .start()
        .unwrap();
    let client = client(&broker);
    let fits = "x".repeat(3 * MIB / 2);
    assert_eq!(
        client.call::<String>(&service, "echo", &fits).unwrap(),
        fits
    );
    // In flight meanwhile, and not disturbed.
    let beside = client.call_async::<u64>(&service, "nap", &500).unwrap();
    // First the reply: the broker's limit is not known yet.
    let options = CallOptions::new().timeout(PATIENCE);
    let error = client
        .call_with::<String>(&service, "repeat", &(3 * MIB), &options)
        .unwrap_err();
    assert_eq!(error.remote_code(), Some("reply_too_large"), "{error}");
    assert_eq!(ran.load(Ordering::SeqCst), 1, "it is not computed again");
    let too_large = "x".repeat(3 * MIB);
    let error = client
        .call::<String>(&service, "echo", &too_large)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PayloadTooLarge, "{error}");
    assert!(error.to_string().contains("2097152"), "{error}");
    assert_eq!(broker.max_body(), 2 * MIB, "it is remembered");
    assert_eq!(beside.wait().unwrap(), 500);
    assert!(!was_lost(&states));
}

#[test]
fn a_request_or_command_that_the_broker_refuses_has_its_reason() {
    let rabbit = Server::rabbitmq_with(&["max_message_size = 2097152"]);
    let too_large = "x".repeat(3 * MIB);
    let service = unique("mirror");
    let broker = Broker::connect(rabbit.url()).unwrap();
    let _server = mirror(&broker, &service);
    for is_command in [false, true] {
        // Each connection learns the limit by itself.
        let broker = Broker::connect(rabbit.url()).unwrap();
        let client: ServiceClient = client(&broker);
        for _ in 0..3 {
            let error = match is_command {
                true => client.send(&service, "echo", &too_large).unwrap_err(),
                false => client
                    .call::<String>(&service, "echo", &too_large)
                    .unwrap_err(),
            };
            assert_eq!(error.kind(), ErrorKind::PayloadTooLarge, "{error}");
            assert!(error.is_safe_to_retry());
        }
        assert_eq!(
            client.call::<String>(&service, "echo", "small").unwrap(),
            "small"
        );
        client.send(&service, "echo", "small").unwrap();
    }
}

/// The message waits behind a handler when its server shuts down.
#[test]
fn an_unstarted_request_is_requeued_whole() {
    let url = own_amqp_url();
    let (broker, _states) = small(&url);
    let service = unique("mirror");
    let (began, begins) = unbounded();
    let (release, released) = unbounded::<()>();
    let first = ServiceServer::builder(&broker, &service)
        .workers(1)
        .respond("wait", move |(): ()| {
            began.send(()).unwrap();
            let _ = released.recv_timeout(PATIENCE);
        })
        .start()
        .unwrap();
    let sender = client(&Broker::connect(&url).unwrap());
    sender.send(&service, "wait", &()).unwrap();
    begins.recv_timeout(PATIENCE).unwrap();
    let large = "x".repeat(100 * KIB);
    sender.send(&service, "echo", &large).unwrap();
    sender.send(&service, "wait", &()).unwrap();
    // It was fetched when a later one was.
    let one = Duration::from_millis(300);
    let error = first.shutdown(one).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    drop(release);
    let (broker, _states) = small(&url);
    let _second = mirror(&broker, &service);
    let other = Broker::connect(&url).unwrap();
    eventually("it is kept whole", || {
        let letters = letters_of(&other, &service);
        let mut large = letters.iter().filter(|it| it.reason() == "too_large");
        large.any(|it| it.body().len() > 100 * KIB)
    });
    let dead = DeadLetters::open(&other).unwrap();
    dead.purge(|letter| letter.is_of(&service)).unwrap();
}
