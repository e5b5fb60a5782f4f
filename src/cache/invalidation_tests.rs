//! Invalidation by events, in memory and over a RabbitMQ whose connection is cut.

use std::thread;
use std::time::{Duration, Instant};

use super::cached::Cached;
use super::cached_action::CachedAction;
use super::support_tests::{PATIENCE, cached, request};
use crate::EventPublisher;
use crate::client::ActionCache;
use crate::error::ErrorKind;
use crate::transport::Broker;

#[path = "../../tests/it/support/proxy.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod proxy;

use self::proxy::Proxy;

/// Returns the URL of the RabbitMQ that `tests/run` has started for this run.
fn amqp_url() -> String {
    std::env::var("CONEY_TEST_AMQP_URL")
        .expect("CONEY_TEST_AMQP_URL is not set: run the tests with tests/run")
}

/// Connects with fast reconnects.
fn rabbitmq(url: &str) -> Broker {
    Broker::builder(url)
        .reconnect_delays(Duration::from_millis(20), Duration::from_millis(200))
        .connect()
        .unwrap()
}

/// Returns the settings of an action that events of this test only invalidate.
fn users() -> (String, Cached) {
    let event = format!("cache-{:016x}", fastrand::u64(..));
    let settings = Cached::fresh_for(PATIENCE)
        .tags(|id: &u32| [*id])
        .invalidated_by(format!("{event}.*"), |id: &u32| [*id]);
    (event, settings)
}

fn is_fresh(action: &CachedAction, payload: &str) -> bool {
    let found = request(payload).peek(action);
    found.is_some_and(|(_, is_stale)| !is_stale)
}

/// Blocks until the state that `is_there` checks has come, and returns how long it took.
fn wait_until(mut is_there: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !is_there() {
        assert!(begun.elapsed() < PATIENCE, "it has not come");
        thread::yield_now();
    }
    begun.elapsed()
}

fn an_event_invalidates_the_responses_with_its_tags(broker: &Broker) {
    let (event, settings) = users();
    let (_cache, action) = cached(settings);
    action.open(broker, "shop", None).unwrap();
    let publisher = EventPublisher::new(broker, "user-service").unwrap();
    for payload in ["7", "8"] {
        request(payload).fill(&action, "1");
    }
    let under_way = request("7").begin(&action);
    publisher.publish(&format!("{event}.renamed"), &7).unwrap();
    let took = wait_until(|| !is_fresh(&action, "7"));
    println!("invalidated {took:?} after the confirm");
    assert_eq!(
        request("7").peek(&action),
        None,
        "and it is not used as a stale one"
    );
    assert_eq!(under_way.finish(Ok("2")), None);
    assert_eq!(
        request("7").peek(&action),
        None,
        "its request was sent before the event"
    );
    assert!(is_fresh(&action, "8"), "it has another tag");
    request("7").fill(&action, "3");
    assert!(is_fresh(&action, "7"));
}

fn an_event_that_does_not_decode_invalidates_all_responses(broker: &Broker) {
    let (event, settings) = users();
    let (_cache, action) = cached(settings);
    action.open(broker, "shop", None).unwrap();
    let publisher = EventPublisher::new(broker, "user-service").unwrap();
    for payload in ["7", "8"] {
        request(payload).fill(&action, "1");
    }
    publisher
        .publish(&format!("{event}.renamed"), "seven")
        .unwrap();
    wait_until(|| !is_fresh(&action, "7") && !is_fresh(&action, "8"));
}

fn an_event_without_tags_and_one_whose_tags_panic_invalidate_all_responses(broker: &Broker) {
    let (event, _) = users();
    let settings = Cached::fresh_for(PATIENCE)
        .tags(|id: &u32| [*id])
        .cleared_by(format!("{event}.cleared"))
        .invalidated_by(format!("{event}.odd"), |_: &u32| -> [u32; 0] {
            panic!("a panic that the test wants")
        });
    let (_cache, action) = cached(settings);
    action.open(broker, "shop", None).unwrap();
    let publisher = EventPublisher::new(broker, "user-service").unwrap();
    for name in ["cleared", "odd", "cleared"] {
        request("7").fill(&action, "1");
        publisher.publish(&format!("{event}.{name}"), &1).unwrap();
        wait_until(|| !is_fresh(&action, "7"));
    }
}

