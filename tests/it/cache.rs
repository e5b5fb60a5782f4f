//! The response cache of a client, over both brokers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use coney::cache::{Cached, ResponseCache};
use coney::client::Origin;
use coney::{Broker, CallOptions, ErrorKind, EventPublisher, ServiceClient, ServiceServer};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::support::{PATIENCE, eventually, on_both, unique};

on_both!(
    a_response_is_kept_and_an_event_invalidates_it,
    callers_of_one_cold_key_share_one_request,
    a_stale_response_is_refreshed_once_in_the_background,
    a_stale_response_stands_in_for_a_service_that_is_gone,
    the_error_of_the_one_that_calls_is_shared,
    calls_may_pass_the_cache_by,
    asynchronous_calls_read_and_fill_it,
    responses_vary_by_header,
    a_header_that_is_passed_on_is_not_mistaken_for_another,
    named_errors_are_remembered,
);

const LONG: Duration = Duration::from_secs(3_600);

/// A service that counts its calls: `value` returns the number of the call.
struct Counting {
    service: String,
    calls: Arc<AtomicUsize>,
    server: Option<ServiceServer>,
}

impl Counting {
    fn start(broker: &Broker) -> Self {
        let (service, calls) = (unique("counting"), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&calls);
        let by_user = Arc::clone(&calls);
        let server = ServiceServer::builder(broker, &service)
            .respond("value", move |_key: u64| {
                count.fetch_add(1, Ordering::SeqCst) + 1
            })
            .respond_with_context("user", move |context: &coney::Context<'_>, _: ()| {
                by_user.fetch_add(1, Ordering::SeqCst);
                context.header::<String>("user")
            })
            .start()
            .unwrap();
        Self {
            service,
            calls,
            server: Some(server),
        }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn client(&self, broker: &Broker, cache: &ResponseCache, cached: Cached) -> ServiceClient {
        ServiceClient::builder(broker, &unique("reader"))
            .cache(cache, &self.service, "value", cached)
            .build()
            .unwrap()
    }

    fn read(&self, client: &ServiceClient, key: u64) -> (usize, Origin) {
        let options = CallOptions::new().timeout(PATIENCE);
        let answer = client.call_detailed(&self.service, "value", &key, &options);
        let answer = answer.unwrap();
        (*answer, answer.origin())
    }
}

fn a_response_is_kept_and_an_event_invalidates_it(broker: &Broker) {
    let counting = Counting::start(broker);
    let cache = ResponseCache::new();
    let event = unique("value.changed");
    let cached = Cached::fresh_for(LONG)
        .tags(|key: &u64| [*key])
        .invalidated_by(&event, |key: &u64| [*key]);
    let client = counting.client(broker, &cache, cached);
    assert_eq!(counting.read(&client, 7), (1, Origin::Service));
    assert_eq!(counting.read(&client, 8), (2, Origin::Service));
    assert_eq!(counting.read(&client, 7), (1, Origin::Cache));
    let publisher = EventPublisher::new(broker, "writer").unwrap();
    publisher.publish(&event, &7).unwrap();
    eventually("the event has arrived", || counting.read(&client, 7).0 == 3);
    assert_eq!(counting.read(&client, 8), (2, Origin::Cache));
    let stats = cache.stats();
    assert_eq!(stats.entries, 2);
    assert_eq!(stats.misses, 3);
    assert!(stats.hits >= 2 && stats.bytes > 0);
}

/// A service whose `value` waits until the test lets it go on.
fn gated(broker: &Broker) -> (ServiceServer, String, Receiver<u64>, Sender<bool>) {
    let service = unique("gated");
    let (begun, starts) = bounded(1_024);
    let (release, gate) = bounded::<bool>(0);
    let server = ServiceServer::builder(broker, &service)
        .handler("value", move |key: u64| {
            begun.send(key).unwrap();
            match gate.recv() {
                Ok(true) => Ok(key),
                _ => Err("no"),
            }
        })
        .start()
        .unwrap();
    (server, service, starts, release)
}

fn cached_client(broker: &Broker, service: &str, cached: Cached) -> (ServiceClient, ResponseCache) {
    let cache = ResponseCache::new();
    let client = ServiceClient::builder(broker, &unique("reader"))
        .timeout(PATIENCE)
        .cache(&cache, service, "value", cached)
        .build()
        .unwrap();
    (client, cache)
}

