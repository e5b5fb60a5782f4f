//! The bodies over the size limit: read from the socket, and not passed on.

use std::collections::HashMap;
use std::sync::Arc;

use crate::transport::{LargeBody, Oversized};

const BASIC_DELIVER: [u8; 4] = [0, 60, 0, 60];
const BASIC_GET_OK: [u8; 4] = [0, 60, 0, 71];

const MEBIBYTE: u64 = 1 << 20;

/// The oversized bodies that are being read, by channel, and the one place for a body that is
/// kept.
pub(super) struct OversizedBodies {
    /// The delivery tag of the latest content on each channel; channel and tag identify a
    /// message.
    tags: HashMap<u16, u64>,
    bodies: HashMap<u16, OversizedBody>,
    /// The largest body that is kept, in bytes.
    max_large: u64,
    /// A token of which the body that is kept, if there is one, has a clone.
    place: Arc<()>,
}

/// An oversized body that is being read.
struct OversizedBody {
    /// The frame of the content header, with a body size of 0.
    header: Vec<u8>,
    size: u64,
    read: u64,
    kept: Option<(Vec<u8>, Arc<()>)>,
}

/// The progress made by a body frame.
pub(super) enum BodyProgress {
    Some,
    AnotherMebibyte,
    All {
        header: Vec<u8>,
        tag: u64,
        oversized: Oversized,
    },
}

impl OversizedBodies {
    pub(super) fn new(max_large: u64) -> Self {
        Self {
            tags: HashMap::new(),
            bodies: HashMap::new(),
            max_large,
            place: Arc::new(()),
        }
    }

    /// Notes the delivery tag of the content that follows a method.
    pub(super) fn method(&mut self, channel: u16, payload: &[u8]) {
        let at = if payload.starts_with(&BASIC_DELIVER) {
            // After the consumer tag, a short string.
            5 + payload.get(4).copied().map_or(0, usize::from)
        } else if payload.starts_with(&BASIC_GET_OK) {
            4
        } else {
            return;
        };
        // A body that another message interrupts is discarded.
        if !self.bodies.is_empty() {
            self.bodies.remove(&channel);
        }
        let tag = payload
            .get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok());
        self.tags.insert(channel, tag.map_or(0, u64::from_be_bytes));
    }

    /// Starts a body of `size` bytes.
    pub(super) fn begin(&mut self, channel: u16, size: u64, header: Vec<u8>) {
        let is_free = Arc::strong_count(&self.place) == 1;
        let kept =
            (is_free && size <= self.max_large).then(|| (Vec::new(), Arc::clone(&self.place)));
        let oversized = OversizedBody {
            header,
            size,
            read: 0,
            kept,
        };
        self.bodies.insert(channel, oversized);
    }

    /// Takes the payload of a body frame; returns `None` if the frame is to be passed on.
    pub(super) fn body(&mut self, channel: u16, payload: &[u8]) -> Option<BodyProgress> {
        if self.bodies.is_empty() {
            return None;
        }
        let oversized = self.bodies.get_mut(&channel)?;
        let before = oversized.read;
        oversized.read = before.saturating_add(payload.len() as u64);
        if let Some((body, _)) = &mut oversized.kept {
            body.extend_from_slice(payload);
        }
        if oversized.read < oversized.size {
            return Some(match oversized.read / MEBIBYTE > before / MEBIBYTE {
                true => BodyProgress::AnotherMebibyte,
                false => BodyProgress::Some,
            });
        }
        let oversized = self.bodies.remove(&channel)?;
        let body = oversized
            .kept
            .map(|(body, place)| LargeBody::new(body, place));
        Some(BodyProgress::All {
            header: oversized.header,
            tag: self.tags.get(&channel).copied().unwrap_or(0),
            oversized: Oversized::new(oversized.size, body),
        })
    }
}
