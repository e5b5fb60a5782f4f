//! Reply stores that are unavailable, slow or shared: no request is lost, and none runs twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coney::deduplication::{ClaimOutcome, MemoryReplyStore, ReplyStore, StoreError};
use coney::server::ServiceServerBuilder;
use coney::{
    Broker, CallOptions, ErrorKind, HandlerError, HandlerResult, SendOptions, ServiceServer,
};
use crossbeam_channel::{bounded, unbounded};
use parking_lot::Mutex;

use crate::support::dead_letters::{letters_of, no_dead_letter};
use crate::support::{PATIENCE, client, eventually, on_both, unique};

on_both!(
    a_store_outage_uses_up_no_attempts,
    a_long_store_outage_pauses_the_server,
    an_id_belongs_to_one_action,
    a_lease_is_renewed_while_the_handler_runs,
    only_final_errors_are_remembered,
    the_answer_of_a_command_is_not_encoded,
);

const MS: Duration = Duration::from_millis(1);

/// A store that can be unavailable.
struct Flaky {
    store: MemoryReplyStore,
    is_away: AtomicBool,
    /// The number of requests while it was away.
    refused: AtomicU32,
}

impl Flaky {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            store: MemoryReplyStore::new(1_000),
            is_away: AtomicBool::new(false),
            refused: AtomicU32::new(0),
        })
    }

    fn check(&self) -> Result<(), StoreError> {
        match self.is_away.load(Ordering::SeqCst) {
            true => {
                self.refused.fetch_add(1, Ordering::SeqCst);
                Err("no route to the store".into())
            }
            false => Ok(()),
        }
    }
}

impl ReplyStore for Flaky {
    fn claim(&self, key: &str, owner: u64, lease: Duration) -> Result<ClaimOutcome, StoreError> {
        self.check()?;
        self.store.claim(key, owner, lease)
    }

    fn renew(&self, key: &str, owner: u64, lease: Duration) -> Result<bool, StoreError> {
        self.check()?;
        self.store.renew(key, owner, lease)
    }

    fn complete(&self, k: &str, owner: u64, reply: &[u8], t: Duration) -> Result<bool, StoreError> {
        self.check()?;
        self.store.complete(k, owner, reply, t)
    }

    fn release(&self, key: &str, owner: u64) -> Result<(), StoreError> {
        self.check()?;
        self.store.release(key, owner)
    }

    fn ping(&self) -> Result<(), StoreError> {
        self.check()
    }
}

/// A store whose leases last a minute longer than asked for, so that none ends on a busy
/// machine, and which records the times of their renewals. The second renewal panics.
struct LongLeases {
    store: MemoryReplyStore,
    renewals: Mutex<Vec<Instant>>,
}

impl LongLeases {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            store: MemoryReplyStore::new(1_000),
            renewals: Mutex::default(),
        })
    }
}

impl ReplyStore for LongLeases {
    fn claim(&self, key: &str, owner: u64, lease: Duration) -> Result<ClaimOutcome, StoreError> {
        self.store.claim(key, owner, lease + PATIENCE)
    }

    fn renew(&self, key: &str, owner: u64, lease: Duration) -> Result<bool, StoreError> {
        self.renewals.lock().push(Instant::now());
        let count = self.renewals.lock().len();
        assert_ne!(count, 2, "a panic that the test wants");
        self.store.renew(key, owner, lease + PATIENCE)
    }

    fn complete(&self, k: &str, owner: u64, reply: &[u8], t: Duration) -> Result<bool, StoreError> {
        self.store.complete(k, owner, reply, t)
    }

    fn release(&self, key: &str, owner: u64) -> Result<(), StoreError> {
        self.store.release(key, owner)
    }

    fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

fn builder(broker: &Broker, service: &str, store: Arc<dyn ReplyStore>) -> ServiceServerBuilder {
    ServiceServer::builder(broker, service)
        .retry_delays([20 * MS, 50 * MS])
        .deduplicate(store, PATIENCE)
}

fn a_store_outage_uses_up_no_attempts(broker: &Broker) {
    let (service, store) = (unique("work"), Flaky::new());
    let (ran, runs) = unbounded();
    let _server = builder(broker, &service, store.clone())
        .respond("work", move |n: u64| {
            ran.send(n).unwrap();
            n
        })
        .start()
        .unwrap();
    let client = client(broker);
    store.is_away.store(true, Ordering::SeqCst);
    let error = client.call::<u64>(&service, "work", &1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.is_safe_to_retry());
    assert_eq!(error.remote_code(), Some("busy"));
    assert!(error.retry_after().is_some());
    for n in 10..20u64 {
        client.send(&service, "work", &n).unwrap();
    }
    // That is more than all attempts of all commands.
    eventually("the store is asked again and again", || {
        store.refused.load(Ordering::SeqCst) > 40
    });
    assert!(runs.is_empty());
    no_dead_letter(broker, &service);
    store.is_away.store(false, Ordering::SeqCst);
    let mut done: Vec<u64> = (0..10)
        .map(|_| runs.recv_timeout(PATIENCE).unwrap())
        .collect();
    done.sort_unstable();
    assert_eq!(done, (10..20).collect::<Vec<_>>());
}

fn a_long_store_outage_pauses_the_server(broker: &Broker) {
    let (service, store) = (unique("work"), Flaky::new());
    let server = builder(broker, &service, store.clone())
        .respond("work", |n: u64| n)
        .reply_store_outage_limit(100 * MS)
        .health_interval(20 * MS)
        .start()
        .unwrap();
    let client = client(broker);
    store.is_away.store(true, Ordering::SeqCst);
    client.call::<u64>(&service, "work", &1).unwrap_err();
    eventually("it consumes no more", || server.state().unhealthy.is_some());
    let state = server.state();
    assert!(state.unhealthy.unwrap().contains("no route to the store"));
    let waiting = client.call_async::<u64>(&service, "work", &2).unwrap();
    store.is_away.store(false, Ordering::SeqCst);
    assert_eq!(waiting.wait().unwrap(), 2);
    eventually("it is healthy", || server.state().is_healthy());
}

fn an_id_belongs_to_one_action(broker: &Broker) {
    let service = unique("pay");
    let (ran, runs) = unbounded();
    let captured = ran.clone();
    let server = builder(broker, &service, Flaky::new())
        .respond("reserve", move |_: u64| {
            ran.send("reserve").unwrap();
        })
        .respond("capture", move |_: u64| {
            captured.send("capture").unwrap();
        })
        .start()
        .unwrap();
    let client = client(broker);
    let options = SendOptions::new().message_id("order-4711");
    for action in ["reserve", "capture", "reserve"] {
        client.send_with(&service, action, &1, &options).unwrap();
    }
    server.drain(PATIENCE).unwrap();
    let mut all: Vec<_> = runs.try_iter().collect();
    all.sort_unstable();
    assert_eq!(all, ["capture", "reserve"]);
}

fn a_lease_is_renewed_while_the_handler_runs(broker: &Broker) {
    const LEASE: Duration = Duration::from_secs(1);
    let (service, store) = (unique("work"), LongLeases::new());
    let ran = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&ran);
    let (release, gate) = bounded::<()>(0);
    let _server = builder(broker, &service, store.clone())
        .deduplication_lease(LEASE)
        .respond("work", move |_: u64| {
            let n = count.fetch_add(1, Ordering::SeqCst);
            let _ = gate.recv();
            n
        })
        .start()
        .unwrap();
    let client = client(broker);
    let options = CallOptions::new().message_id("m-1").timeout(PATIENCE);
    let call = || {
        client
            .call_async_with::<u32>(&service, "work", &1, &options)
            .unwrap()
    };
    let first = call();
    let renewals = |count: usize| {
        let wanted = store.renewals.lock().len() + count;
        eventually("the lease is renewed", || {
            store.renewals.lock().len() >= wanted
        });
    };
    renewals(5);
    let second = call();
    renewals(1);
    drop(release);
    assert_eq!((first.wait().unwrap(), second.wait().unwrap()), (0, 0));
    assert_eq!(ran.load(Ordering::SeqCst), 1);
    // A busy machine delays some renewals, but not all of them.
    let renewals = store.renewals.lock();
    let shortest = renewals.windows(2).map(|two| two[1] - two[0]).min();
    assert!(shortest.unwrap() < LEASE, "{shortest:?}");
}

fn only_final_errors_are_remembered(broker: &Broker) {
    let (service, ran) = (unique("work"), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&ran);
    let _server = builder(broker, &service, Flaky::new())
        .handler("work", move |is_final: bool| {
            let n = count.fetch_add(1, Ordering::SeqCst);
            let error = HandlerError::new(format!("failure {n}"));
            Err::<(), _>(if is_final {
                error.do_not_retry()
            } else {
                error
            })
        })
        .start()
        .unwrap();
    let client = client(broker);
    let fail = |id: &str, is_final: bool| {
        let options = CallOptions::new().message_id(id);
        let error = client.call_with::<()>(&service, "work", &is_final, &options);
        error.unwrap_err().remote_message().unwrap().to_owned()
    };
    assert_ne!(fail("a", false), fail("a", false), "it may succeed yet");
    assert_eq!(fail("b", true), fail("b", true), "it will not");
}

/// Runs handlers whose results are no JSON, which only a call needs.
fn the_answer_of_a_command_is_not_encoded(broker: &Broker) {
    let (service, ran) = (unique("work"), Arc::new(AtomicU32::new(0)));
    let (first, second) = (Arc::clone(&ran), Arc::clone(&ran));
    let server = ServiceServer::builder(broker, &service)
        .retry_delays([10 * MS; 3])
        .respond("map", move |(): ()| {
            first.fetch_add(1, Ordering::SeqCst);
            std::collections::HashMap::from([((1, 2), 3)])
        })
        .handler_raw("raw", move |_, _| -> HandlerResult<_> {
            second.fetch_add(1, Ordering::SeqCst);
            Ok(String::new())
        })
        .start()
        .unwrap();
    let client = client(broker);
    client.send(&service, "map", &()).unwrap();
    client.send(&service, "raw", &()).unwrap();
    for action in ["map", "raw"] {
        let error = client.call::<()>(&service, action, &()).unwrap_err();
        assert_eq!(error.remote_code(), Some("bad_reply"), "{error}");
    }
    server.drain(PATIENCE).unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 4, "each once");
    assert!(letters_of(broker, &service).is_empty());
}

#[cfg(feature = "redis")]
#[test]
fn a_frozen_redis_is_a_store_outage() {
    let redis = crate::support::server::Server::redis();
    let (broker, service) = (Broker::memory(), unique("work"));
    let connection = coney::redis::Redis::builder(redis.url())
        .timeout(100 * MS)
        .build()
        .unwrap();
    connection.ping().unwrap();
    let store = Arc::new(connection.reply_store());
    let _server = builder(&broker, &service, store)
        .respond("work", |n: u64| n)
        .start()
        .unwrap();
    let client = client(&broker);
    assert_eq!(client.call::<u64>(&service, "work", &1).unwrap(), 1);
    redis.pause();
    let error = client.call::<u64>(&service, "work", &2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert_eq!(connection.ping().unwrap_err().kind(), ErrorKind::Registry);
    redis.resume();
    eventually("it is back", || {
        client.call::<u64>(&service, "work", &3).is_ok()
    });
}
