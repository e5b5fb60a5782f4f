//! A service whose handlers double, name, refuse, panic, sleep and echo.

use std::thread;
use std::time::Duration;

use coney::{Broker, HandlerError, ServiceServer};

pub fn math(broker: &Broker, service: &str) -> ServiceServer {
    ServiceServer::builder(broker, service)
        .any_reply_queue(true)
        .respond("double", |n: u64| n * 2)
        .respond("name", |n: u64| format!("number {n}"))
        .handler("refuse", |_: u64| {
            Err::<(), _>(HandlerError::new("not today").with_code("closed"))
        })
        .handler("panic", |_: u64| -> Result<(), HandlerError> {
            panic!("on purpose")
        })
        .respond("nap", |millis: u64| {
            thread::sleep(Duration::from_millis(millis));
            millis
        })
        .respond("echo", |text: String| text)
        .start()
        .unwrap()
}
