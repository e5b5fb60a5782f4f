//! An instance as the JSON object that all languages share.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::Instance;
use super::fields::{
    ACTIONS, HEALTHY, HOST, ID, LAST_HEARTBEAT, PORT, REGISTERED_AT, VERSION, WEIGHT,
};
use crate::error::{Error, ErrorKind, Result};

impl Instance {
    /// Returns the instance as the registry's JSON object.
    pub fn to_json(&self) -> String {
        Value::Object(self.to_object()).to_string()
    }

    /// Parses a registry's JSON object.
    ///
    /// Only `last_heartbeat` is required. A field with another type than coney's, such as a
    /// port in words, becomes metadata.
    ///
    /// # Errors
    ///
    /// Returns [`ErrorKind::Decode`] if the text is not a JSON object or has no heartbeat.
    pub fn from_json(service: &str, id: &str, json: &str) -> Result<Self> {
        let fault = |fault: &dyn fmt::Display| {
            Error::new(
                ErrorKind::Decode,
                format!("the instance {id:?} of {service} cannot be read: {fault}"),
            )
        };
        let mut object = match serde_json::from_str(json) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return Err(fault(&"it is not a JSON object")),
            Err(error) => return Err(fault(&error)),
        };
        object.remove(ID); // the name of the entry is the id
        let last_heartbeat = take(&mut object, LAST_HEARTBEAT, seconds)
            .ok_or_else(|| fault(&"it has no last_heartbeat"))?;
        Ok(Self {
            id: id.to_owned(),
            service: service.to_owned(),
            registered_at: take(&mut object, REGISTERED_AT, seconds).unwrap_or(last_heartbeat),
            last_heartbeat,
            host: take(&mut object, HOST, text),
            port: take(&mut object, PORT, |v| u16::try_from(number(v)?).ok()),
            version: take(&mut object, VERSION, text),
            weight: take(&mut object, WEIGHT, |v| u32::try_from(number(v)?).ok()).unwrap_or(1),
            actions: take(&mut object, ACTIONS, texts).unwrap_or_default(),
            healthy: take(&mut object, HEALTHY, Value::as_bool).unwrap_or(true),
            metadata: object,
        })
    }

    fn to_object(&self) -> Map<String, Value> {
        let mut object = self.metadata.clone();
        let mut put = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
        put(ID, self.id.as_str().into());
        put(REGISTERED_AT, self.registered_at.into());
        put(LAST_HEARTBEAT, self.last_heartbeat.into());
        if let Some(host) = &self.host {
            put(HOST, host.as_str().into());
        }
        if let Some(port) = self.port {
            put(PORT, port.into());
        }
        if let Some(version) = &self.version {
            put(VERSION, version.as_str().into());
        }
        if self.weight != 1 {
            put(WEIGHT, self.weight.into());
        }
        if !self.actions.is_empty() {
            put(ACTIONS, self.actions.clone().into());
        }
        if !self.healthy {
            put(HEALTHY, false.into());
        }
        object
    }
}

/// Removes a field and returns it, if it has the expected type.
fn take<T>(
    object: &mut Map<String, Value>,
    name: &str,
    read: impl FnOnce(&Value) -> Option<T>,
) -> Option<T> {
    let value = read(object.get(name)?)?;
    object.remove(name);
    Some(value)
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(text).collect()
}

/// Reads a number. Some PHP programs write numbers as strings.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// Reads a number of seconds, without its fraction.
fn seconds(value: &Value) -> Option<u64> {
    let whole = |seconds: f64| (seconds.is_finite() && seconds >= 0.0).then_some(seconds as u64);
    number(value).or_else(|| value.as_f64().and_then(whole))
}

impl Serialize for Instance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_object().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(json: &str) -> Result<Instance> {
        Instance::from_json("user-service", "i1", json)
    }

    #[test]
    fn reads_what_a_php_peer_writes() {
        let json = r#"{"instance_id":"i1","registered_at":1795422000,"last_heartbeat":1795422612,
            "host":"10.0.0.5","port":"8080","zone":"eu","tags":[],"weight":3}"#;
        let instance = read(json).unwrap();
        assert_eq!(instance.last_heartbeat(), 1_795_422_612);
        assert_eq!(instance.port(), Some(8080));
        assert_eq!(instance.weight(), 3);
        assert_eq!(instance.metadata::<String>("zone").as_deref(), Some("eu"));
        assert_eq!(instance.metadata::<Vec<u8>>("tags"), Some(vec![]));
        assert!(instance.is_healthy() && instance.actions().is_empty());
    }

    #[test]
    fn fields_of_others_are_kept_unchanged() {
        let json = r#"{"last_heartbeat":5,"port":"the usual","host":null,"big":12345678901234567890,"deep":{"a":[]}}"#;
        let instance = read(json).unwrap();
        assert_eq!((instance.port(), instance.host()), (None, None));
        let mut written: Map<String, Value> = serde_json::from_str(&instance.to_json()).unwrap();
        assert_eq!(written.remove("instance_id"), Some("i1".into()));
        assert_eq!(written.remove("registered_at"), Some(5.into()));
        assert_eq!(
            Value::Object(written),
            serde_json::from_str::<Value>(json).unwrap()
        );
    }

    #[test]
    fn invalid_instances_are_refused() {
        for json in ["", "x", "[]", "7", "{}", r#"{"last_heartbeat":"soon"}"#] {
            let error = read(json).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Decode, "{json}");
            assert!(error.to_string().contains("user-service"), "{error}");
        }
        assert_eq!(
            read(r#"{"last_heartbeat":7.9}"#).unwrap().last_heartbeat(),
            7
        );
    }

    #[test]
    fn the_reason_of_bad_health_is_metadata() {
        let mut instance = Instance::new();
        instance.set_health(Some("database: refused"));
        let json = instance.to_json();
        assert!(json.contains(r#""healthy":false"#), "{json}");
        let mut theirs = read(&json).unwrap();
        assert_eq!(theirs.unhealthy_reason(), Some("database: refused"));
        theirs.renew_from(&Instance::new());
        assert!(theirs.is_healthy());
        assert_eq!(theirs.unhealthy_reason(), None);
    }

    #[test]
    fn metadata_cannot_replace_our_own_fields() {
        let instance = Instance::new().with_metadata("last_heartbeat", &1);
        assert_eq!(instance.last_heartbeat(), 0);
        assert!(!instance.to_json().contains("\"last_heartbeat\":1"));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(json in ".*") {
            let _ = read(&json);
        }

        #[test]
        fn a_written_instance_is_parsed_again(
            host in ".*", port: u16, weight: u32, zone in ".*", actions in prop::collection::vec(".*", 0..4),
        ) {
            let instance = Instance::new().with_id("i1").with_host(host).with_port(port)
                .with_weight(weight).with_actions(actions).with_metadata("zone", &zone)
                .registered("user-service");
            prop_assert_eq!(read(&instance.to_json()).unwrap(), instance);
        }
    }
}
