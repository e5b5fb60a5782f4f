//! A service whose instances answer with their own id.

use std::thread;
use std::time::Duration;

use coney::client::ServiceClientBuilder;
use coney::server::ServiceServerBuilder;
use coney::{Broker, Context, Instance, Registry, ServiceClient, ServiceServer};

use super::PATIENCE;

/// Starts a server whose action `who` returns the id of the instance.
pub fn server(
    broker: &Broker,
    service: &str,
    registry: &Registry,
    id: &str,
) -> ServiceServerBuilder {
    ServiceServer::builder(broker, service)
        .registry(registry)
        .instance(Instance::new().with_id(id))
        .respond_with_context("who", |context: &Context<'_>, nap: u64| {
            thread::sleep(Duration::from_millis(nap));
            context.instance_id().map(str::to_owned)
        })
}

pub fn finder(broker: &Broker, registry: &Registry) -> ServiceClientBuilder {
    ServiceClient::builder(broker, "finder")
        .timeout(PATIENCE)
        .registry(registry)
}

pub fn answering_instance(client: &ServiceClient, service: &str) -> String {
    client.call(service, "who", &0).unwrap()
}
