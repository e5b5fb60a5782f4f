//! Clients that retry.

use std::time::Duration;

use coney::client::NextCall;
use coney::resilience::{Resilience, Retry, RetryBudget};
use coney::{Broker, ServiceClient};
use crossbeam_channel::{Receiver, unbounded};

use super::PATIENCE;
use super::scripted_service::{Run, resilient};

const MS: Duration = Duration::from_millis(1);

/// Returns retries with short delays, and a budget that pays for all of them.
pub fn quick() -> Retry {
    let budget = RetryBudget::new().share(100.0).reserve(1_000);
    Retry::new().delays(MS, 20 * MS).budget(budget)
}

/// Returns a client that retries.
pub fn retrying(broker: &Broker, retry: Retry) -> ServiceClient {
    resilient(broker, Resilience::none().retry(retry))
}

/// Returns a client that also sends the number of each attempt before it is made.
pub fn observed(broker: &Broker, retry: Retry) -> (ServiceClient, Receiver<u32>) {
    let (sent, attempts) = unbounded();
    let client = ServiceClient::builder(broker, "shop")
        .timeout(PATIENCE)
        .resilience(Resilience::none().retry(retry))
        .attempt_layer(move |call, next: NextCall<'_>| {
            let _ = sent.send(call.attempt().expect("this is a layer of an attempt"));
            next.run(call)
        })
        .build()
        .unwrap();
    (client, attempts)
}

/// Returns the attempts of these runs.
pub fn attempts(runs: &[Run]) -> Vec<u32> {
    runs.iter().map(|run| run.attempt).collect()
}
