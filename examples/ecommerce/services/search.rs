//! search-service: finds products by their names.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use coney::Context;

use crate::contract::{Product, SEARCH};
use crate::platform::{Platform, Service};
use crate::stats::Stats;

pub fn start(platform: &Platform) -> coney::Result<Service> {
    let stats = Arc::new(Stats::new());
    let index: Arc<Mutex<BTreeMap<u64, Product>>> = Arc::default();
    let server = platform
        .server(SEARCH, &stats)
        .handler_with_context("search", {
            let (stats, index) = (Arc::clone(&stats), Arc::clone(&index));
            move |context: &Context<'_>, text: String| {
                stats.count(context, || {
                    let index = index.lock().unwrap();
                    let found = index
                        .values()
                        .filter(|product| product.name.contains(&text));
                    Ok(found.cloned().collect::<Vec<Product>>())
                })
            }
        })
        .start()?;
    let subscriber = platform
        .subscriber(SEARCH)
        .on_with_context(
            "product.*",
            move |context: &Context<'_>, product: Product| {
                stats.count(context, || {
                    index.lock().unwrap().insert(product.product_id, product);
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
