//! Reads the JSON objects of the services: every missing, empty or strange member is named.

use serde_json::{Map, Value};

use crate::{
    error::{At, Error, Malformation},
    printable::printable,
};

/// A JSON object from an answer.
pub(crate) struct Object<'a> {
    members: Map<String, Value>,
    at: &'a At,
}

impl<'a> Object<'a> {
    pub(crate) fn parse(body: &[u8], at: &'a At) -> Result<Self, Error> {
        let text =
            std::str::from_utf8(body).map_err(|_| at.malformed("body", Malformation::NotUtf8))?;
        // The parser's message would quote a string of the wrong type, hence its place only.
        let detail = match serde_json::from_str(text) {
            Ok(Value::Object(members)) => return Ok(Self { members, at }),
            Ok(_) => "the text is another JSON value".to_owned(),
            Err(error) => format!("syntax at line {} column {}", error.line(), error.column()),
        };
        Err(at.malformed("body", Malformation::NotJson { detail }))
    }

    /// A member that must be a string that is not blank.
    pub(crate) fn text(&self, name: &'static str) -> Result<&str, Error> {
        match self.members.get(name) {
            None | Some(Value::Null) => Err(self.at.malformed(name, Malformation::Missing)),
            Some(Value::String(text)) if text.trim().is_empty() => {
                Err(self.at.malformed(name, Malformation::Empty))
            }
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(self.unexpected(name, "a string")),
        }
    }

    /// A member that must be a string with the form of a UUID.
    pub(crate) fn uuid(&self, name: &'static str) -> Result<&str, Error> {
        let text = self.text(name)?;
        if crate::random::is_uuid(text) {
            Ok(text)
        } else {
            Err(self.unexpected(name, "a UUID"))
        }
    }

    /// A number of seconds, which some services write as a string; `None` if it is not there.
    pub(crate) fn seconds(&self, name: &'static str) -> Result<Option<u64>, Error> {
        let seconds = match self.members.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Number(number)) => number.as_u64(),
            Some(Value::String(text)) => text.parse().ok(),
            Some(_) => None,
        };
        match seconds {
            Some(seconds) => Ok(Some(seconds)),
            None => Err(self.unexpected(name, "a number of seconds")),
        }
    }

    /// A member that must be an object.
    pub(crate) fn object(&self, name: &'static str) -> Result<&Map<String, Value>, Error> {
        match self.members.get(name) {
            None | Some(Value::Null) => Err(self.at.malformed(name, Malformation::Missing)),
            Some(Value::Object(object)) => Ok(object),
            Some(_) => Err(self.unexpected(name, "an object")),
        }
    }

    /// A member of any kind; `None` if it is not there.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.members.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn unexpected(&self, name: &'static str, expected: &'static str) -> Error {
        self.at
            .malformed(name, Malformation::Unexpected { expected })
    }
}

/// The error that a service states in the body of its refusal.
#[derive(Default)]
pub(crate) struct Stated {
    pub(crate) error: String,
    pub(crate) description: String,
    pub(crate) codes: Vec<u64>,
}

impl Stated {
    /// Reads `error`, `error_description` or `message`, and `error_codes`. Nothing else of the body is kept, and
    /// nothing of `sent`: it may echo what was sent.
    pub(crate) fn parse(body: &[u8], sent: &[String]) -> Self {
        let Ok(Value::Object(members)) = serde_json::from_slice(body) else {
            return Self {
                error: "no error code".into(),
                description: format!("a body of {} bytes that is no JSON object", body.len()),
                codes: Vec::new(),
            };
        };
        let text = |name: &str| {
            let stated = members.get(name).and_then(Value::as_str)?;
            Some(printable(stated, sent))
        };
        Self {
            error: text("error").unwrap_or_else(|| "no error code".into()),
            description: text("error_description")
                .or_else(|| text("message"))
                .unwrap_or_default(),
            codes: members
                .get("error_codes")
                .and_then(Value::as_array)
                .map(|codes| codes.iter().filter_map(Value::as_u64).collect())
                .unwrap_or_default(),
        }
    }
}
