//! stock-service: says how many pieces of an article there are, if its condition allows it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use coney::{Broker, HandlerError, HandlerResult, ServiceServer};
use serde::{Deserialize, Serialize};

use crate::schedule::Condition;

pub const STOCK: &str = "stock-service";

/// The pieces of an article.
#[derive(Serialize, Deserialize)]
pub enum Stock {
    Pieces(u64),
    /// The fallback: the page is shown without a number.
    Unknown,
}

/// The service, which is started and stopped on a schedule.
pub struct StockService {
    broker: Broker,
    handler: Arc<Handler>,
    server: Option<ServiceServer>,
}

struct Handler {
    tick: Duration,
    condition: Mutex<Condition>,
    requests: AtomicU64,
    /// The time until which an overloaded service has something to do.
    busy_until: Mutex<Instant>,
}

impl StockService {
    /// Starts the service.
    pub fn start(broker: &Broker, tick: Duration) -> coney::Result<Self> {
        let mut service = Self {
            broker: broker.clone(),
            handler: Arc::new(Handler {
                tick,
                condition: Mutex::new(Condition::Well),
                requests: AtomicU64::new(0),
                busy_until: Mutex::new(Instant::now()),
            }),
            server: None,
        };
        service.enter(Condition::Well)?;
        Ok(service)
    }

    /// Changes the condition; starts or stops the server.
    pub fn enter(&mut self, condition: Condition) -> coney::Result<()> {
        *self.handler.condition.lock().unwrap() = condition;
        if condition == Condition::Gone {
            self.server = None;
        } else if self.server.is_none() {
            let handler = Arc::clone(&self.handler);
            let server = ServiceServer::builder(&self.broker, STOCK)
                .workers(8)
                .handler("count", move |article: u64| handler.count(article))
                .start()?;
            self.server = Some(server);
        }
        Ok(())
    }
}

impl Handler {
    fn count(&self, article: u64) -> HandlerResult<Stock> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut takes = self.tick / 200;
        let condition = *self.condition.lock().unwrap();
        match condition {
            Condition::Flaky if number.is_multiple_of(5) => {
                return Err(HandlerError::busy("restarting", self.tick / 50));
            }
            Condition::Overloaded if !self.has_room() => {
                return Err(HandlerError::busy("too much to do", self.tick / 10));
            }
            Condition::Slow => takes *= 60,
            _ => {}
        }
        thread::sleep(takes);
        Ok(Stock::Pieces(article % 7))
    }

    /// Returns true for 30 requests in a tick, up to three of them at once.
    fn has_room(&self) -> bool {
        let (now, takes) = (Instant::now(), self.tick / 30);
        let mut busy_until = self.busy_until.lock().unwrap();
        let has_room = *busy_until < now + takes * 3;
        if has_room {
            *busy_until = now.max(*busy_until) + takes;
        }
        has_room
    }
}
