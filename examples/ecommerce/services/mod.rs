//! The nine services, each in a file of its own.

mod analytics;
mod inventory;
mod logistics;
mod notification;
mod order;
mod payment;
mod product;
mod search;
mod user;

use crate::contract;
use crate::platform::{Platform, Service};

type Start = fn(&Platform) -> coney::Result<Service>;

/// The services in their start order: subscribers start before the publishers of their events.
pub const ALL: [(&str, Start); 9] = [
    (contract::SEARCH, search::start),
    (contract::ANALYTICS, analytics::start),
    (contract::NOTIFICATION, notification::start),
    (contract::LOGISTICS, logistics::start),
    (contract::PAYMENT, payment::start),
    (contract::ORDER, order::start),
    (contract::INVENTORY, inventory::start),
    (contract::PRODUCT, product::start),
    (contract::USER, user::start),
];

/// Starts all services.
pub fn start_all(platform: &Platform) -> coney::Result<Vec<Service>> {
    ALL.iter().map(|(_, start)| start(platform)).collect()
}

/// Starts one service by its name, with or without `-service`.
pub fn start(platform: &Platform, name: &str) -> Result<Service, Box<dyn std::error::Error>> {
    let known = ALL
        .iter()
        .find(|(service, _)| *service == name || service.strip_suffix("-service") == Some(name));
    match known {
        Some((_, start)) => Ok(start(platform)?),
        None => {
            let names = ALL.map(|(service, _)| service).join(", ");
            Err(format!("there is no service {name:?}; there are gateway, {names}").into())
        }
    }
}
