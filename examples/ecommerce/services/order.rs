//! order-service: keeps the orders, which a command creates and payment's events settle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use coney::{Context, HandlerError};

use crate::contract::{Books, ORDER, Order, Payment, Run, User};
use crate::platform::{Platform, Service};
use crate::stats::Stats;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Paid,
    Cancelled,
}

type Orders = Mutex<HashMap<String, (Order, State)>>;

pub fn start(platform: &Platform) -> coney::Result<Service> {
    let stats = Arc::new(Stats::new());
    let orders: Arc<Orders> = Arc::default();
    let publisher = platform.publisher(ORDER)?;
    let server = platform
        .server(ORDER, &stats)
        .handler_with_context("create_order", {
            let (stats, orders) = (Arc::clone(&stats), Arc::clone(&orders));
            let publisher = publisher.clone();
            move |context: &Context<'_>, order: Order| {
                stats.count(context, || {
                    let id = order.order_id.clone();
                    let known = (order.clone(), State::Open);
                    orders.lock().unwrap().entry(id).or_insert(known);
                    // If this fails the command is retried, and the order exists already.
                    Ok(publisher.publish("order.created", &order)?)
                })
            }
        })
        .respond("books", {
            let orders = Arc::clone(&orders);
            move |Run { run }: Run| books(&orders, &run)
        })
        .start()?;
    let user_stats = Arc::clone(&stats);
    let subscriber = platform
        .subscriber(ORDER)
        .on_with_context(
            "payment.*",
            move |context: &Context<'_>, payment: Payment| {
                stats.count(context, || {
                    let (state, event) = match context.action() {
                        "payment.succeeded" => (State::Paid, "order.paid"),
                        _ => (State::Cancelled, "order.cancelled"),
                    };
                    let order = settle(&orders, &payment.order_id, state)?;
                    Ok(publisher.publish(event, &order)?)
                })
            },
        )
        .on_with_context("user.*", move |context: &Context<'_>, _: User| {
            user_stats.count(context, || Ok(()))
        })
        .start()?;
    Ok(Service {
        server,
        subscriber: Some(subscriber),
    })
}

fn settle(orders: &Orders, order_id: &str, state: State) -> Result<Order, HandlerError> {
    let mut orders = orders.lock().unwrap();
    match orders.get_mut(order_id) {
        Some((order, now)) => {
            *now = state;
            Ok(order.clone())
        }
        None => Err(HandlerError::new(format!("there is no order {order_id}"))),
    }
}

fn books(orders: &Orders, run: &str) -> Books {
    let orders = orders.lock().unwrap();
    let mut books = Books::default();
    for (order, state) in orders
        .values()
        .filter(|(one, _)| one.order_id.starts_with(run))
    {
        let list = match state {
            State::Open => &mut books.open,
            State::Paid => &mut books.paid,
            State::Cancelled => &mut books.cancelled,
        };
        list.push(order.clone());
    }
    books
}
