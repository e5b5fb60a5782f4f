//! A client that coalesces, whose connection a test can take away.

use std::thread;
use std::time::Duration;

use coney::batch::BatchLimits;
use coney::message::ServiceMessage;
use coney::transport::{Link, Publication};
use coney::{Broker, ConnectionState, ServiceClient};
use crossbeam_channel::{Receiver, unbounded};
use serde_json::{Value, json};

use super::peer::{recv, text};
use super::proxy::{Mode, Proxy};
use super::{PATIENCE, amqp_url, eventually};

/// A client that coalesces, over a connection that can be taken away.
pub struct Held {
    proxy: Proxy,
    lost: Receiver<()>,
    pub client: ServiceClient,
}

impl Held {
    pub fn new(limits: BatchLimits) -> Self {
        let proxy = Proxy::start(&amqp_url());
        let (sent, lost) = unbounded();
        let broker = Broker::builder(&proxy.url)
            .connect_timeout(PATIENCE)
            .reconnect_delays(Duration::from_millis(20), Duration::from_millis(20))
            .on_state_change(move |state| {
                if matches!(state, ConnectionState::Lost(_)) {
                    sent.send(()).unwrap();
                }
            })
            .connect()
            .unwrap();
        let client = coalescing(&broker, limits);
        Self {
            proxy,
            lost,
            client,
        }
    }

    /// Takes the connection away: calls wait for one from now on.
    pub fn hold(&self) {
        self.proxy.both(Mode::Stall);
        self.proxy.cut();
        self.lost.recv_timeout(PATIENCE).unwrap();
    }

    /// Lets the client reconnect once this number of calls waits for a connection.
    pub fn release(&self, calls: usize) {
        eventually("they wait", || self.client.in_flight() == calls);
        self.proxy.both(Mode::Pass);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.proxy.both(Mode::Pass); // or closing would wait for the connection
    }
}

pub fn coalescing(broker: &Broker, limits: BatchLimits) -> ServiceClient {
    ServiceClient::builder(broker, "gateway")
        .coalesce(limits)
        .timeout(PATIENCE)
        .build()
        .unwrap()
}

/// Returns the items of a batch that a peer has received.
pub fn items(body: &str) -> Vec<Value> {
    let message = ServiceMessage::decode(body.as_bytes()).unwrap();
    match &*message.action {
        "$batch" => message.payload.decode().unwrap(),
        action => vec![json!({
            "action": action,
            "payload": message.payload.decode::<Value>().unwrap(),
            "correlation_id": message.correlation_id,
        })],
    }
}

/// Starts this number of calls of `double` with 0, 1, and so on, each on a thread of its own.
pub fn call_all(
    client: &ServiceClient,
    service: &str,
    calls: u64,
) -> Vec<thread::JoinHandle<coney::Result<u64>>> {
    (0..calls)
        .map(|n| {
            let (client, service) = (client.clone(), service.to_owned());
            thread::spawn(move || client.call(&service, "double", &n))
        })
        .collect()
}

pub fn join_all(calls: Vec<thread::JoinHandle<coney::Result<u64>>>) {
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.join().unwrap().unwrap(), 2 * n as u64);
    }
}

/// Answers the messages of a peer's queue; returns the number of calls that each of them held.
pub fn sizes(link: &Link, calls: usize) -> Vec<usize> {
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < calls {
        let delivery = recv(link);
        let body = text(&delivery);
        let items = items(&body);
        for item in &items {
            let reply = json!({"success": true, "data": item["payload"].as_u64().unwrap() * 2});
            let id = item["correlation_id"].as_str();
            link.publish(reply_to(&body, &reply, id), PATIENCE).unwrap();
        }
        sizes.push(items.len());
        delivery.ack();
    }
    sizes
}

pub fn reply_to(body: &str, reply: &Value, correlation_id: Option<&str>) -> Publication {
    let message = ServiceMessage::decode(body.as_bytes()).unwrap();
    let mut publication = Publication::new(
        "",
        message.reply_to.unwrap().into_owned(),
        reply.to_string().into_bytes(),
    );
    publication.properties.correlation_id = correlation_id.map(str::to_owned);
    publication
}
