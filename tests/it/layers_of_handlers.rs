//! Layers around handlers, the headers that nested calls pass on, and attempts at calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coney::message::ServiceMessage;
use coney::server::{HandlerLayer, HandlerReply, NextHandler, ServiceServerBuilder};
use coney::transport::{Link, LinkSpec, Publication, Topology};
use coney::{
    Broker, CallOptions, Context, ErrorKind, EventSubscriber, HandlerError, HandlerResult,
    PublishOptions, Registry, SendOptions, ServiceServer,
};
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::{Value, json};

use crate::support::dead_letters::dead_letter;
use crate::support::events::{publisher, recv_n, subscriber, unique_event};
use crate::support::{PATIENCE, client, on_both, unique};

on_both!(
    the_first_layer_is_the_outermost,
    a_layer_refuses_without_running_the_handler,
    a_panic_in_a_layer_is_that_of_a_handler,
    each_request_of_a_batch_passes_the_layers,
    requests_that_reach_no_handler_pass_no_layer,
    a_type_can_be_a_layer,
    a_header_passes_through_two_hops,
    any_json_value_is_passed_on_unchanged,
    the_calls_own_header_wins,
    coneys_own_headers_are_not_passed_on,
    nested_calls_use_the_servers_registry,
    attempts_at_a_call_are_read_from_its_header,
    the_layers_of_a_subscriber_see_every_attempt,
    a_handler_of_events_passes_headers_on,
);

const MS: Duration = Duration::from_millis(1);
const ID: &str = "request-id";

/// Returns a layer that sends its name before and after what it wraps.
fn noting(name: &'static str, notes: &Sender<String>) -> impl HandlerLayer + use<> {
    let notes = notes.clone();
    move |_: &Context<'_>, next: NextHandler<'_>| {
        notes.send(format!("{name} before")).unwrap();
        let result = next.run();
        notes.send(format!("{name} after")).unwrap();
        result
    }
}

/// Returns the builder of a service that doubles and notes it.
fn doubling(broker: &Broker, service: &str, notes: &Sender<String>) -> ServiceServerBuilder {
    let notes = notes.clone();
    ServiceServer::builder(broker, service)
        .respond("double", move |n: u64| {
            notes.send(format!("double {n}")).unwrap();
            n * 2
        })
        .retry_delays([20 * MS, 40 * MS])
}

fn all(notes: &Receiver<String>) -> Vec<String> {
    notes.try_iter().collect()
}

fn the_first_layer_is_the_outermost(broker: &Broker) {
    let (service, (noted, notes)) = (unique("math"), unbounded());
    let server = doubling(broker, &service, &noted)
        .layer_impl(noting("outer", &noted))
        .layer_impl(noting("inner", &noted))
        .start()
        .unwrap();
    let client = client(broker);
    assert_eq!(client.call::<u64>(&service, "double", &4).unwrap(), 8);
    let wanted = [
        "outer before",
        "inner before",
        "double 4",
        "inner after",
        "outer after",
    ];
    assert_eq!(all(&notes), wanted);
    client.send(&service, "double", &4).unwrap();
    server.drain(PATIENCE).unwrap();
    assert_eq!(all(&notes), wanted);
}

fn a_layer_refuses_without_running_the_handler(broker: &Broker) {
    let (service, (noted, notes)) = (unique("math"), unbounded());
    let _server = doubling(broker, &service, &noted)
        .layer(|context, next| match next.payload() {
            "13" => {
                let error = HandlerError::new(format!("{} is unlucky", context.action()));
                Err(error.with_code("unlucky").do_not_retry())
            }
            _ => next.run(),
        })
        .start()
        .unwrap();
    let client = client(broker);
    let error = client.call::<u64>(&service, "double", &13).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert_eq!(error.remote_message(), Some("double is unlucky"));
    assert_eq!(error.remote_code(), Some("unlucky"));
    client.send(&service, "double", &13).unwrap();
    let letter = dead_letter(broker, &service);
    assert_eq!((letter.reason(), letter.attempts()), ("rejected", 1));
    assert_eq!(all(&notes), [""; 0]);
    assert_eq!(client.call::<u64>(&service, "double", &14).unwrap(), 28);
}

fn a_panic_in_a_layer_is_that_of_a_handler(broker: &Broker) {
    let (service, (noted, notes)) = (unique("math"), unbounded());
    let _server = doubling(broker, &service, &noted)
        .layer(|_, next| {
            assert_ne!(next.payload(), "13", "a panic that the test wants");
            next.run()
        })
        .start()
        .unwrap();
    let client = client(broker);
    let error = client.call::<u64>(&service, "double", &13).unwrap_err();
    assert_eq!(error.remote_code(), Some("panic"), "{error}");
    client.send(&service, "double", &13).unwrap();
    let letter = dead_letter(broker, &service);
    assert_eq!(letter.reason(), "retries_exhausted");
    assert_eq!(letter.attempts(), 3);
    assert!(notes.is_empty());
    assert_eq!(client.call::<u64>(&service, "double", &14).unwrap(), 28);
}

