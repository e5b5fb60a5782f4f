//! A program of the README.

use coney::balance::LowestLatency;
use coney::{Broker, CallOptions, Instance, Registry, ServiceClient, ServiceServer};

fn main() -> coney::Result<()> {
    let broker = Broker::memory();
    let registry = Registry::memory(); // or Redis::new("redis://localhost")?.registry()
    let _server = ServiceServer::builder(&broker, "user-service")
        .handler("get_user", |id: u64| Ok::<_, String>(format!("user {id}")))
        .registry(&registry) // registers, beats every 15 s, deregisters first thing in shutdown
        .instance(
            Instance::new()
                .with_version("1.4.2")
                .with_metadata("zone", &"eu-1"),
        )
        .health_check("disk", || std::fs::metadata("/").map(drop)) // fails 3 times: takes no requests
        .start()?;
    let client = ServiceClient::builder(&broker, "shop")
        .registry(&registry) // a call to a service without instances fails at once
        .balancer(LowestLatency) // or Weighted, ConsistentHash, …; or none: the first that is free
        .build()?;
    let _: String = client.call("user-service", "get_user", &7)?;
    for instance in registry.lookup("user-service")?.iter() {
        let one = CallOptions::new().instance(instance.id());
        let _: String = client.call_with("user-service", "get_user", &7, &one)?;
    }
    Ok(())
}
