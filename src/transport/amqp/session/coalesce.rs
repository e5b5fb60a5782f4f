//! The sending of coalesced messages: the requests with one routing key in one message.

use std::collections::HashMap;
use std::sync::Arc;

use super::link_channel::LinkChannel;
use super::state::lost;
use super::{Session, SessionEnd};
use crate::transport::amqp::coalesce_buffer::{BufferedReplies, CoalesceBuffer, Messages};
use crate::transport::amqp::command::{LinkId, Outgoing};
use crate::transport::amqp::convert::ChannelFailure;
use crate::transport::{CoalesceLimits, Publication, is_large};

impl Session<'_> {
    /// Sends the messages in the coalesce buffer of a link.
    pub(super) fn send_coalesced(&mut self, link: LinkId) -> Result<(), SessionEnd> {
        let Some(registered) = self.io.link_table.get_mut(link) else {
            return Ok(());
        };
        let buffer = Arc::clone(&registered.coalesce_buffer);
        let Messages { requests, replies } = buffer.take();
        self.send_replies(link, &buffer, replies)?;
        if !self.link_channels.contains_key(&link) && !requests.is_empty() {
            for request in requests {
                self.refuse_unopened(link, *request, None);
            }
            return Ok(());
        }
        let mut groups = BatchGroup::sort(requests).into_iter();
        for group in &mut groups {
            let BatchGroup {
                key, mut requests, ..
            } = group;
            requests.retain_mut(|request| request.start_sending());
            let publish =
                |link_channel: &mut LinkChannel<'_>| link_channel.publish_coalesced(key, requests);
            if let Err(end) = self.publish_with(link, publish) {
                // Taken and not sent: these wait for the next connection.
                let left = groups.flat_map(|group| group.requests);
                self.io
                    .link_table
                    .send_first(link, left.map(|request| *request));
                return Err(end);
            }
        }
        Ok(())
    }

    fn send_replies(
        &mut self,
        link: LinkId,
        buffer: &CoalesceBuffer,
        replies: BufferedReplies,
    ) -> Result<(), SessionEnd> {
        let count = replies.len();
        let sent = replies.reply_batches().try_for_each(|reply_batch| {
            if is_large(reply_batch.body.len()) {
                return self.publish(Outgoing::new(link, reply_batch, None));
            }
            self.publish_with(link, |link_channel| {
                link_channel.publish(&reply_batch, None)
            })
        });
        buffer.replies_sent(count);
        sent
    }

    fn publish_with(
        &mut self,
        link: LinkId,
        publish: impl FnOnce(&mut LinkChannel<'_>) -> Result<(), ChannelFailure>,
    ) -> Result<(), SessionEnd> {
        let Some(link_channel) = self.link_channels.get_mut(&link) else {
            return Ok(());
        };
        let _armed = self.io.watchdog.arm(self.io.operation_timeout);
        publish(link_channel).map_err(lost)
    }
}

/// Requests that one message carries.
struct BatchGroup {
    /// The routing key.
    key: String,
    requests: Vec<Box<Publication>>,
    bytes: usize,
}

impl BatchGroup {
    /// Groups requests by their routing keys; no group is larger than a message may be.
    fn sort(requests: Vec<Box<Publication>>) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        // The latest group of each key.
        let mut latest: HashMap<String, usize> = HashMap::new();
        for request in requests {
            let bytes = request.body.len();
            let Some(limit) = request.coalesce else {
                continue; // the buffer holds no others
            };
            // In most cases all have one routing key.
            let last = groups
                .last()
                .filter(|group| group.key == request.routing_key);
            let at = match last {
                Some(_) => Some(groups.len() - 1),
                None => latest.get(&request.routing_key).copied(),
            };
            match at.map(|at| &mut groups[at]) {
                Some(group) if group.has_room(bytes, limit) => {
                    group.bytes += bytes;
                    group.requests.push(request);
                }
                _ => {
                    let key = request.routing_key.clone();
                    latest.insert(key.clone(), groups.len());
                    groups.push(Self {
                        key,
                        requests: vec![request],
                        bytes,
                    });
                }
            }
        }
        groups
    }

    fn has_room(&self, bytes: usize, limit: CoalesceLimits) -> bool {
        self.requests.len() < limit.messages && self.bytes + bytes <= limit.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Publication;

    fn request(key: &str, bytes: usize) -> Box<Publication> {
        Box::new(Publication {
            coalesce: Some(CoalesceLimits {
                messages: 3,
                bytes: 100,
            }),
            ..Publication::new("x", key, vec![0; bytes])
        })
    }

    #[test]
    fn groups_have_one_routing_key_and_are_bounded() {
        let small = ["a", "b", "a", "a", "a"].map(|key| request(key, 10));
        let large = ["b", "b"].map(|key| request(key, 95));
        let groups = BatchGroup::sort(small.into_iter().chain(large).collect());
        let shapes: Vec<_> = groups
            .iter()
            .map(|group| (&*group.key, group.requests.len()))
            .collect();
        assert_eq!(shapes, [("a", 3), ("b", 1), ("a", 1), ("b", 1), ("b", 1)]);
    }
}
