//! A peer that implements the wire contract by hand.

use coney::Broker;
use coney::message::ServiceMessage;
use coney::transport::{Delivery, ExchangeKind, Link, LinkSpec, Publication, Topology};

use super::PATIENCE;

fn service_topology(service: &str) -> Topology {
    let queue = format!("service.{service}.request");
    Topology::new()
        .exchange("service.exchange", ExchangeKind::Direct)
        .queue(&queue)
        .bind(&queue, "service.exchange", format!("request.{service}"))
}

/// Opens the link of a peer's server, which consumes the request queue.
pub fn serve(broker: &Broker, service: &str) -> Link {
    let queue = format!("service.{service}.request");
    Link::open(
        broker,
        LinkSpec::new(service_topology(service)).consume(queue, 10),
    )
    .unwrap()
}

/// Opens the link of a peer's client, which publishes and has a queue for its replies.
pub fn peer(broker: &Broker, reply_queue: &str) -> Link {
    let topology = Topology::new()
        .exchange("service.exchange", ExchangeKind::Direct)
        .queue(reply_queue);
    Link::open(broker, LinkSpec::new(topology).consume(reply_queue, 10)).unwrap()
}

pub fn request(service: &str, body: &str, reply_to: &str) -> Publication {
    let mut publication = Publication::new(
        "service.exchange",
        format!("request.{service}"),
        body.as_bytes().to_vec(),
    );
    let properties = &mut publication.properties;
    properties.message_id = Some("msg_20261123083012_862ad1d69070c888".to_owned());
    properties.correlation_id = Some("0123456789abcdef0123456789abcdef".to_owned());
    properties.reply_to = Some(reply_to.to_owned());
    properties.persistent = true;
    publication
}

pub fn recv(link: &Link) -> Delivery {
    link.recv_timeout(PATIENCE).expect("a delivery")
}

pub fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message().body.clone()).unwrap()
}

/// Answers one request as a PHP server does: reads reply_to from the body.
pub fn answer_one(link: &Link, answer: impl FnOnce(&ServiceMessage<'_>) -> String) {
    let delivery = recv(link);
    let (body, reply_to) = {
        let message = ServiceMessage::decode(&delivery.message().body).unwrap();
        let reply_to = message.reply_to.as_deref().unwrap().to_owned();
        (answer(&message), reply_to)
    };
    let mut reply = Publication::new("", reply_to, body.into_bytes());
    reply.properties.correlation_id = delivery.message().properties.correlation_id.clone();
    delivery.ack_with(reply);
}
