//! product-service: describes the products of the catalogue, with the stock from inventory.

use std::sync::Arc;

use coney::{Context, HandlerError};

use crate::contract::{INVENTORY, PRODUCT, Product, ProductId};
use crate::platform::{Platform, Service};
use crate::stats::Stats;

/// Names and prices in cents.
const CATALOGUE: [(&str, u64); 7] = [
    ("teapot", 2_900),
    ("lamp", 4_500),
    ("chair", 8_900),
    ("table", 19_900),
    ("rug", 12_000),
    ("clock", 3_300),
    ("umbrella", 1_500), // out of stock
];

pub fn start(platform: &Platform) -> coney::Result<Service> {
    let stats = Arc::new(Stats::new());
    let server = platform
        .server(PRODUCT, &stats)
        .handler_with_context(
            "describe",
            move |context: &Context<'_>, wanted: ProductId| {
                stats.count(context, || {
                    let ProductId { product_id } = wanted;
                    let entry = usize::try_from(product_id)
                        .ok()
                        .and_then(|at| CATALOGUE.get(at));
                    let Some(&(name, cents)) = entry else {
                        let fault = format!("there is no product {product_id}");
                        return Err(HandlerError::new(fault).with_code("not_found"));
                    };
                    // This nested call ends before the gateway's call times out.
                    let in_stock = context.client()?.call(INVENTORY, "stock", &wanted)?;
                    Ok(Product {
                        product_id,
                        name: name.to_owned(),
                        cents,
                        in_stock,
                    })
                })
            },
        )
        .start()?;
    let publisher = platform.publisher(PRODUCT)?;
    let products = CATALOGUE
        .iter()
        .zip(0..)
        .map(|(&(name, cents), product_id)| Product {
            product_id,
            name: name.to_owned(),
            cents,
            in_stock: 0,
        });
    let products: Vec<Product> = products.collect();
    for published in publisher.publish_batch("product.added", &products) {
        published?;
    }
    Ok(Service {
        server,
        subscriber: None,
    })
}
