//! A service to call and to copy: user-service, over RabbitMQ.
//!
//!     AMQP_URL=amqp://localhost cargo run --example user_service -- --workers 4
//!
//! With REDIS_URL it registers there, for `services` and for whoever looks it up.
//!
//! Prints `ready` when it takes requests. SIGTERM or Ctrl-C drains it: running
//! handlers finish and reply, then it exits with 0.

use std::time::Duration;

use clap::Parser;
use coney::redis::Redis;
use coney::{Broker, Context, HandlerError, Instance, ServiceServer};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

#[derive(Parser)]
#[command(about = "user-service over RabbitMQ")]
struct Options {
    /// Where RabbitMQ is: amqp://user:password@host:port/vhost
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: String,
    /// Where to register: redis://user:password@host:port/database
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: Option<String>,
    /// The name to serve under
    #[arg(long, default_value = "user-service")]
    service: String,
    /// Threads that run handlers
    #[arg(long, default_value_t = 10)]
    workers: usize,
    /// Requests fetched ahead
    #[arg(long, default_value_t = 10)]
    prefetch: u16,
}

#[derive(Deserialize)]
struct GetUser {
    user_id: serde_json::Value,
}

#[derive(Serialize)]
struct User {
    user_id: serde_json::Value,
    name: &'static str,
    email: &'static str,
}

#[derive(Deserialize)]
struct ValidateToken {
    token: String,
}

#[derive(Serialize)]
struct TokenState {
    valid: bool,
}

#[derive(Deserialize)]
struct Sleep {
    ms: u64,
}

#[derive(Deserialize)]
struct Fail {
    error: String,
}

fn main() {
    env_logger::init();
    if let Err(error) = run(&Options::parse()) {
        eprintln!("user_service: {error}");
        std::process::exit(1);
    }
}

fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    // Before anything starts: a signal that comes early must not be missed.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let broker = Broker::builder(&options.amqp_url)
        .connection_name(&options.service)
        .connect()?;
    let mut server = ServiceServer::builder(&broker, &options.service)
        .workers(options.workers)
        .prefetch(options.prefetch)
        .handler("get_user", get_user)
        .handler("validate_token", validate_token)
        .raw_handler("echo", |_: &Context<'_>, payload: &str| {
            Ok::<_, HandlerError>(payload.to_owned())
        })
        .handler("sleep", |request: Sleep| {
            std::thread::sleep(Duration::from_millis(request.ms));
            Ok::<_, HandlerError>(())
        })
        .handler("fail", |request: Fail| {
            Err::<(), _>(HandlerError::new(request.error))
        });
    if let Some(url) = &options.redis_url {
        let instance = Instance::new().with_version(env!("CARGO_PKG_VERSION"));
        server = server
            .registry(&Redis::new(url)?.registry())
            .instance(instance);
    }
    let server = server.start()?;
    println!("ready");
    signals.forever().next();
    server.shutdown(Duration::from_secs(30))?;
    Ok(())
}

fn get_user(request: GetUser) -> Result<User, HandlerError> {
    Ok(User {
        user_id: request.user_id,
        name: "张三",
        email: "zhangsan@example.com",
    })
}

fn validate_token(request: ValidateToken) -> Result<TokenState, HandlerError> {
    if request.token.len() < 10 {
        return Err(HandlerError::new("Invalid token"));
    }
    Ok(TokenState { valid: true })
}
