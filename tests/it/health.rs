//! Servers with health checks, and the consequences of a failed one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use coney::server::PauseOnFailures;
use coney::{Broker, CallOptions, ErrorKind, EventSubscriber, Instance, Registry, ServiceServer};

use crate::support::instance_echo::{answering_instance, finder, server};
use crate::support::{PATIENCE, client, eventually, on_both, unique};

on_both!(
    an_unhealthy_server_takes_no_requests,
    a_server_that_starts_unhealthy_waits,
    a_check_that_panics_is_a_failure_and_one_that_hangs_holds_up_no_shutdown,
    the_state_shows_the_check_that_fails_now,
    a_check_must_pass_several_times_in_a_row,
    too_many_failures_pause_a_server_until_its_handler_works,
    nothing_is_healthy_after_its_shutdown,
);

const MS: Duration = Duration::from_millis(1);

fn an_unhealthy_server_takes_no_requests(broker: &Broker) {
    let (registry, service) = (Registry::memory(), unique("who"));
    let is_well = Arc::new(AtomicBool::new(true));
    let checked = Arc::clone(&is_well);
    let checks = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&checks);
    let unsteady = server(broker, &service, &registry, "unsteady")
        .health_interval(20 * MS)
        .health_check("always", move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok::<_, String>(())
        })
        .health_check("database", move || match checked.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err("connection refused"),
        })
        .start()
        .unwrap();
    let strict = finder(broker, &registry).build().unwrap();
    assert_eq!(answering_instance(&strict, &service), "unsteady");
    is_well.store(false, Ordering::SeqCst);
    eventually("it is left out", || {
        registry.lookup(&service).unwrap().is_empty()
    });
    let error = strict.call::<String>(&service, "who", &0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoInstance);
    assert!(
        error.to_string().contains("database: connection refused"),
        "{error}"
    );
    let direct = CallOptions::new().instance("unsteady").timeout(200 * MS);
    eventually("its own queue is gone", || {
        let error = strict.call_with::<String>(&service, "who", &0, &direct);
        error.is_err_and(|error| error.kind() == ErrorKind::NoRoute)
    });
    // A caller without look-ups waits until it or another instance is healthy.
    let mut waiting = client(broker)
        .call_async::<String>(&service, "who", &0)
        .unwrap();
    let before = checks.load(Ordering::SeqCst);
    eventually("more checks", || checks.load(Ordering::SeqCst) > before + 3);
    assert!(waiting.try_wait().is_none());
    assert_eq!(strict.in_flight(), 0);
    is_well.store(true, Ordering::SeqCst);
    assert_eq!(waiting.wait().unwrap(), "unsteady");
    eventually("it is found again", || {
        !registry.lookup(&service).unwrap().is_empty()
    });
    let direct = direct.timeout(PATIENCE);
    let answer: String = strict.call_with(&service, "who", &0, &direct).unwrap();
    assert_eq!(answer, "unsteady");
    unsteady.shutdown(PATIENCE).unwrap();
}

fn a_server_that_starts_unhealthy_waits(broker: &Broker) {
    let (registry, service) = (Registry::memory(), unique("who"));
    let is_well = Arc::new(AtomicBool::new(false));
    let checked = Arc::clone(&is_well);
    let checks = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&checks);
    let _server = server(broker, &service, &registry, "1")
        .health_interval(20 * MS)
        .health_check("database", move || {
            count.fetch_add(1, Ordering::SeqCst);
            checked
                .load(Ordering::SeqCst)
                .then_some(())
                .ok_or("not there yet")
        })
        .start()
        .unwrap();
    let found = registry.lookup(&service).unwrap();
    assert!(found.is_empty());
    let unwell = found.all().next().and_then(Instance::unhealthy_reason);
    assert_eq!(unwell, Some("database: not there yet"));
    let mut waiting = client(broker)
        .call_async::<String>(&service, "who", &0)
        .unwrap();
    let before = checks.load(Ordering::SeqCst);
    eventually("more checks", || checks.load(Ordering::SeqCst) > before + 3);
    assert!(waiting.try_wait().is_none());
    is_well.store(true, Ordering::SeqCst);
    assert_eq!(waiting.wait().unwrap(), "1");
}

fn a_check_that_panics_is_a_failure_and_one_that_hangs_holds_up_no_shutdown(broker: &Broker) {
    let (registry, service) = (Registry::memory(), unique("who"));
    let (release, gate) = crossbeam_channel::bounded::<()>(0);
    let rounds = AtomicUsize::new(0);
    let server = server(broker, &service, &registry, "1")
        .health_interval(10 * MS)
        .health_check("odd", move || match rounds.fetch_add(1, Ordering::SeqCst) {
            0 => Ok::<_, String>(()),
            1..=3 => panic!("as the test wants it"),
            _ => {
                let _ = gate.recv();
                Ok(())
            }
        })
        .start()
        .unwrap();
    eventually("the panic counts", || {
        let found = registry.lookup(&service).unwrap();
        let unwell = found
            .all()
            .next()
            .and_then(Instance::unhealthy_reason)
            .map(str::to_owned);
        unwell.is_some_and(|fault| fault == "odd: it panicked")
    });
    server.shutdown(PATIENCE).unwrap(); // an error if it waited for the check
    drop(release);
}

