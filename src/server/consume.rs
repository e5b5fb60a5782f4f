//! The links of a server to its queues.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use super::ServiceServerBuilder;
use super::sources::{BoundedSink, Consumers, OwnQueue, RequestSink, SuspectSink};
use crate::consumer::{Bulkhead, Dispatcher};
use crate::error::Result;
use crate::topology::{self, SERVICE_EXCHANGE, Topology};
use crate::transport::{LinkHandle, LinkSpec, Sink};

/// Links that are closed unless all of a server's links can be opened.
#[derive(Default)]
struct OpenedLinks(Vec<Arc<dyn LinkHandle>>);

impl Drop for OpenedLinks {
    fn drop(&mut self) {
        for handle in &self.0 {
            handle.close();
        }
    }
}

impl ServiceServerBuilder {
    /// Opens the links that deliver requests.
    pub(super) fn consume(
        &self,
        topology: Topology,
        requests: &Arc<RequestSink>,
        dispatcher: Arc<Dispatcher>,
        paused: bool,
    ) -> Result<Consumers> {
        let mut opened = OpenedLinks::default();
        let sink = || Arc::clone(requests) as Arc<dyn Sink>;
        let prefetch = self.options.load.first_prefetch();
        let spec = LinkSpec::new(topology)
            .consume(topology::request_queue(&self.service), prefetch)
            .only_replies()
            .paused(paused);
        let shared = self.broker.open(spec, sink())?;
        opened.0.push(Arc::clone(&shared));
        let mut bounded = Vec::new();
        for bulkhead in dispatcher.bulkheads.iter() {
            let handle = self.consume_bounded(bulkhead, requests, paused)?;
            opened.0.push(Arc::clone(&handle));
            bounded.push(handle);
        }
        let suspects = self.consume_suspects(requests, paused);
        opened.0.extend(suspects.clone());
        let own = match &self.registry {
            None => None,
            Some(_) => {
                let name = topology::instance_queue(&self.service, self.instance.id());
                let spec = LinkSpec::new(topology::for_requests())
                    .consume_own(&*name, (SERVICE_EXCHANGE, &name), prefetch)
                    .only_replies()
                    .paused(paused);
                let handle = self.broker.open(spec, sink());
                let handle = handle.map_err(|error| {
                    let id = self.instance.id();
                    error.about(format_args!("cannot open the queue of the instance {id:?}"))
                })?;
                Some(OwnQueue {
                    handle,
                    may_exist: AtomicBool::new(!paused),
                })
            }
        };
        opened.0.clear();
        Ok(Consumers {
            service: self.service.clone(),
            requests: Arc::clone(requests),
            dispatcher,
            shared,
            suspects,
            bounded,
            own,
            closed: AtomicBool::new(false),
            unhealthy: Mutex::new(None),
        })
    }

    /// Opens the link to the queue of an action with a bound.
    fn consume_bounded(
        &self,
        bulkhead: &Bulkhead,
        requests: &Arc<RequestSink>,
        paused: bool,
    ) -> Result<Arc<dyn LinkHandle>> {
        let sink = Arc::new(BoundedSink {
            requests: Arc::clone(requests),
            class: bulkhead.class,
        });
        // The queue is declared with the service's.
        let spec = LinkSpec::new(Topology::new())
            .consume(&*bulkhead.queue, bulkhead.limit)
            .only_replies()
            .paused(paused);
        let opened = self.broker.open(spec, sink);
        opened.map_err(|error| error.about(format_args!("cannot consume {:?}", bulkhead.queue)))
    }

    /// Opens the link to the suspect queue. If the broker refuses it, for lack of channels for
    /// example, the other servers of the service handle its messages.
    fn consume_suspects(
        &self,
        requests: &Arc<RequestSink>,
        paused: bool,
    ) -> Option<Arc<dyn LinkHandle>> {
        let stem = topology::service_stem(&self.service);
        let spec = LinkSpec::new(topology::for_suspects(&stem, false))
            .consume(topology::suspect_queue(&stem), 1)
            .only_replies()
            .paused(paused);
        let sink = Arc::new(SuspectSink(Arc::clone(requests)));
        match self.broker.open(spec, sink) {
            Ok(handle) => Some(handle),
            Err(error) => {
                log::warn!(
                    target: "coney::server",
                    "{}: cannot consume the suspect queue, redelivered requests are left to other \
                     servers: {error}", self.service
                );
                None
            }
        }
    }
}
