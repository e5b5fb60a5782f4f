//! A service as a template: user-service, over RabbitMQ.
//!
//!     AMQP_URL=amqp://localhost cargo run --example user_service -- --workers 4
//!
//! With REDIS_URL it registers there: the example `services` and other clients find it.
//!
//! Prints `ready` when it consumes requests. SIGTERM or Ctrl-C shuts it down: running handlers
//! finish and reply, then it exits with 0.

use std::time::Duration;

use clap::Parser;
use coney::redis::Redis;
use coney::{Broker, Context, HandlerError, HandlerResult, Instance, ServiceServer};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

#[derive(Parser)]
#[command(about = "user-service over RabbitMQ")]
struct Options {
    /// URL of RabbitMQ: amqp://user:password@host:port/vhost
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: String,
    /// URL of the registry: redis://user:password@host:port/database
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: Option<String>,
    /// The name to serve under
    #[arg(long, default_value = "user-service")]
    service: String,
    /// Number of threads that run handlers
    #[arg(long, default_value_t = 10)]
    workers: usize,
    /// Number of requests fetched ahead
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
    // Installed first, so that no early signal is missed.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let broker = Broker::builder(&options.amqp_url)
        .connection_name(&options.service)
        .connect()?;
    let mut server = ServiceServer::builder(&broker, &options.service)
        .workers(options.workers)
        .prefetch(options.prefetch)
        .handler("get_user", get_user)
        .handler("validate_token", validate_token)
        .handler_raw(
            "echo",
            |_: &Context<'_>, payload: &str| -> HandlerResult<_> { Ok(payload.to_owned()) },
        )
        .respond("sleep", |request: Sleep| {
            std::thread::sleep(Duration::from_millis(request.ms));
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
