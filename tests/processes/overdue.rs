//! The log line of a handler that takes too long.

use std::thread;
use std::time::Duration;

use coney::{Broker, ServiceClient, ServiceServer};
use crossbeam_channel::bounded;

/// Has a handler overdue until `lines` has its line, and asserts that it is the only one.
pub fn is_logged_once(service: &str, lines: impl Fn() -> Vec<String>) -> coney::Result<()> {
    let broker = Broker::memory();
    let (release, released) = bounded::<()>(0);
    let server = ServiceServer::builder(&broker, service)
        .workers(1)
        .handler_timeout(Duration::from_millis(20))
        .respond("stuck", move |(): ()| {
            let _ = released.recv();
        })
        .respond("quick", |n: u64| n)
        .start()?;
    let client = ServiceClient::builder(&broker, "overdue")
        .timeout(Duration::from_secs(60))
        .build()?;
    let stuck = client.call_async::<()>(service, "stuck", &())?;
    let start = format!("{service}.stuck: the handler has run for ");
    let found = || {
        let lines = lines().into_iter();
        lines
            .filter(|it| it.starts_with(&start))
            .collect::<Vec<_>>()
    };
    while found().is_empty() {
        thread::sleep(Duration::from_millis(5));
    }
    // Several more checks pass meanwhile.
    for n in 0..20u64 {
        assert_eq!(client.call::<u64>(service, "quick", &n)?, n);
        thread::sleep(Duration::from_millis(5));
    }
    drop(release);
    stuck.wait()?;
    server.shutdown(Duration::from_secs(60))?;
    let lines = found();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let thread = format!("on the thread coney-worker-{service}-0");
    assert!(lines[0].contains(&thread), "{lines:?}");
    Ok(())
}