fn callers_of_one_cold_key_share_one_request(broker: &Broker) {
    let (_server, service, starts, release) = gated(broker);
    let (client, cache) = cached_client(broker, &service, Cached::fresh_for(LONG));
    thread::scope(|scope| {
        let call = || client.call::<u64>(&service, "value", &5);
        let first = scope.spawn(call);
        assert_eq!(starts.recv_timeout(PATIENCE).unwrap(), 5);
        let others: Vec<_> = (0..511).map(|_| scope.spawn(call)).collect();
        release.send(true).unwrap();
        assert_eq!(first.join().unwrap().unwrap(), 5);
        for other in others {
            assert_eq!(other.join().unwrap().unwrap(), 5);
        }
    });
    assert!(starts.try_recv().is_err(), "one request only");
    let stats = cache.stats();
    assert_eq!(stats.misses, 1);
    assert_eq!(stats.shared + stats.hits, 511);
}

fn the_error_of_the_one_that_calls_is_shared(broker: &Broker) {
    let (_server, service, starts, release) = gated(broker);
    let (client, cache) = cached_client(broker, &service, Cached::fresh_for(LONG));
    thread::scope(|scope| {
        let call = || client.call::<u64>(&service, "value", &5);
        let first = scope.spawn(call);
        starts.recv_timeout(PATIENCE).unwrap();
        // A caller that comes too late for the first request sends one of its own.
        let other = scope.spawn(call);
        let mut released = 0;
        while !(first.is_finished() && other.is_finished()) {
            let sent = release.send_timeout(false, Duration::from_millis(10));
            released += usize::from(sent.is_ok());
        }
        for caller in [first, other] {
            let error = caller.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Remote);
        }
        assert_eq!(released as u64, cache.stats().misses);
    });
    assert_eq!(cache.stats().entries, 0, "errors are not kept");
}

fn a_stale_response_is_refreshed_once_in_the_background(broker: &Broker) {
    let counting = Counting::start(broker);
    let cache = ResponseCache::new();
    let cached = Cached::fresh_for(Duration::from_nanos(1)).stale_for(LONG);
    let client = counting.client(broker, &cache, cached);
    assert_eq!(counting.read(&client, 7), (1, Origin::Service));
    let (value, origin) = counting.read(&client, 7);
    assert!(value >= 1);
    assert_eq!(origin, Origin::Stale, "at once, however old");
    eventually("the refresh", || counting.read(&client, 7).0 > 1);
}

fn a_stale_response_stands_in_for_a_service_that_is_gone(broker: &Broker) {
    let mut counting = Counting::start(broker);
    let cache = ResponseCache::new();
    let cached = Cached::fresh_for(Duration::from_nanos(1)).stale_if_error(LONG);
    let client = counting.client(broker, &cache, cached);
    assert_eq!(counting.read(&client, 7), (1, Origin::Service));
    counting.server.take().unwrap().shutdown(PATIENCE).unwrap();
    let options = CallOptions::new().timeout(Duration::from_millis(20));
    for _ in 0..3 {
        let answer = client.call_detailed::<usize>(&counting.service, "value", &7, &options);
        let answer = answer.unwrap();
        assert_eq!((*answer, answer.origin()), (1, Origin::Stale));
    }
    let cold = client.call_detailed::<usize>(&counting.service, "value", &8, &options);
    assert_eq!(cold.unwrap_err().kind(), ErrorKind::TimedOut);
}

fn calls_may_pass_the_cache_by(broker: &Broker) {
    let counting = Counting::start(broker);
    let cache = ResponseCache::new();
    let client = counting.client(broker, &cache, Cached::fresh_for(LONG));
    assert_eq!(counting.read(&client, 7).0, 1);
    let call =
        |options: CallOptions| client.call_with::<usize>(&counting.service, "value", &7, &options);
    assert_eq!(call(CallOptions::new().no_cache()).unwrap(), 2);
    assert_eq!(counting.read(&client, 7), (1, Origin::Cache));
    assert_eq!(call(CallOptions::new().refresh()).unwrap(), 3);
    assert_eq!(counting.read(&client, 7), (3, Origin::Cache));
    let mut batch = client.batch(&counting.service);
    batch.add::<usize>("value", &7);
    assert_eq!(
        *batch.call().into_results::<usize>()[0].as_ref().unwrap(),
        4
    );
}

