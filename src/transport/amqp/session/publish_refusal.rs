//! The reasons of the broker to refuse a message.

/// The reason why the broker refused a message.
pub(super) enum PublishRefusal {
    /// The message is over the broker's size limit; holds the limit in bytes, if the broker
    /// named it.
    TooLarge(Option<usize>),
    Other(String),
}

impl PublishRefusal {
    /// Parses RabbitMQ's reason for closing the channel.
    pub(super) fn parse(reason: &str) -> Self {
        match reason.split_once("is larger than configured max size ") {
            Some((_, limit)) => {
                let digits = limit.split(|c: char| !c.is_ascii_digit()).next();
                Self::TooLarge(digits.and_then(|digits| digits.parse().ok()))
            }
            None => Self::Other(reason.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_parsed_from_the_brokers_reason() {
        let reason = "PRECONDITION_FAILED - message size 2097152 is larger than configured \
                      max size 1048576 (406)";
        assert!(matches!(
            PublishRefusal::parse(reason),
            PublishRefusal::TooLarge(Some(1_048_576))
        ));
        let reason = "NOT_FOUND - no exchange 'x' in vhost '/' (404)";
        assert!(matches!(
            PublishRefusal::parse(reason),
            PublishRefusal::Other(_)
        ));
    }
}
