//! A program of the README.

use std::time::Duration;

use coney::{Broker, HandlerError, ServiceClient, ServiceServer};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct GetUser {
    user_id: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct User {
    user_id: u64,
    name: String,
}

fn main() -> coney::Result<()> {
    let broker = Broker::memory(); // or Broker::connect("amqp://user:password@host")?
    let server = ServiceServer::builder(&broker, "user-service")
        .handler(
            "get_user",
            |request: GetUser| -> Result<User, HandlerError> {
                Ok(User {
                    user_id: request.user_id,
                    name: "张三".to_owned(),
                })
            },
        )
        .start()?; // keep it: dropping the server stops the service
    let client = ServiceClient::new(&broker, "order-service")?;
    let user: User = client.call("user-service", "get_user", &GetUser { user_id: 7 })?;
    println!("{user:?}");
    server.shutdown(Duration::from_secs(10)) // lets running handlers finish
}
