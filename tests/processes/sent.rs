//! Requests of each kind, on their way while their process forks.

use coney::batch::PendingBatch;
use coney::{PendingConfirm, PendingReply, ServiceClient};

/// Requests of each kind that a callback can wait for, sent before a fork.
pub struct Sent {
    reply: PendingReply<u64>,
    confirm: PendingConfirm,
    batches: [PendingBatch; 2],
}

impl Sent {
    pub fn start(client: &ServiceClient, service: &str) -> coney::Result<Self> {
        let batch = || {
            let mut batch = client.batch(service);
            for n in 0..2 {
                batch.add::<u64>("work", &n);
            }
            batch.call_async()
        };
        Ok(Self {
            reply: client.call_async(service, "work", &1)?,
            confirm: client.send_async(service, "work", &1)?,
            batches: [batch(), batch()],
        })
    }

    pub fn wait(self) -> coney::Result<()> {
        self.reply.wait()?;
        self.confirm.wait()?;
        for replies in self.batches.map(PendingBatch::wait) {
            replies
                .into_results::<u64>()
                .into_iter()
                .collect::<coney::Result<Vec<_>>>()?;
        }
        Ok(())
    }

    /// Returns the errors of waiting for them in a child that did not send them.
    pub fn errors_in_child(self) -> Vec<coney::Error> {
        let [waited, watched] = self.batches;
        let watched = [
            self.reply.then(|_| panic!("there is no thread")),
            self.confirm.then(|_| panic!("there is no thread")),
            watched.then(|_| panic!("there is no thread")),
        ];
        let watched = watched
            .into_iter()
            .map(|it| it.expect_err("no callback can run"));
        let waited = waited.wait().into_results::<u64>().into_iter();
        watched
            .chain(waited.map(|it| it.expect_err("the parent gets it")))
            .collect()
    }
}
