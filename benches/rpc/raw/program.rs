//! The program at the limit: a reader on either side, and a worker on the server's.

use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use parking_lot::RwLock;

use super::frames::{self, short_text};
use super::link::{DECLARE_OK, Delivered, Incoming, Outgoing, open};
use crate::measure::{Call, Setup};

const KEY: &str = "request.bench-raw";
const QUEUE: &str = "service.bench-raw.request";
const EXCHANGE: &str = "service.exchange";

/// The callers by their number, which begins their correlation ids.
type Callers = Arc<RwLock<Vec<Sink>>>;

/// A channel whose receiving thread sleeps at once, as coney's do: the yields of crossbeam before it
/// sleeps cost five system calls a message.
#[derive(Clone)]
struct Sink {
    channel: Sender<Delivered>,
    receiver: Arc<OnceLock<Thread>>,
}

impl Sink {
    fn send(&self, message: Delivered) {
        let _ = self.channel.try_send(message);
        let _ = self.receiver.get().map(Thread::unpark);
    }
}

/// The receiving end of a sink.
struct Inbox {
    channel: Receiver<Delivered>,
    receiver: Arc<OnceLock<Thread>>,
}

impl Inbox {
    /// Makes the current thread the one that receives; before a message can come.
    fn attach(&self) {
        self.receiver.get_or_init(thread::current);
    }

    /// Blocks until a message is there; none once no sink is left.
    fn recv(&self) -> Option<Delivered> {
        loop {
            match self.channel.try_recv() {
                Ok(message) => return Some(message),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => thread::park(),
            }
        }
    }
}

fn sink(capacity: usize) -> (Sink, Inbox) {
    let (sender, inbox) = bounded(capacity);
    let receiver = Arc::default();
    let sink = Sink {
        channel: sender,
        receiver: Arc::clone(&receiver),
    };
    let inbox = Inbox {
        channel: inbox,
        receiver,
    };
    (sink, inbox)
}

/// The largest number of requests that the server holds.
const PREFETCH: u8 = 10;

/// Callers that share a connection, and a server on another one.
pub struct RawAmqp {
    client: Arc<Outgoing>,
    server: Arc<Outgoing>,
    reply_to: String,
    callers: Callers,
    threads: Vec<JoinHandle<()>>,
}

impl RawAmqp {
    /// Starts both sides, for payloads of `size` bytes.
    pub fn start(url: &str, size: usize) -> Self {
        let (server, mut requests, _) = open(url, &server_methods());
        let server = Arc::new(server);
        let (jobs, inbox) = sink(PREFETCH.into());
        let worker = {
            let server = Arc::clone(&server);
            thread::spawn(move || serve(&server, &inbox, size))
        };
        let worker_thread = worker.thread().clone();
        jobs.receiver.get_or_init(|| worker_thread.clone());
        let reader = thread::spawn(move || {
            while let Some(request) = requests.next() {
                jobs.send(request);
            }
            drop(jobs);
            worker_thread.unpark(); // it finds the channel closed
        });
        let (client, replies, queue) = open(url, &client_methods());
        let callers = Callers::default();
        let router = {
            let callers = Arc::clone(&callers);
            thread::spawn(move || route(replies, &callers))
        };
        Self {
            client: Arc::new(client),
            server,
            reply_to: String::from_utf8(queue).expect("RabbitMQ's names are ASCII"),
            callers,
            threads: vec![reader, worker, router],
        }
    }
}

impl Setup for RawAmqp {
    fn caller(&self, _number: usize, payload: &str) -> Call {
        let (sink, inbox) = sink(1);
        let mut callers = self.callers.write();
        let number = callers.len();
        callers.push(sink);
        let client = Arc::clone(&self.client);
        let mut request = Request::new(number, &self.reply_to, payload);
        let payload = payload.as_bytes().to_vec();
        Box::new(move || {
            inbox.attach();
            let id = request.renew();
            client.send(|out| out.extend_from_slice(&request.frames));
            let reply = inbox.recv();
            reply.is_some_and(|reply| reply.id == id && echoed(&reply.body, &payload))
        })
    }
}

