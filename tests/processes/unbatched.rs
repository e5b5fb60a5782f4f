//! Calls in batches to services that do not know batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use coney::message::ServiceMessage;
use coney::transport::{Delivery, ExchangeKind, Link, LinkSpec, Publication, Topology};
use coney::{Broker, ServiceClient};

/// The longest time between two requests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers a request as a peer that knows the contract only; returns true if it was a batch.
fn answer(delivery: Delivery) -> bool {
    let message = ServiceMessage::decode(&delivery.message().body).expect("an envelope");
    let is_batch = message.action == "$batch";
    let body: &[u8] = match is_batch {
        true => br#"{"success":false,"error":"Unknown action: $batch"}"#,
        false => br#"{"success":true,"data":null}"#,
    };
    let reply_to = message.reply_to.expect("a call").into_owned();
    let mut reply = Publication::new("", reply_to, body.to_vec());
    reply.properties.correlation_id = delivery.message().properties.correlation_id.clone();
    delivery.ack_with(reply);
    is_batch
}

/// Calls several services, in turn in a batch and with calls that may be coalesced. Returns the
/// number of coalesced messages.
pub fn call_services(
    broker: &Broker,
    client: &ServiceClient,
    prefix: &str,
) -> coney::Result<usize> {
    const SERVICES: usize = 20;
    let services: Vec<String> = (0..SERVICES).map(|n| format!("{prefix}-{n}")).collect();
    let queue = format!("service.{prefix}.peer");
    let topology = Topology::new()
        .exchange("service.exchange", ExchangeKind::Direct)
        .queue(&queue);
    let topology = services.iter().fold(topology, |topology, service| {
        topology.bind(&queue, "service.exchange", format!("request.{service}"))
    });
    let link = Link::open(broker, LinkSpec::new(topology).consume(&queue, 100))?;
    let batches = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&batches);
    thread::spawn(move || {
        while let Some(delivery) = link.recv_timeout(PATIENCE) {
            counted.fetch_add(usize::from(answer(delivery)), Ordering::SeqCst);
        }
    });
    for pair in services.chunks(2) {
        let mut batch = client.batch(&pair[0]);
        for n in 0..3 {
            batch.add::<()>("work", &n);
        }
        for result in batch.call().into_results::<()>() {
            result?;
        }
        let calls = (0..50).map(|n| client.call_async::<()>(&pair[1], "work", &n));
        for call in calls.collect::<coney::Result<Vec<_>>>()? {
            call.wait()?;
        }
    }
    Ok(batches.load(Ordering::SeqCst) - SERVICES / 2)
}
