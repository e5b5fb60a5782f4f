//! Discovery: a registry of instances, a balancer, a health check, and a call to each instance.

use coney::balance::LowestLatency;
use coney::{Broker, CallOptions, Instance, Registry, ServiceClient, ServiceServer};

fn main() -> coney::Result<()> {
    let broker = Broker::memory();
    // In Redis: `coney::redis::Redis::new("redis://localhost")?.registry()`.
    let registry = Registry::memory();
    let instance = Instance::new().with_version("1.4.2");
    let _server = ServiceServer::builder(&broker, "user-service")
        .respond("get_user", |id: u64| format!("user {id}"))
        // Registers, renews its heartbeat every 15 s, and deregisters first in a shutdown.
        .registry(&registry)
        .instance(instance.with_metadata("zone", &"eu-1"))
        // Fails three times in a row: the server stops consuming until it passes again.
        .health_check("disk", || std::fs::metadata("/").map(drop))
        .start()?;
    let client = ServiceClient::builder(&broker, "shop")
        // A call to a service without instances fails at once.
        .registry(&registry)
        // Or Weighted, ConsistentHash and others; without one, a free instance takes the call.
        .balancer(LowestLatency)
        .build()?;
    let user: String = client.call("user-service", "get_user", &7)?;
    println!("{user}");
    for instance in registry.lookup("user-service")?.iter() {
        let one = CallOptions::new().instance(instance.id());
        let user: String = client.call_with("user-service", "get_user", &8, &one)?;
        println!("{user} from version {}", instance.version().unwrap_or("?"));
    }
    Ok(())
}
