//! The brokers that a scenario is measured with.

use coney::Broker;

/// A broker, and its name in the figures.
pub struct Transport {
    pub name: &'static str,
    pub broker: Broker,
    /// The URL of RabbitMQ.
    pub url: Option<String>,
}

/// Returns the memory broker, and RabbitMQ if the environment names one.
pub fn all() -> Vec<Transport> {
    let memory = Transport {
        name: "memory",
        broker: Broker::memory(),
        url: None,
    };
    let urls = ["CONEY_TEST_AMQP_URL", "AMQP_URL"].map(std::env::var);
    let rabbitmq = urls.into_iter().find_map(Result::ok).map(|url| Transport {
        name: "RabbitMQ",
        broker: Broker::connect(&url).expect("the broker is there"),
        url: Some(url),
    });
    if rabbitmq.is_none() {
        eprintln!("not over RabbitMQ, as AMQP_URL is not set");
    }
    [memory].into_iter().chain(rabbitmq).collect()
}
