//! The front: customers who look at a product and order it, all at the same time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coney::client::ServiceProxyFactory;
use coney::{CallOptions, ErrorKind, SendOptions, ServiceClient};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::audit;
use crate::contract::{ORDER, Order, PRODUCT, Product, ProductId, Token, USER, User};
use crate::platform::Platform;

/// How long a customer goes on trying while something is down.
const PATIENCE: Duration = Duration::from_secs(60);

/// Every so many orders somebody wants the product of which there is none.
const UMBRELLA_EVERY: u64 = 20;

/// Places the orders, waits until all are settled, and checks the books: true if they
/// balance.
pub fn run(platform: &Platform, orders: u64, customers: usize) -> coney::Result<bool> {
    let run = format!("{:08x}", fastrand::u32(..));
    let client = platform.client("gateway")?;
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
    // What nobody can do is not lost either.
    let gift = format!("{run}-gift");
    again(|| client.send_with(ORDER, "gift_wrap", &run, &command(&gift)))?;
    let placed = orders - refused.into_inner();
    println!(
        "placed within {:.1} s; waiting until all are settled\n",
        start.elapsed().as_secs_f64()
    );
    audit::run(platform, &client, &run, placed)
}

/// What one customer does: log in, look, order.
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
    let user: User = again(|| users.call_with("authenticate", &token, &options))?;
    let wanted = ProductId { product_id };
    let product: Product = again(|| products.call_with("describe", &wanted, &options))?;
    // However many there are: between the look and the order that changes, and only
    // inventory knows.
    let quantity = 1 + number % 3;
    let order = Order {
        order_id: id.clone(),
        user_id: user.user_id,
        product_id: product.product_id,
        quantity,
        cents: quantity * product.cents,
    };
    again(|| client.send_with(ORDER, "create_order", &order, &command(&id)))
}

/// Returns the options of a command that may be sent twice.
fn command(message_id: &str) -> SendOptions {
    SendOptions::new().idempotent(true).message_id(message_id)
}

/// Tries until it succeeds, or fails for a reason that will not go away. May do so even
/// where it may have worked before: what is asked for here can be asked for twice.
fn again<T>(mut act: impl FnMut() -> coney::Result<T>) -> coney::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match act() {
            Err(error) if is_passing(error.kind()) && Instant::now() < end => {
                log::info!("again, after: {error}");
                thread::sleep(Duration::from_millis(100));
            }
            result => return result,
        }
    }
}

fn is_passing(kind: ErrorKind) -> bool {
    use ErrorKind::{ConnectionLost, NoInstance, NoRoute, NotSent, TimedOut};
    matches!(
        kind,
        ConnectionLost | NoInstance | NoRoute | NotSent | TimedOut
    )
}
