//! Exchanges of the memory broker.

use std::collections::HashMap;

use super::queue::QueueId;
use crate::topology::ExchangeKind;

/// An exchange: bindings, and the rule by which messages are routed to them.
pub(super) struct Exchange {
    kind: ExchangeKind,
    /// The bound queues by routing key or pattern; the empty key holds a fanout's queues.
    bindings: HashMap<String, Vec<QueueId>>,
}

impl Exchange {
    pub(super) fn new(kind: ExchangeKind) -> Self {
        Self {
            kind,
            bindings: HashMap::new(),
        }
    }

    pub(super) fn kind(&self) -> ExchangeKind {
        self.kind
    }

    pub(super) fn bind(&mut self, key: &str, queue: QueueId) {
        let key = match self.kind {
            ExchangeKind::Fanout => "",
            ExchangeKind::Direct | ExchangeKind::Topic => key,
        };
        let bound = self.bindings.entry(key.to_owned()).or_default();
        if !bound.contains(&queue) {
            bound.push(queue);
        }
    }

    pub(super) fn unbind_all(&mut self, queue: QueueId) {
        self.bindings.retain(|_, bound| {
            bound.retain(|&id| id != queue);
            !bound.is_empty()
        });
    }

    /// Adds the queues that a message with this routing key is routed to, each once.
    pub(super) fn route(&self, key: &str, into: &mut Vec<QueueId>) {
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
        }
    }
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
        let mut exchange = Exchange::new(ExchangeKind::Topic);
        exchange.bind("order.*", 1);
        exchange.bind("#", 1);
        exchange.bind("order.*", 1);
        exchange.bind("user.*", 2);
        let mut queues = vec![];
        exchange.route("order.created", &mut queues);
        assert_eq!(queues, [1]);
        exchange.unbind_all(1);
        queues.clear();
        exchange.route("order.created", &mut queues);
        assert!(queues.is_empty());
    }
}
