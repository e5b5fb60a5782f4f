//! The response cache of a client whose events do not decode, or whose connection is cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coney::cache::{Cached, ResponseCache};
use coney::client::Origin;
use coney::{Broker, CallOptions, EventPublisher, ServiceClient, ServiceServer};

use super::support::proxy::Proxy;
use super::support::{amqp_url, eventually, on_both, quick, rabbitmq, unique};

on_both!(
    an_event_that_does_not_decode_invalidates_all_responses,
    an_event_clears_all_responses,
);

const LONG: Duration = Duration::from_secs(3_600);

/// A service whose `value` returns the number of the call, and a client that caches it.
struct Cache {
    service: String,
    _server: ServiceServer,
    client: ServiceClient,
}

impl Cache {
    /// Starts the service on one broker, and the client on another.
    fn start(of_service: &Broker, of_client: &Broker, cached: Cached) -> Self {
        let (service, calls) = (unique("counting"), Arc::new(AtomicUsize::new(0)));
        let server = ServiceServer::builder(of_service, &service)
            .respond("value", move |_key: u64| {
                calls.fetch_add(1, Ordering::SeqCst) + 1
            })
            .start()
            .unwrap();
        let client = ServiceClient::builder(of_client, "reader")
            .cache(&ResponseCache::new(), &service, "value", cached)
            .build()
            .unwrap();
        Self {
            service,
            _server: server,
            client,
        }
    }

    fn read(&self, key: u64) -> coney::Result<(usize, Origin)> {
        let options = CallOptions::new();
        let answer = self
            .client
            .call_detailed(&self.service, "value", &key, &options)?;
        Ok((*answer, answer.origin()))
    }
}

fn an_event_that_does_not_decode_invalidates_all_responses(broker: &Broker) {
    let event = unique("changed");
    let cached = Cached::fresh_for(LONG)
        .tags(|key: &u64| [*key])
        .invalidated_by(&event, |key: &u64| [*key]);
    let cache = Cache::start(broker, broker, cached);
    assert_eq!(cache.read(7).unwrap(), (1, Origin::Service));
    assert_eq!(cache.read(8).unwrap(), (2, Origin::Service));
    let publisher = EventPublisher::new(broker, "writer").unwrap();
    publisher.publish(&event, "seven").unwrap();
    eventually("a new response", || cache.read(7).unwrap().0 == 3);
    assert_eq!(cache.read(8).unwrap(), (4, Origin::Service));
}

fn an_event_clears_all_responses(broker: &Broker) {
    let event = unique("cleared");
    let cached = Cached::fresh_for(LONG).cleared_by(format!("{event}.*"));
    let cache = Cache::start(broker, broker, cached);
    assert_eq!(cache.read(7).unwrap(), (1, Origin::Service));
    let publisher = EventPublisher::new(broker, "writer").unwrap();
    publisher.publish(&format!("{event}.now"), &()).unwrap();
    eventually("a new response", || cache.read(7).unwrap().0 == 2);
    assert_eq!(cache.read(7).unwrap(), (2, Origin::Cache));
}

#[test]
fn no_response_from_before_a_lost_connection_is_fresh() {
    let (direct, proxy) = (rabbitmq(), Proxy::start(&amqp_url()));
    let through = quick(&proxy.url);
    let event = unique("changed");
    let cached = Cached::fresh_for(LONG)
        .tags(|key: &u64| [*key])
        .invalidated_by(&event, |key: &u64| [*key]);
    let cache = Cache::start(&direct, &through, cached);
    assert_eq!(cache.read(7).unwrap(), (1, Origin::Service));
    assert_eq!(cache.read(7).unwrap(), (1, Origin::Cache));
    proxy.cut();
    // An event may have been missed meanwhile.
    eventually("a new response", || {
        cache.read(7).is_ok_and(|(value, _)| value > 1)
    });
    eventually("it is kept", || {
        cache
            .read(7)
            .is_ok_and(|(_, origin)| origin == Origin::Cache)
    });
    // Events arrive over the new connection.
    let (before, _) = cache.read(7).unwrap();
    let publisher = EventPublisher::new(&direct, "writer").unwrap();
    publisher.publish(&event, &7).unwrap();
    eventually("the event", || cache.read(7).unwrap().0 > before);
}

#[test]
fn stale_responses_are_returned_while_the_connection_is_down() {
    let (direct, proxy) = (rabbitmq(), Proxy::start(&amqp_url()));
    let through = quick(&proxy.url);
    let cached = Cached::fresh_for(LONG)
        .stale_for(LONG)
        .tags(|key: &u64| [*key])
        .invalidated_by(unique("changed"), |key: &u64| [*key]);
    let cache = Cache::start(&direct, &through, cached);
    assert_eq!(cache.read(7).unwrap(), (1, Origin::Service));
    proxy.cut_for_good();
    eventually("a stale response", || {
        cache.read(7).unwrap() == (1, Origin::Stale)
    });
}