fn asynchronous_calls_read_and_fill_it(broker: &Broker) {
    let counting = Counting::start(broker);
    let cache = ResponseCache::new();
    let client = counting.client(broker, &cache, Cached::fresh_for(LONG));
    let call = || client.call_async::<usize>(&counting.service, "value", &7);
    assert_eq!(call().unwrap().wait().unwrap(), 1);
    assert_eq!(counting.read(&client, 7), (1, Origin::Cache));
    let mut pending = call().unwrap();
    assert_eq!(
        pending.try_wait().unwrap().unwrap(),
        1,
        "it is there at once"
    );
    let (sent, replies) = bounded(1);
    call()
        .unwrap()
        .then(move |reply| sent.send(reply).unwrap())
        .unwrap();
    assert_eq!(replies.recv_timeout(PATIENCE).unwrap().unwrap(), 1);
    assert_eq!(counting.calls(), 1);
    eventually("no call in flight", || client.in_flight() == 0);
}

fn responses_vary_by_header(broker: &Broker) {
    let counting = Counting::start(broker);
    let cache = ResponseCache::new();
    let client = ServiceClient::builder(broker, "reader")
        .cache(
            &cache,
            &counting.service,
            "user",
            Cached::fresh_for(LONG).vary("user"),
        )
        .build()
        .unwrap();
    let user = |name: &str| {
        let options = CallOptions::new().header("user", name).header("trace", "1");
        client
            .call_with::<String>(&counting.service, "user", &(), &options)
            .unwrap()
    };
    for name in ["ann", "bob", "ann", "bob"] {
        assert_eq!(user(name), name);
    }
    assert_eq!(counting.calls(), 2);
}

fn named_errors_are_remembered(broker: &Broker) {
    let service = unique("missing");
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let _server = ServiceServer::builder(broker, &service)
        .handler("value", move |_: u64| {
            count.fetch_add(1, Ordering::SeqCst);
            Err::<u64, _>(coney::HandlerError::new("no such key").with_code("not_found"))
        })
        .start()
        .unwrap();
    let cached = Cached::fresh_for(LONG).remember_errors("not_found", LONG);
    let (client, _cache) = cached_client(broker, &service, cached);
    for _ in 0..3 {
        let error = client.call::<u64>(&service, "value", &7).unwrap_err();
        assert_eq!(error.remote_code(), Some("not_found"));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// A user named `"ann"`, with the quotes, is not the user ann.
fn a_header_that_is_passed_on_is_not_mistaken_for_another(broker: &Broker) {
    let counting = Counting::start(broker);
    let cached = Cached::fresh_for(LONG).vary("user");
    let inner = ServiceClient::builder(broker, "gateway")
        .cache(&ResponseCache::new(), &counting.service, "user", cached)
        .build()
        .unwrap();
    let (gateway, service) = (unique("gateway"), counting.service.clone());
    let _server = ServiceServer::builder(broker, &gateway)
        .client(inner)
        .propagate(["user"])
        .handler_with_context(
            "ask",
            move |context: &coney::Context<'_>, user: Option<String>| {
                let options = match user {
                    Some(user) => CallOptions::new().header("user", user),
                    None => CallOptions::new(),
                };
                let client = context.client()?;
                client.call_with::<Option<String>>(&service, "user", &(), &options)
            },
        )
        .start()
        .unwrap();
    let front = ServiceClient::builder(broker, "front")
        .timeout(PATIENCE)
        .build();
    let front = front.unwrap();
    let ask = |user: Option<&str>| {
        let options = CallOptions::new().header("user", "ann");
        front
            .call_with::<Option<String>>(&gateway, "ask", &user, &options)
            .unwrap()
            .unwrap()
    };
    assert_eq!(ask(None), "ann");
    assert_eq!(ask(Some("\"ann\"")), "\"ann\"");
    assert_eq!(ask(Some("ann")), "ann");
    assert_eq!(counting.calls(), 2, "the last was cached");
}
