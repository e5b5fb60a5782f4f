//! `ServiceServer`: context, raw handlers, sharing, draining.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use coney::{
    Broker, CallOptions, Context, ErrorKind, HandlerError, HandlerResult, Phase, ServiceServer,
};
use crossbeam_channel::unbounded;

use crate::support::{PATIENCE, client, eventually, on_both, unique};

on_both!(
    odd_panics_stop_no_thread,
    the_context_describes_the_request,
    raw_handlers_pass_json_through,
    handlers_run_in_parallel_up_to_the_workers,
    servers_of_one_service_share_its_requests,
    a_handler_may_call_its_own_service,
    shutdown_lets_running_handlers_reply,
    shutdown_requeues_unstarted_requests,
    shutdown_names_handlers_that_do_not_end,
    dropping_a_server_joins_its_threads,
    respond_refuses_a_handler_that_can_fail,
    the_same_action_twice_is_refused,
    a_handler_cannot_shut_its_own_server_down,
);

fn the_context_describes_the_request(broker: &Broker) {
    let service = unique("ctx");
    let _server = ServiceServer::builder(broker, &service)
        .respond_with_context("describe", |context: &Context<'_>, (): ()| {
            assert!(context.message_id().starts_with("msg_"));
            assert!(!context.is_redelivered());
            assert_eq!(context.header::<String>("missing"), None);
            let remaining = context.remaining().expect("coney's clients send it");
            assert!(remaining <= Duration::from_secs(7), "{remaining:?}");
            assert!(remaining > Duration::from_secs(1), "{remaining:?}");
            (
                context.source_service().to_owned(),
                context.action().to_owned(),
                context.header::<String>("trace-id"),
            )
        })
        .start()
        .unwrap();
    let options = CallOptions::new()
        .timeout(Duration::from_secs(7))
        .header("trace-id", "abc \"1\"");
    let (source, action, trace): (String, String, Option<String>) = client(broker)
        .call_with(&service, "describe", &(), &options)
        .unwrap();
    assert_eq!(source, "order-service");
    assert_eq!(action, "describe");
    assert_eq!(trace.as_deref(), Some("abc \"1\""));
}

fn raw_handlers_pass_json_through(broker: &Broker) {
    let service = unique("raw");
    let _server = ServiceServer::builder(broker, &service)
        .handler_raw("echo", |_: &Context<'_>, json: &str| -> HandlerResult<_> {
            Ok(json.to_owned())
        })
        .handler_raw("broken", |_: &Context<'_>, _: &str| -> HandlerResult<_> {
            Ok("{".to_owned())
        })
        .start()
        .unwrap();
    let client = client(broker);
    let payload = serde_json::json!({"a": [1, null, "张"], "b": {}});
    let echo: serde_json::Value = client.call(&service, "echo", &payload).unwrap();
    assert_eq!(echo, payload);
    let error = client.call::<()>(&service, "broken", &1).unwrap_err();
    assert_eq!(error.remote_code(), Some("bad_reply"));
}

fn handlers_run_in_parallel_up_to_the_workers(broker: &Broker) {
    let service = unique("parallel");
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let _server = ServiceServer::builder(broker, &service)
        .workers(3)
        .prefetch(10)
        .respond("nap", {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            // Each ends only if three run at the same time.
            let three = Barrier::new(3);
            move |(): ()| {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                three.wait();
                running.fetch_sub(1, Ordering::SeqCst);
                thread::current().name().map(str::to_owned)
            }
        })
        .start()
        .unwrap();
    let client = client(broker);
    let pending: Vec<_> = (0..12)
        .map(|_| client.call_async::<String>(&service, "nap", &()).unwrap())
        .collect();
    let names: HashSet<String> = pending.into_iter().map(|p| p.wait().unwrap()).collect();
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert_eq!(names.len(), 3);
    assert!(names.iter().all(|name| name.starts_with("coney-worker-")));
}

fn servers_of_one_service_share_its_requests(broker: &Broker) {
    let service = unique("shared");
    let server = |name: &'static str| {
        ServiceServer::builder(broker, &service)
            .prefetch(1)
            .workers(1)
            .respond("who", move |(): ()| {
                thread::sleep(Duration::from_millis(5));
                name
            })
            .start()
            .unwrap()
    };
    let _servers = [server("a"), server("b")];
    let client = client(broker);
    let pending: Vec<_> = (0..30)
        .map(|_| client.call_async::<String>(&service, "who", &()).unwrap())
        .collect();
    let names: HashSet<String> = pending.into_iter().map(|p| p.wait().unwrap()).collect();
    assert_eq!(names.len(), 2);
}

