//! `deduplicate`: a request that arrives twice runs once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use coney::deduplication::MemoryReplyStore;
use coney::message::ServiceMessage;
use coney::transport::{Link, LinkSpec, Publication, Topology};
use coney::{Broker, HandlerError, ServiceServer};
use crossbeam_channel::{Receiver, unbounded};

use crate::support::dead_letters::no_dead_letter;
use crate::support::{PATIENCE, on_both, unique};

on_both!(
    a_repeated_request_gets_the_first_reply,
    a_repeated_command_is_carried_out_once,
    a_request_in_progress_is_not_begun_again,
    a_failed_command_is_not_remembered,
);

const MS: Duration = Duration::from_millis(1);

/// A peer that sends one request several times, and receives the replies.
struct Repeater {
    link: Link,
    body: Vec<u8>,
    service: String,
    queue: String,
    reply_to: Option<String>,
}

impl Repeater {
    fn new(broker: &Broker, service: &str, wants_reply: bool) -> Self {
        let queue = unique("replies");
        let topology = Topology::new().queue(&queue);
        let link = Link::open(broker, LinkSpec::new(topology).consume(&queue, 100)).unwrap();
        let mut message = ServiceMessage::new("tests", service, "work", 5);
        let reply_to = wants_reply.then(|| queue.clone());
        message.reply_to = reply_to.clone().map(Into::into);
        Self {
            body: message.encode().unwrap(),
            service: service.to_owned(),
            link,
            queue,
            reply_to,
        }
    }

    fn send(&self) {
        let key = format!("request.{}", self.service);
        let mut request = Publication::new("service.exchange", key, self.body.clone());
        request.properties.reply_to = self.reply_to.clone();
        self.link.publish(request, PATIENCE).unwrap();
    }

    /// Waits until the broker has everything that was sent.
    fn flush(&self) {
        let mark = Publication::new("", self.queue.as_str(), b"mark".to_vec());
        self.link.publish(mark, PATIENCE).unwrap();
        assert_eq!(self.reply(), b"mark");
    }

    fn reply(&self) -> Vec<u8> {
        let delivery = self.link.recv_timeout(PATIENCE).expect("a reply");
        let body = delivery.message().body.clone();
        delivery.ack();
        body
    }
}

fn remembering<F>(broker: &Broker, service: &str, handler: F) -> (ServiceServer, Receiver<u32>)
where
    F: Fn(u32) -> Result<u32, HandlerError> + Send + Sync + 'static,
{
    let (ran, runs) = unbounded();
    let count = AtomicU32::new(0);
    let server = ServiceServer::builder(broker, service)
        .any_reply_queue(true)
        .handler("work", move |_: u32| {
            let n = count.fetch_add(1, Ordering::SeqCst) + 1;
            ran.send(n).unwrap();
            handler(n)
        })
        .retry_delays([50 * MS; 2])
        .deduplicate(Arc::new(MemoryReplyStore::new(100)), PATIENCE)
        .start()
        .unwrap();
    (server, runs)
}

fn a_repeated_request_gets_the_first_reply(broker: &Broker) {
    let service = unique("work");
    let (_server, runs) = remembering(broker, &service, Ok);
    let repeater = Repeater::new(broker, &service, true);
    repeater.send();
    let first = repeater.reply();
    repeater.send();
    repeater.send();
    assert_eq!(repeater.reply(), first);
    assert_eq!(repeater.reply(), first);
    assert_eq!(runs.len(), 1);
}

fn a_repeated_command_is_carried_out_once(broker: &Broker) {
    let service = unique("work");
    let (server, runs) = remembering(broker, &service, Ok);
    let repeater = Repeater::new(broker, &service, false);
    for _ in 0..20 {
        repeater.send();
    }
    repeater.flush();
    assert_eq!(runs.recv_timeout(PATIENCE), Ok(1));
    server.drain(PATIENCE).unwrap();
    assert!(runs.is_empty());
    no_dead_letter(broker, &service);
}

fn a_request_in_progress_is_not_begun_again(broker: &Broker) {
    let service = unique("work");
    let (_server, runs) = remembering(broker, &service, |n| {
        thread::sleep(200 * MS);
        Ok(n)
    });
    let repeater = Repeater::new(broker, &service, true);
    repeater.send();
    assert_eq!(runs.recv_timeout(PATIENCE), Ok(1));
    repeater.send();
    assert_eq!(repeater.reply(), repeater.reply());
    assert_eq!(runs.len(), 0);
}

fn a_failed_command_is_not_remembered(broker: &Broker) {
    let service = unique("work");
    let (_server, runs) = remembering(broker, &service, |n| {
        if n == 1 {
            Err(HandlerError::new("not yet"))
        } else {
            Ok(n)
        }
    });
    Repeater::new(broker, &service, false).send();
    assert_eq!(runs.recv_timeout(PATIENCE), Ok(1));
    assert_eq!(runs.recv_timeout(PATIENCE), Ok(2));
}
