//! Which instances of a service there are: registering, beating, looking up,
//! balancing.
//!
//! [`ServiceRegistry`] is what a store must do; [`MemoryRegistry`] and
//! [`RedisRegistry`](crate::RedisRegistry) are the two there are. [`Registry`] is
//! what programs use: a store, a cache in front of it for look-ups, and a thread
//! that beats for what was registered.

mod beats;
mod builder;
mod cache;
mod candidate;
mod entry;
mod instance;
mod json;
mod liveness;
mod lookup;
mod memory;
mod refresher;
mod registration;
mod snapshot;

pub mod balance;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use self::balance::Balancer;
use self::beats::Beats;
pub use self::builder::RegistryBuilder;
use self::cache::Cache;
pub use self::candidate::{Candidate, Pick};
pub use self::instance::Instance;
pub(crate) use self::instance::{CAPABILITIES, OWN_QUEUE};
pub use self::lookup::Lookup;
pub use self::memory::MemoryRegistry;
pub use self::registration::{Registration, RegistrationState};
use crate::error::Result;
use crate::name::check_service;

/// What a store of instances must do.
///
/// Called by a [`Registry`]'s two threads, and by callers of [`Registry::services`]; a call
/// may block for as long as the store's timeout says, and no longer.
pub trait ServiceRegistry: Send + Sync {
    /// Writes an instance, over one with the same id.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Registry`](crate::ErrorKind::Registry) if the store does not do it.
    fn register(&self, instance: &Instance) -> Result<()>;

    /// Removes an instance for good: its heartbeats do not bring it back. One that
    /// is not there is no error.
    ///
    /// # Errors
    ///
    /// As [`register`](ServiceRegistry::register).
    fn deregister(&self, service: &str, id: &str) -> Result<()>;

    /// Renews the heartbeats of instances, at best in one round trip however many
    /// there are, and says for each, in order, what came of it. Changes their
    /// [`last_heartbeat`](Instance::last_heartbeat) and their health and nothing
    /// else, as somebody else may have written the rest. Creates nothing.
    ///
    /// # Errors
    ///
    /// As [`register`](ServiceRegistry::register).
    fn heartbeat(&self, instances: &[Instance]) -> Result<Vec<Beat>>;

    /// The instances of a service, dead ones too. What cannot be read
    /// is left out.
    ///
    /// # Errors
    ///
    /// As [`register`](ServiceRegistry::register).
    fn instances(&self, service: &str) -> Result<Found>;

    /// Removes an instance that has died, unless it has been heard of since. True if
    /// it is gone.
    ///
    /// # Errors
    ///
    /// As [`register`](ServiceRegistry::register).
    fn remove_dead(&self, instance: &Instance) -> Result<bool>;

    /// Which of these instances, which are not there any more, were deregistered; in order.
    /// The others were lost, and are kept until they would be dead. By default all of them
    /// were: right for a store that loses nothing.
    ///
    /// # Errors
    ///
    /// As [`register`](ServiceRegistry::register).
    fn was_deregistered(&self, service: &str, ids: &[&str]) -> Result<Vec<bool>> {
        let _ = service;
        Ok(vec![true; ids.len()])
    }

    /// Whether the store takes what is written: one that does not makes the living look
    /// dead. Asked when somebody seems to have died. Default: yes.
    ///
    /// # Errors
    ///
    /// As [`register`](ServiceRegistry::register), if it does not.
    fn check_writes(&self) -> Result<()> {
        Ok(())
    }

    /// The services that have instances, in order.
    ///
    /// # Errors
    ///
    /// As [`register`](ServiceRegistry::register).
    fn services(&self) -> Result<Vec<String>>;

    /// How old the last heartbeat of a living instance may be.
    fn dead_after(&self) -> Duration;

    /// One of the living and healthy instances at random, asked for at the store
    /// itself. [`Registry::pick`] is a thousand times faster.
    ///
    /// # Errors
    ///
    /// As [`register`](ServiceRegistry::register).
    fn healthy_instance(&self, service: &str) -> Result<Option<Instance>> {
        let Found {
            mut instances,
            now_millis,
            ..
        } = self.instances(service)?;
        let now = snapshot::Clock::now(now_millis);
        instances.retain(|one| one.is_healthy() && now.is_young(one, self.dead_after()));
        if instances.is_empty() {
            return Ok(None);
        }
        Ok(Some(
            instances.swap_remove(fastrand::usize(..instances.len())),
        ))
    }
}