fn a_handler_may_call_its_own_service(broker: &Broker) {
    let service = unique("recursive");
    let inner = client(broker);
    let own = service.clone();
    let _server = ServiceServer::builder(broker, &service)
        .handler("sum", move |n: u64| -> Result<u64, HandlerError> {
            if n == 0 {
                return Ok(0);
            }
            Ok(n + inner.call::<u64>(&own, "sum", &(n - 1))?)
        })
        .start()
        .unwrap();
    // Ten deep: every worker waits for another one.
    assert_eq!(client(broker).call::<u64>(&service, "sum", &9).unwrap(), 45);
}

fn shutdown_lets_running_handlers_reply(broker: &Broker) {
    let service = unique("drain");
    let (started, starts) = crossbeam_channel::unbounded();
    let server = ServiceServer::builder(broker, &service)
        .respond("nap", move |ms: u64| {
            started.send(()).unwrap();
            thread::sleep(Duration::from_millis(ms));
            ms
        })
        .start()
        .unwrap();
    let client = client(broker);
    let pending = client.call_async::<u64>(&service, "nap", &200).unwrap();
    starts.recv_timeout(PATIENCE).unwrap();
    server.shutdown(PATIENCE).unwrap();
    assert_eq!(pending.wait().unwrap(), 200);
    server.shutdown(PATIENCE).unwrap();
    // No server is left, but the queue remains: the request waits.
    let hurry = CallOptions::new().timeout(Duration::from_secs(1));
    let error = client.call_with::<u64>(&service, "nap", &1, &hurry);
    assert_eq!(error.unwrap_err().phase(), Some(Phase::Reply));
}

fn shutdown_requeues_unstarted_requests(broker: &Broker) {
    let service = unique("handover");
    let (started, starts) = crossbeam_channel::unbounded();
    let (release, gate) = crossbeam_channel::bounded::<()>(0);
    let first = ServiceServer::builder(broker, &service)
        .workers(1)
        .respond("wait", move |_: u64| {
            started.send(()).unwrap();
            let _ = gate.recv();
            "first"
        })
        .start()
        .unwrap();
    let client = client(broker);
    let running = client.call_async::<String>(&service, "wait", &0).unwrap();
    starts.recv_timeout(PATIENCE).unwrap();
    let waiting: Vec<_> = (0..5)
        .map(|_| client.call_async::<String>(&service, "wait", &0).unwrap())
        .collect();
    // Confirmed when it is in the queue, and those before it are or have been fetched.
    client.send(&service, "wait", &0).unwrap();
    let _second = ServiceServer::builder(broker, &service)
        .respond_with_context("wait", |context: &Context<'_>, _: u64| {
            format!("second, redelivered {}", context.is_redelivered())
        })
        .start()
        .unwrap();
    let answers: Vec<String> = thread::scope(|scope| {
        let stopping = scope.spawn(|| first.shutdown(PATIENCE));
        let answers = waiting.into_iter().map(|p| p.wait().unwrap()).collect();
        drop(release);
        stopping.join().unwrap().unwrap();
        answers
    });
    assert_eq!(running.wait().unwrap(), "first");
    assert!(
        answers.iter().all(|a| a.starts_with("second")),
        "{answers:?}"
    );
    // They had not begun: the second server gets them as new ones.
    assert!(answers.iter().all(|a| a.ends_with("false")), "{answers:?}");
}

fn shutdown_names_handlers_that_do_not_end(broker: &Broker) {
    let service = unique("stuck");
    let (release, gate) = crossbeam_channel::bounded::<()>(0);
    let (started, starts) = crossbeam_channel::unbounded();
    let server = ServiceServer::builder(broker, &service)
        .respond("wait", move |(): ()| {
            started.send(()).unwrap();
            let _ = gate.recv();
        })
        .start()
        .unwrap();
    let pending = client(broker)
        .call_async::<()>(&service, "wait", &())
        .unwrap();
    starts.recv_timeout(PATIENCE).unwrap();
    let start = Instant::now();
    let error = server.shutdown(Duration::from_millis(100)).unwrap_err();
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(error.phase(), Some(Phase::Shutdown));
    assert!(error.to_string().contains("1 handler"), "{error}");
    // Its request is free again for another server.
    let _second = ServiceServer::builder(broker, &service)
        .respond("wait", |(): ()| ())
        .start()
        .unwrap();
    pending.wait().unwrap();
    drop(release);
}