mod memory {
    use super::*;

    #[test]
    fn an_event_invalidates_the_responses_with_its_tags() {
        super::an_event_invalidates_the_responses_with_its_tags(&Broker::memory());
    }

    #[test]
    fn an_event_that_does_not_decode_invalidates_all_responses() {
        super::an_event_that_does_not_decode_invalidates_all_responses(&Broker::memory());
    }

    #[test]
    fn an_event_without_tags_and_one_whose_tags_panic_invalidate_all_responses() {
        let broker = Broker::memory();
        super::an_event_without_tags_and_one_whose_tags_panic_invalidate_all_responses(&broker);
    }

    #[test]
    fn nothing_is_fresh_after_the_broker_was_closed() {
        let (_, settings) = users();
        let (_cache, action) = cached(settings.stale_for(PATIENCE));
        let broker = Broker::memory();
        action.open(&broker, "shop", None).unwrap();
        request("7").fill(&action, "1");
        assert!(is_fresh(&action, "7"));
        broker.close(PATIENCE).unwrap();
        assert_eq!(request("7").peek(&action), Some(("1".to_owned(), true)));
    }

    #[test]
    fn the_subscriptions_end_with_the_action() {
        let (event, settings) = users();
        let (cache, action) = cached(settings);
        let broker = Broker::memory();
        action.open(&broker, "shop", None).unwrap();
        let publisher = EventPublisher::new(&broker, "user-service").unwrap();
        let publisher = publisher.with_mandatory(true);
        let publish = || publisher.publish(&format!("{event}.renamed"), &7);
        publish().unwrap();
        drop(action);
        assert_eq!(publish().unwrap_err().kind(), ErrorKind::NoRoute);
        drop(cache);
    }
}

mod rabbitmq {
    use super::*;

    #[test]
    fn an_event_invalidates_the_responses_with_its_tags() {
        let broker = rabbitmq(&amqp_url());
        super::an_event_invalidates_the_responses_with_its_tags(&broker);
    }

    #[test]
    fn an_event_that_does_not_decode_invalidates_all_responses() {
        let broker = rabbitmq(&amqp_url());
        super::an_event_that_does_not_decode_invalidates_all_responses(&broker);
    }

    #[test]
    fn an_event_without_tags_and_one_whose_tags_panic_invalidate_all_responses() {
        let broker = rabbitmq(&amqp_url());
        super::an_event_without_tags_and_one_whose_tags_panic_invalidate_all_responses(&broker);
    }

    #[test]
    fn no_response_from_before_a_lost_connection_is_fresh() {
        let (event, settings) = users();
        let (_cache, action) = cached(settings.stale_if_error(PATIENCE));
        let proxy = Proxy::start(&amqp_url());
        let broker = rabbitmq(&proxy.url);
        action.open(&broker, "shop", None).unwrap();
        request("7").fill(&action, "1");
        let under_way = request("7").begin(&action);
        assert!(is_fresh(&action, "7"));
        proxy.cut();
        wait_until(|| !is_fresh(&action, "7"));
        // It consumes again when a new response is fresh.
        wait_until(|| {
            request("8").fill(&action, "2");
            is_fresh(&action, "8")
        });
        assert_eq!(request("7").peek(&action), None);
        assert_eq!(under_way.finish(Ok("3")), None);
        assert_eq!(
            request("7").peek(&action),
            None,
            "events may have been missed"
        );
        // Events arrive on the new connection.
        let direct = rabbitmq(&amqp_url());
        let publisher = EventPublisher::new(&direct, "user-service").unwrap();
        publisher.publish(&format!("{event}.renamed"), &8).unwrap();
        wait_until(|| !is_fresh(&action, "8"));
    }

    #[test]
    fn stale_responses_are_returned_while_the_connection_is_down() {
        let (_, settings) = users();
        let (_cache, action) = cached(settings.stale_for(PATIENCE));
        let proxy = Proxy::start(&amqp_url());
        let broker = rabbitmq(&proxy.url);
        action.open(&broker, "shop", None).unwrap();
        request("7").fill(&action, "1");
        proxy.cut_for_good();
        wait_until(|| !is_fresh(&action, "7"));
        assert_eq!(request("7").peek(&action), Some(("1".to_owned(), true)));
    }
}
