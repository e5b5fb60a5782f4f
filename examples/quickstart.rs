//! Two services in one program: order-service calls user-service.
//!
//!     cargo run --example quickstart
//!
//! It needs nothing installed: broker and registry are in memory. The same program runs over
//! RabbitMQ and Redis:
//!
//!     AMQP_URL=amqp://localhost REDIS_URL=redis://localhost cargo run --example quickstart

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use coney::client::ServiceProxyFactory;
use coney::redis::Redis;
use coney::{Broker, CallOptions, HandlerError, Registry, ServiceClient, ServiceServer};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct GetUser {
    user_id: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct User {
    user_id: u64,
    name: String,
    email: String,
}

#[derive(Serialize, Deserialize)]
struct ValidateToken {
    token: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct TokenState {
    valid: bool,
}

fn get_user(request: GetUser) -> Result<User, HandlerError> {
    Ok(User {
        user_id: request.user_id,
        name: "张三".to_owned(),
        email: "zhangsan@example.com".to_owned(),
    })
}

fn validate_token(request: ValidateToken) -> Result<TokenState, HandlerError> {
    if request.token.len() < 10 {
        return Err(HandlerError::new("Invalid token"));
    }
    Ok(TokenState { valid: true })
}

fn main() -> Result<(), coney::Error> {
    env_logger::init();

    // A broker: in this process, or RabbitMQ.
    let broker = match std::env::var("AMQP_URL") {
        Ok(url) => Broker::connect(&url)?,
        Err(_) => Broker::memory(),
    };
    // A registry: the running instances of each service. Optional; calls work without it.
    let registry = match std::env::var("REDIS_URL") {
        Ok(url) => Redis::new(&url)?.registry(),
        Err(_) => Registry::memory(),
    };
    println!("broker: {}\n", broker.address());

    // user-service: handlers, run by 10 worker threads.
    let server = ServiceServer::builder(&broker, "user-service")
        .handler("get_user", get_user)
        .handler("validate_token", validate_token)
        .respond("sleep", |ms: u64| {
            thread::sleep(Duration::from_millis(ms));
        })
        .registry(&registry)
        .start()?;
    println!("user-service serves get_user, validate_token and sleep\n");

    // order-service: a client, and a proxy for calls to user-service.
    let client = ServiceClient::new(&broker, "order-service")?;
    let users = ServiceProxyFactory::new(client.clone()).create("user-service");

    println!("1. A call blocks until the answer is here.");
    let user: User = users.call("getUser", &GetUser { user_id: 1001 })?;
    println!("   getUser(1001) = {user:?}");
    let token = "eyJhbGciOiJIUzI1NiJ9".to_owned();
    let state: TokenState = users.call("validateToken", &ValidateToken { token })?;
    println!("   validateToken(…) = {state:?}\n");

    println!("2. An asynchronous call returns at once; a callback gets the answer.");
    let (done, wait_for_callback) = mpsc::channel();
    users
        .call_async("getUser", &GetUser { user_id: 1002 })?
        .then(move |reply: coney::Result<User>| {
            match reply {
                Ok(user) => println!("   callback: {} <{}>", user.name, user.email),
                Err(error) => println!("   callback: {error}"),
            }
            let _ = done.send(());
        })?;
    println!("   sent, and free to do something else");
    let _ = wait_for_callback.recv();

    println!("\n3. What goes wrong comes back as an error that says what to do.");
    let token = "short".to_owned();
    let invalid = users.call::<TokenState>("validateToken", &ValidateToken { token });
    explain("the handler refuses", invalid.map(|state| state.valid));
    explain("no such action", users.call::<()>("deleteUser", &1001));
    let short = CallOptions::new().timeout(Duration::from_millis(100));
    explain("too slow", users.call_with::<()>("sleep", &400, &short));
    let no_route = client.call::<()>("no-such-service", "get_user", &1001);
    explain("nobody there", no_route);

    println!("\n4. The registry knows who serves.");
    let finder = ServiceClient::builder(&broker, "order-service")
        .registry(&registry)
        .build()?;
    for instance in registry.lookup("user-service")?.iter() {
        println!("   found: {}, {:?}", instance.id(), instance.actions());
        let options = CallOptions::new().instance(instance.id());
        let request = GetUser { user_id: 1003 };
        let user: User = finder.call_with("user-service", "get_user", &request, &options)?;
        println!("   asked it alone: {}", user.name);
    }

    println!("\n5. Shutdown deregisters, and lets running handlers finish.");
    server.shutdown(Duration::from_secs(10))?;
    let gone = finder.call::<User>("user-service", "get_user", &GetUser { user_id: 1004 });
    explain("nobody any more", gone);
    client.close();
    println!("   done");
    Ok(())
}

fn explain<T: std::fmt::Debug>(title: &str, result: coney::Result<T>) {
    match result {
        Ok(value) => println!("   {title}: unexpectedly {value:?}"),
        Err(error) => {
            let retry = if error.is_safe_to_retry() {
                "safe to retry"
            } else {
                "not safe to retry blindly"
            };
            println!("   {title}: {:?}, {retry}\n      {error}", error.kind());
        }
    }
}
