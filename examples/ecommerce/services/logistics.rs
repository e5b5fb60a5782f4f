//! logistics-service: plans the shipping of paid orders.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use coney::Context;

use crate::contract::{LOGISTICS, Order};
use crate::platform::{Platform, Service};
use crate::stats::Stats;

pub fn start(platform: &Platform) -> coney::Result<Service> {
    let stats = Arc::new(Stats::new());
    let planned: Arc<Mutex<HashSet<String>>> = Arc::default();
    let server = platform
        .server(LOGISTICS, &stats)
        .respond("planned", {
            let planned = Arc::clone(&planned);
            move |run: String| {
                let planned = planned.lock().unwrap();

                planned
                    .iter()
                    .filter(|order| order.starts_with(&run))
                    .count()
            }
        })
        .start()?;
    let subscriber = platform
        .subscriber(LOGISTICS)
        .on_with_context("order.paid", move |context: &Context<'_>, order: Order| {
            stats.count(context, || {
                planned.lock().unwrap().insert(order.order_id);
                Ok(())
            })
        })
        .start()?;
    Ok(Service {
        server,
        subscriber: Some(subscriber),
    })
}
