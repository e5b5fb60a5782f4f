//! Messages that wait to be sent at the same moment and may share one.
//!
//! There is no timer: what is alone goes alone, at once. While the I/O thread is busy,
//! more come to wait, and share the next message.

use super::command::{LinkId, Outgoing};
use crate::transport::{Publication, Sharing};

/// What has been taken and goes out before the I/O thread looks at anything else.
#[derive(Default)]
pub(super) struct Gathering {
    groups: Vec<Group>,
}

/// Messages of one link that go the same way.
pub(super) struct Group {
    pub(super) link: LinkId,
    pub(super) messages: Vec<Publication>,
    bytes: usize,
}

impl Gathering {
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Adds a message to those that go its way. Returns a group that is full without it.
    pub(super) fn add(&mut self, message: Outgoing, limit: Sharing) -> Option<Group> {
        let Outgoing {
            link, publication, ..
        } = message;
        let bytes = publication.body.len();
        let like = self.groups.iter_mut().find(|group| {
            group.link == link
                && group.messages.first().is_some_and(|first| {
                    first.routing_key == publication.routing_key
                        && first.exchange == publication.exchange
                })
        });
        let Some(group) = like else {
            self.groups.push(Group {
                link,
                messages: vec![publication],
                bytes,
            });
            return None;
        };
        let is_full = group.messages.len() >= limit.messages || group.bytes + bytes > limit.bytes;
        let full = is_full.then(|| Group {
            link,
            messages: std::mem::take(&mut group.messages),
            bytes: std::mem::take(&mut group.bytes),
        });
        group.messages.push(publication);
        group.bytes += bytes;
        full
    }

    /// What has been gathered.
    pub(super) fn groups(self) -> Vec<Group> {
        self.groups
    }
}

impl Group {
    /// What was taken, as it was.
    pub(super) fn into_outgoing(self) -> impl Iterator<Item = Outgoing> {
        let link = self.link;
        let messages = self.messages.into_iter();
        messages.map(move |publication| Outgoing::plain(link, publication))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_by_link_and_key_and_is_bounded() {
        let message = |link, key: &str, bytes| {
            Outgoing::plain(link, Publication::new("x", key, vec![0; bytes]))
        };
        let limit = Sharing {
            messages: 3,
            bytes: 100,
        };
        let mut gathering = Gathering::default();
        for (link, key) in [(1, "a"), (2, "a"), (1, "b"), (1, "a"), (1, "a")] {
            assert!(gathering.add(message(link, key, 10), limit).is_none());
        }
        let full = gathering.add(message(1, "a", 10), limit);
        assert_eq!(full.map(|group| group.messages.len()), Some(3));
        let full = gathering.add(message(2, "a", 95), limit);
        assert_eq!(full.map(|group| group.messages.len()), Some(1));
        let left: Vec<_> = gathering
            .groups()
            .into_iter()
            .map(|group| (group.link, group.messages.len()))
            .collect();
        assert_eq!(left, [(1, 1), (2, 1), (1, 1)]);
    }
}
