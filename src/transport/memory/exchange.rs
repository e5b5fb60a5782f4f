//! Exchanges of the memory broker.

use std::collections::HashMap;

use super::queue::QueueId;
use crate::topology::ExchangeKind;
use crate::transport::{HeaderTable, HeaderValue};

/// An exchange: bindings, and the rule by which messages are routed to them.
pub(super) struct Exchange {
    kind: ExchangeKind,
    /// The exchange for messages that this one routes to no queue.
    pub(super) alternate: Option<String>,
    /// The bound queues by routing key or pattern; the empty key holds a fanout's queues.
    bindings: HashMap<String, Vec<QueueId>>,
    /// The queues bound to a headers exchange, with the headers that a message must have.
    by_headers: Vec<(RequiredHeaders, QueueId)>,
    /// The exchanges bound to a headers exchange.
    destinations: Vec<(RequiredHeaders, String)>,
}

/// The names and texts of the headers that a message must have.
type RequiredHeaders = Vec<(String, String)>;

impl Exchange {
    pub(super) fn new(kind: ExchangeKind, alternate: Option<&str>) -> Self {
        Self {
            kind,
            alternate: alternate.map(str::to_owned),
            bindings: HashMap::new(),
            by_headers: Vec::new(),
            destinations: Vec::new(),
        }
    }

    pub(super) fn kind(&self) -> ExchangeKind {
        self.kind
    }

    pub(super) fn bind(&mut self, key: &str, queue: QueueId) {
        let key = match self.kind {
            ExchangeKind::Fanout => "",
            ExchangeKind::Direct | ExchangeKind::Topic | ExchangeKind::Headers => key,
        };
        let bound = self.bindings.entry(key.to_owned()).or_default();
        if !bound.contains(&queue) {
            bound.push(queue);
        }
    }

    /// Binds a queue to a headers exchange.
    pub(super) fn bind_headers(&mut self, headers: &[(String, String)], queue: QueueId) {
        let binding = (headers.to_vec(), queue);
        if !self.by_headers.contains(&binding) {
            self.by_headers.push(binding);
        }
    }

    /// Binds an exchange to a headers exchange.
    pub(super) fn bind_exchange(&mut self, headers: &[(String, String)], destination: &str) {
        let binding = (headers.to_vec(), destination.to_owned());
        if !self.destinations.contains(&binding) {
            self.destinations.push(binding);
        }
    }

    /// Returns the names of the exchanges that a message with these headers is routed to.
    pub(super) fn destinations(&self, headers: &HeaderTable) -> impl Iterator<Item = &str> {
        let bound = self.destinations.iter();
        let bound = bound.filter(|(required, _)| has_all(headers, required));
        bound.map(|(_, destination)| destination.as_str())
    }

    pub(super) fn unbind_all(&mut self, queue: QueueId) {
        self.by_headers.retain(|(_, id)| *id != queue);
        self.bindings.retain(|_, bound| {
            bound.retain(|&id| id != queue);
            !bound.is_empty()
        });
    }

    /// Adds the queues that a message with this routing key and these headers is routed to, each
    /// once.
    pub(super) fn route(&self, key: &str, headers: &HeaderTable, into: &mut Vec<QueueId>) {
        match self.kind {
            ExchangeKind::Direct => into.extend(self.bindings.get(key).into_iter().flatten()),
            ExchangeKind::Fanout => into.extend(self.bindings.get("").into_iter().flatten()),
            ExchangeKind::Topic => {
                for (pattern, bound) in &self.bindings {
                    if topic_matches(pattern, key) {
                        into.extend(bound);
                    }
                }
                into.sort_unstable();
                into.dedup();
            }
            ExchangeKind::Headers => {
                for (required, queue) in &self.by_headers {
                    if has_all(headers, required) {
                        into.push(*queue);
                    }
                }
                into.sort_unstable();
                into.dedup();
            }
        }
    }
}

fn has_all(headers: &HeaderTable, required: &[(String, String)]) -> bool {
    let has = |(name, text): &(String, String)| matches!(headers.get(name), Some(HeaderValue::Text(value)) if value == text);
    required.iter().all(has)
}

/// Checks a routing key against a pattern: `*` stands for exactly one word, `#` for any number of
/// words, including none.
fn topic_matches(pattern: &str, key: &str) -> bool {
    fn words(text: &str) -> Vec<&str> {
        if text.is_empty() {
            Vec::new()
        } else {
            text.split('.').collect()
        }
    }
    /// Matches in one pass over the pattern, so that no pattern takes exponential time. `reach[i]`:
    /// the pattern so far can match the first `i` words.
    fn fits(pattern: &[&str], key: &[&str]) -> bool {
        let mut reach = vec![false; key.len() + 1];
        reach[0] = true;
        for word in pattern {
            if *word == "#" {
                let first = reach.iter().position(|&r| r).unwrap_or(reach.len());
                reach[first..].fill(true);
            } else {
                for i in (0..key.len()).rev() {
                    reach[i + 1] = reach[i] && (*word == "*" || *word == key[i]);
                }
                reach[0] = false;
            }
        }
        reach[key.len()]
    }
    fits(&words(pattern), &words(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_patterns_match_routing_keys() {
        for (pattern, key, wanted) in [
            ("#", "", true),
            ("#", "order.created", true),
            ("order.*", "order.created", true),
            ("order.*", "order", false),
            ("order.*", "order.item.added", false),
            ("order.#", "order", true),
            ("order.#", "order.item.added", true),
            ("*.created", "order.created", true),
            ("#.created", "a.b.created", true),
            ("#.a.#", "b.c", false),
            ("#.a.#", "b.a.c", true),
            ("order", "order", true),
            ("", "order", false),
            ("*", "", false),
            ("#.#.#.x", "a.b.c.x", true),
        ] {
            assert_eq!(topic_matches(pattern, key), wanted, "{pattern} {key}");
        }
    }

    #[test]
    fn each_queue_gets_a_message_once() {
        let mut exchange = Exchange::new(ExchangeKind::Topic, None);
        exchange.bind("order.*", 1);
        exchange.bind("#", 1);
        exchange.bind("order.*", 1);
        exchange.bind("user.*", 2);
        let mut queues = vec![];
        exchange.route("order.created", &HeaderTable::new(), &mut queues);
        assert_eq!(queues, [1]);
        exchange.unbind_all(1);
        queues.clear();
        exchange.route("order.created", &HeaderTable::new(), &mut queues);
        assert!(queues.is_empty());
    }

    #[test]
    fn a_headers_exchange_routes_by_headers_only() {
        let mut exchange = Exchange::new(ExchangeKind::Headers, None);
        let wanted =
            [("a", "1"), ("b", "2")].map(|(name, text)| (name.to_owned(), text.to_owned()));
        exchange.bind_headers(&wanted, 1);
        exchange.bind_headers(&wanted, 1);
        exchange.bind_headers(&wanted[..1], 2);
        let routed = |headers: &HeaderTable| {
            let mut queues = vec![];
            exchange.route("k", headers, &mut queues);
            queues
        };
        let mut headers = HeaderTable::new();
        assert!(routed(&headers).is_empty());
        headers.insert("a", "1");
        assert_eq!(routed(&headers), [2]);
        headers.insert("b", "2");
        assert_eq!(routed(&headers), [1, 2]);
        headers.insert("a", 1);
        assert!(routed(&headers).is_empty());
    }
}