fn dropping_a_server_joins_its_threads(broker: &Broker) {
    let service = unique("dropped");
    let finished = Arc::new(AtomicUsize::new(0));
    let (started, starts) = crossbeam_channel::unbounded();
    let server = ServiceServer::builder(broker, &service)
        .respond("nap", {
            let finished = Arc::clone(&finished);
            move |(): ()| {
                started.send(()).unwrap();
                thread::sleep(Duration::from_millis(150));
                finished.fetch_add(1, Ordering::SeqCst);
            }
        })
        .start()
        .unwrap();
    let client = client(broker);
    let pending = client.call_async::<()>(&service, "nap", &()).unwrap();
    starts.recv_timeout(PATIENCE).unwrap();
    drop(server);
    assert_eq!(finished.load(Ordering::SeqCst), 1);
    // The handler was the only other owner of the counter.
    eventually("the handlers are gone", || {
        Arc::strong_count(&finished) == 1
    });
    pending.wait().unwrap();
}

/// Shows the refusal of a `Result`, which serde serializes: its error would be sent as data.
fn respond_refuses_a_handler_that_can_fail(broker: &Broker) {
    let service = unique("twice");
    let divide = |(a, b): (u64, u64)| a.checked_div(b).ok_or("division by zero");
    let builder = ServiceServer::builder(broker, &service);
    let error = builder.respond("divide", divide).start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("`handler`"), "{error}");
    let builder = ServiceServer::builder(broker, &service);
    drop(builder.handler("divide", divide).start().unwrap());
}

fn the_same_action_twice_is_refused(broker: &Broker) {
    let server = ServiceServer::builder(broker, &unique("twice"))
        .respond("a", |(): ()| ())
        .respond("a", |(): ()| ())
        .start();
    assert_eq!(server.unwrap_err().kind(), ErrorKind::InvalidConfig);
}

fn a_handler_cannot_shut_its_own_server_down(broker: &Broker) {
    let service = unique("quit");
    let own: Arc<std::sync::OnceLock<Arc<ServiceServer>>> = Arc::default();
    let server = ServiceServer::builder(broker, &service)
        .handler("quit", {
            let own = Arc::clone(&own);
            move |(): ()| -> Result<(), HandlerError> {
                let server = own.get().expect("set before the first call");
                Ok(server.shutdown(PATIENCE)?)
            }
        })
        .start()
        .unwrap();
    let server = Arc::new(server);
    own.set(Arc::clone(&server)).unwrap();
    let client = client(broker);
    for _ in 0..2 {
        let error = client.call::<()>(&service, "quit", &()).unwrap_err();
        assert!(error.to_string().contains("wait for itself"), "{error}");
    }
    server.shutdown(PATIENCE).unwrap();
}

/// A panic payload that panics itself when it is dropped.
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        assert!(thread::panicking(), "dropped");
    }
}

fn odd_panics_stop_no_thread(broker: &Broker) {
    let service = unique("odd");
    let server = ServiceServer::builder(broker, &service)
        .handler("odd", |(): ()| -> Result<(), HandlerError> {
            std::panic::panic_any(Grenade)
        })
        .respond("work", |n: u64| n)
        .health_check("odd", || -> Result<(), String> { Ok(()) })
        .start()
        .unwrap();
    let client = client(broker);
    for n in 0..30 {
        let error = client.call::<()>(&service, "odd", &()).unwrap_err();
        assert_eq!(error.remote_code(), Some("panic"), "{error}");
        assert_eq!(client.call::<u64>(&service, "work", &n).unwrap(), n);
    }
    let (sent, callbacks) = unbounded();
    for n in 0..3u64 {
        let pending = client.call_async::<u64>(&service, "work", &n).unwrap();
        let sent = sent.clone();
        pending
            .then(move |_| {
                sent.send(n).unwrap();
                std::panic::panic_any(Grenade)
            })
            .unwrap();
        assert_eq!(callbacks.recv_timeout(PATIENCE), Ok(n));
    }
    server.shutdown(PATIENCE).unwrap();
}
