//! A service whose instances answer with their own id.

use std::thread;
use std::time::Duration;

use coney::{
    Broker, Context, HandlerError, Instance, Registry, ServiceClient, ServiceClientBuilder,
    ServiceServer, ServiceServerBuilder,
};

use super::PATIENCE;

/// A server of the action `who`, which answers the id of the instance.
pub fn server(
    broker: &Broker,
    service: &str,
    registry: &Registry,
    id: &str,
) -> ServiceServerBuilder {
    ServiceServer::builder(broker, service)
        .registry(registry)
        .instance(Instance::new().with_id(id))
        .handler_with("who", |context: &Context<'_>, nap: u64| {
            thread::sleep(Duration::from_millis(nap));
            Ok::<_, HandlerError>(context.instance_id().map(str::to_owned))
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
