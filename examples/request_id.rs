//! A request id, from the caller's header into every log line, through nested calls.
//!
//!     cargo run --example request_id

use std::cell::RefCell;
use std::io::Write;

use coney::server::{HandlerReply, NextHandler};
use coney::{Broker, CallOptions, Context, HandlerResult, ServiceClient, ServiceServer};
use log::LevelFilter;

const REQUEST_ID: &str = "request-id";

thread_local! {
    /// The id of the request that this thread handles.
    static CURRENT: RefCell<String> = RefCell::new("no request".to_owned());
}

/// A layer: notes the id of the request for the log lines of its handler. A request without one
/// gets its message id.
fn note_id(context: &Context<'_>, next: NextHandler<'_>) -> HandlerResult<HandlerReply> {
    let id = context.header::<String>(REQUEST_ID);
    let id = id.unwrap_or_else(|| context.message_id().to_owned());
    let before = CURRENT.replace(id);
    let result = next.run();
    CURRENT.set(before);
    result
}

fn total(context: &Context<'_>, articles: Vec<u64>) -> HandlerResult<u64> {
    log::info!(target: "order-service", "the total of {articles:?}");
    let client = context.client()?; // passes the id on
    let mut total = 0;
    for article in &articles {
        total += client.call::<u64>("price-service", "price", article)?;
    }
    Ok(total)
}

fn price(article: u64) -> u64 {
    log::info!(target: "price-service", "the price of {article}");
    article * 100
}

fn main() -> coney::Result<()> {
    env_logger::Builder::new()
        .filter_level(LevelFilter::Info)
        .filter_module("coney", LevelFilter::Warn)
        .target(env_logger::Target::Stdout)
        .format(|line, record| {
            let (service, text) = (record.target(), record.args());
            CURRENT.with_borrow(|id| writeln!(line, "[{id}] {service}: {text}"))
        })
        .init();
    let broker = Broker::memory();
    let _prices = ServiceServer::builder(&broker, "price-service")
        .respond("price", price)
        .layer(note_id)
        .start()?;
    let _orders = ServiceServer::builder(&broker, "order-service")
        .handler_with_context("total", total)
        .layer(note_id)
        .propagate([REQUEST_ID])
        .start()?;
    let client = ServiceClient::new(&broker, "shop")?;
    for (id, articles) in [("r-1", vec![7, 8]), ("r-2", vec![9])] {
        let options = CallOptions::new().header(REQUEST_ID, id);
        let total: u64 = client.call_with("order-service", "total", &articles, &options)?;
        println!("{id}: {total}");
    }
    Ok(())
}