fn each_request_of_a_batch_passes_the_layers(broker: &Broker) {
    let (service, (noted, notes)) = (unique("math"), unbounded());
    let (sent, payloads) = unbounded();
    let _server = doubling(broker, &service, &noted)
        .layer(move |context, next| {
            assert_eq!(context.source_service(), "order-service");
            sent.send(next.payload().to_owned()).unwrap();
            match next.payload() {
                "2" => Err(HandlerError::new("not two").with_code("two")),
                _ => next.run(),
            }
        })
        .start()
        .unwrap();
    let client = client(broker);
    let mut batch = client.batch(&service);
    for n in 1..=3 {
        batch.add::<u64>("double", &n);
    }
    batch.add::<u64>("no_such_action", &4);
    let results = batch.call().into_results::<u64>();
    let codes: Vec<_> = results
        .iter()
        .map(|result| result.as_ref().map_err(|error| error.remote_code()))
        .collect();
    let unknown = Err(Some("unknown_action"));
    assert_eq!(codes, [Ok(&2), Err(Some("two")), Ok(&6), unknown]);
    let mut payloads: Vec<String> = payloads.try_iter().collect();
    payloads.sort_unstable();
    assert_eq!(payloads, ["1", "2", "3"]);
    assert_eq!(notes.len(), 2);
}

fn requests_that_reach_no_handler_pass_no_layer(broker: &Broker) {
    let (service, (noted, notes)) = (unique("math"), unbounded());
    let (sent, codes) = unbounded();
    let server = doubling(broker, &service, &noted)
        .layer(move |_, next| {
            let result = next.run();
            let code = result.as_ref().err().and_then(HandlerError::code);
            sent.send(code.map(str::to_owned)).unwrap();
            result
        })
        .deduplicate(coney::deduplication::MemoryReplyStore::new(100), PATIENCE)
        .start()
        .unwrap();
    let client = client(broker);
    let error = client.call::<u64>(&service, "halve", &1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownAction);
    assert!(codes.is_empty());
    // A payload is decoded by the handler.
    client.call::<u64>(&service, "double", "text").unwrap_err();
    let code = codes.recv_timeout(PATIENCE).unwrap();
    assert_eq!(code.as_deref(), Some("bad_request"));
    let once = CallOptions::new().message_id("one");
    for _ in 0..2 {
        let double: u64 = client.call_with(&service, "double", &4, &once).unwrap();
        assert_eq!(double, 8);
    }
    server.drain(PATIENCE).unwrap();
    assert_eq!(codes.try_iter().collect::<Vec<_>>(), [None]);
    assert_eq!(all(&notes), ["double 4"]);
}

#[derive(Clone, Default)]
struct Counter(Arc<AtomicU32>);

impl HandlerLayer for Counter {
    fn handle(&self, _: &Context<'_>, next: NextHandler<'_>) -> HandlerResult<HandlerReply> {
        self.0.fetch_add(1, Ordering::SeqCst);
        next.run()
    }
}

fn a_type_can_be_a_layer(broker: &Broker) {
    let (service, (noted, _notes)) = (unique("math"), unbounded());
    let counter = Counter::default();
    let _server = doubling(broker, &service, &noted)
        .layer_impl(counter.clone())
        .start()
        .unwrap();
    let double: u64 = client(broker).call(&service, "double", &4).unwrap();
    assert_eq!((double, counter.0.load(Ordering::SeqCst)), (8, 1));
}

/// A service whose action `see` returns the headers of a request that it is asked for, and whose
/// action `note` sends them into a channel.
fn seeing(broker: &Broker, service: &str) -> (ServiceServer, Receiver<Vec<Option<Value>>>) {
    fn read(context: &Context<'_>, names: &[String]) -> Vec<Option<Value>> {
        names.iter().map(|name| context.header(name)).collect()
    }
    let (sent, seen) = unbounded();
    let server = ServiceServer::builder(broker, service)
        .respond_with_context("see", |context: &Context<'_>, names: Vec<String>| {
            read(context, &names)
        })
        .respond_with_context("note", move |context: &Context<'_>, names: Vec<String>| {
            sent.send(read(context, &names)).unwrap();
        })
        .start()
        .unwrap();
    (server, seen)
}

