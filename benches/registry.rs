//! The costs of look-ups, refreshes and heartbeats.
//!
//!     cargo bench --bench registry
//!
//! Runs with 10,000 instances in 100 services in Redis (REDIS_URL, or a private one that it starts;
//! an existing one is left as it was): cached look-ups with each balancer, on one thread and on
//! two; a refresh of one service against a bare HGETALL of the same hash, alternating in the same
//! run; the processor time of 1,000 registrations. Prints one JSON object per line. Linux only: it
//! reads /proc.

#[allow(dead_code)] // only other benchmarks read the memory
#[path = "support/process.rs"]
mod process;
#[path = "../tests/it/support/server.rs"]
#[allow(dead_code)] // only the tests restart it
mod server;

use std::collections::HashMap;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use coney::balance::Balancer;
use coney::balance::{
    ConsistentHash, LeastOutstanding, LowestLatency, Random, RoundRobin, Weighted,
};
use coney::redis::Redis;
use coney::registry::RegistryStore;
use coney::{Instance, Registry};
use hdrhistogram::Histogram;
use r2d2_redis::redis;

use crate::process::cpu_ticks;

#[derive(Parser)]
struct Options {
    /// Seconds for which each balancer is measured
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Seconds for which the registrations send heartbeats
    #[arg(long, default_value_t = 60.0)]
    beating: f64,
    /// Passed by cargo to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

const SERVICES: usize = 100;
const INSTANCES: usize = 100;
const REGISTRATIONS: usize = 1_000;
const REFRESHES: usize = 500;

fn main() {
    let options = Options::parse();
    let own_redis;
    let url = match std::env::var("REDIS_URL") {
        Ok(url) => url,
        Err(_) => {
            own_redis = server::Server::redis();
            own_redis.url().to_owned()
        }
    };
    let store = Redis::new(&url).expect("a usable URL").registry_store();
    let names: Vec<String> = (0..SERVICES)
        .map(|n| format!("bench-registry-{n}"))
        .collect();
    let instances: Vec<Instance> = names.iter().flat_map(|name| instances(name)).collect();
    for instance in &instances {
        store.register(instance).expect("Redis is there");
    }
    let registry = Redis::new(&url).expect("a usable URL").registry();
    lookups(&registry, &names, Duration::from_secs_f64(options.seconds));
    refreshes(&registry, &url, &names[0]);
    for instance in &instances {
        let _ = store.deregister(instance.service(), instance.id());
    }
    heartbeats(&url, Duration::from_secs_f64(options.beating));
}

/// Creates instances as servers register them: some 300 bytes each.
fn instances(service: &str) -> Vec<Instance> {
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_secs();
    let instance = |n: usize| {
        let json = format!(
            r#"{{"registered_at":{now},"last_heartbeat":{now},"host":"10.0.0.{n}","port":8080,
            "version":"1.2.3","weight":2,"actions":["get_user","create_user","validate_token"],
            "pid":4711,"coney":"0.1.0","capabilities":["own_queue"],"zone":"eu-1"}}"#
        );
        Instance::from_json(service, &format!("instance-{n:08}"), &json).expect("an instance")
    };
    (0..INSTANCES).map(instance).collect()
}

fn lookups(registry: &Registry, names: &[String], time: Duration) {
    let round_robin = RoundRobin::new();
    let balancers: [(&str, &dyn Balancer); 6] = [
        ("random", &Random),
        ("round_robin", &round_robin),
        ("weighted", &Weighted),
        ("least_outstanding", &LeastOutstanding),
        ("lowest_latency", &LowestLatency),
        ("consistent_hash", &ConsistentHash),
    ];
    for name in names {
        registry.lookup(name).expect("Redis is there");
    }
    for (balancer_name, balancer) in balancers {
        for threads in [1, 2] {
            let start = Instant::now();
            let picks: usize = thread::scope(|scope| {
                let pickers: Vec<_> = (0..threads)
                    .map(|n| scope.spawn(move || pick(registry, names, balancer, n, time)))
                    .collect();
                let joined = pickers.into_iter().map(|picker| picker.join());
                joined.map(|picks| picks.expect("no panic")).sum()
            });
            let rate = picks as f64 / start.elapsed().as_secs_f64();
            let report = serde_json::json!({
                "scenario": "cached_pick",
                "balancer": balancer_name,
                "threads": threads,
                "per_s": rate.round(),
                "ns_each": (1e9 * threads as f64 / rate).round(),
            });
            println!("{report}");
        }
    }
}

/// Looks up one service after the other and picks an instance; returns the number of picks.
fn pick(
    registry: &Registry,
    names: &[String],
    balancer: &dyn Balancer,
    start: usize,
    time: Duration,
) -> usize {
    let keys = ["user-1", "user-2", "user-3"];
    let (mut picks, end) = (0, Instant::now() + time);
    while Instant::now() < end {
        for n in 0..1_000 {
            let name = &names[(start + picks + n) % names.len()];
            let pick = registry.pick_with_key(name, balancer, keys[n % keys.len()]);
            black_box(pick.expect("an instance").id());
        }
        picks += 1_000;
    }
    picks
}

/// Measures refreshes against bare reads of the same hash, alternating.
fn refreshes(registry: &Registry, url: &str, name: &str) {
    let client = redis::Client::open(url).expect("a usable URL");
    let mut bare = client.get_connection().expect("Redis is there");
    let [mut by_hand, mut by_coney] = [(); 2].map(|()| Histogram::<u64>::new(3).expect("3 digits"));
    for _ in 0..REFRESHES {
        let start = Instant::now();
        let all: HashMap<String, String> = redis::cmd("HGETALL")
            .arg(format!("service:registry:{name}"))
            .query(&mut bare)
            .expect("Redis is there");
        assert_eq!(all.len(), INSTANCES);
        let _ = by_hand.record(start.elapsed().as_nanos() as u64);
        let start = Instant::now();
        let found = registry.refresh(name).expect("Redis is there");
        assert_eq!(found.iter().len(), INSTANCES);
        let _ = by_coney.record(start.elapsed().as_nanos() as u64);
    }
    let micros = |all: &Histogram<u64>, at| all.value_at_quantile(at) as f64 / 1_000.0;
    for (scenario, all) in [("bare_hgetall", &by_hand), ("refresh", &by_coney)] {
        let report = serde_json::json!({
            "scenario": scenario, "p50_us": micros(all, 0.5), "p99_us": micros(all, 0.99),
        });
        println!("{report}");
    }
    let ratio = micros(&by_coney, 0.5) / micros(&by_hand, 0.5);
    println!(
        "{}",
        serde_json::json!({"scenario": "ratio", "refresh_to_bare_p50": ratio})
    );
}

/// Measures many registrations that only send heartbeats.
fn heartbeats(url: &str, time: Duration) {
    let registry = Redis::new(url).expect("a usable URL").registry();
    let register = |n: usize| {
        let instance = Instance::new().with_host("10.0.0.1").with_port(8080);
        registry.register(&format!("bench-beats-{}", n % SERVICES), instance)
    };
    let registrations: Vec<_> = (0..REGISTRATIONS).map(register).collect();
    let before = cpu_ticks();
    thread::sleep(time);
    let ticks = cpu_ticks() - before;
    let report = serde_json::json!({
        "scenario": "beating",
        "registrations": registrations.len(),
        "seconds": time.as_secs_f64(),
        "percent_of_a_core": ticks as f64 / time.as_secs_f64(),
    });
    println!("{report}");
}
