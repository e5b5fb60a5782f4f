//! The load of the ledger: threads that call, send and publish, and the services that handle it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use coney::message::ServiceMessage;
use coney::resilience::{Resilience, Retry};
use coney::{
    Broker, CallOptions, Context, DeadLetters, EventPublisher, EventSubscriber, HandlerError,
    PendingConfirm, PublishOptions, SendOptions, ServiceClient, ServiceServer,
};

use super::book::Book;
use super::faults::Faults;
use crate::support::quick;

pub const CALL_TIMEOUT: Duration = Duration::from_secs(1);

const SEND_TIMEOUT: Duration = Duration::from_secs(5);

const ORDERS: &str = "ledger-orders";
const ECHO: &str = "ledger-echo";
const HAPPENED: &str = "ledger.happened";

const DELAYS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(1_000),
    Duration::from_millis(5_000),
];

const PRODUCERS: usize = 2;
/// Half of them retry.
pub const CALLERS: u64 = 8;

/// The longest wait for a reply of one attempt, where a call may be sent again.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(400);

/// The number of commands of one producer that may be unconfirmed at a time.
const WINDOW: usize = 500;

/// A consumer rejects one command in `REJECTED` for good, and fails one in `FAILED_ONCE` at the
/// first attempt.
const REJECTED: u64 = 2_003;
const FAILED_ONCE: u64 = 211;

/// A service refuses one call in `BUSY_ONCE` as busy, at the first attempt.
const BUSY_ONCE: u64 = 97;

/// The threads, servers and subscribers that send and receive.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    servers: Vec<ServiceServer>,
    subscribers: [EventSubscriber; 2],
    /// A connection without a proxy, for the end.
    broker: Broker,
}

impl Load {
    pub fn start(book: &Arc<Book>, faults: &Faults) -> Self {
        let (direct, ways) = faults.urls();
        let stop = Arc::new(AtomicBool::new(false));
        // Two consumers use a proxy each; the producers and the callers use the third, and the
        // direct connection.
        let brokers = [ways[0], ways[1]].map(quick);
        let servers = brokers.each_ref().map(|broker| serve(broker, book));
        let subscribers = brokers.map(|broker| subscribe(&broker, book));
        let brokers = [ways[2], direct].map(quick);
        let retrying = brokers.each_ref().map(|broker| {
            let retry = Retry::new().attempts(4).per_attempt(ATTEMPT_TIMEOUT);
            let client = ServiceClient::builder(broker, "ledger").timeout(CALL_TIMEOUT);
            client
                .resilience(Resilience::new().retry(retry))
                .build()
                .unwrap()
        });
        let clients = brokers.map(|broker| {
            let client = ServiceClient::builder(&broker, "ledger").timeout(CALL_TIMEOUT);
            let events = EventPublisher::new(&broker, "ledger").unwrap();
            (client.build().unwrap(), events)
        });
        let mut threads = Vec::new();
        for n in 0..PRODUCERS {
            let ((client, events), book) = (clients[n % 2].clone(), book.clone());
            let stop = stop.clone();
            threads.push(thread::spawn(move || {
                produce(&client, &events, &book, &stop);
            }));
        }
        for n in 0..CALLERS {
            let way = n as usize / 2 % 2;
            let client = match n < CALLERS / 2 {
                true => clients[way].0.clone(),
                false => retrying[way].clone(),
            };
            let (book, stop) = (book.clone(), stop.clone());
            threads.push(thread::spawn(move || call(&client, &book, &stop, n)));
        }
        Self {
            stop,
            threads,
            servers: servers.into_iter().flatten().collect(),
            subscribers,
            broker: quick(direct),
        }
    }

    /// Stops the senders, and blocks until all messages have arrived.
    pub fn stop(&mut self, book: &Book) {
        self.stop.store(true, Ordering::SeqCst);
        let end = Instant::now() + Duration::from_secs(120);
        while !self.threads.iter().all(JoinHandle::is_finished) && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
        }
        assert!(Instant::now() < end, "a producer or a caller hangs");
        for thread in self.threads.drain(..) {
            thread
                .join()
                .expect("what a producer or a caller asserts holds");
        }
        let dead = DeadLetters::open(&self.broker).unwrap();
        while Instant::now() < end {
            for letter in dead.list(usize::MAX).unwrap_or_default() {
                if let Ok(message) = ServiceMessage::decode(letter.body())
                    && let Ok(number) = message.payload.decode()
                {
                    book.dead(number);
                }
            }
            if book.missing() == 0 {
                break;
            }
            thread::sleep(Duration::from_millis(500));
        }
        for server in &self.servers {
            server.shutdown(Duration::from_secs(10)).unwrap();
        }
        for subscriber in &self.subscribers {
            subscriber.shutdown(Duration::from_secs(10)).unwrap();
        }
    }
}

