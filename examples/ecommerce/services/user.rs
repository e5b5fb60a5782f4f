//! Knows the customers. A new one is told to the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use coney::{Context, HandlerError};

use crate::contract::{Token, USER, User};
use crate::platform::{Platform, Service};
use crate::stats::Stats;

pub fn start(platform: &Platform) -> coney::Result<Service> {
    let stats = Arc::new(Stats::new());
    let publisher = platform.publisher(USER)?;
    let users: Mutex<HashMap<String, User>> = Mutex::default();
    let server = platform
        .server(USER, &stats)
        .handler_with(
            "authenticate",
            move |context: &Context<'_>, login: Token| {
                stats.count(context, || {
                    let Some(name) = login.token.strip_prefix("token-of-") else {
                        return Err(HandlerError::new("Invalid token").with_code("unauthorized"));
                    };
                    let mut users = users.lock().unwrap();
                    if let Some(user) = users.get(name) {
                        return Ok(user.clone());
                    }
                    let user = User {
                        user_id: users.len() as u64 + 1,
                        name: name.to_owned(),
                    };
                    users.insert(name.to_owned(), user.clone());
                    drop(users);
                    publisher.publish("user.registered", &user)?;
                    Ok(user)
                })
            },
        )
        .start()?;
    Ok(Service {
        server,
        subscriber: None,
    })
}
