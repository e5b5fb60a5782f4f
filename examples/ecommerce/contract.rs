//! The contract between the services: the payloads of their calls and events.

use serde::{Deserialize, Serialize};

pub const USER: &str = "user-service";
pub const PRODUCT: &str = "product-service";
pub const ORDER: &str = "order-service";
pub const PAYMENT: &str = "payment-service";
pub const INVENTORY: &str = "inventory-service";
pub const LOGISTICS: &str = "logistics-service";
pub const NOTIFICATION: &str = "notification-service";
pub const ANALYTICS: &str = "analytics-service";
pub const SEARCH: &str = "search-service";

#[derive(Serialize, Deserialize)]
pub struct Token {
    pub token: String,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct User {
    pub user_id: u64,
    pub name: String,
}

#[derive(Serialize, Deserialize)]
pub struct ProductId {
    pub product_id: u64,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Product {
    pub product_id: u64,
    pub name: String,
    pub cents: u64,
    /// The stock at the time of the call; it may have changed since.
    pub in_stock: u64,
}

/// An order, from the command that creates it to the last event about it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Order {
    /// `RUN-NUMBER`: unique over all runs, so that every step can be repeated.
    pub order_id: String,
    pub user_id: u64,
    pub product_id: u64,
    pub quantity: u64,
    pub cents: u64,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Payment {
    pub order_id: String,
    pub cents: u64,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Reservation {
    pub order_id: String,
    pub product_id: u64,
    pub quantity: u64,
}

/// The orders of a run by their state at order-service.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Books {
    pub paid: Vec<Order>,
    pub cancelled: Vec<Order>,
    pub open: Vec<Order>,
}

#[derive(Serialize, Deserialize)]
pub struct Run {
    pub run: String,
}
