//! The URL of a Redis server.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use url::Url;

use crate::base::secret::Secret;
use crate::error::{Error, ErrorKind, Result};

/// The expected form, for error texts.
const FORM: &str = "expected redis://user:password@host:port/database, with special characters of \
                    user and password percent-encoded";

/// The address of a Redis server, and the credentials for it.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) database: i64,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
}

impl Address {
    /// Parses a URL. The errors never quote it: it may hold a password.
    pub(super) fn parse(text: &str) -> Result<Self> {
        if !text.contains("://") {
            return Err(invalid(format!("it has no scheme; {FORM}")));
        }
        let url = Url::parse(text).map_err(|error| invalid(format!("{error}; {FORM}")))?;
        match url.scheme() {
            "redis" => {}
            "rediss" => {
                return Err(invalid(
                    "rediss (TLS) is not supported yet; use redis:// inside a trusted network or \
                     a TLS tunnel",
                ));
            }
            other => return Err(invalid(format!("its scheme is {other:?}; {FORM}"))),
        }
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.map(|host| host.trim_start_matches('[').trim_end_matches(']'));
        let database = match url.path().trim_start_matches('/') {
            "" => 0,
            number => number
                .parse()
                .ok()
                .filter(|&number| number >= 0)
                .ok_or_else(|| invalid("its database is not a number"))?,
        };
        if url.query().is_some() {
            return Err(invalid(format!("it has parameters; {FORM}")));
        }
        let password = url.password().filter(|password| !password.is_empty());
        if password.is_none() && !url.username().is_empty() {
            return Err(invalid(format!("it has a user and no password; {FORM}")));
        }
        let user = Some(url.username()).filter(|user| !user.is_empty());
        Ok(Self {
            host: decode("host", host.unwrap_or("localhost"))?.into_owned(),
            port: url.port().unwrap_or(6379),
            database,
            user: user
                .map(|user| decode("user", user))
                .transpose()?
                .map(Cow::into_owned),
            password: password
                .map(|password| decode("password", password))
                .transpose()?
                .map(|password| password.into_owned().into()),
        })
    }

    /// Returns host, port and database without credentials, for logs and errors.
    pub(super) fn address(&self) -> String {
        format!("{}:{}/{}", self.host, self.port, self.database)
    }
}

fn decode<'a>(what: &str, text: &'a str) -> Result<Cow<'a, str>> {
    percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| invalid(format!("its {what} is not UTF-8 once percent-decoded")))
}

fn invalid(fault: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        format!("the Redis URL cannot be used: {fault}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_parsed_or_has_a_default() {
        let plain = Address::parse("redis://").unwrap();
        assert_eq!(plain.address(), "localhost:6379/0");
        assert!(plain.user.is_none() && plain.password.is_none());
        let full = Address::parse("redis://us%40er:p%3Aw@[::1]:7000/3").unwrap();
        assert_eq!(full.address(), "::1:7000/3");
        assert_eq!(full.user.as_deref(), Some("us@er"));
        assert_eq!(full.password.as_ref().map(Secret::expose), Some("p:w"));
        let old = Address::parse("redis://:pw@h").unwrap();
        assert!(old.user.is_none() && old.password.is_some());
        assert!(!format!("{full:?}").contains("p:w"));
    }

    #[test]
    fn errors_name_the_fault_and_no_secret() {
        for (url, wanted) in [
            ("", "no scheme"),
            ("localhost:6379", "no scheme"),
            ("http://u:hunter2@h/", "scheme is \"http\""),
            ("rediss://u:hunter2@h/", "TLS"),
            ("redis://u:hunter2@h:99999/", "port"),
            ("redis://u:hunter2@h/first", "not a number"),
            ("redis://u:hunter2@h/-1", "not a number"),
            ("redis://u:hunter2@h/?x=1", "parameters"),
            ("redis://hunter2@h/", "no password"),
            ("redis://u:hunter2%ff@h/", "UTF-8"),
        ] {
            let error = Address::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            let text = format!("{error} {error:?}");
            assert!(text.contains(wanted), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
