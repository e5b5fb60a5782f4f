//! The program of the README.

use coney::{Broker, ServiceClient, ServiceServer};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
}

fn main() -> coney::Result<()> {
    let broker = Broker::memory(); // or Broker::connect("amqp://user:password@host")?
    let _server = ServiceServer::builder(&broker, "user-service")
        .respond("get_user", |id: u64| User {
            id,
            name: format!("user {id}"),
        })
        .start()?; // dropping the server stops the service
    let client = ServiceClient::new(&broker, "order-service")?;
    let user: User = client.call("user-service", "get_user", &7)?;
    println!("{user:?}");
    Ok(())
}
