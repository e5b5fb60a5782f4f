//! The shop: customers who come at a steady rate, and the threads that serve them.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use coney::client::ServiceClientBuilder;
use coney::{Broker, CallOptions, ServiceClient};

use crate::counts::{Counter, Counts};
use crate::schedule::SCHEDULE;
use crate::stock::{STOCK, Stock, StockService};

/// The number of threads that serve customers. As many more may wait for a thread.
pub const THREADS: usize = 20;

/// The number of customers in a tick.
pub const CUSTOMERS: u32 = 100;

/// A customer, who looks at an article.
struct Customer {
    article: u64,
    came: Instant,
}

/// Runs the whole schedule with one client, prints a line a tick, and returns the counts of all.
pub fn open(
    broker: &Broker,
    tick: Duration,
    client: impl Fn(&Broker, Duration, &Arc<Counter>) -> ServiceClientBuilder,
) -> coney::Result<Counts> {
    let counter = Arc::new(Counter::default());
    let messages = Arc::clone(&counter);
    let client = client(broker, tick, &counter)
        // Runs for each message to the service, and not for a call that a policy refuses.
        .attempt_layer(move |call, next| {
            messages.add(|counts| counts.messages += 1);
            next.run(call)
        })
        .build()?;
    let mut service = StockService::start(broker, tick)?;
    let mut all = Counts::default();
    thread::scope(|scope| {
        let (door, queue) = sync_channel(THREADS);
        let (queue, counter, client) = (Arc::new(Mutex::new(queue)), &*counter, &client);
        for _ in 0..THREADS {
            let queue = Arc::clone(&queue);
            scope.spawn(move || serve(client, &queue, counter));
        }
        let (_open, closed) = sync_channel(0); // it disconnects at the end, whatever that is
        scope.spawn(move || let_in(&door, tick, &closed, counter));
        for (number, condition) in (1..).zip(SCHEDULE) {
            service.enter(condition)?;
            thread::sleep(tick);
            let counts = counter.take();
            println!("{}", counts.line(number, condition, client.breaker(STOCK)));
            all.merge(counts);
        }
        Ok(())
    })?;
    all.merge(counter.take()); // the last customers
    Ok(all)
}

/// Lets the customers in at a steady rate, until the shop closes. One who finds all threads busy, and the
/// queue full, is turned away.
fn let_in(door: &SyncSender<Customer>, tick: Duration, closed: &Receiver<()>, counter: &Counter) {
    let start = Instant::now();
    for number in 0..CUSTOMERS * SCHEDULE.len() as u32 {
        let came = start + tick * number / CUSTOMERS;
        let pause = came.saturating_duration_since(Instant::now());
        if closed.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        counter.add(|counts| counts.customers += 1);
        let article = u64::from(number % 200);
        if let Err(TrySendError::Full(_)) = door.try_send(Customer { article, came }) {
            counter.add(|counts| counts.turned_away += 1);
        }
    }
}

/// Serves customers until no more come in.
fn serve(client: &ServiceClient, queue: &Mutex<Receiver<Customer>>, counter: &Counter) {
    let next = || queue.lock().unwrap().recv();
    while let Ok(customer) = next() {
        let page = counter.during_call(|| {
            client.call_detailed::<Stock>(STOCK, "count", &customer.article, &CallOptions::new())
        });
        counter.add(|counts| counts.page(page, customer.came.elapsed()));
    }
}
