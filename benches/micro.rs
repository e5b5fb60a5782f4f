//! The costs of the steps of a call: encoding, decoding, ids, the pending table, policies.
//!
//!     cargo bench --bench micro --features _bench

use coney::internals::{PendingTable, Policies};
use coney::message::{Reply, ServiceMessage, new_correlation_id, new_message_id};
use coney::resilience::{Breaker, RateLimit, Resilience, Retry, Throttle};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

fn payload() -> String {
    "x".repeat(200)
}

#[divan::bench]
fn encode_request(bencher: Bencher<'_, '_>) {
    let payload = payload();
    bencher.bench(|| {
        ServiceMessage::new(
            "order-service",
            "user-service",
            "get_user",
            black_box(&payload),
        )
        .encode()
    });
}

#[divan::bench]
fn decode_request(bencher: Bencher<'_, '_>) {
    let request = ServiceMessage::new("order-service", "user-service", "get_user", payload());
    let body = request.encode().expect("a string encodes");
    bencher.bench(|| {
        let message = ServiceMessage::decode(black_box(&body)).expect("it was encoded so");
        message.payload.decode::<String>()
    });
}

#[divan::bench]
fn encode_reply(bencher: Bencher<'_, '_>) {
    let payload = payload();
    bencher.bench(|| Reply::success(black_box(&payload), "msg_20261123083012_862ad1d69070c888"));
}

#[divan::bench]
fn decode_reply(bencher: Bencher<'_, '_>) {
    let body = Reply::success(&payload(), "msg_20261123083012_862ad1d69070c888")
        .expect("a string encodes");
    bencher.bench(|| {
        let reply = Reply::decode(black_box(&body)).expect("it was encoded so");
        reply.data.decode::<String>()
    });
}

#[divan::bench]
fn message_id() -> String {
    new_message_id()
}

#[divan::bench]
fn correlation_id() -> String {
    new_correlation_id()
}

/// Registers one call and removes it again, with `in_flight` others in the table.
#[divan::bench(args = [0, 1_000, 60_000])]
fn pending_table(bencher: Bencher<'_, '_>, in_flight: usize) {
    let mut table = PendingTable::with_calls(in_flight);
    bencher.bench_local(|| table.call_in_and_out());
}

/// Admits a call by one policy or by all, and ends it with a success.
#[divan::bench(args = ["none", "retry", "rate", "breaker", "throttle", "in_flight", "usual", "all"])]
fn policies(bencher: Bencher<'_, '_>, which: &str) {
    let rate = RateLimit::per_second(1_000_000_000);
    let none = Resilience::none();
    let policies = Policies::new(&match which {
        "retry" => none.retry(Retry::new()),
        "rate" => none.rate(rate),
        "breaker" => none.breaker(Breaker::new()),
        "throttle" => none.throttle(Throttle::new()),
        "in_flight" => none.max_in_flight(1_000),
        "usual" => Resilience::new(),
        "all" => Resilience::new().rate(rate).max_in_flight(1_000),
        _ => none,
    });
    bencher.bench_local(|| assert!(policies.call_succeeds()));
}

/// Reads the clock, as each step of a call that takes the time does.
#[divan::bench]
fn clock() -> std::time::Instant {
    std::time::Instant::now()
}
