//! `propagate`: the headers that nested calls pass on, and what else their client knows.

use coney::message::ServiceMessage;
use coney::transport::{Link, LinkSpec, Publication, Topology};
use coney::{
    Broker, CallOptions, Context, ErrorKind, EventSubscriber, HandlerResult, PublishOptions,
    Registry, SendOptions, ServiceServer,
};
use crossbeam_channel::{Receiver, unbounded};
use serde_json::{Value, json};

use crate::support::events::{publisher, subscriber, unique_event};
use crate::support::{PATIENCE, client, on_both, unique};

on_both!(
    a_header_passes_through_two_hops,
    any_json_value_is_passed_on_unchanged,
    the_calls_own_header_wins,
    coneys_own_headers_are_not_passed_on,
    nested_calls_use_the_servers_registry,
    attempts_at_a_call_are_read_from_its_header,
    a_handler_of_events_passes_headers_on,
);

const ID: &str = "request-id";

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
