//! One service as seen by its callers, with methods in `camelCase`.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::batch::Batch;
use super::{CallOptions, PendingConfirm, PendingReply, SendOptions, ServiceClient};
use crate::error::Result;

/// A factory of [`ServiceProxy`]s that share one client.
///
/// ```
/// use coney::client::ServiceProxyFactory;
/// use coney::{Broker, ServiceClient, ServiceServer};
///
/// let broker = Broker::memory();
/// let server = ServiceServer::builder(&broker, "user-service")
///     .respond("get_name", |id: u32| format!("user {id}"))
///     .start()?;
/// let services = ServiceProxyFactory::new(ServiceClient::new(&broker, "order-service")?);
/// let users = services.create("user-service");
/// let name: String = users.call("getName", &7)?;
/// assert_eq!(name, "user 7");
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ServiceProxyFactory {
    client: ServiceClient,
}

impl ServiceProxyFactory {
    /// Creates a factory over `client`.
    pub fn new(client: ServiceClient) -> Self {
        Self { client }
    }

    /// Creates a proxy for `service`, as [`ServiceClient::proxy`]. Sends nothing: the first
    /// call shows whether the service exists.
    pub fn create(&self, service: &str) -> ServiceProxy {
        self.client.proxy(service)
    }
}

/// One service as seen by its callers. Its methods are named in `camelCase` and converted to
/// actions in `snake_case` by [`action_name`]. Made by [`ServiceClient::proxy`].
#[derive(Clone)]
pub struct ServiceProxy {
    client: ServiceClient,
    service: String,
}

impl ServiceClient {
    /// Returns a proxy for one service, whose methods are named in `camelCase`. Sends nothing.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, ServiceServer};
    /// # let broker = Broker::memory();
    /// # let server = ServiceServer::builder(&broker, "user-service")
    /// #     .respond("get_name", |id: u32| format!("user {id}")).start()?;
    /// # let client = ServiceClient::new(&broker, "order-service")?;
    /// let users = client.proxy("user-service");
    /// assert_eq!(users.call::<String>("getName", &7)?, "user 7");
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn proxy(&self, service: &str) -> ServiceProxy {
        ServiceProxy::new(self.clone(), service)
    }
}

impl ServiceProxy {
    pub(super) fn new(client: ServiceClient, service: &str) -> Self {
        Self {
            client,
            service: service.to_owned(),
        }
    }

    /// Calls a method and blocks until the reply arrives: see [`ServiceClient::call`].
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::call`] does.
    pub fn call<Resp: DeserializeOwned>(
        &self,
        method: &str,
        request: &(impl Serialize + ?Sized),
    ) -> Result<Resp> {
        self.call_with(method, request, &CallOptions::new())
    }

    /// Calls a method with options: see [`ServiceClient::call_with`].
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::call`] does.
    pub fn call_with<Resp: DeserializeOwned>(
        &self,
        method: &str,
        request: &(impl Serialize + ?Sized),
        options: &CallOptions,
    ) -> Result<Resp> {
        let action = action_name(method);
        self.client
            .call_with(&self.service, &action, request, options)
    }

    /// Calls a method and returns a handle: see [`ServiceClient::call_async`].
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::call_async`] does.
    pub fn call_async<Resp: DeserializeOwned>(
        &self,
        method: &str,
        request: &(impl Serialize + ?Sized),
    ) -> Result<PendingReply<Resp>> {
        self.call_async_with(method, request, &CallOptions::new())
    }

    /// Calls a method with options and returns a handle: see
    /// [`ServiceClient::call_async_with`].
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::call_async`] does.
    pub fn call_async_with<Resp: DeserializeOwned>(
        &self,
        method: &str,
        request: &(impl Serialize + ?Sized),
        options: &CallOptions,
    ) -> Result<PendingReply<Resp>> {
        let action = action_name(method);
        self.client
            .call_async_with(&self.service, &action, request, options)
    }

    /// Sends a command and blocks until the broker has confirmed it: see
    /// [`ServiceClient::send`].
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::send`] does.
    pub fn send(&self, method: &str, request: &(impl Serialize + ?Sized)) -> Result<()> {
        self.send_with(method, request, &SendOptions::new())
    }

    /// Sends a command with options: see [`ServiceClient::send_with`].
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::send`] does.
    pub fn send_with(
        &self,
        method: &str,
        request: &(impl Serialize + ?Sized),
        options: &SendOptions,
    ) -> Result<()> {
        let action = action_name(method);
        self.client
            .send_with(&self.service, &action, request, options)
    }

    /// Sends a command and returns before it is confirmed: see [`ServiceClient::send_async`].
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::send_async`] does.
    pub fn send_async(
        &self,
        method: &str,
        request: &(impl Serialize + ?Sized),
    ) -> Result<PendingConfirm> {
        let action = action_name(method);
        self.client.send_async(&self.service, &action, request)
    }

    /// Returns an empty batch of calls to the service; its actions are named in `snake_case`:
    /// see [`ServiceClient::batch`].
    pub fn batch(&self) -> Batch {
        self.client.batch(&self.service)
    }

    /// Returns the name of the service.
    pub fn service(&self) -> &str {
        &self.service
    }
}

impl fmt::Debug for ServiceProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceProxy")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// Converts a proxy's method name into an action: an underscore before every ASCII
/// capital but a leading one, then lower case.
///
/// ```
/// use coney::client::action_name;
///
/// assert_eq!(action_name("getUser"), "get_user");
/// assert_eq!(action_name("GetUser"), "get_user");
/// assert_eq!(action_name("getHTTP"), "get_h_t_t_p");
/// assert_eq!(action_name("get_user"), "get_user");
/// ```
pub fn action_name(method: &str) -> String {
    let mut action = String::with_capacity(method.len() + 4);
    for (at, letter) in method.char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            action.push('_');
        }
        action.push(letter.to_ascii_lowercase());
    }
    action
}
