//! `layer` and `attempt_layer`: code of the program's around the calls of a client.

use std::time::Duration;

use coney::client::{
    CallLayer, CallReply, LayeredCall, NextCall, Origin, OutgoingCall, ServiceClientBuilder,
};
use coney::resilience::{Refusal, Resilience, Retry};
use coney::{Broker, CallOptions, Context, ErrorKind, HandlerResult, ServiceClient, ServiceServer};
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::{Value, json};

use crate::support::retrying::quick;
use crate::support::scripted_service::{Act, ScriptedService, WAYS, all_ended, work};
use crate::support::{PATIENCE, client, on_both, unique};

on_both!(
    the_first_layer_is_the_outermost,
    a_layer_sees_the_call_and_sets_headers,
    a_header_of_a_layer_is_sent_with_each_attempt,
    a_layer_refuses_a_call,
    a_layer_answers_by_itself,
    a_layer_replaces_results,
    layers_of_attempts_run_for_each_attempt,
    layers_pass_propagated_headers_on,
    batches_and_commands_pass_no_layer,
);

const MS: Duration = Duration::from_millis(1);

/// Returns the builder of a client with a long timeout.
pub fn builder(broker: &Broker) -> ServiceClientBuilder {
    ServiceClient::builder(broker, "shop").timeout(PATIENCE)
}

/// A layer that sends its name before and after what it wraps.
struct Noting(&'static str, Sender<String>);

impl CallLayer for Noting {
    fn call(&self, call: &mut OutgoingCall<'_>, next: NextCall<'_>) -> LayeredCall {
        let (name, notes) = (self.0, self.1.clone());
        let attempt = call.attempt().map_or(String::new(), |n| format!(" {n}"));
        notes.send(format!("{name}{attempt} before")).unwrap();
        next.run(call).map(move |result| {
            let end = if result.is_ok() { "well" } else { "badly" };
            notes.send(format!("{name}{attempt} {end}")).unwrap();
            result
        })
    }
}

fn all(notes: &Receiver<String>) -> Vec<String> {
    notes.try_iter().collect()
}

fn the_first_layer_is_the_outermost(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let (noted, notes) = unbounded();
    let client = builder(broker)
        .attempt_layer_impl(Noting("third", noted.clone()))
        .layer_impl(Noting("first", noted.clone()))
        .attempt_layer_impl(Noting("fourth", noted.clone()))
        .layer_impl(Noting("second", noted))
        .resilience(Resilience::none().retry(quick()))
        .build()
        .unwrap();
    for (way, call) in WAYS {
        service.follow(&[Act::Busy(MS)]);
        assert_eq!(
            call(&client, &service.name, &CallOptions::new()).unwrap(),
            42
        );
        let wanted = [
            "first before",
            "second before",
            "third 1 before",
            "fourth 1 before",
            "fourth 1 badly",
            "third 1 badly",
            "third 2 before",
            "fourth 2 before",
            "fourth 2 well",
            "third 2 well",
            "second well",
            "first well",
        ];
        assert_eq!(all(&notes), wanted, "{way}");
        all_ended(&client);
    }
}

/// Starts a service that returns the headers of a request that it is asked for.
fn seeing(broker: &Broker, service: &str) -> ServiceServer {
    let see = |context: &Context<'_>, names: Vec<String>| -> Vec<Option<Value>> {
        names.iter().map(|name| context.header(name)).collect()
    };
    let builder = ServiceServer::builder(broker, service);
    builder.respond_with_context("see", see).start().unwrap()
}