fn the_state_shows_the_check_that_fails_now(broker: &Broker) {
    let failing = Arc::new(AtomicUsize::new(0));
    let check = |number| {
        let failing = Arc::clone(&failing);
        move || match failing.load(Ordering::SeqCst) == number {
            true => Err("no answer"),
            false => Ok(()),
        }
    };
    let server = ServiceServer::builder(broker, &unique("who"))
        .health_interval(10 * MS)
        .health_failures(1)
        .health_check("database", check(1))
        .health_check("disk", check(2))
        .start()
        .unwrap();
    for (number, shown) in [
        (1, Some("database: no answer")),
        (2, Some("disk: no answer")),
        (0, None),
    ] {
        failing.store(number, Ordering::SeqCst);
        eventually("it shows", || server.state().unhealthy.as_deref() == shown);
    }
}

fn a_check_must_pass_several_times_in_a_row(broker: &Broker) {
    let (enter, entered) = crossbeam_channel::bounded::<()>(0);
    let (step, results) = crossbeam_channel::bounded::<bool>(0);
    let server = ServiceServer::builder(broker, &unique("who"))
        .health_interval(MS)
        .health_failures(2)
        .health_successes(3)
        .health_check("disk", move || {
            let _ = enter.send(());
            match results.recv() {
                Ok(true) | Err(_) => Ok(()),
                Ok(false) => Err("full"),
            }
        });
    let server = std::thread::spawn(move || server.start().unwrap());
    entered.recv_timeout(PATIENCE).unwrap();
    step.send(true).unwrap();
    let server = server.join().unwrap();
    let unhealthy = Some("disk: full".to_owned());
    for (passes, before) in [
        (false, None),
        (true, None),
        (false, None),
        (false, None),
        (true, unhealthy.clone()),
        (true, unhealthy.clone()),
        (false, unhealthy.clone()),
        (true, unhealthy.clone()),
        (true, unhealthy.clone()),
        (true, unhealthy.clone()),
        (true, None),
    ] {
        // A check begins only after the verdict on the one before has been applied.
        entered.recv_timeout(PATIENCE).unwrap();
        assert_eq!(server.state().unhealthy, before, "{passes}");
        step.send(passes).unwrap();
    }
    drop((entered, step));
    server.shutdown(PATIENCE).unwrap();
}

fn too_many_failures_pause_a_server_until_its_handler_works(broker: &Broker) {
    let (registry, service) = (Registry::memory(), unique("mail"));
    let works = Arc::new(AtomicBool::new(false));
    let (attempts, mails) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (is_up, attempt, sent) = (works.clone(), attempts.clone(), mails.clone());
    let server = ServiceServer::builder(broker, &service)
        .workers(2)
        .prefetch(2)
        .retry_delays([10 * MS; 20])
        .registry(&registry)
        .respond("ping", |n: u64| n)
        .handler("mail", move |_: u64| {
            attempt.fetch_add(1, Ordering::SeqCst);
            match is_up.load(Ordering::SeqCst) {
                true => Ok(sent.fetch_add(1, Ordering::SeqCst)),
                false => Err("no network"),
            }
        })
        .pause_on_failures(
            PauseOnFailures::new()
                .minimum_attempts(5)
                .pause_for(500 * MS),
        )
        .start()
        .unwrap();
    let client = client(broker);
    for n in 0..10 {
        client.send(&service, "mail", &n).unwrap();
    }
    let reason = || server.state().unhealthy.unwrap_or_default();
    eventually("it pauses", || {
        reason().starts_with("too many failures: 5 of 5 attempts within 10s, the last of them at")
    });
    eventually("the registry shows it", || {
        let found = registry.lookup(&service).unwrap();
        let shown = found.all().next().and_then(Instance::unhealthy_reason);
        shown.is_some_and(|shown| shown.starts_with("too many failures"))
    });
    let before = attempts.load(Ordering::SeqCst);
    eventually("one more attempt pauses it again", || {
        attempts.load(Ordering::SeqCst) > before && reason().contains("1 of 1 attempts")
    });
    works.store(true, Ordering::SeqCst);
    eventually("all mails are sent", || {
        mails.load(Ordering::SeqCst) == 10 && server.state().is_healthy()
    });
    assert_eq!(client.call::<u64>(&service, "ping", &7).unwrap(), 7);
    server.shutdown(PATIENCE).unwrap();
}

fn nothing_is_healthy_after_its_shutdown(broker: &Broker) {
    let service = unique("who");
    let server = ServiceServer::builder(broker, &service)
        .respond("who", |n: u64| n)
        .start()
        .unwrap();
    let subscriber = EventSubscriber::builder(broker, &service)
        .listen("who.*", |_: u64| ())
        .start()
        .unwrap();
    assert!(server.state().is_healthy() && subscriber.state().is_healthy());
    server.shutdown(PATIENCE).unwrap();
    subscriber.shutdown(PATIENCE).unwrap();
    assert!(server.state().shut_down && !server.state().is_healthy());
    assert!(subscriber.state().shut_down && !subscriber.state().is_healthy());
}