fn a_header_passes_through_two_hops(broker: &Broker) {
    let [first, second, last] = ["first", "second", "last"].map(unique);
    let (_last, noted) = seeing(broker, &last);
    let names = || [ID, "other"];
    let second_server = ServiceServer::builder(broker, &second)
        .handler_with_context("via", {
            let last = last.clone();
            move |context: &Context<'_>, kind: String| -> HandlerResult<Value> {
                let client = context.client()?;
                match &*kind {
                    "call" => Ok(client.call(&last, "see", &names())?),
                    "async" => Ok(client.call_async(&last, "see", &names())?.wait()?),
                    "proxy" => Ok(client.proxy(&last).call("see", &names())?),
                    "send" => Ok(json!(client.send(&last, "note", &names())?)),
                    "deadline" => {
                        let client = client.with_deadline(std::time::Instant::now() + PATIENCE);
                        Ok(client.call(&last, "see", &names())?)
                    }
                    _ => {
                        let mut batch = client.batch(&last);
                        batch.add::<Value>("see", &names());
                        batch.add::<Value>("see", &names());
                        let results = batch.call().into_results();
                        let results: coney::Result<Vec<Value>> = results.into_iter().collect();
                        Ok(json!(results?))
                    }
                }
            }
        })
        .propagate([ID])
        .start()
        .unwrap();
    let first_server = ServiceServer::builder(broker, &first)
        .handler_with_context("via", {
            move |context: &Context<'_>, kind: String| {
                context.client()?.call::<Value>(&second, "via", &kind)
            }
        })
        .propagate(vec![ID.to_owned(), "missing".to_owned()])
        .start()
        .unwrap();
    let client = client(broker);
    let options = CallOptions::new().header(ID, "r-1").header("other", "o");
    let via = |kind: &str| {
        let seen: Value = client.call_with(&first, "via", kind, &options).unwrap();
        seen
    };
    let wanted = json!(["r-1", null]);
    for kind in ["call", "async", "proxy", "deadline"] {
        assert_eq!(via(kind), wanted, "{kind}");
    }
    assert_eq!(via("batch"), json!([wanted, wanted]));
    assert_eq!(via("send"), Value::Null);
    assert_eq!(json!(noted.recv_timeout(PATIENCE).unwrap()), wanted);
    // The client is shared: the header is that of one request only.
    let without: Value = client.call(&first, "via", "call").unwrap();
    assert_eq!(without, json!([null, null]));
    drop((first_server, second_server));
}

/// Sends a command by hand, with these headers.
fn send_raw(broker: &Broker, service: &str, action: &str, headers: &[(&str, Value)]) {
    let queue = unique("peer");
    let topology = Topology::new().queue(&queue);
    let link = Link::open(broker, LinkSpec::new(topology).consume(&queue, 1)).unwrap();
    let mut message = ServiceMessage::new("tests", service, action, Value::Null);
    for (name, value) in headers {
        message.headers.insert(name, value);
    }
    let key = format!("request.{service}");
    let request = Publication::new("service.exchange", key, message.encode().unwrap());
    link.publish(request, PATIENCE).unwrap();
    // When the mark is back, the broker has the command.
    link.publish(Publication::new("", queue, b"mark".to_vec()), PATIENCE)
        .unwrap();
    link.recv_timeout(PATIENCE).expect("the mark").ack();
}

fn any_json_value_is_passed_on_unchanged(broker: &Broker) {
    let [first, last] = ["first", "last"].map(unique);
    let (_last, seen) = seeing(broker, &last);
    let _first = ServiceServer::builder(broker, &first)
        .handler_with_context("via", move |context: &Context<'_>, ()| {
            context
                .client()?
                .send(&last, "note", &["baggage", ID, "none"])
        })
        .propagate(["baggage", ID, "none"])
        .start()
        .unwrap();
    let baggage = json!({"user": "张三", "list": [1, 2.5, null, "\"\\"]});
    let headers = [(ID, json!(7)), ("baggage", baggage.clone())];
    send_raw(broker, &first, "via", &headers);
    let seen = seen.recv_timeout(PATIENCE).unwrap();
    assert_eq!(seen, [Some(baggage), Some(json!(7)), None]);
}

