//! Reading through the cache: single flight, staleness, errors, headers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::cached::Cached;
use super::cached_action::CachedAction;
use super::support_tests::{
    PATIENCE, Request, cached, refused, request, seen, timed_out, unavailable,
};
use crate::client::CacheRead;
use crate::error::{Error, ErrorKind};

const MINUTE: Duration = Duration::from_secs(60);

fn fresh() -> Cached {
    Cached::fresh_for(MINUTE)
}

/// Blocks until the state that `is_there` checks has come.
fn wait_until(mut is_there: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_there() {
        assert!(Instant::now() < end, "it has not come");
        thread::yield_now();
    }
}

/// Blocks until as many callers wait for the response to `request`.
fn wait_for_callers(action: &CachedAction, request: &Request, callers: usize) {
    let key = request.with(|request| {
        let varied = action.0.varied(request);
        action.0.key(&varied, request.payload).to_key()
    });
    wait_until(|| action.0.core.flights.waiting(&key) == callers);
}

/// Returns the text, or the kind of the error; `None` for a caller that leads.
fn result(read: CacheRead) -> Option<Result<String, ErrorKind>> {
    match read {
        CacheRead::Answer(answer) => Some(Ok(seen(&answer).0)),
        CacheRead::Error(error) => Some(Err(error.kind())),
        CacheRead::Lead(_) => None,
    }
}

#[test]
fn callers_of_one_cold_key_make_one_request() {
    const CALLERS: usize = 512;
    let (cache, action) = cached(fresh());
    let requests = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            let (action, requests) = (&action, &requests);
            let spawned = thread::Builder::new().stack_size(128 << 10);
            let caller = spawned.spawn_scoped(scope, move || {
                let request = request("7");
                match request.read(action) {
                    CacheRead::Lead(fill) => {
                        requests.fetch_add(1, Ordering::SeqCst);
                        wait_for_callers(action, &request, CALLERS - 1);
                        assert_eq!(fill.finish(Ok("\"seven\"")), None);
                    }
                    read => assert_eq!(result(read), Some(Ok("\"seven\"".to_owned()))),
                }
            });
            caller.unwrap();
        }
    });
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    let stats = cache.stats();
    assert_eq!((stats.misses, stats.shared), (1, CALLERS as u64 - 1));
    assert_eq!(
        request("7").peek(&action),
        Some(("\"seven\"".to_owned(), false))
    );
    assert_eq!((cache.stats().hits, cache.stats().entries), (1, 1));
}

/// Returns what a waiter gets if the leader's request ends with an error.
fn shared(settings: Cached, waiter: &Request, error: &Error) -> Option<Result<String, ErrorKind>> {
    let (_cache, action) = cached(settings);
    thread::scope(|scope| {
        let fill = request("7").lead(&action);
        let waiter = scope.spawn(|| result(waiter.read(&action)));
        wait_for_callers(&action, &request("7"), 1);
        assert_eq!(fill.finish(Err(error)), None);
        waiter.join().unwrap()
    })
}

#[test]
fn those_that_wait_share_the_leaders_error_but_not_its_timeout() {
    let waiter = request("7");
    let error = refused("sold_out");
    assert_eq!(
        shared(fresh(), &waiter, &error),
        Some(Err(ErrorKind::Remote))
    );
    assert_eq!(
        shared(fresh(), &waiter, &unavailable()),
        Some(Err(ErrorKind::NoInstance))
    );
    assert_eq!(shared(fresh(), &waiter, &timed_out()), None, "it leads");
}

#[test]
fn a_leader_that_gives_up_hands_over() {
    let (_cache, action) = cached(fresh());
    thread::scope(|scope| {
        let fill = request("7").lead(&action);
        let waiter = scope.spawn(|| request("7").lead(&action).finish(Ok("1")));
        wait_for_callers(&action, &request("7"), 1);
        drop(fill);
        assert_eq!(waiter.join().unwrap(), None);
    });
    assert_eq!(request("7").peek(&action), Some(("1".to_owned(), false)));
}

#[test]
fn a_caller_without_time_left_calls_by_itself() {
    let (cache, action) = cached(fresh());
    let first = request("7").lead(&action);
    drop(request("7").timeout(Duration::ZERO).lead(&action));
    assert_eq!(first.finish(Ok("1")), None);
    assert_eq!(cache.stats().misses, 2);
}

#[test]
fn a_response_from_before_an_event_is_neither_stored_nor_shared_with_later_callers() {
    let (cache, action) = cached(fresh().tags(|id: &u32| [*id]));
    let before = request("7").lead(&action);
    cache.invalidate("user-service", "get_user", [7]);
    let after = request("7").lead(&action); // does not wait for the other
    assert_eq!(before.finish(Ok("\"old\"")), None);
    assert_eq!(request("7").peek(&action), None);
    assert_eq!(after.finish(Ok("\"new\"")), None);
    assert_eq!(
        request("7").peek(&action),
        Some(("\"new\"".to_owned(), false))
    );
    cache.invalidate("user-service", "get_user", [8]);
    cache.invalidate("user-service", "list_users", [7]);
    assert!(
        request("7").peek(&action).is_some(),
        "another tag, another action"
    );
    cache.invalidate_action("user-service", "get_user");
    assert_eq!(request("7").peek(&action), None);
}

