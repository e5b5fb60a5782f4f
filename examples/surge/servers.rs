//! The two servers of the same service: one with a fixed number of workers, and one that grows,
//! shrinks and refuses.

use std::thread;
use std::time::Duration;

use coney::server::{Scaling, ServiceServerBuilder, Shed};
use coney::{Broker, ServiceServer};

pub const SERVICE: &str = "surge-service";
pub const ACTION: &str = "work";

/// The time that each request takes. It is spent waiting, as for a database.
pub const WORK: Duration = Duration::from_millis(50);

/// A kind of server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Four workers: enough for 80 calls a second.
    Fixed,
    /// Two workers at first, and up to 32. While too many calls wait, some are answered as busy.
    Scaling,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Fixed, Self::Scaling];

    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed => "4 workers",
            Self::Scaling => "2 to 32 workers, shedding",
        }
    }

    /// Returns true if the server counts the messages in its queue, as only those do that scale or
    /// shed.
    pub fn counts_queue(self) -> bool {
        self == Self::Scaling
    }

    /// Starts the server.
    pub fn start(self, broker: &Broker) -> coney::Result<ServiceServer> {
        let server = match self {
            Self::Fixed => with_a_fixed_number(broker),
            Self::Scaling => with_scaling_and_shedding(broker),
        };
        server.start()
    }
}

fn with_a_fixed_number(broker: &Broker) -> ServiceServerBuilder {
    ServiceServer::builder(broker, SERVICE)
        .workers(4)
        .respond(ACTION, work)
}

fn with_scaling_and_shedding(broker: &Broker) -> ServiceServerBuilder {
    ServiceServer::builder(broker, SERVICE)
        .workers(2..=32)
        .scaling(Scaling::new()) // twice as many while calls would wait for over 50 ms
        .shed(Shed::new()) // refuses what would wait for over a quarter of its timeout
        .respond(ACTION, work)
}

fn work(number: u64) -> u64 {
    thread::sleep(WORK);
    number
}
