//! The parser of AMQP URLs.

use std::borrow::Cow;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::Url;

use super::config::Config;
use crate::error::{Error, ErrorKind, Result};

const FORM: &str = "expected amqp://user:password@host:port/vhost, with special characters of \
                    user, password and vhost percent-encoded";

/// Parses an AMQP URL into `config`.
///
/// The errors never quote the URL: it may hold a password, whose place is unknown in a
/// URL that cannot be parsed.
pub(super) fn parse(text: &str, config: &mut Config) -> Result<()> {
    if !text.contains("://") {
        return Err(invalid(format!("it has no scheme; {FORM}")));
    }
    let url = Url::parse(text).map_err(|error| invalid(format!("{error}; {FORM}")))?;
    match url.scheme() {
        "amqp" => {}
        "amqps" => {
            return Err(invalid(
                "amqps (TLS) is not supported yet; use amqp:// inside a trusted network or a TLS \
                 tunnel",
            ));
        }
        other => return Err(invalid(format!("its scheme is {other:?}; {FORM}"))),
    }
    if let Some(host) = url.host_str().filter(|host| !host.is_empty()) {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        config.host = decode("host", bare)?.into_owned();
    }
    if let Some(port) = url.port() {
        config.port = port;
    }
    if !url.username().is_empty() {
        config.user = decode("user", url.username())?.into_owned();
    }
    if let Some(password) = url.password() {
        config.password = decode("password", password)?.into_owned().into();
    }
    let vhost = url.path().trim_start_matches('/');
    if vhost.contains('/') {
        return Err(invalid(
            "its path has several segments; write a slash inside a virtual host as %2f",
        ));
    }
    if !vhost.is_empty() {
        config.vhost = decode("virtual host", vhost)?.into_owned();
    }
    for (key, value) in url.query_pairs() {
        match &*key {
            "heartbeat" => config.heartbeat = Duration::from_secs(number(&key, &value)?),
            "connection_timeout" => {
                config.connect_timeout = Duration::from_millis(number(&key, &value)?);
            }
            "name" => config.name = value.into_owned(),
            _ => {
                return Err(invalid(
                    "it has an unknown parameter; known are heartbeat (seconds), \
                     connection_timeout (milliseconds) and name",
                ));
            }
        }
    }
    Ok(())
}

fn decode<'a>(what: &str, text: &'a str) -> Result<Cow<'a, str>> {
    let text = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| invalid(format!("its {what} is not UTF-8 once percent-decoded")))?;
    if text.contains('\0') {
        return Err(invalid(format!("its {what} contains a NUL character")));
    }
    Ok(text)
}

fn number(key: &str, value: &str) -> Result<u64> {
    value
        .parse()
        .map_err(|_| invalid(format!("its parameter {key} is not a whole number")))
}

fn invalid(fault: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        format!("the AMQP URL cannot be used: {fault}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Config> {
        let mut config = Config::default();
        parse(text, &mut config)?;
        Ok(config)
    }

    #[test]
    fn omitted_components_have_defaults() {
        for url in [
            "amqp://",
            "amqp://localhost",
            "amqp://localhost:5672/",
            "amqp://localhost/%2f",
        ] {
            let config = parsed(url).unwrap();
            assert_eq!(config.address(), "localhost:5672/", "{url}");
            assert_eq!(config.user, "guest");
            assert_eq!(config.password.expose(), "guest");
        }
    }

    #[test]
    fn every_component_is_parsed_and_decoded() {
        let url =
            "amqp://us%40er:p%3Aw%2f@[::1]:5673/v%2fh?heartbeat=7&connection_timeout=250&name=x";
        let config = parsed(url).unwrap();
        assert_eq!(config.user, "us@er");
        assert_eq!(config.password.expose(), "p:w/");
        assert_eq!((config.host.as_str(), config.port), ("::1", 5673));
        assert_eq!(config.vhost, "v/h");
        assert_eq!(config.heartbeat, Duration::from_secs(7));
        assert_eq!(config.connect_timeout, Duration::from_millis(250));
        assert_eq!(config.name, "x");
    }

    #[test]
    fn errors_name_the_fault_without_secrets() {
        for (url, wanted) in [
            ("", "no scheme"),
            ("localhost:5672", "no scheme"),
            ("http://u:hunter2@h/", "scheme is \"http\""),
            ("amqps://u:hunter2@h/", "TLS"),
            ("amqp://u:hunter2@h:99999/", "port"),
            ("amqp://u:hunter2@h/a/b", "%2f"),
            ("amqp://u:hunter2@h/?frobnicate=1", "unknown parameter"),
            ("amqp://u:5?hunter2@h/", "unknown parameter"),
            ("amqp://u:hunter2@h/?heartbeat=soon", "heartbeat"),
            ("amqp://u:hunter2%00@h/", "NUL"),
            ("amqp://u:hunter2%ff@h/", "UTF-8"),
            ("amqp://u:hunter2@[::g]/", "IPv6"),
        ] {
            let error = parsed(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            let text = format!("{error} {error:?}");
            assert!(text.contains(wanted), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
