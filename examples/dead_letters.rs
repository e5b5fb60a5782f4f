//! Lists, shows, replays and purges the dead letters of a RabbitMQ: the messages that services
//! could not handle.
//!
//!     export AMQP_URL=amqp://localhost
//!     cargo run --example dead_letters -- list
//!     cargo run --example dead_letters -- show msg_20261123083012_862ad1d69070c888
//!     cargo run --example dead_letters -- replay --service order-service --per-second 10
//!     cargo run --example dead_letters -- purge --id msg_20261123083012_862ad1d69070c888
//!
//! `replay` and `purge` need a selection of letters: by service, by id, or all.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use coney::dead_letters::DeadLetter;
use coney::{Broker, DeadLetters};

#[derive(Parser)]
#[command(about = "Lists, shows, replays and purges dead letters")]
struct Options {
    /// URL of RabbitMQ: amqp://user:password@host:port/vhost
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One line for each letter, the oldest first
    List {
        /// Service whose letters are listed
        #[arg(long)]
        service: Option<String>,
        /// Maximum number of letters
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Everything about one letter, its body included
    Show { message_id: String },
    /// Sends letters back to the queues that they came from
    Replay {
        #[command(flatten)]
        which: Which,
        /// Maximum number of letters per second
        #[arg(long, default_value_t = 10)]
        per_second: u32,
    },
    /// Deletes letters
    Purge {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Args)]
#[group(required = true, multiple = true)]
struct Which {
    /// The letters of this service
    #[arg(long)]
    service: Option<String>,
    /// The letter with this message id
    #[arg(long)]
    id: Option<String>,
    /// All letters
    #[arg(long)]
    all: bool,
}

impl Which {
    fn picks(&self, letter: &DeadLetter) -> bool {
        let (service, id) = (self.service.as_deref(), self.id.as_deref());
        service.is_none_or(|service| letter.is_of(service))
            && id.is_none_or(|id| letter.message_id() == Some(id))
    }
}

fn main() -> ExitCode {
    env_logger::init();
    match run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{:?}: {error}", error.kind());
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> coney::Result<ExitCode> {
    let dead = DeadLetters::open(&Broker::connect(&options.amqp_url)?)?;
    match &options.command {
        Command::List { service, limit } => {
            let is_wanted = |letter: &DeadLetter| {
                let service = service.as_deref();
                service.is_none_or(|service| letter.is_of(service))
            };
            dead.find(is_wanted, *limit)?.iter().for_each(print_line);
        }
        Command::Show { message_id } => match dead.show(message_id)? {
            Some(letter) => print_all(&letter),
            None => {
                eprintln!("there is no dead letter with the message id {message_id:?}");
                return Ok(ExitCode::FAILURE);
            }
        },
        Command::Replay { which, per_second } => {
            let replayed = dead.replay(|letter| which.picks(letter), *per_second)?;
            println!("{} replayed", replayed.sent);
            if replayed.unroutable > 0 {
                println!("{} stay: their queues are gone", replayed.unroutable);
            }
        }
        Command::Purge { which } => {
            println!("{} purged", dead.purge(|letter| which.picks(letter))?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_line(letter: &DeadLetter) {
    println!(
        "{}  {}  {}  {} after {}  {}",
        letter.message_id().unwrap_or("(no id)").escape_debug(),
        letter.queue().escape_debug(),
        letter.action().unwrap_or("(no action)").escape_debug(),
        letter.reason().escape_debug(),
        attempts(letter),
        letter.last_error().unwrap_or_default().escape_debug(),
    );
}

fn print_all(letter: &DeadLetter) {
    let text = |text: Option<&str>| text.unwrap_or("unknown").escape_debug().to_string();
    println!("message id   {}", text(letter.message_id()));
    println!("taken from   {}", letter.queue().escape_debug());
    println!("sent by      {}", text(letter.source_service()));
    println!("action       {}", text(letter.action()));
    println!(
        "reason       {}, after {}",
        letter.reason(),
        attempts(letter)
    );
    if let Some(left_out) = letter.left_out() {
        println!("left out     {left_out}");
    }
    println!("died at      {} (Unix seconds)", letter.died_at());
    println!("first error  {}", text(letter.first_error()));
    println!("last error   {}", text(letter.last_error()));
    println!("\n{}", String::from_utf8_lossy(letter.body()));
}

fn attempts(letter: &DeadLetter) -> String {
    match letter.attempts() {
        1 => "1 attempt".to_owned(),
        n => format!("{n} attempts"),
    }
}
