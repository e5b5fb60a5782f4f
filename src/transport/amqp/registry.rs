use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::command::{Command, LinkId};
use crate::error::Result;
use crate::transport::{LinkSpec, Settle, Sink, Source};

/// The links as their owners know them: what outlives a session.
#[derive(Default)]
pub(super) struct Registry {
    links: BTreeMap<LinkId, Registered>,
}

pub(super) struct Registered {
    pub(super) spec: LinkSpec,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) settler: Arc<dyn Settle>,
    /// Who waits for the link to be opened for the first time.
    pub(super) opening: Option<Sender<Result<()>>>,
}

impl Registry {
    pub(super) fn get_mut(&mut self, link: LinkId) -> Option<&mut Registered> {
        self.links.get_mut(&link)
    }

    pub(super) fn ids(&self) -> Vec<LinkId> {
        self.links.keys().copied().collect()
    }

    pub(super) fn add(&mut self, link: LinkId, registered: Registered) {
        self.links.insert(link, registered);
    }

    pub(super) fn remove(&mut self, link: LinkId) {
        self.links.remove(&link);
    }

    /// From now on the link only publishes, after a reconnect too.
    pub(super) fn stop_consuming(&mut self, link: LinkId) {
        if let Some(registered) = self.links.get_mut(&link) {
            registered.spec.source = Source::Nothing;
        }
    }

    /// Carries out a command while there is no session; true if it is `Close`.
    pub(super) fn apply(&mut self, command: Command) -> bool {
        match command {
            Command::Open {
                link,
                spec,
                sink,
                settler,
                done,
            } => self.add(
                link,
                Registered {
                    spec,
                    sink,
                    settler,
                    opening: Some(done),
                },
            ),
            // The broker took every delivery back when the connection went.
            Command::Settle { .. } => {}
            Command::StopConsuming { link, done } => {
                self.stop_consuming(link);
                let _ = done.try_send(());
            }
            Command::CloseLink { link } => self.remove(link),
            Command::Close => return true,
        }
        false
    }

    /// Tells every link that what was sent has an unknown outcome.
    pub(super) fn lost(&self, cause: &str) {
        for registered in self.links.values() {
            registered.sink.lost(cause);
        }
    }

    /// Tells every link that it is over.
    pub(super) fn closed(&mut self, cause: &str) {
        for (_, registered) in std::mem::take(&mut self.links) {
            registered.sink.closed(cause);
        }
    }
}
