//! The log line of a handler that takes too long.

use std::thread;
use std::time::Duration;

use coney::{Broker, ServiceClient, ServiceServer};
use crossbeam_channel::bounded;

/// Has two handlers overdue until `lines` has their lines, and asserts that each has only one.
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
    let stuck = (0..2).map(|_| client.call_async::<()>(service, "stuck", &()));
    let stuck = stuck.collect::<coney::Result<Vec<_>>>()?;
    let start = format!("{service}.stuck: the handler has run for ");
    let found = || {
        let lines = lines().into_iter();
        lines
            .filter(|it| it.starts_with(&start))
            .collect::<Vec<_>>()
    };
    while found().len() < 2 {
        thread::sleep(Duration::from_millis(5));
    }
    // The second worker is replaced when the first one's handler has returned.
    let _ = release.send(());
    for n in 0..20u64 {
        assert_eq!(client.call::<u64>(service, "quick", &n)?, n);
        thread::sleep(Duration::from_millis(5));
    }
    drop(release);
    for call in stuck {
        call.wait()?;
    }
    server.shutdown(Duration::from_secs(60))?;
    let lines = found();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (number, line) in lines.iter().enumerate() {
        let thread = format!("on the thread coney-worker-{service}-{number}");
        assert!(line.contains(&thread), "{lines:?}");
    }
    Ok(())
}
