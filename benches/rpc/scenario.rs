use coney::{BatchLimits, Broker, ServiceClient, ServiceServer};

use crate::bare::{BareAmqp, BareMemory};
use crate::measure::{Call, Setup};
use crate::{Scenario, Transport};

pub fn set_up(scenario: Scenario, transport: Transport, url: &str, batch: usize) -> Box<dyn Setup> {
    match (scenario, transport) {
        (Scenario::Bare, Transport::Memory) => Box::new(BareMemory::start()),
        (Scenario::Bare, Transport::Amqp) => Box::new(BareAmqp::start(url)),
        (Scenario::Call, _) => Box::new(Coney::start(transport, url, false)),
        (Scenario::Coalesced, _) => Box::new(Coney::start(transport, url, true)),
        (Scenario::Batch, _) => Box::new(Batched {
            coney: Coney::start(transport, url, false),
            size: batch,
        }),
    }
}

/// coney as a user would use it: typed, everything at its default.
struct Coney {
    client: ServiceClient,
    _server: ServiceServer,
}

impl Coney {
    fn start(transport: Transport, url: &str, coalesce: bool) -> Self {
        // Two connections over RabbitMQ, as two programs would have.
        let (of_server, of_client) = match transport {
            Transport::Memory => {
                let broker = Broker::memory();
                (broker.clone(), broker)
            }
            Transport::Amqp => {
                let connect = || Broker::connect(url).expect("the broker is there");
                (connect(), connect())
            }
        };
        let server = ServiceServer::builder(&of_server, "bench-coney")
            .handler("echo", |text: String| Ok::<_, String>(text))
            .start()
            .expect("the server starts");
        let mut client = ServiceClient::builder(&of_client, "bench");
        if coalesce {
            client = client.coalesce(BatchLimits::new());
        }
        let client = client.build().expect("the client starts");
        Self {
            client,
            _server: server,
        }
    }
}

impl Setup for Coney {
    fn caller(&self, payload: &str) -> Call {
        let client = self.client.clone();
        let payload = payload.to_owned();
        Box::new(move || {
            let reply: coney::Result<String> = client.call("bench-coney", "echo", &payload);
            reply.is_ok_and(|text| text == payload)
        })
    }
}

/// Calls in batches.
struct Batched {
    coney: Coney,
    size: usize,
}

impl Setup for Batched {
    fn caller(&self, payload: &str) -> Call {
        let client = self.coney.client.clone();
        let payload = payload.to_owned();
        let size = self.size;
        Box::new(move || {
            let mut batch = client.batch("bench-coney");
            for _ in 0..size {
                batch.add::<_, String>("echo", &payload);
            }
            let replies = batch.call().into_results::<String>();
            replies
                .iter()
                .all(|reply| reply.as_ref().is_ok_and(|text| *text == payload))
        })
    }
}