fn a_layer_sees_the_call_and_sets_headers(broker: &Broker) {
    let service = unique("s");
    let _server = seeing(broker, &service);
    let name = service.clone();
    let client = builder(broker)
        .layer(move |call, next| {
            assert_eq!((call.service(), call.action()), (&*name, "see"));
            assert_eq!(call.payload(), r#"["a","b","c"]"#);
            assert_eq!(call.attempt(), None);
            assert!(call.remaining() <= PATIENCE && call.remaining() > PATIENCE / 2);
            assert_eq!(call.header("a"), Some("last"));
            assert_eq!(call.header("c"), None);
            call.set_header("b", "layer's");
            next.run(call)
        })
        .attempt_layer(|call, next| {
            assert_eq!(
                (call.header("b"), call.attempt()),
                (Some("layer's"), Some(1))
            );
            assert_eq!(call.payload(), r#"["a","b","c"]"#);
            call.set_header("c", "attempt's");
            call.set_header("deadline_ms", "0");
            next.run(call)
        })
        .build()
        .unwrap();
    let options = CallOptions::new().header("a", "first").header("b", "own");
    let options = options.header("a", "last");
    let names = ["a", "b", "c"];
    let seen: Value = client.call_with(&service, "see", &names, &options).unwrap();
    assert_eq!(seen, json!(["last", "layer's", "attempt's"]));
    let pending = client.call_async_with::<Value>(&service, "see", &names, &options);
    assert_eq!(pending.unwrap().wait().unwrap(), seen);
}

fn a_header_of_a_layer_is_sent_with_each_attempt(broker: &Broker) {
    let (service, (sent, headers)) = (unique("work"), unbounded());
    let _server = ServiceServer::builder(broker, &service)
        .handler_with_context("work", move |context: &Context<'_>, n: u64| {
            let read = |name| context.header::<String>(name);
            sent.send((read("tenant"), read("try"))).unwrap();
            match context.attempt_of_call() {
                3 => Ok(n * 2),
                _ => Err(coney::HandlerError::busy("not yet", MS)),
            }
        })
        .start()
        .unwrap();
    let client = builder(broker)
        .layer(|call, next| {
            call.set_header("tenant", "blue");
            next.run(call)
        })
        .attempt_layer(|call, next| {
            assert_eq!(call.header("try"), None, "that of another attempt");
            call.set_header("try", call.attempt().unwrap().to_string());
            next.run(call)
        })
        .resilience(Resilience::none().retry(quick()))
        .build()
        .unwrap();
    for (way, call) in WAYS {
        assert_eq!(
            call(&client, &service, &CallOptions::new()).unwrap(),
            42,
            "{way}"
        );
        let seen = headers
            .try_iter()
            .map(|(tenant, attempt)| (tenant.unwrap(), attempt.unwrap()));
        let wanted = ["1", "2", "3"].map(|n| ("blue".to_owned(), n.to_owned()));
        assert!(seen.eq(wanted), "{way}");
    }
}

fn a_layer_refuses_a_call(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let refuse = |_: &mut OutgoingCall<'_>, _: NextCall<'_>| LayeredCall::refused("closed today");
    let retry = Resilience::new().retry(Retry::new().attempts(9));
    for (builder, attempts) in [
        (builder(broker).layer(refuse), 0),
        (builder(broker).attempt_layer(refuse), 1),
    ] {
        let client = builder.resilience(retry.clone()).build().unwrap();
        for (way, call) in WAYS {
            let error = call(&client, &service.name, &CallOptions::new()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Rejected, "{way}: {error}");
            assert_eq!(error.refused_by(), Some(Refusal::Layer), "{way}");
            assert!(error.to_string().contains("closed today"), "{error}");
            assert_eq!(
                (error.attempts(), client.in_flight()),
                (attempts, 0),
                "{way}"
            );
        }
    }
    assert!(service.runs().is_empty());
}

fn a_layer_answers_by_itself(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let answer = |_: &mut OutgoingCall<'_>, _: NextCall<'_>| LayeredCall::ended(CallReply::new(&7));
    for builder in [
        builder(broker).layer(answer),
        builder(broker).attempt_layer(answer),
    ] {
        let client = builder.build().unwrap();
        for (way, call) in WAYS {
            let reply = call(&client, &service.name, &CallOptions::new());
            assert_eq!(reply.unwrap(), 7, "{way}");
        }
        let options = CallOptions::new();
        let detailed = client.call_detailed::<u64>(&service.name, "work", &21, &options);
        assert_eq!(detailed.unwrap().origin(), Origin::Layer);
        let error = client.call::<String>(&service.name, "work", &21);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Decode);
        assert_eq!(client.in_flight(), 0);
    }
    assert!(service.runs().is_empty());
    let not_json = std::collections::HashMap::from([((1, 2), 3)]);
    let error = CallReply::new(&not_json).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Encode);
}

