//! user-service: authenticates the customers, and publishes an event for each new one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use coney::{Context, HandlerError};

use crate::contract::{Token, USER, User};
use crate::platform::{Platform, Service};
use crate::stats::Stats;

/// The users by name, each with true once its event has been published.
type Users = Mutex<HashMap<String, (User, bool)>>;

pub fn start(platform: &Platform) -> coney::Result<Service> {
    let stats = Arc::new(Stats::new());
    let publisher = platform.publisher(USER)?;
    let users: Users = Mutex::default();
    let server = platform
        .server(USER, &stats)
        .handler_with_context(
            "authenticate",
            move |context: &Context<'_>, login: Token| {
                stats.count(context, || {
                    let Some(name) = login.token.strip_prefix("token-of-") else {
                        return Err(HandlerError::new("Invalid token").with_code("unauthorized"));
                    };
                    let (user, is_published) = known(&users, name);
                    if !is_published {
                        publisher.publish("user.registered", &user)?;
                        let published = (user.clone(), true);
                        users.lock().unwrap().insert(name.to_owned(), published);
                    }
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

fn known(users: &Users, name: &str) -> (User, bool) {
    let mut users = users.lock().unwrap();
    let user_id = users.len() as u64 + 1;
    let name = name.to_owned();
    let entry = users.entry(name.clone());
    entry.or_insert((User { user_id, name }, false)).clone()
}
