//! notification-service: logs the mails to customers.

use std::sync::Arc;

use coney::Context;

use crate::contract::{NOTIFICATION, Order, User};
use crate::platform::{Platform, Service};
use crate::stats::Stats;

pub fn start(platform: &Platform) -> coney::Result<Service> {
    let stats = Arc::new(Stats::new());
    let server = platform.server(NOTIFICATION, &stats).start()?;
    let user_stats = Arc::clone(&stats);
    let subscriber = platform
        .subscriber(NOTIFICATION)
        .on_with_context(
            "user.registered",
            move |context: &Context<'_>, user: User| {
                user_stats.count(context, || {
                    log::debug!("welcome, {}", user.name);
                    Ok(())
                })
            },
        )
        .on_with_context("order.*", move |context: &Context<'_>, order: Order| {
            stats.count(context, || {
                log::debug!("{}: {}", order.order_id, context.action());
                Ok(())
            })
        })
        .start()?;
    Ok(Service {
        server,
        subscriber: Some(subscriber),
    })
}
