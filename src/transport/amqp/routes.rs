//! The channels of a connection, as the thread that reads the socket knows them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::delivery_route::DeliveryRoute;
use super::link_outlet::LinkOutlet;

/// The open channels of a connection: the routes of their deliveries, and the outlets to close when
/// the broker closes a channel.
#[derive(Default)]
pub(super) struct Routes {
    channels: Mutex<HashMap<u16, Registered>>,
}

struct Registered {
    outlet: Arc<LinkOutlet>,
    /// The route, unless nothing is consumed on the channel.
    route: Option<Arc<DeliveryRoute>>,
}

impl Routes {
    /// Returns the route of the deliveries on a channel, if it has one.
    pub(super) fn route(&self, channel: u16) -> Option<Arc<DeliveryRoute>> {
        self.channels.lock().get(&channel)?.route.clone()
    }

    /// Handles the closing of a channel by the broker: nothing more may be sent on it. Called
    /// before amiquip answers.
    pub(super) fn channel_closed(&self, channel: u16) {
        let channels = self.channels.lock();
        let outlet = channels.get(&channel).map(|it| Arc::clone(&it.outlet));
        drop(channels);
        if let Some(outlet) = outlet {
            outlet.close();
        }
    }
}

/// The registration of a channel; ends when it is dropped. After that nothing more is sent on the
/// channel through the outlet, and no further delivery reaches the sink.
pub(super) struct Registration {
    routes: Arc<Routes>,
    channel: u16,
    pub(super) outlet: Arc<LinkOutlet>,
    route: Option<Arc<DeliveryRoute>>,
}

impl Registration {
    pub(super) fn new(
        routes: &Arc<Routes>,
        channel: u16,
        outlet: Arc<LinkOutlet>,
        route: Option<Arc<DeliveryRoute>>,
    ) -> Self {
        let registered = Registered {
            outlet: Arc::clone(&outlet),
            route: route.clone(),
        };
        routes.channels.lock().insert(channel, registered);
        Self {
            routes: Arc::clone(routes),
            channel,
            outlet,
            route,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut channels = self.routes.channels.lock();
        // Another link may have the number already: amiquip gives that of a closed channel away.
        let is_own = channels
            .get(&self.channel)
            .is_some_and(|it| Arc::ptr_eq(&it.outlet, &self.outlet));
        if is_own {
            channels.remove(&self.channel);
        }
        drop(channels);
        if let Some(route) = &self.route {
            route.close();
        }
        self.outlet.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_that_ends_late_leaves_the_next_one_of_its_number_alone() {
        let routes = Arc::<Routes>::default();
        let register = || Registration::new(&routes, 5, Arc::default(), None);
        let first = register();
        let second = register();
        drop(first);
        assert_eq!(routes.channels.lock().len(), 1);
        drop(second);
        assert!(routes.channels.lock().is_empty());
    }
}
