//! payment-service: charges for orders. The card network fails now and then, and some cards are
//! declined.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use coney::{Context, HandlerError};

use crate::contract::{Order, PAYMENT, Payment};
use crate::platform::{Platform, Service};
use crate::stats::Stats;

pub fn start(platform: &Platform) -> coney::Result<Service> {
    let stats = Arc::new(Stats::new());
    // The cents by order: each order is charged once, however often its event is delivered.
    let charged: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
    let server = platform
        .server(PAYMENT, &stats)
        .handler("charged", {
            let charged = Arc::clone(&charged);
            move |run: String| {
                let charged = charged.lock().unwrap();
                let of_run = charged.iter().filter(|(order, _)| order.starts_with(&run));
                Ok::<u64, String>(of_run.map(|(_, cents)| cents).sum())
            }
        })
        .start()?;
    let publisher = platform.publisher(PAYMENT)?;
    let subscriber = platform
        .subscriber(PAYMENT)
        .on_with_context(
            "order.created",
            move |context: &Context<'_>, order: Order| {
                stats.count(context, || {
                    let number = number_of(&order);
                    if number % 17 == 3 && context.attempt() == 1 {
                        // The event is retried after a delay, and blocks no worker meanwhile.
                        return Err(HandlerError::new("the card network does not answer"));
                    }
                    let Order {
                        order_id, cents, ..
                    } = order;
                    let is_declined = number % 9 == 5;
                    let event = match is_declined {
                        true => "payment.failed",
                        false => {
                            charged.lock().unwrap().insert(order_id.clone(), cents);
                            "payment.succeeded"
                        }
                    };
                    publisher.publish(event, &Payment { order_id, cents })?;
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

/// Returns the number in an order's id, which decides the outcome of the payment in this example.
fn number_of(order: &Order) -> u64 {
    let number = order.order_id.rsplit('-').next();
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}
