//! inventory-service: keeps the stock, reserves from it for each order, and releases the
//! reservations of cancelled ones.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use coney::{Context, EventPublisher, HandlerError, Subscription};

use crate::contract::{INVENTORY, Order, ProductId, Reservation};
use crate::platform::{Platform, Service};
use crate::stats::Stats;

/// The stock of every product except [`OUT_OF_STOCK`].
const PLENTY: u64 = 1_000_000;
/// The product that is out of stock.
const OUT_OF_STOCK: u64 = 6;

#[derive(Default)]
struct Stock {
    /// The reservations by order. Each order reserves once, however often its event is delivered.
    reserved: HashMap<String, Reservation>,
    /// The reserved quantity by product.
    taken: HashMap<u64, u64>,
    /// The cancelled orders: `order.created` may be delivered once more after `order.cancelled`.
    cancelled: HashSet<String>,
}

impl Stock {
    fn left(&self, product_id: u64) -> u64 {
        match product_id {
            OUT_OF_STOCK => 0,
            _ => PLENTY - self.taken.get(&product_id).copied().unwrap_or(0),
        }
    }

    /// Reserves the stock for an order; returns `None` for a cancelled one.
    fn reserve(&mut self, order: &Order) -> Result<Option<Reservation>, HandlerError> {
        if self.cancelled.contains(&order.order_id) {
            return Ok(None);
        }
        if let Some(reservation) = self.reserved.get(&order.order_id) {
            return Ok(Some(reservation.clone()));
        }
        let left = self.left(order.product_id);
        if left < order.quantity {
            // Another attempt would find no more: the event becomes a dead letter to be looked
            // into.
            let fault = format!("only {left} of product {} left", order.product_id);
            return Err(HandlerError::new(fault).do_not_retry());
        }
        let reservation = Reservation {
            order_id: order.order_id.clone(),
            product_id: order.product_id,
            quantity: order.quantity,
        };
        *self.taken.entry(order.product_id).or_default() += order.quantity;
        self.reserved
            .insert(order.order_id.clone(), reservation.clone());
        Ok(Some(reservation))
    }

    fn release(&mut self, order_id: &str) -> Option<Reservation> {
        self.cancelled.insert(order_id.to_owned());
        let reservation = self.reserved.remove(order_id)?;
        *self.taken.entry(reservation.product_id).or_default() -= reservation.quantity;
        Some(reservation)
    }
}

pub fn start(platform: &Platform) -> coney::Result<Service> {
    let stats = Arc::new(Stats::new());
    let stock: Arc<Mutex<Stock>> = Arc::default();
    let server = platform
        .server(INVENTORY, &stats)
        .handler_with_context("stock", {
            let (stats, stock) = (Arc::clone(&stats), Arc::clone(&stock));
            move |context: &Context<'_>, wanted: ProductId| {
                stats.count(context, || {
                    Ok(stock.lock().unwrap().left(wanted.product_id))
                })
            }
        })
        .respond("reservations", {
            let stock = Arc::clone(&stock);
            move |run: String| {
                let stock = stock.lock().unwrap();
                let of_run = stock.reserved.values();
                let of_run = of_run.filter(|one| one.order_id.starts_with(&run));
                of_run.cloned().collect::<Vec<Reservation>>()
            }
        })
        .start()?;
    let publisher = platform.publisher(INVENTORY)?;
    let handle = move |context: &Context<'_>, order: Order| {
        stats.count(context, || {
            change(&stock, &publisher, context.action(), &order)
        })
    };
    let subscriber = platform
        .subscriber(INVENTORY)
        // `order.cancelled` must not be handled before `order.created`.
        .subscribe(
            Subscription::to_with_context("order.*", handle)
                .ordered_by(|order: &Order| order.order_id.clone()),
        )
        .prefetch(100)
        .start()?;
    Ok(Service {
        server,
        subscriber: Some(subscriber),
    })
}

fn change(
    stock: &Mutex<Stock>,
    publisher: &EventPublisher,
    event: &str,
    order: &Order,
) -> Result<(), HandlerError> {
    match event {
        "order.created" => {
            let reserved = stock.lock().unwrap().reserve(order)?;
            if let Some(reservation) = reserved {
                publisher.publish("inventory.reserved", &reservation)?;
            }
        }
        "order.cancelled" => {
            let released = stock.lock().unwrap().release(&order.order_id);
            if let Some(reservation) = released {
                publisher.publish("inventory.released", &reservation)?;
            }
        }
        _ => {}
    }
    Ok(())
}
