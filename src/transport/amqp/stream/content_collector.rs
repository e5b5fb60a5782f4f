//! The contents that are being read: a method, a content header and the frames of a body.

use std::sync::Arc;

use crate::transport::amqp::delivery_route::{DeliveryRoute, Incoming};
use crate::transport::amqp::frames::{self, ContentHeader, DeliverMethod, Malformed};
use crate::transport::amqp::routes::Routes;
use crate::transport::{Message, Oversized};

/// The bytes for which room is made before the first frame of a body arrives. A larger body's
/// buffer grows with what arrives: the announced size is not trusted.
const MOST_RESERVED: usize = 128 << 10;

/// A collector of the deliveries on channels with a route, which it passes on when they are
/// complete. amiquip does not see them.
pub(super) struct ContentCollector {
    routes: Arc<Routes>,
    /// The contents that are not complete, by channel: rarely more than one.
    contents: Vec<(u16, Content)>,
}

struct Content {
    route: Arc<DeliveryRoute>,
    method: DeliverMethod,
    header: Option<ContentHeader>,
    body: Vec<u8>,
}

impl ContentCollector {
    pub(super) fn new(routes: Arc<Routes>) -> Self {
        Self {
            routes,
            contents: Vec::new(),
        }
    }

    /// Takes a `basic.deliver`; returns false if its channel has no route.
    pub(super) fn deliver(&mut self, channel: u16, payload: &[u8]) -> Result<bool, Malformed> {
        // A content that another one interrupts is discarded.
        self.contents.retain(|(other, _)| *other != channel);
        let Some(route) = self.routes.route(channel) else {
            return Ok(false);
        };
        let content = Content {
            route,
            method: frames::deliver(payload)?,
            header: None,
            body: Vec::new(),
        };
        self.contents.push((channel, content));
        Ok(true)
    }

    /// Returns true if the content on this channel is collected here.
    pub(super) fn collects(&self, channel: u16) -> bool {
        self.contents.iter().any(|(other, _)| *other == channel)
    }

    /// Takes the content header of a delivery that is collected.
    pub(super) fn header(&mut self, channel: u16, payload: &[u8]) -> Result<(), Malformed> {
        let Some((_, content)) = self.contents.iter_mut().find(|(it, _)| *it == channel) else {
            return Ok(());
        };
        let header = frames::content_header(payload)?;
        let size = usize::try_from(header.body_size).unwrap_or(usize::MAX);
        content.body.reserve_exact(size.min(MOST_RESERVED));
        content.header = Some(header);
        if size == 0 {
            self.complete(channel, None);
        }
        Ok(())
    }

    /// Takes a body frame of a delivery that is collected.
    pub(super) fn body(&mut self, channel: u16, payload: &[u8]) -> Result<(), Malformed> {
        let Some((_, content)) = self.contents.iter_mut().find(|(it, _)| *it == channel) else {
            return Ok(());
        };
        let size = content.header.as_ref().map_or(0, |it| it.body_size);
        content.body.extend_from_slice(payload);
        let read = content.body.len() as u64;
        if read > size {
            return Err(Malformed);
        }
        if read == size {
            self.complete(channel, None);
        }
        Ok(())
    }

    /// Takes the content header of a delivery whose body was over the limit, after that was read.
    pub(super) fn oversized(
        &mut self,
        channel: u16,
        header: &[u8],
        oversized: Oversized,
    ) -> Result<(), Malformed> {
        if let Some((_, content)) = self.contents.iter_mut().find(|(it, _)| *it == channel) {
            content.header = Some(frames::content_header(header)?);
            self.complete(channel, Some(oversized));
        }
        Ok(())
    }

    /// Handles the closing of a channel by the broker.
    pub(super) fn channel_closed(&mut self, channel: u16) {
        self.contents.retain(|(other, _)| *other != channel);
        self.routes.channel_closed(channel);
    }

    fn complete(&mut self, channel: u16, oversized: Option<Oversized>) {
        let Some(at) = self.contents.iter().position(|(it, _)| *it == channel) else {
            return;
        };
        let (_, content) = self.contents.swap_remove(at);
        let Some(header) = content.header else {
            return;
        };
        let DeliverMethod {
            tag,
            redelivered,
            exchange,
            routing_key,
        } = content.method;
        let message = Arc::new(Message {
            exchange,
            routing_key,
            properties: header.properties,
            body: content.body,
            oversized,
        });
        content.route.deliver(Incoming {
            tag,
            redelivered,
            message,
        });
    }
}
