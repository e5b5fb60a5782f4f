//! The scenarios, and their setup.

use coney::batch::BatchLimits;
use coney::{Broker, ServiceClient, ServiceServer};

use crate::bare::{BareAmqp, BareMemory};
use crate::measure::{Call, Setup};
use crate::raw::RawAmqp;
use crate::shared::SharedAmqp;
use crate::{Scenario, Transport};

/// The parameters of one figure.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub scenario: Scenario,
    pub transport: Transport,
    pub callers: usize,
    pub payload: usize,
    pub batch: usize,
    /// The number of services in this process; callers are spread over them.
    pub services: usize,
    pub clients: usize,
    /// True if lone callers may spin.
    pub spins: bool,
}

pub fn set_up(shape: &Shape, url: &str) -> Box<dyn Setup> {
    match (shape.scenario, shape.transport) {
        (Scenario::Bare, Transport::Memory) => Box::new(BareMemory::start()),
        (Scenario::Bare, Transport::Amqp) => Box::new(BareAmqp::start(url)),
        (Scenario::Shared, _) => Box::new(SharedAmqp::start(url, false)),
        (Scenario::Raw, _) => Box::new(RawAmqp::start(url, shape.payload)),
        (Scenario::Direct, _) => Box::new(SharedAmqp::start(url, true)),
        (Scenario::Call | Scenario::Coalesced | Scenario::Batch, _) => {
            Box::new(Coney::start(shape, url))
        }
    }
}

/// coney as in a user's program: typed handlers, everything at its default.
struct Coney {
    shape: Shape,
    clients: Vec<ServiceClient>,
    servers: Vec<ServiceServer>,
}

impl Coney {
    fn start(shape: &Shape, url: &str) -> Self {
        // Two connections over RabbitMQ, as two programs would have.
        let (of_servers, of_clients) = match shape.transport {
            Transport::Memory => {
                let broker = Broker::memory();
                (broker.clone(), broker)
            }
            Transport::Amqp => {
                let connect = || Broker::connect(url).expect("the broker is there");
                (connect(), connect())
            }
        };
        let server = |number| {
            ServiceServer::builder(&of_servers, &format!("bench-coney-{number}"))
                .respond("echo", |text: String| text)
                .start()
                .expect("the server starts")
        };
        let client = |_| {
            let client = ServiceClient::builder(&of_clients, "bench");
            let client = match shape.scenario {
                Scenario::Coalesced => client.coalesce(BatchLimits::new()),
                _ => client,
            };
            client.spin(shape.spins).build().expect("the client starts")
        };
        Self {
            shape: *shape,
            servers: (0..shape.services).map(server).collect(),
            clients: (0..shape.clients).map(client).collect(),
        }
    }
}

impl Setup for Coney {
    fn caller(&self, number: usize, payload: &str) -> Call {
        let client = self.clients[number % self.clients.len()].clone();
        let service = self.servers[number % self.servers.len()]
            .service()
            .to_owned();
        let payload = payload.to_owned();
        let size = self.shape.batch;
        match self.shape.scenario {
            Scenario::Batch => Box::new(move || {
                let mut batch = client.batch(&service);
                for _ in 0..size {
                    batch.add::<String>("echo", &payload);
                }
                let replies = batch.call().into_results::<String>();
                let is_right = |text: coney::Result<String>| text.is_ok_and(|it| it == payload);
                replies.into_iter().all(is_right)
            }),
            _ => Box::new(move || {
                let reply: coney::Result<String> = client.call(&service, "echo", &payload);
                reply.is_ok_and(|text| text == payload)
            }),
        }
    }
}
