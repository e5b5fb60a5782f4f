//! Invalidation by events, in memory. `tests/it/cache_faults.rs` has RabbitMQ, and connections that are
//! cut.

use std::thread;
use std::time::{Duration, Instant};

use super::cached::Cached;
use super::cached_action::CachedAction;
use super::support_tests::{PATIENCE, cached, request};
use crate::EventPublisher;
use crate::client::ActionCache;
use crate::error::ErrorKind;
use crate::transport::Broker;

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

#[test]
fn an_event_invalidates_the_responses_with_its_tags() {
    let broker = Broker::memory();
    let (event, settings) = users();
    let (_cache, action) = cached(settings);
    action.open(&broker, "shop", None).unwrap();
    let publisher = EventPublisher::new(&broker, "user-service").unwrap();
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

#[test]
fn an_event_that_does_not_decode_invalidates_all_responses() {
    let broker = Broker::memory();
    let (event, settings) = users();
    let (_cache, action) = cached(settings);
    action.open(&broker, "shop", None).unwrap();
    let publisher = EventPublisher::new(&broker, "user-service").unwrap();
    for payload in ["7", "8"] {
        request(payload).fill(&action, "1");
    }
    publisher
        .publish(&format!("{event}.renamed"), "seven")
        .unwrap();
    wait_until(|| !is_fresh(&action, "7") && !is_fresh(&action, "8"));
}

#[test]
fn an_event_without_tags_and_one_whose_tags_panic_invalidate_all_responses() {
    let broker = Broker::memory();
    let (event, _) = users();
    let settings = Cached::fresh_for(PATIENCE)
        .tags(|id: &u32| [*id])
        .cleared_by(format!("{event}.cleared"))
        .invalidated_by(format!("{event}.odd"), |_: &u32| -> [u32; 0] {
            panic!("a panic that the test wants")
        });
    let (_cache, action) = cached(settings);
    action.open(&broker, "shop", None).unwrap();
    let publisher = EventPublisher::new(&broker, "user-service").unwrap();
    for name in ["cleared", "odd", "cleared"] {
        request("7").fill(&action, "1");
        publisher.publish(&format!("{event}.{name}"), &1).unwrap();
        wait_until(|| !is_fresh(&action, "7"));
    }
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
