//! The program of the README about a service that is gone.

use coney::resilience::Resilience;
use coney::{Broker, CallOptions, ServiceClient};

fn main() -> coney::Result<()> {
    let broker = Broker::memory(); // where no stock-service runs
    let client = ServiceClient::builder(&broker, "shop")
        .resilience(Resilience::new().max_in_flight(10))
        .fallback("stock-service", "count", |_: &u64, _| Some(None::<u64>))
        .build()?;
    let options = CallOptions::new();
    let stock = client.call_detailed::<Option<u64>>("stock-service", "count", &7, &options)?;
    println!("{:?}, from the {}", *stock, stock.origin()); // None, from the fallback
    Ok(())
}
