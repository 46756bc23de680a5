//! Queries to the Instance Metadata Service, read strictly.

use super::invalid;
use crate::{
    http_io::{Reply, Request},
    identity::Selector,
};

/// The variables one path knows.
pub(super) struct Rules {
    /// The version's variable.
    pub(super) version: &'static str,
    /// The versions that are served.
    pub(super) versions: &'static [&'static str],
    /// The variable that selects an identity by resource id; `None` if identities are not selected.
    pub(super) resource_id: Option<&'static str>,
    /// Further variables.
    pub(super) others: &'static [&'static str],
}

/// A query that keeps the rules.
pub(super) struct Query<'a> {
    pub(super) selector: Option<Selector<'a>>,
    others: Vec<(&'a str, &'a str)>,
}

impl<'a> Query<'a> {
    pub(super) fn read(request: &'a Request, rules: &Rules) -> Result<Self, Reply> {
        let mut version = None;
        let mut query = Self {
            selector: None,
            others: Vec::new(),
        };
        for (at, (name, value)) in request.query.iter().enumerate() {
            let (name, value) = (name.as_str(), value.as_str());
            if request.query[..at].iter().any(|(other, _)| other == name) {
                return Err(invalid(format!("Query variable '{name}' is given twice")));
            }
            let selector = match name {
                _ if name == rules.version => {
                    version = Some(value);
                    continue;
                }
                _ if rules.others.contains(&name) => {
                    query.others.push((name, value));
                    continue;
                }
                "client_id" if rules.resource_id.is_some() => Selector::Client(value),
                "object_id" if rules.resource_id.is_some() => Selector::Object(value),
                _ if Some(name) == rules.resource_id => Selector::Resource(value),
                _ => return Err(invalid(format!("Unsupported query variables: {name}"))),
            };
            if query.selector.replace(selector).is_some() {
                return Err(invalid("Only one of the identity's ids may be given"));
            }
        }
        let version = version.ok_or_else(|| {
            invalid(format!(
                "Required query variable '{}' is missing",
                rules.version
            ))
        })?;
        if !rules.versions.contains(&version) {
            return Err(invalid(format!(
                "'{}' must be one of: {}",
                rules.version,
                rules.versions.join(", ")
            )));
        }
        Ok(query)
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.others
            .iter()
            .find_map(|(other, value)| (*other == name).then_some(*value))
    }
}