impl Drop for RawAmqp {
    fn drop(&mut self) {
        self.client.close();
        self.server.close();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The frames of a caller's request, in which each call writes its ids.
struct Request {
    frames: Vec<u8>,
    id: frames::Id,
    /// The offsets of the correlation id: in the properties, and in the body.
    places: Vec<usize>,
    sequence: u64,
}

/// The digits of the caller's number at the beginning of a correlation id.
const NUMBER_DIGITS: usize = 16;

impl Request {
    fn new(number: usize, reply_to: &str, payload: &str) -> Self {
        let text = format!("{number:016x}{:016x}", 0);
        let id: frames::Id = text.as_bytes().try_into().expect("32 digits");
        let message_id = "msg_20261128005816_87764ab7e714a33a";
        let body = format!(
            r#"{{"message_id":"{message_id}","source_service":"bench","target_service":"bench-coney-0","action":"echo","timestamp":1795827496,"correlation_id":"{text}","reply_to":"{reply_to}","headers":{{"deadline_ms":1795827501485,"timeout_ms":4999}},"payload":"{payload}"}}"#
        );
        let mut out = Vec::new();
        frames::request(
            &mut out,
            KEY.as_bytes(),
            &id,
            reply_to.as_bytes(),
            message_id.as_bytes(),
            body.as_bytes(),
        );
        let places = (0..out.len() - id.len()).filter(|&at| out[at..].starts_with(&id));
        let places = places.take(2).collect();
        Self {
            frames: out,
            id,
            places,
            sequence: 0,
        }
    }

    /// Writes the next correlation id into the frames, and returns it.
    fn renew(&mut self) -> frames::Id {
        self.sequence += 1;
        let mut rest = self.sequence;
        for digit in self.id[NUMBER_DIGITS..].iter_mut().rev() {
            *digit = b"0123456789abcdef"[(rest & 15) as usize];
            rest >>= 4;
        }
        for &at in &self.places {
            self.frames[at..at + self.id.len()].copy_from_slice(&self.id);
        }
        self.id
    }
}

/// The bytes of a reply before the data and after it, as coney's.
const REPLY: [&[u8]; 2] = [
    br#"{"success":true,"data":"#,
    br#","message_id":"msg_20261128005816_87764ab7e714a33a"}"#,
];

/// Returns true if a reply has the payload as its data.
fn echoed(reply: &[u8], payload: &[u8]) -> bool {
    let begin = REPLY[0].len() + 1; // and a quote
    reply.get(begin..begin + payload.len()) == Some(payload)
}

fn serve(server: &Outgoing, requests: &Inbox, size: usize) {
    let mut body = Vec::new();
    while let Some(request) = requests.recv() {
        // The payload is at the end, with its quotes and before a brace.
        let end = request.body.len() - 1;
        let payload = &request.body[end - size - 2..end];
        body.clear();
        for piece in [REPLY[0], payload, REPLY[1]] {
            body.extend_from_slice(piece);
        }
        server.send(|out| {
            frames::reply(out, &request.reply_to, &request.id, &body);
            frames::ack(out, request.tag);
        });
    }
}

fn route(mut replies: Incoming, callers: &RwLock<Vec<Sink>>) {
    while let Some(reply) = replies.next() {
        let number = std::str::from_utf8(&reply.id[..NUMBER_DIGITS]);
        let number = number.map(|number| usize::from_str_radix(number, 16));
        if let Ok(Ok(number)) = number
            && let Some(caller) = callers.read().get(number)
        {
            caller.send(reply);
        }
    }
}

fn server_methods() -> Vec<(Vec<u8>, [u8; 4])> {
    let no_arguments: &[u8] = &[0; 4];
    let (queue, exchange) = (short_text(QUEUE), short_text(EXCHANGE));
    let (direct, key) = (short_text("direct"), short_text(KEY));
    let durable: &[u8] = &[2];
    vec![
        method(
            [0, 40, 0, 10],
            &[&[0; 2], &exchange, &direct, durable, no_arguments],
            [0, 40, 0, 11],
        ),
        method(
            [0, 50, 0, 10],
            &[&[0; 2], &queue, durable, no_arguments],
            DECLARE_OK,
        ),
        method(
            [0, 50, 0, 20],
            &[&[0; 2], &queue, &exchange, &key, &[0], no_arguments],
            [0, 50, 0, 21],
        ),
        method(
            [0, 60, 0, 10],
            &[&[0; 4], &[0, PREFETCH], &[0]],
            [0, 60, 0, 11],
        ),
        consume(&queue, 0),
    ]
}

fn client_methods() -> Vec<(Vec<u8>, [u8; 4])> {
    let (named_by_the_broker, exclusive_and_auto_delete) = ([0], [4 | 8]);
    let arguments: [&[u8]; 4] = [
        &[0; 2],
        &named_by_the_broker,
        &exclusive_and_auto_delete,
        &[0; 4],
    ];
    let no_ack = 2;
    vec![
        method([0, 50, 0, 10], &arguments, DECLARE_OK),
        consume(&[0], no_ack), // an empty name is the queue declared last
    ]
}

fn consume(queue: &[u8], flags: u8) -> (Vec<u8>, [u8; 4]) {
    let tag_by_the_broker = [0];
    let arguments: [&[u8]; 5] = [&[0; 2], queue, &tag_by_the_broker, &[flags], &[0; 4]];
    method([0, 60, 0, 20], &arguments, [0, 60, 0, 21])
}

fn method(id: [u8; 4], arguments: &[&[u8]], answer: [u8; 4]) -> (Vec<u8>, [u8; 4]) {
    let mut out = Vec::new();
    frames::method(&mut out, 1, id, arguments);
    (out, answer)
}