fn the_calls_own_header_wins(broker: &Broker) {
    let [first, last] = ["first", "last"].map(unique);
    let (_last, seen) = seeing(broker, &last);
    let _first = ServiceServer::builder(broker, &first)
        .handler_with_context(
            "via",
            move |context: &Context<'_>, ()| -> HandlerResult<_> {
                let client = context.client()?;
                let names = [ID, "tenant"];
                let own = SendOptions::new().header(ID, "own");
                client.send_with(&last, "note", &names, &own)?;
                let mut batch = client.batch(&last).header(ID, "batch's");
                let key = batch.add::<Value>("see", &names);
                batch.add::<Value>("see", &names);
                let in_batch = batch.call().take(key)?;
                let own = CallOptions::new().header(ID, "own");
                let called: Value = client.call_with(&last, "see", &names, &own)?;
                Ok((in_batch, called))
            },
        )
        .propagate([ID, "tenant"])
        .start()
        .unwrap();
    let options = CallOptions::new().header(ID, "r-1").header("tenant", "t");
    let called: (Value, Value) = client(broker)
        .call_with(&first, "via", &(), &options)
        .unwrap();
    assert_eq!(called, (json!(["batch's", "t"]), json!(["own", "t"])));
    let seen = seen.recv_timeout(PATIENCE).unwrap();
    assert_eq!(seen, [Some(json!("own")), Some(json!("t"))]);
}

fn coneys_own_headers_are_not_passed_on(broker: &Broker) {
    for name in ["deadline_ms", "timeout_ms", "async_callback", "attempt"] {
        let server = ServiceServer::builder(broker, &unique("s")).propagate([ID, name]);
        let error = server.start().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.to_string().contains(name), "{error}");
        let subscriber = EventSubscriber::builder(broker, &unique("s")).propagate([name]);
        let error = subscriber.start().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    }
}

fn nested_calls_use_the_servers_registry(broker: &Broker) {
    let service = unique("first");
    let _server = ServiceServer::builder(broker, &service)
        .respond_with_context("via", |context: &Context<'_>, ()| {
            let client = context.client().unwrap();
            let error = client.call::<()>("no-such-service", "a", &()).unwrap_err();
            error.kind().as_str()
        })
        .registry(&Registry::memory())
        .start()
        .unwrap();
    let kind: String = client(broker).call(&service, "via", &()).unwrap();
    assert_eq!(kind, "no_instance");
}

fn attempts_at_a_call_are_read_from_its_header(broker: &Broker) {
    let (service, (sent, attempts)) = (unique("work"), unbounded());
    let _server = ServiceServer::builder(broker, &service)
        .respond_with_context("work", move |context: &Context<'_>, ()| {
            sent.send((context.attempt_of_call(), context.attempt()))
                .unwrap();
        })
        .start()
        .unwrap();
    let attempt_of_call = |headers: &[(&str, Value)]| {
        send_raw(broker, &service, "work", headers);
        let (of_call, attempt) = attempts.recv_timeout(PATIENCE).unwrap();
        assert_eq!(attempt, 1);
        of_call
    };
    assert_eq!(attempt_of_call(&[]), 1);
    assert_eq!(attempt_of_call(&[("attempt", json!(3))]), 3);
    for invalid in [json!(0), json!(-1), json!("3"), json!(1e99), json!([2])] {
        assert_eq!(attempt_of_call(&[("attempt", invalid)]), 1);
    }
}

fn the_layers_of_a_subscriber_see_every_attempt(broker: &Broker) {
    let (service, event) = (unique("s"), unique_event());
    let ((noted, notes), (sent, events)) = (unbounded(), unbounded());
    let subscriber = subscriber(broker, &service)
        .listen(&event, move |n: u64| sent.send(n).unwrap())
        .layer_impl(noting("outer", &noted))
        .layer(move |context, next| {
            let note = format!("attempt {} at {}", context.attempt(), context.action());
            noted.send(note).unwrap();
            match context.attempt() {
                1 => Err(HandlerError::new("not yet")),
                _ => next.run(),
            }
        })
        .start()
        .unwrap();
    publisher(broker).publish(&event, &5).unwrap();
    assert_eq!(recv_n(&events, 1), [5]);
    subscriber.shutdown(PATIENCE).unwrap();
    let attempts = [1, 2].map(|attempt| format!("attempt {attempt} at {event}"));
    let wanted = attempts
        .iter()
        .flat_map(|attempt| ["outer before", attempt, "outer after"]);
    assert_eq!(all(&notes), wanted.collect::<Vec<_>>());
}

fn a_handler_of_events_passes_headers_on(broker: &Broker) {
    let ([service, last], event) = (["s", "last"].map(unique), unique_event());
    let (_last, seen) = seeing(broker, &last);
    let _subscriber = subscriber(broker, &service)
        .on_with_context(&event, move |context: &Context<'_>, ()| {
            context.client()?.send(&last, "note", &[ID, "other"])
        })
        .propagate([ID])
        .start()
        .unwrap();
    let options = PublishOptions::new().header(ID, "r-1").header("other", "o");
    publisher(broker)
        .publish_with(&event, &(), &options)
        .unwrap();
    let seen = seen.recv_timeout(PATIENCE).unwrap();
    assert_eq!(seen, [Some(json!("r-1")), None]);
}
