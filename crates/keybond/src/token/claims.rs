//! The `claims` of a token request: what a resource demanded, and what the client says it understands.

use base64::{
    Engine as _,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value};

use crate::error::Error;

/// A resource's challenge writes its claims with or without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Claims that a resource demands of a token, as its challenge states them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Demanded(Map<String, Value>);

impl Demanded {
    /// Reads JSON, or JSON in base64 as it stands in a challenge.
    ///
    /// # Errors
    /// [`Error::Configuration`] if it is neither, or no object.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let refuse = |problem: &str| Error::configuration("claims", problem);
        let text = text.trim();
        let parsed = if text.starts_with('{') {
            serde_json::from_str(text)
        } else {
            let url_safe = text.replace('+', "-").replace('/', "_");
            let bytes = LENIENT
                .decode(url_safe)
                .map_err(|_| refuse("are neither JSON nor base64 of it"))?;
            serde_json::from_slice(&bytes)
        };
        match parsed {
            Ok(Value::Object(claims)) => match claims.get("access_token") {
                None | Some(Value::Null | Value::Object(_)) => Ok(Self(claims)),
                Some(_) => Err(refuse("have an `access_token` that is no object")),
            },
            Ok(_) => Err(refuse("are no JSON object")),
            Err(_) => Err(refuse("are no JSON")),
        }
    }
}

/// What is sent: the demanded claims, with the client's capabilities in `access_token.xms_cc`; `None` if there is
/// nothing to say.
pub(crate) fn merge(demanded: Option<&Demanded>, capabilities: &[String]) -> Option<String> {
    let mut claims = demanded.map(|claims| claims.0.clone()).unwrap_or_default();
    if !capabilities.is_empty() {
        change_object(&mut claims, "access_token", |access_token| {
            change_object(access_token, "xms_cc", |stated| {
                let mut values = match stated.remove("values") {
                    Some(Value::Array(values)) => values,
                    _ => Vec::new(),
                };
                for capability in capabilities {
                    if !values.iter().any(|value| value == capability) {
                        values.push(capability.as_str().into());
                    }
                }
                stated.insert("values".into(), Value::Array(values));
            });
        });
    }
    (!claims.is_empty()).then(|| Value::Object(claims).to_string())
}

/// Changes the object under a name; anything else there gives way to an empty one.
fn change_object(
    map: &mut Map<String, Value>,
    name: &str,
    change: impl FnOnce(&mut Map<String, Value>),
) {
    let mut object = match map.remove(name) {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    };
    change(&mut object);
    map.insert(name.to_owned(), Value::Object(object));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(demanded: Option<&str>, capabilities: &[&str]) -> Option<Value> {
        let demanded = demanded.map(|text| Demanded::parse(text).unwrap());
        let capabilities: Vec<_> = capabilities.iter().map(|&text| text.to_owned()).collect();
        merge(demanded.as_ref(), &capabilities).map(|text| serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn claims_and_capabilities_are_one_object() {
        assert_eq!(merged(None, &[]), None);
        assert_eq!(merged(Some("{}"), &[]), None);
        assert_eq!(
            merged(None, &["cp1"]),
            Some(json!({"access_token": {"xms_cc": {"values": ["cp1"]}}}))
        );
        let demanded = r#"{"access_token":{"nbf":{"essential":true,"value":"1"}},"x":1}"#;
        let expected = json!({"access_token": {"nbf": {"essential": true, "value": "1"}}, "x": 1});
        assert_eq!(merged(Some(demanded), &[]), Some(expected.clone()));
        let mut with = expected;
        with["access_token"]["xms_cc"] = json!({"values": ["cp1"]});
        assert_eq!(merged(Some(demanded), &["cp1"]), Some(with));
        assert_eq!(
            merged(
                Some(r#"{"access_token":{"xms_cc":{"values":["cp1","x"]}}}"#),
                &["cp1", "y"]
            ),
            Some(json!({"access_token": {"xms_cc": {"values": ["cp1", "x", "y"]}}}))
        );
        assert_eq!(
            merged(Some(r#"{"access_token":null}"#), &["cp1"]),
            Some(json!({"access_token": {"xms_cc": {"values": ["cp1"]}}}))
        );
        assert_eq!(
            merged(Some(r#"{"access_token":{"xms_cc":null}}"#), &["cp1"]),
            Some(json!({"access_token": {"xms_cc": {"values": ["cp1"]}}}))
        );
    }

    #[test]
    fn claims_are_read_as_json_and_as_a_challenge_writes_them() {
        let json = Demanded::parse(r#" {"access_token":{"nbf":null}} "#).unwrap();
        for text in [
            "eyJhY2Nlc3NfdG9rZW4iOnsibmJmIjpudWxsfX0=",
            "eyJhY2Nlc3NfdG9rZW4iOnsibmJmIjpudWxsfX0",
        ] {
            assert_eq!(Demanded::parse(text).unwrap(), json);
        }
        for text in [
            "",
            "[]",
            "null",
            "{",
            "bnVsbA",
            "not base64!",
            r#"{"access_token":1}"#,
            r#"{"access_token":"SECRET"}"#,
        ] {
            let error = Demanded::parse(text).unwrap_err();
            assert_eq!(error.field(), Some("claims"), "{text}");
            assert!(!error.to_string().contains("SECRET"));
        }
    }

    #[test]
    fn a_strange_statement_of_capabilities_is_replaced_not_a_panic() {
        for strange in ["1", "\"x\"", "[]", "{\"values\":1}"] {
            let demanded = format!(r#"{{"access_token":{{"xms_cc":{strange}}}}}"#);
            let sent = merged(Some(&demanded), &["cp1"]).unwrap();
            assert_eq!(
                sent["access_token"]["xms_cc"],
                json!({"values": ["cp1"]}),
                "{strange}"
            );
        }
    }
}