impl<S: ServiceRegistry + ?Sized> ServiceRegistry for Arc<S> {
    fn register(&self, instance: &Instance) -> Result<()> {
        (**self).register(instance)
    }

    fn deregister(&self, service: &str, id: &str) -> Result<()> {
        (**self).deregister(service, id)
    }

    fn heartbeat(&self, instances: &[Instance]) -> Result<Vec<Beat>> {
        (**self).heartbeat(instances)
    }

    fn instances(&self, service: &str) -> Result<Found> {
        (**self).instances(service)
    }

    fn remove_dead(&self, instance: &Instance) -> Result<bool> {
        (**self).remove_dead(instance)
    }

    fn was_deregistered(&self, service: &str, ids: &[&str]) -> Result<Vec<bool>> {
        (**self).was_deregistered(service, ids)
    }

    fn check_writes(&self) -> Result<()> {
        (**self).check_writes()
    }

    fn services(&self) -> Result<Vec<String>> {
        (**self).services()
    }

    fn dead_after(&self) -> Duration {
        (**self).dead_after()
    }

    fn healthy_instance(&self, service: &str) -> Result<Option<Instance>> {
        (**self).healthy_instance(service)
    }
}

/// What [`ServiceRegistry::instances`] finds.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The instances, in any order.
    pub instances: Vec<Instance>,
    /// A number that is another once the store has lost what it knew; 0 for a store that
    /// loses nothing.
    pub generation: u64,
    /// The time by the store's clock, in Unix milliseconds, if it has one that heartbeats are
    /// written by.
    pub now_millis: Option<u64>,
}

impl Found {
    /// Instances of a store that has no clock and is never emptied.
    pub fn new(instances: Vec<Instance>) -> Self {
        Self {
            instances,
            ..Self::default()
        }
    }
}

/// What came of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The instance is there.
    Renewed,
    /// The store has lost it, or took it for dead: it is to be registered again.
    Lost,
    /// Somebody has deregistered it.
    Deregistered,
}

/// A handle on a registry: where programs register, look up and balance.
///
/// Cheap to clone and free to share between threads. Look-ups are answered from a
/// cache, which one thread of its own keeps fresh; another beats for what was
/// registered here. Both start when they are first needed and end with the last
/// handle.
///
/// ```
/// use coney::{Broker, Registry, ServiceClient, ServiceServer};
///
/// let (broker, registry) = (Broker::memory(), Registry::memory());
/// let server = ServiceServer::builder(&broker, "greeter")
///     .handler("greet", |name: String| Ok::<_, String>(format!("Hello, {name}!")))
///     .registry(&registry) // or Registry::connect("redis://localhost")?
///     .start()?;
/// for instance in registry.lookup("greeter")?.iter() {
///     println!("{} on {:?}", instance.id(), instance.host());
/// }
/// # assert_eq!(registry.lookup("greeter")?.iter().count(), 1);
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn ServiceRegistry>,
    cache: Arc<Cache>,
    beats: Mutex<Beats>,
}

impl Registry {
    /// A registry inside this process, with the default options. Each call makes another
    /// one: clone it to share it between servers and clients.
    pub fn memory() -> Self {
        Self::from_builder(RegistryBuilder::new(MemoryRegistry::new()))
    }

