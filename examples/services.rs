//! Shows which services there are, and their instances.
//!
//!     REDIS_URL=redis://localhost cargo run --example services
//!     REDIS_URL=redis://localhost cargo run --example services -- --watch
//!     REDIS_URL=redis://localhost cargo run --example services -- --json
//!
//! A table by default, once or, with `--watch`, again every second until Ctrl-C;
//! with `--json` one JSON object a line for each instance.

use std::io::{IsTerminal, Write, stdout};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use clap::Parser;
use coney::{Instance, Lookup, Redis, RedisRegistry, Registry};

#[derive(Parser)]
#[command(about = "Shows the services of a registry and their instances")]
struct Options {
    /// Where the registry is: redis://user:password@host:port/database
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: String,
    /// Only this service
    #[arg(long)]
    service: Option<String>,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// After how many seconds without a heartbeat an instance counts as dead
    #[arg(long, default_value_t = 60)]
    dead_after: u64,
}

fn main() {
    env_logger::init();
    let options = Options::parse();
    if let Err(error) = run(&options) {
        eprintln!("services: {error}");
        std::process::exit(1);
    }
}

fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let redis = Redis::new(&options.redis_url)?;
    let dead_after = Duration::from_secs(options.dead_after);
    let store = RedisRegistry::new(&redis).with_dead_after(dead_after);
    let registry = Registry::builder(store).build()?;
    loop {
        let text = match options.json {
            true => lines(&look(&registry, options)?),
            false => table(&look(&registry, options)?),
        };
        let mut out = stdout().lock();
        if options.watch && !options.json && out.is_terminal() {
            write!(out, "\x1b[H\x1b[2J")?; // from the top of an empty screen
        }
        write!(out, "{text}")?;
        out.flush()?;
        if !options.watch {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Every service and what is registered for it, read afresh.
fn look(registry: &Registry, options: &Options) -> coney::Result<Vec<(String, Lookup)>> {
    let services = match &options.service {
        Some(service) => vec![service.clone()],
        None => registry.services()?,
    };
    let found = services.into_iter().map(|service| {
        let found = registry.refresh(&service)?;
        Ok((service, found))
    });
    found.collect()
}

fn lines(services: &[(String, Lookup)]) -> String {
    let mut text = String::new();
    for (service, found) in services {
        for instance in found.all() {
            let mut object: serde_json::Value =
                serde_json::from_str(&instance.to_json()).unwrap_or_default();
            object["service"] = service.as_str().into();
            object["age_s"] = age(instance).into();
            object["healthy"] = instance.is_healthy().into();
            text.push_str(&format!("{object}\n"));
        }
    }
    text
}

fn table(services: &[(String, Lookup)]) -> String {
    let mut rows = vec![
        [
            "SERVICE", "INSTANCE", "BEAT", "HEALTH", "VERSION", "ADDRESS",
        ]
        .map(str::to_owned),
    ];
    for (service, found) in services {
        for instance in found.all() {
            rows.push([
                service.clone(),
                instance.id().to_owned(),
                format!("{} s ago", age(instance)),
                instance.unhealthy_because().unwrap_or("well").to_owned(),
                instance.version().unwrap_or("-").to_owned(),
                address(instance),
            ]);
        }
    }
    if rows.len() == 1 {
        return "no service is registered\n".to_owned();
    }
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn age(instance: &Instance) -> u64 {
    let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    now.saturating_sub(instance.last_heartbeat())
}

fn address(instance: &Instance) -> String {
    match (instance.host(), instance.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        _ => "-".to_owned(),
    }
}
