//! A process for the tests to kill (`tests/it/support/process.rs`):
//!
//!     test_service serve AMQP_URL SERVICE
//!     test_service register REDIS_URL ID

use std::thread;
use std::time::Duration;

use coney::{
    Broker, Context, HandlerError, Instance, Redis, RedisRegistry, Registration, Registry,
    ServiceServer,
};

fn main() -> coney::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", url, service] => until_it_is_killed(&serve(url, service)?),
        ["register", url, id] => until_it_is_killed(&register(url, id)?),
        _ => panic!("what {arguments:?} means is said at the top of this file"),
    }
}

fn until_it_is_killed<T>(_keep: &T) -> ! {
    println!("ready");
    loop {
        thread::sleep(Duration::from_secs(3_600));
    }
}

fn serve(url: &str, service: &str) -> coney::Result<ServiceServer> {
    ServiceServer::builder(&Broker::connect(url)?, service)
        .workers(2)
        .redelivery_limit(1)
        .handler_with("work", |context: &Context<'_>, n: u64| {
            println!("work {n} {}", context.is_redelivered());
            Ok::<_, HandlerError>(n)
        })
        .handler_with("sleep", |context: &Context<'_>, (): ()| {
            println!("sleep {}", context.is_redelivered());
            if !context.is_redelivered() {
                thread::sleep(Duration::from_secs(3_600));
            }
            Ok::<_, HandlerError>(())
        })
        .handler("abort", |(): ()| -> Result<(), HandlerError> {
            println!("abort");
            std::process::abort()
        })
        .start()
}

/// Registers with the timing of `tests/it/support/registry.rs`, and counts as dead
/// after two seconds.
fn register(url: &str, id: &str) -> coney::Result<Registration> {
    let redis = Redis::builder(url)
        .timeout(Duration::from_millis(200))
        .build()?;
    let store = RedisRegistry::new(&redis).with_dead_after(Duration::from_secs(2));
    let registry = Registry::builder(store)
        .beat_every(Duration::from_millis(100))
        .build()?;
    registry.register("web", Instance::new().with_id(id))
}