/// Subscribes to events, which are handled as orders are.
fn subscribe(broker: &Broker, book: &Arc<Book>) -> EventSubscriber {
    let book = Arc::clone(book);
    EventSubscriber::builder(broker, "ledger")
        .prefetch(100)
        .retry_delays(DELAYS)
        .on_with_context(HAPPENED, move |context: &Context<'_>, number| {
            handle(&book, context, number)
        })
        .start()
        .unwrap()
}

fn handle(book: &Book, context: &Context<'_>, number: u64) -> Result<(), HandlerError> {
    if number.is_multiple_of(FAILED_ONCE) && context.attempt() == 1 {
        return Err(HandlerError::new("not at the first attempt"));
    }
    if number.is_multiple_of(REJECTED) {
        return Err(HandlerError::new("never").do_not_retry());
    }
    book.delivered(number);
    Ok(())
}

fn serve(broker: &Broker, book: &Arc<Book>) -> [ServiceServer; 2] {
    let (book, runs) = (Arc::clone(book), Arc::clone(book));
    let orders = ServiceServer::builder(broker, ORDERS)
        .prefetch(100)
        .retry_delays(DELAYS)
        .handler_with_context("order", move |context: &Context<'_>, number| {
            handle(&book, context, number)
        })
        .start()
        .unwrap();
    let echo = ServiceServer::builder(broker, ECHO)
        .handler_with_context("echo", move |context: &Context<'_>, (caller, number)| {
            let attempt = context.attempt_of_call();
            if u64::is_multiple_of(number, BUSY_ONCE) && attempt == 1 {
                return Err(HandlerError::busy("not at the first attempt", DELAYS[0]));
            }
            if !is_idempotent(caller) {
                runs.runs(caller, number, attempt);
            }
            Ok(number)
        })
        .start()
        .unwrap();
    [orders, echo]
}

fn produce(client: &ServiceClient, events: &EventPublisher, book: &Book, stop: &AtomicBool) {
    let mut pending: VecDeque<(u64, Instant, PendingConfirm)> = VecDeque::new();
    let settle = |(number, sent, send): (u64, Instant, PendingConfirm)| {
        let outcome = send.wait();
        let late = sent.elapsed().saturating_sub(SEND_TIMEOUT);
        book.late(late, sent);
        match outcome {
            Ok(()) => book.confirmed(number),
            Err(_) => {
                book.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    while !stop.load(Ordering::SeqCst) {
        let (number, sent) = (book.attempt(), Instant::now());
        let idempotent = number.is_multiple_of(3);
        // Every fourth is an event.
        let pending_send = match number % 4 {
            1 => {
                let options = PublishOptions::new().timeout(SEND_TIMEOUT);
                events.publish_async_with(HAPPENED, &number, &options.idempotent(idempotent))
            }
            _ => {
                let options = SendOptions::new().timeout(SEND_TIMEOUT);
                client.send_async_with(ORDERS, "order", &number, &options.idempotent(idempotent))
            }
        };
        match pending_send {
            Ok(send) => pending.push_back((number, sent, send)),
            Err(_) => {
                book.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
        if pending.len() >= WINDOW {
            pending.pop_front().map(settle);
        }
    }
    pending.into_iter().for_each(settle);
}

/// Returns true if the calls of a caller may run twice.
fn is_idempotent(caller: u64) -> bool {
    caller.is_multiple_of(2)
}

fn call(client: &ServiceClient, book: &Book, stop: &AtomicBool, caller: u64) {
    let options = CallOptions::new().idempotent(is_idempotent(caller));
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        let begin = Instant::now();
        let reply = client.call_detailed::<u64>(ECHO, "echo", &(caller, number), &options);
        book.took(begin);
        let attempts = match reply {
            Ok(reply) => {
                assert_eq!(*reply, number, "the reply of another call");
                book.replies.fetch_add(1, Ordering::Relaxed);
                reply.attempts()
            }
            Err(error) => {
                book.failed_calls.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
                error.attempts()
            }
        };
        if attempts > 1 {
            book.retried.fetch_add(1, Ordering::Relaxed);
        }
    }
}
