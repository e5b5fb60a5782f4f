//! The gateway: customers that look up a product and order it, all at the same time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use coney::client::ServiceProxyFactory;
use coney::{CallOptions, SendOptions, ServiceClient};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::audit;
use crate::contract::{ORDER, Order, PRODUCT, Product, ProductId, Token, USER, User};
use crate::platform::Platform;
use crate::stats::Report;

/// The number of orders among which one is for the product that is out of stock.
const UMBRELLA_EVERY: u64 = 20;

/// Places the orders, waits until all are settled, and audits the books; returns true if they
/// balance.
pub fn run(platform: &Platform, orders: u64, customers: usize) -> coney::Result<bool> {
    let run = format!("{:08x}", fastrand::u32(..));
    let client = platform.client("gateway")?;
    // Waits until order-service has a queue, which then keeps its commands even while it is down.
    client.call::<Report>(ORDER, "report", &())?;
    println!(
        "{orders} orders by {customers} customers over {}, run {run}\n",
        platform.broker.address()
    );
    let bar = ProgressBar::with_draw_target(Some(orders), ProgressDrawTarget::stderr());
    let style = "{bar:40} {pos}/{len} orders placed, {per_sec}";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()));
    let (next, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..customers.max(1) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= orders {
                        return;
                    }
                    if let Err(error) = order(&client, &run, number) {
                        refused.fetch_add(1, Ordering::Relaxed);
                        bar.suspend(|| eprintln!("order {number} is not placed: {error}"));
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish();
    // A command without a handler is not lost either: it becomes a dead letter.
    let gift = format!("{run}-gift");
    client.send_with(ORDER, "gift_wrap", &run, &command(&gift))?;
    let placed = orders - refused.into_inner();
    println!(
        "placed within {:.1} s; waiting until all are settled\n",
        start.elapsed().as_secs_f64()
    );
    audit::run(platform, &client, &run, placed)
}

/// Acts as one customer: logs in, looks up a product and orders it.
fn order(client: &ServiceClient, run: &str, number: u64) -> coney::Result<()> {
    let services = ServiceProxyFactory::new(client.clone());
    let (users, products) = (services.create(USER), services.create(PRODUCT));
    let token = Token {
        token: format!("token-of-customer {}", number % 50),
    };
    let product_id = match number % UMBRELLA_EVERY {
        7 => 6,
        _ => number % 6,
    };
    let id = format!("{run}-{number}");
    let options = CallOptions::new().idempotent(true).message_id(&id);
    let user: User = users.call_with("authenticate", &token, &options)?;
    let wanted = ProductId { product_id };
    let product: Product = products.call_with("describe", &wanted, &options)?;
    // Ordered without regard to the stock: it may change between the lookup and the order, and only
    // inventory knows it.
    let quantity = 1 + number % 3;
    let order = Order {
        order_id: id.clone(),
        user_id: user.user_id,
        product_id: product.product_id,
        quantity,
        cents: quantity * product.cents,
    };
    client.send_with(ORDER, "create_order", &order, &command(&id))
}

/// Returns the options of a command that may be sent twice.
fn command(message_id: &str) -> SendOptions {
    SendOptions::new().idempotent(true).message_id(message_id)
}
