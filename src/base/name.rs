//! Checks of the names that go on the wire. They run before anything is sent, because a short
//! string over 255 bytes would corrupt the AMQP frame it is written to.

use std::borrow::Cow;

use crate::error::{Error, ErrorKind, Result};

/// AMQP's limit on exchange, queue and routing key names, in bytes.
const SHORT_STRING_MAX: usize = 255;

/// The longest service name, in bytes: queue names contain it, and those of earlier versions,
/// `service.….retry.MILLISECONDS`, were the longest.
const SERVICE_MAX: usize = SHORT_STRING_MAX - "service..retry.4294967295".len();

pub(crate) fn check_service(name: &str) -> Result<()> {
    check_in_queue_name("service name", name)
}

/// Checks a name that becomes part of a queue name.
fn check_in_queue_name(what: &str, name: &str) -> Result<()> {
    check(what, name, SERVICE_MAX)?;
    // RabbitMQ drops some control characters, so the queue would get another name.
    if name.contains(char::is_control) {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("the {what} {name:?} contains a control character"),
        ));
    }
    Ok(())
}

pub(crate) fn check_action(name: &str) -> Result<()> {
    check("action", name, SHORT_STRING_MAX)
}

/// Checks the name of an event to publish: dotted words without the wildcards of patterns.
pub(crate) fn check_event(name: &str) -> Result<()> {
    check("event name", name, SHORT_STRING_MAX)?;
    if name.split('.').any(|word| word == "*" || word == "#") {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("an event cannot be called {name:?}: * and # are wildcards of subscriptions"),
        ));
    }
    Ok(())
}

/// Checks a pattern of event names, or a name that becomes part of a subscription's queue name.
pub(crate) fn check_subscription(what: &str, name: &str) -> Result<()> {
    check_in_queue_name(what, name)
}

/// Checks a text that becomes an AMQP short string and may be empty, such as the name of the
/// default exchange.
pub(crate) fn check_short_string(what: &str, text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    check(what, text, SHORT_STRING_MAX)
}

fn check(what: &str, name: &str, max: usize) -> Result<()> {
    let fault = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > max {
        format!("is {} bytes long; at most {max} are allowed", name.len())
    } else if name.contains('\0') {
        "contains a NUL character".to_owned()
    } else {
        return Ok(());
    };
    let shown: String = name.chars().take(40).collect();
    Err(Error::new(
        ErrorKind::InvalidConfig,
        format!("the {what} {shown:?} {fault}"),
    ))
}

/// Returns a name from the network in a form fit for a log: short and on one line.
pub(crate) fn shown(name: &str) -> Cow<'_, str> {
    const MAX_BYTES: usize = 80;
    if name.len() <= MAX_BYTES && !name.contains(char::is_control) {
        return Cow::Borrowed(name);
    }
    let start: String = name.chars().take(MAX_BYTES).collect();
    Cow::Owned(start.escape_debug().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_names_that_do_not_fit_a_frame() {
        assert!(check_service("user-service").is_ok());
        assert!(check_service("").is_err());
        assert!(check_service("a\0b").is_err());
        assert!(check_service("a\nb").is_err());
        assert!(check_service(&"x".repeat(230)).is_ok());
        assert!(check_service(&"x".repeat(231)).is_err());
        assert!(check_action(&"x".repeat(255)).is_ok());
        assert!(check_action(&"x".repeat(256)).is_err());
        assert!(check_short_string("exchange", "").is_ok());
    }

    #[test]
    fn the_error_names_the_fault_and_shortens_the_name() {
        let text = check_service(&"x".repeat(300)).unwrap_err().to_string();
        assert!(text.contains("300 bytes"), "{text}");
        assert!(text.len() < 140, "{text}");
    }
}