#[test]
fn a_stale_response_is_refreshed_once_in_the_background() {
    static REFRESHES: AtomicUsize = AtomicUsize::new(0);
    let (cache, action) = cached(Cached::fresh_for(Duration::ZERO).stale_for(MINUTE));
    let request = request("7").refreshed(|| {
        REFRESHES.fetch_add(1, Ordering::SeqCst);
        Ok("2".to_owned())
    });
    request.fill(&action, "1");
    wait_until(|| request.peek(&action) == Some(("2".to_owned(), true)));
    assert!(REFRESHES.load(Ordering::SeqCst) >= 1);
    assert!(cache.stats().stale >= 2);
}

#[test]
fn a_failed_refresh_leaves_the_response_and_is_not_repeated_at_once() {
    static REFRESHES: AtomicUsize = AtomicUsize::new(0);
    let (_cache, action) = cached(Cached::fresh_for(Duration::ZERO).stale_for(MINUTE));
    let request = request("7").refreshed(|| {
        REFRESHES.fetch_add(1, Ordering::SeqCst);
        panic!("a panic that the test wants")
    });
    request.fill(&action, "1");
    let stale = Some(("1".to_owned(), true));
    wait_until(|| request.peek(&action) == stale && REFRESHES.load(Ordering::SeqCst) == 1);
    let key = request.with(|it| action.0.key(&[], it.payload).to_key());
    let is_led = || action.0.core.flights.lead(key.clone(), |_| true).is_some();
    wait_until(is_led); // the refresh has ended
    for _ in 0..100 {
        assert_eq!(request.peek(&action), stale);
    }
    assert_eq!(REFRESHES.load(Ordering::SeqCst), 1);
}

#[test]
fn an_old_response_stands_in_for_an_unavailable_service_only() {
    let settings = || {
        let settings = Cached::fresh_for(Duration::ZERO).stale_if_error(MINUTE);
        settings.tags(|id: &u32| [*id])
    };
    let (cache, action) = cached(settings());
    request("7").fill(&action, "1");
    for error in [unavailable(), timed_out()] {
        let answer = request("7").begin(&action).finish(Err(&error)).unwrap();
        assert_eq!(seen(&answer), ("1".to_owned(), true));
    }
    assert_eq!(cache.stats().stale, 2);
    let refused = request("7")
        .begin(&action)
        .finish(Err(&refused("sold_out")));
    assert_eq!(refused, None);
    cache.invalidate("user-service", "get_user", [7]);
    let invalidated = request("7").begin(&action).finish(Err(&unavailable()));
    assert_eq!(invalidated, None);
}

#[test]
fn those_that_wait_share_the_response_that_stands_in() {
    let settings = Cached::fresh_for(Duration::ZERO).stale_if_error(MINUTE);
    let (_cache, action) = cached(settings);
    request("7").fill(&action, "1");
    thread::scope(|scope| {
        let fill = request("7").lead(&action);
        let waiter = scope.spawn(|| result(request("7").read(&action)));
        wait_for_callers(&action, &request("7"), 1);
        assert!(fill.finish(Err(&timed_out())).is_some());
        assert_eq!(waiter.join().unwrap(), Some(Ok("1".to_owned())));
    });
}

#[test]
fn errors_are_not_stored_but_those_with_the_code() {
    let (_cache, action) = cached(fresh().remember_errors("not_found", MINUTE));
    request("7")
        .begin(&action)
        .finish(Err(&refused("sold_out")));
    drop(request("7").lead(&action));
    request("7")
        .begin(&action)
        .finish(Err(&refused("not_found")));
    let remembered = result(request("7").read(&action));
    assert_eq!(remembered, Some(Err(ErrorKind::Remote)));
    let peeked = request("7").with(|it| crate::client::ActionCache::peek(&action, it));
    assert_eq!(
        peeked.unwrap().unwrap_err().remote_code(),
        Some("not_found")
    );
}

#[test]
fn callers_with_different_varied_headers_share_nothing() {
    let (_cache, action) = cached(fresh().vary("user"));
    let requests = [request("7").user("a"), request("7").user("b"), request("7")];
    for (number, request) in requests.iter().enumerate() {
        request.lead(&action).finish(Ok(&number.to_string()));
    }
    for (number, request) in requests.iter().enumerate() {
        assert_eq!(request.peek(&action), Some((number.to_string(), false)));
    }
}

#[test]
fn a_request_without_the_types_tags_is_never_stored() {
    let (_cache, action) = cached(fresh().tags(|id: &u32| [*id]));
    let request = request("\"seven\"");
    let fill = request.lead(&action);
    drop(request.lead(&action)); // later callers do not wait for it
    assert_eq!(fill.finish(Ok("1")), None);
    assert_eq!(request.peek(&action), None);
}

#[test]
fn clients_share_the_bound_and_not_the_responses() {
    let (cache, one) = cached(fresh());
    let other = cache.action("user-service", "get_user", fresh());
    request("7").fill(&one, "1");
    assert_eq!(request("7").peek(&other), None);
    request("7").fill(&other, "2");
    assert_eq!(request("7").peek(&one), Some(("1".to_owned(), false)));
    assert_eq!(cache.stats().entries, 2);
    cache.clear();
    assert_eq!((cache.stats().entries, cache.stats().bytes), (0, 0));
}
