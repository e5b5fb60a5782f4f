use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{CallOptions, PendingReply, ServiceClient};
use crate::error::Result;

/// Makes [`ServiceProxy`]s that share one client.
///
/// ```
/// use coney::{Broker, ServiceClient, ServiceProxyFactory, ServiceServer};
///
/// let broker = Broker::memory();
/// let server = ServiceServer::builder(&broker, "user-service")
///     .handler("get_name", |id: u32| Ok::<_, String>(format!("user {id}")))
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
    /// A factory for proxies over `client`.
    pub fn new(client: ServiceClient) -> Self {
        Self { client }
    }

    /// A proxy for `service`. Sends nothing; whether the service exists shows
    /// at the first call.
    pub fn create(&self, service: &str) -> ServiceProxy {
        ServiceProxy {
            client: self.client.clone(),
            service: service.to_owned(),
        }
    }
}

/// One service as seen by its callers: methods in `camelCase`, which become
/// actions in `snake_case` by [`action_name`].
#[derive(Clone)]
pub struct ServiceProxy {
    client: ServiceClient,
    service: String,
}

impl ServiceProxy {
    /// Calls a method and blocks until the reply is here: see
    /// [`ServiceClient::call`].
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::call`].
    pub fn call<Req, Resp>(&self, method: &str, request: &Req) -> Result<Resp>
    where
        Req: Serialize + ?Sized,
        Resp: DeserializeOwned,
    {
        self.call_with(method, request, &CallOptions::new())
    }

    /// Calls a method with options: see [`ServiceClient::call_with`].
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::call`].
    pub fn call_with<Req, Resp>(
        &self,
        method: &str,
        request: &Req,
        options: &CallOptions,
    ) -> Result<Resp>
    where
        Req: Serialize + ?Sized,
        Resp: DeserializeOwned,
    {
        self.client
            .call_with(&self.service, &action_name(method), request, options)
    }

    /// Calls a method and returns at once: see [`ServiceClient::call_async`].
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::call_async`].
    pub fn call_async<Req, Resp>(&self, method: &str, request: &Req) -> Result<PendingReply<Resp>>
    where
        Req: Serialize + ?Sized,
        Resp: DeserializeOwned,
    {
        self.client
            .call_async(&self.service, &action_name(method), request)
    }

    /// Sends a command and blocks until the broker has confirmed it: see
    /// [`ServiceClient::send`].
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::send`].
    pub fn send<Req>(&self, method: &str, request: &Req) -> Result<()>
    where
        Req: Serialize + ?Sized,
    {
        self.client
            .send(&self.service, &action_name(method), request)
    }

    /// The service it stands for.
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

/// The action a proxy's method stands for: an underscore before every ASCII
/// capital but a leading one, then lower case.
///
/// ```
/// use coney::action_name;
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