fn a_layer_replaces_results(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = builder(broker)
        .layer(|call, next| {
            next.run(call).map(|result| match result {
                Ok(reply) if reply.json() == "42" => CallReply::new(&43),
                Ok(reply) => panic!("not the reply: {reply:?}"),
                Err(error) if error.remote_code() == Some("gone") => CallReply::new(&0),
                Err(error) => Err(error),
            })
        })
        .build()
        .unwrap();
    for (way, call) in WAYS {
        service.follow(&[Act::Double, Act::Fail("gone"), Act::Fail("else")]);
        let call = || call(&client, &service.name, &CallOptions::new());
        assert_eq!(call().unwrap(), 43, "{way}");
        assert_eq!(call().unwrap(), 0, "{way}");
        assert_eq!(call().unwrap_err().remote_code(), Some("else"), "{way}");
    }
    // That of an attempt decides whether there is another one, if the request may run twice.
    let client = builder(broker)
        .attempt_layer(|call, next| {
            let is_first = call.attempt() == Some(1);
            next.run(call).map(move |result| match is_first {
                true => result.and(Err(broken())),
                false => result,
            })
        })
        .resilience(Resilience::none().retry(quick()))
        .build()
        .unwrap();
    for (way, call) in WAYS {
        let once = call(&client, &service.name, &CallOptions::new());
        assert!(!once.unwrap_err().is_safe_to_retry(), "{way}: it has run");
        let reply = call(&client, &service.name, &CallOptions::new().idempotent(true));
        assert_eq!(reply.unwrap(), 42, "{way}");
    }
}

/// Returns an error after which a call is sent again.
fn broken() -> coney::Error {
    let client = client(&Broker::memory());
    client.call::<()>("absent", "work", &()).unwrap_err()
}

fn layers_of_attempts_run_for_each_attempt(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let (sent, seen) = unbounded();
    let of_calls = sent.clone();
    let client = builder(broker)
        .layer(move |call, next| {
            of_calls.send(call.attempt()).unwrap();
            next.run(call)
        })
        .attempt_layer(move |call, next| {
            sent.send(call.attempt()).unwrap();
            next.run(call)
        })
        .resilience(Resilience::new().retry(quick()))
        .build()
        .unwrap();
    for (way, call) in WAYS {
        service.follow(&[Act::Busy(MS), Act::Busy(MS)]);
        assert_eq!(
            call(&client, &service.name, &CallOptions::new()).unwrap(),
            42,
            "{way}"
        );
        let attempts = [None, Some(1), Some(2), Some(3)];
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), attempts, "{way}");
    }
    // A call that a policy refuses has no attempt.
    client.breaker(&service.name).unwrap().hold_open(PATIENCE);
    work(&client, &service.name).unwrap_err();
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [None]);
}

fn layers_pass_propagated_headers_on(broker: &Broker) {
    let [front, last] = ["front", "last"].map(unique);
    let _last = seeing(broker, &last);
    let nested = builder(broker)
        .layer(|call, next| {
            assert_eq!(call.header("id"), Some("r-1"));
            call.set_header("own", "layer's");
            next.run(call)
        })
        .attempt_layer(|call, next| next.run(call))
        .resilience(Resilience::new())
        .build()
        .unwrap();
    let service = last.clone();
    let via = move |context: &Context<'_>, is_async: bool| -> HandlerResult<Value> {
        let client = context.client()?;
        let names = ["id", "baggage", "own", "other"];
        let options = CallOptions::new().header("baggage", "call's");
        Ok(match is_async {
            true => client.call_async(&service, "see", &names)?.wait()?,
            false => client.call_with(&service, "see", &names, &options)?,
        })
    };
    let _front = ServiceServer::builder(broker, &front)
        .handler_with_context("via", via)
        .propagate(["id", "baggage", "own"])
        .client(nested)
        .start()
        .unwrap();
    let client = client(broker);
    let options = CallOptions::new()
        .header("id", "r-1")
        .header("own", "caller's");
    let options = options.header("baggage", "caller's").header("other", "o");
    let via = |is_async: bool| -> Value {
        client
            .call_with(&front, "via", &is_async, &options)
            .unwrap()
    };
    assert_eq!(via(false), json!(["r-1", "call's", "layer's", null]));
    assert_eq!(via(true), json!(["r-1", "caller's", "layer's", null]));
}

fn batches_and_commands_pass_no_layer(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let refuse = |_: &mut OutgoingCall<'_>, _: NextCall<'_>| LayeredCall::refused("no");
    let client = builder(broker).layer(refuse).attempt_layer(refuse);
    let client = client.build().unwrap();
    let mut batch = client.batch(&service.name);
    batch.add::<u64>("work", &21);
    assert_eq!(batch.call().into_results::<u64>().remove(0).unwrap(), 42);
    client.send(&service.name, "work", &21).unwrap();
    service.runs.recv_timeout(PATIENCE).unwrap();
}
