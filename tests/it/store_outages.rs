//! Reply stores that are away, slow, or shared: nothing is lost and nothing runs twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use coney::{
    Broker, CallOptions, ClaimOutcome, ErrorKind, HandlerError, MemoryReplyStore, ReplyStore,
    ServiceServer, ServiceServerBuilder, StoreError,
};
use crossbeam_channel::unbounded;

use crate::support::dead::{letters_of, no_dead_letter};
use crate::support::{PATIENCE, client, eventually, on_both, unique};

on_both!(
    while_the_store_is_away_nothing_is_lost_or_used_up,
    a_store_that_stays_away_pauses_the_server,
    an_id_is_anothers_under_another_action,
    a_lease_is_renewed_while_the_handler_runs,
    only_final_errors_are_remembered,
    the_answer_of_a_command_is_not_encoded,
);

const MS: Duration = Duration::from_millis(1);

/// A store that can be away.
struct Flaky {
    store: MemoryReplyStore,
    is_away: AtomicBool,
}

impl Flaky {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            store: MemoryReplyStore::new(1_000),
            is_away: AtomicBool::new(false),
        })
    }

    fn check(&self) -> Result<(), StoreError> {
        match self.is_away.load(Ordering::SeqCst) {
            true => Err("no route to the store".into()),
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

fn builder(broker: &Broker, service: &str, store: Arc<dyn ReplyStore>) -> ServiceServerBuilder {
    ServiceServer::builder(broker, service)
        .retry_delays([20 * MS, 50 * MS])
        .deduplicate(store, PATIENCE)
}

fn while_the_store_is_away_nothing_is_lost_or_used_up(broker: &Broker) {
    let (service, store) = (unique("work"), Flaky::new());
    let (ran, runs) = unbounded();
    let _server = builder(broker, &service, store.clone())
        .handler("work", move |n: u64| {
            ran.send(n).unwrap();
            Ok::<_, HandlerError>(n)
        })
        .start()
        .unwrap();
    let client = client(broker);
    store.is_away.store(true, Ordering::SeqCst);
    let error = client.call::<_, u64>(&service, "work", &1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.is_safe_to_retry());
    assert_eq!(error.remote_code(), Some("busy"));
    assert!(error.retry_after().is_some());
    for n in 10..20u64 {
        client.send(&service, "work", &n).unwrap();
    }
    // Many times as long as all attempts would take.
    thread::sleep(500 * MS);
    assert!(runs.is_empty());
    no_dead_letter(broker, &service);
    store.is_away.store(false, Ordering::SeqCst);
    let mut done: Vec<u64> = (0..10)
        .map(|_| runs.recv_timeout(PATIENCE).unwrap())
        .collect();
    done.sort_unstable();
    assert_eq!(done, (10..20).collect::<Vec<_>>());
}

fn a_store_that_stays_away_pauses_the_server(broker: &Broker) {
    let (service, store) = (unique("work"), Flaky::new());
    let server = builder(broker, &service, store.clone())
        .handler("work", |n: u64| Ok::<_, HandlerError>(n))
        .reply_store_outage_limit(100 * MS)
        .health_interval(20 * MS)
        .start()
        .unwrap();
    let client = client(broker);
    store.is_away.store(true, Ordering::SeqCst);
    client.call::<_, u64>(&service, "work", &1).unwrap_err();
    eventually("it consumes no more", || server.state().unhealthy.is_some());
    let state = server.state();
    assert!(state.unhealthy.unwrap().contains("no route to the store"));
    let waiting = client.call_async::<_, u64>(&service, "work", &2).unwrap();
    store.is_away.store(false, Ordering::SeqCst);
    assert_eq!(waiting.wait().unwrap(), 2);
    eventually("it is well", || server.state().is_well());
}

fn an_id_is_anothers_under_another_action(broker: &Broker) {
    let service = unique("pay");
    let (ran, runs) = unbounded();
    let told = ran.clone();
    let server = builder(broker, &service, Flaky::new())
        .handler("reserve", move |_: u64| {
            ran.send("reserve").unwrap();
            Ok::<_, HandlerError>(())
        })
        .handler("capture", move |_: u64| {
            told.send("capture").unwrap();
            Ok::<_, HandlerError>(())
        })
        .start()
        .unwrap();
    let client = client(broker);
    let options = CallOptions::new().message_id("order-4711");
    for action in ["reserve", "capture", "reserve"] {
        client.send_with(&service, action, &1, &options).unwrap();
    }
    server.drain(PATIENCE).unwrap();
    let mut all: Vec<_> = runs.try_iter().collect();
    all.sort_unstable();
    assert_eq!(all, ["capture", "reserve"]);
}

fn a_lease_is_renewed_while_the_handler_runs(broker: &Broker) {
    let (service, store) = (unique("work"), Arc::new(MemoryReplyStore::new(10)));
    let ran = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&ran);
    let _server = builder(broker, &service, store)
        .deduplication_lease(100 * MS)
        .handler("work", move |_: u64| {
            let n = count.fetch_add(1, Ordering::SeqCst);
            thread::sleep(500 * MS); // five leases
            Ok::<_, HandlerError>(n)
        })
        .start()
        .unwrap();
    let client = client(broker);
    let options = CallOptions::new().message_id("m-1").timeout(PATIENCE);
    let call = || {
        client
            .call_async_with::<_, u32>(&service, "work", &1, &options)
            .unwrap()
    };
    let first = call();
    thread::sleep(250 * MS);
    let second = call();
    assert_eq!((first.wait().unwrap(), second.wait().unwrap()), (0, 0));
    assert_eq!(ran.load(Ordering::SeqCst), 1);
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
        let error = client.call_with::<_, ()>(&service, "work", &is_final, &options);
        error.unwrap_err().remote_message().unwrap().to_owned()
    };
    assert_ne!(fail("a", false), fail("a", false), "it may succeed yet");
    assert_eq!(fail("b", true), fail("b", true), "it will not");
}

