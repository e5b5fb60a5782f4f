//! The two clients of the shop: one with a timeout only, and one with resilience.

use std::sync::Arc;
use std::time::Duration;

use coney::cache::{Cached, ResponseCache};
use coney::client::ServiceClientBuilder;
use coney::resilience::{Breaker, Resilience, Throttle};
use coney::{Broker, ServiceClient};

use crate::counts::Counter;
use crate::shop::THREADS;
use crate::stock::Stock;

/// Prepares a client that waits for each answer, `tick` at most, and fails when the service does.
pub fn without_resilience(
    broker: &Broker,
    tick: Duration,
    _counter: &Arc<Counter>,
) -> ServiceClientBuilder {
    ServiceClient::builder(broker, "shop").timeout(tick)
}

/// Prepares a client that sends again what is worth it, sends little in vain, and has another answer
/// to show: the last one that it got, or none.
pub fn with_resilience(
    broker: &Broker,
    tick: Duration,
    counter: &Arc<Counter>,
) -> ServiceClientBuilder {
    let counter = Arc::clone(counter);
    let resilience = Resilience::new() // retries, a circuit breaker, a throttle
        .max_in_flight(THREADS / 2) // the other threads stay free
        .breaker(quick_breaker(tick))
        .throttle(Throttle::new().window(tick));
    // An article is asked for every other tick, so that no customer is served from the cache alone.
    let stock = Cached::fresh_for(tick / 10).stale_if_error(tick * 600);
    ServiceClient::builder(broker, "shop")
        .timeout(tick)
        .resilience(resilience)
        .cache(&ResponseCache::new(), "stock-service", "count", stock)
        .fallback("stock-service", "count", move |_article: &u64, error| {
            counter.add(|counts| counts.unavailable(error));
            Some(Stock::Unknown) // the page is shown without a number
        })
}

/// Returns a breaker whose times are those of a short run: a second instead of ten.
fn quick_breaker(tick: Duration) -> Breaker {
    Breaker::new()
        .window(tick)
        .minimum_calls(10)
        .open_for(tick / 2, tick)
}
