//! Shows the services of a registry and their instances.
//!
//!     REDIS_URL=redis://localhost cargo run --example services
//!     REDIS_URL=redis://localhost cargo run --example services -- --watch
//!     REDIS_URL=redis://localhost cargo run --example services -- --json
//!
//! Prints a table by default, once or, with `--watch`, again every second until Ctrl-C; with
//! `--json` one JSON object per line for each instance.

use std::io::{IsTerminal, Write, stdout};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use clap::Parser;
use coney::redis::Redis;
use coney::registry::Lookup;
use coney::{Instance, Registry};

#[derive(Parser)]
#[command(about = "Shows the services of a registry and their instances")]
struct Options {
    /// URL of the registry: redis://user:password@host:port/database
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: String,
    /// Name of the only service to show
    #[arg(long)]
    service: Option<String>,
    /// One JSON object per line instead of a table
    #[arg(long)]
    json: bool,
    /// Repeat every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
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
    let registry = Redis::new(&options.redis_url)?.registry();
    loop {
        let text = match read_services(&registry, options) {
            Ok(found) if options.json => lines(&found),
            Ok(found) => table(&found, options),
            // The registry may be available again in a second.
            Err(error) if options.watch => format!("{error}\n"),
            Err(error) => return Err(error.into()),
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

/// A service and its instances, if they can be read.
type ServiceInstances = (String, coney::Result<Lookup>);

/// Reads every service and its instances from the registry, past the cache.
fn read_services(registry: &Registry, options: &Options) -> coney::Result<Vec<ServiceInstances>> {
    let services = match &options.service {
        Some(service) => vec![service.clone()],
        None => registry.services()?,
    };
    let found = services.into_iter().map(|service| {
        let found = registry.refresh(&service);
        (service, found)
    });
    Ok(found.collect())
}

fn lines(services: &[ServiceInstances]) -> String {
    let mut text = String::new();
    for (service, found) in services {
        for instance in found.iter().flat_map(Lookup::all) {
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

fn table(services: &[ServiceInstances], options: &Options) -> String {
    let titles = [
        "SERVICE", "INSTANCE", "BEAT", "HEALTH", "VERSION", "WEIGHT", "ADDRESS",
    ];
    let mut rows = vec![titles.map(str::to_owned)];
    let mut faults = String::new();
    for (service, found) in services {
        match found {
            Ok(found) => rows.extend(found.all().map(|instance| row(service, instance))),
            Err(error) => faults.push_str(&format!("{error}\n")),
        }
    }
    if rows.len() == 1 && faults.is_empty() {
        return match &options.service {
            Some(service) => format!("{service} has no live instance\n"),
            None => "no service has a live instance\n".to_owned(),
        };
    }
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text + &faults
}

fn row(service: &str, instance: &Instance) -> [String; 7] {
    let health = match (instance.is_healthy(), instance.unhealthy_reason()) {
        (true, _) => "well",
        (false, Some(because)) => because,
        (false, None) => "not well",
    };
    [
        service.to_owned(),
        instance.id().to_owned(),
        format!("{} s ago", age(instance)),
        health.to_owned(),
        instance.version().unwrap_or("-").to_owned(),
        instance.weight().to_string(),
        address(instance),
    ]
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