    /// Options for a registry over a store.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coney::{MemoryRegistry, Registry};
    ///
    /// let store = MemoryRegistry::new().with_dead_after(Duration::from_secs(10));
    /// let registry = Registry::builder(store).cache_for(Duration::from_secs(5)).build()?;
    /// # let _ = registry;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn builder(store: impl ServiceRegistry + 'static) -> RegistryBuilder {
        RegistryBuilder::new(store)
    }

    /// Registers an instance of `service`, and beats for it until the
    /// [`Registration`] is dropped, which deregisters it.
    ///
    /// Blocks until it is written, at most 3 s. If the store cannot be reached
    /// that is no error: it is written as soon as it can be, and
    /// [`Registration::state`] says so.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a name that
    /// does not fit, or if no thread can be started.
    ///
    /// ```
    /// use coney::{Instance, Registry};
    ///
    /// let registry = Registry::memory();
    /// let registration = registry.register("web", Instance::new().with_port(8080))?;
    /// assert_eq!(registry.pick("web", &coney::balance::Random)?.port(), Some(8080));
    /// drop(registration);
    /// registry.refresh("web")?;
    /// assert!(registry.pick("web", &coney::balance::Random).is_err());
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn register(&self, service: &str, instance: Instance) -> Result<Registration> {
        check_service(service)?;
        instance.check()?;
        let instance = instance.registered(service);
        let sender = self.inner.beats.lock().thread()?;
        let registration = Registration::start(self.clone(), sender, instance);
        Ok(registration)
    }

    /// The living and healthy instances of a service, from the cache.
    ///
    /// The first look-up of a service blocks until the store has answered, at most the
    /// look-up timeout, and so does the first one after what is known has become too old:
    /// when it has not been asked for longer than the cache holds, or an instance in it
    /// should have been heard of. Others do not block. While the store does not answer,
    /// look-ups give what was last known and [say so](Lookup::stale_because), or fail at once.
    ///
    /// Whoever comes, leaves or is not well any more is thus seen after half the time the
    /// [cache holds](RegistryBuilder::cache_for), 30 s by default, by other processes than its
    /// own: [`refresh`](Registry::refresh) sees it now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Registry`](crate::ErrorKind::Registry) if nothing is known, as the
    /// store has never answered for this service.
    pub fn lookup(&self, service: &str) -> Result<Lookup> {
        self.inner.cache.lookup(service, None)
    }

    /// Looks up at the store, now. Blocks until it has answered, at most the
    /// look-up timeout.
    ///
    /// # Errors
    ///
    /// As [`lookup`](Registry::lookup); what was last known is not an answer here.
    pub fn refresh(&self, service: &str) -> Result<Lookup> {
        self.inner.cache.refresh(service, None)
    }

    /// Looks up and picks one of the living and healthy instances. Blocks as
    /// [`lookup`](Registry::lookup) does. Until the [`Pick`] is dropped, the instance
    /// counts as busy with it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoInstance`](crate::ErrorKind::NoInstance) if there is none; as
    /// [`lookup`](Registry::lookup).
    pub fn pick(&self, service: &str, balancer: &dyn Balancer) -> Result<Pick> {
        self.lookup(service)?.pick(balancer, None)
    }

    /// [`pick`](Registry::pick) for a key, which
    /// [`ConsistentHash`](balance::ConsistentHash) takes to the same instance as long as
    /// there is that one.
    ///
    /// # Errors
    ///
    /// As [`pick`](Registry::pick).
    pub fn pick_for(&self, service: &str, balancer: &dyn Balancer, key: &str) -> Result<Pick> {
        self.lookup(service)?.pick(balancer, Some(key))
    }

    /// The services that have instances, in order, asked for at the store. Blocks as
    /// long as that takes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Registry`](crate::ErrorKind::Registry) if it does not answer.
    pub fn services(&self) -> Result<Vec<String>> {
        self.inner.store.services()
    }

    /// The cache, for those that have a deadline.
    pub(crate) fn lookup_until(&self, service: &str, deadline: Instant) -> Result<Lookup> {
        self.inner.cache.lookup(service, Some(deadline))
    }

    /// The same, asked for at the store.
    pub(crate) fn refresh_until(&self, service: &str, deadline: Instant) -> Result<Lookup> {
        self.inner.cache.refresh(service, Some(deadline))
    }

    /// Somebody had to find out that what is known is not so: the next look-up asks.
    pub(crate) fn doubt(&self, service: &str) {
        self.inner.cache.doubt(service);
    }

    /// What is known of a service without asking anybody.
    pub(crate) fn known(&self, service: &str) -> Option<Lookup> {
        self.inner.cache.known(service)
    }

    fn from_builder(builder: RegistryBuilder) -> Self {
        let store = builder.store;
        let cache = Cache::new(
            Arc::clone(&store),
            builder.cache_for,
            builder.lookup_timeout,
        );
        let cache = Arc::new(cache);
        let beats = Beats::new(Arc::clone(&store), builder.beat_every, Arc::clone(&cache));
        Self {
            inner: Arc::new(Inner {
                store,
                cache,
                beats: Mutex::new(beats),
            }),
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}
