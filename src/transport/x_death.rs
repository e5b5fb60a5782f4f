//! The history of a dead-lettered message, in the form of RabbitMQ's `x-death` header: a list of
//! tables, the latest death first. And the headers that coney adds to failed messages.

use super::{HeaderTable, HeaderValue};

/// The number of failed attempts.
pub(crate) const ATTEMPTS: &str = "x-attempts";
/// The number of redeliveries because the worker was gone.
pub(crate) const REDELIVERIES: &str = "x-redeliveries";
/// The time of the replay of a dead letter, in Unix milliseconds; such a message gets no reply.
pub(crate) const REPLAYED: &str = "x-replayed";
/// The number of times the message was copied between queues.
pub(crate) const COPIES: &str = "x-copies";
/// The reason for which the message is to be dead-lettered, set after the dead-letter queue did not
/// accept it.
pub(crate) const GIVEN_UP: &str = "x-given-up";
pub(crate) const FIRST_ERROR: &str = "x-first-error";
pub(crate) const LAST_ERROR: &str = "x-last-error";

/// The content that a copy lacks of the original, if any.
pub(crate) const LEFT_OUT: &str = "x-left-out";

const HEADER: &str = "x-death";

/// One entry of the `x-death` list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Death {
    /// The queue in which it died.
    pub(crate) queue: String,
    /// The reason: `expired`, `rejected`, `delivery_limit`, `maxlen`, or one of coney's.
    pub(crate) reason: String,
    /// The exchange to which it had been published; `routing_key` is its routing key there.
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    /// The number of deaths in that queue for that reason, or of attempts.
    pub(crate) count: i64,
    /// The time of the death, in Unix seconds.
    pub(crate) time: u64,
}

impl Death {
    /// Reads all deaths from the headers, the latest first.
    pub(crate) fn read(headers: &HeaderTable) -> Vec<Self> {
        let Some(HeaderValue::List(entries)) = headers.get(HEADER) else {
            return Vec::new();
        };
        let tables = entries.iter().filter_map(|entry| match entry {
            HeaderValue::Table(table) => Some(table),
            _ => None,
        });
        tables.map(Self::from_table).collect()
    }

    /// Replaces the deaths in the headers.
    pub(crate) fn write(deaths: &[Self], headers: &mut HeaderTable) {
        let entries = deaths
            .iter()
            .map(|death| HeaderValue::Table(death.to_table()));
        headers.insert(HEADER, HeaderValue::List(entries.collect()));
    }

    /// Removes the deaths from the headers; the headers that coney adds remain.
    pub(crate) fn forget(headers: &mut HeaderTable) {
        headers.remove(HEADER);
        // RabbitMQ's own summaries of the deaths.
        for name in ["queue", "reason", "exchange"] {
            headers.remove(&format!("x-first-death-{name}"));
            headers.remove(&format!("x-last-death-{name}"));
        }
    }

    /// Adds a death; a repeated one increases the count, as in RabbitMQ.
    pub(crate) fn add(mut self, headers: &mut HeaderTable) {
        let mut deaths = Self::read(headers);
        let same = |other: &Self| other.queue == self.queue && other.reason == self.reason;
        if let Some(at) = deaths.iter().position(same) {
            self.count = self.count.saturating_add(deaths.remove(at).count);
        }
        deaths.insert(0, self);
        Self::write(&deaths, headers);
    }

    fn from_table(table: &HeaderTable) -> Self {
        let text = |name| table.text(name).unwrap_or_default().to_owned();
        let routing_key = match table.get("routing-keys") {
            Some(HeaderValue::List(keys)) => match keys.first() {
                Some(HeaderValue::Text(key)) => key.clone(),
                _ => String::new(),
            },
            _ => String::new(),
        };
        Self {
            queue: text("queue"),
            reason: text("reason"),
            exchange: text("exchange"),
            routing_key,
            count: table.int("count").unwrap_or(1),
            time: match table.get("time") {
                Some(HeaderValue::Timestamp(seconds)) => *seconds,
                _ => 0,
            },
        }
    }

    fn to_table(&self) -> HeaderTable {
        let mut table = HeaderTable::new();
        table.insert("queue", self.queue.as_str());
        table.insert("reason", self.reason.as_str());
        table.insert("exchange", self.exchange.as_str());
        let key = HeaderValue::from(self.routing_key.as_str());
        table.insert("routing-keys", HeaderValue::List(vec![key]));
        table.insert("count", self.count);
        table.insert("time", HeaderValue::Timestamp(self.time));
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_written_deaths_and_counts_repeated_ones() {
        let death = Death {
            queue: "q".to_owned(),
            reason: "expired".to_owned(),
            exchange: "x".to_owned(),
            routing_key: "k".to_owned(),
            count: 1,
            time: 1_795_422_612,
        };
        let mut headers = HeaderTable::new();
        death.clone().add(&mut headers);
        assert_eq!(Death::read(&headers)[..], [death.clone()][..]);
        let other = Death {
            reason: "rejected".to_owned(),
            ..death.clone()
        };
        other.clone().add(&mut headers);
        death.clone().add(&mut headers);
        let again = Death { count: 2, ..death };
        assert_eq!(Death::read(&headers), [again, other]);
        Death::forget(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn anything_but_a_list_of_tables_is_no_death() {
        let mut headers = HeaderTable::new();
        headers.insert("x-death", "nonsense");
        assert!(Death::read(&headers).is_empty());
        let odd = vec![HeaderValue::Int(1), HeaderValue::Table(HeaderTable::new())];
        headers.insert("x-death", HeaderValue::List(odd));
        assert_eq!(Death::read(&headers).len(), 1);
    }
}
