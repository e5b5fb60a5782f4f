//! analytics-service: counts the changes of the stock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use coney::Context;

use crate::contract::{ANALYTICS, Reservation};
use crate::platform::{Platform, Service};
use crate::stats::Stats;

pub fn start(platform: &Platform) -> coney::Result<Service> {
    let stats = Arc::new(Stats::new());
    let moved: Arc<Mutex<HashMap<u64, u64>>> = Arc::default();
    let server = platform
        .server(ANALYTICS, &stats)
        .respond("moved", {
            let moved = Arc::clone(&moved);
            move |()| moved.lock().unwrap().clone()
        })
        .start()?;
    let subscriber = platform
        .subscriber(ANALYTICS)
        .on_with_context(
            "inventory.*",
            move |context: &Context<'_>, change: Reservation| {
                stats.count(context, || {
                    *moved.lock().unwrap().entry(change.product_id).or_default() += change.quantity;
                    Ok(())
                })
            },
        )
        .start()?;
    Ok(Service {
        server,
        subscriber: Some(subscriber),
    })
}