/// Only a call's answer is sent, so only a call's must be JSON.
fn the_answer_of_a_command_is_not_encoded(broker: &Broker) {
    let (service, ran) = (unique("work"), Arc::new(AtomicU32::new(0)));
    let (first, second) = (Arc::clone(&ran), Arc::clone(&ran));
    let server = ServiceServer::builder(broker, &service)
        .retry_delays([10 * MS; 3])
        .handler("map", move |(): ()| {
            first.fetch_add(1, Ordering::SeqCst);
            Ok::<_, HandlerError>(std::collections::HashMap::from([((1, 2), 3)]))
        })
        .raw_handler("raw", move |_, _| {
            second.fetch_add(1, Ordering::SeqCst);
            Ok::<_, HandlerError>(String::new())
        })
        .start()
        .unwrap();
    let client = client(broker);
    client.send(&service, "map", &()).unwrap();
    client.send(&service, "raw", &()).unwrap();
    for action in ["map", "raw"] {
        let error = client.call::<_, ()>(&service, action, &()).unwrap_err();
        assert_eq!(error.remote_code(), Some("bad_reply"), "{error}");
    }
    server.drain(PATIENCE).unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 4, "each once");
    assert!(letters_of(broker, &service).is_empty());
}

#[cfg(feature = "redis")]
#[test]
fn redis_that_is_stopped_is_such_an_outage() {
    let redis = crate::support::server::Server::redis();
    let (broker, service) = (Broker::memory(), unique("work"));
    let connection = coney::redis::Redis::builder(redis.url())
        .timeout(100 * MS)
        .build()
        .unwrap();
    connection.ping().unwrap();
    let store = Arc::new(connection.reply_store());
    let _server = builder(&broker, &service, store)
        .handler("work", |n: u64| Ok::<_, HandlerError>(n))
        .start()
        .unwrap();
    let client = client(&broker);
    assert_eq!(client.call::<_, u64>(&service, "work", &1).unwrap(), 1);
    redis.pause();
    let error = client.call::<_, u64>(&service, "work", &2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert_eq!(connection.ping().unwrap_err().kind(), ErrorKind::Registry);
    redis.resume();
    eventually("it is back", || {
        client.call::<_, u64>(&service, "work", &3).is_ok()
    });
}
