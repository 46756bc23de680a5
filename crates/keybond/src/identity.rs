//! Who: the identity of the machine itself, or one that is assigned to it.

use std::fmt;

use crate::{error::Error, random::is_uuid};

/// Which managed identity is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The one of the machine itself.
    #[default]
    SystemAssigned,
    /// A user-assigned one, by its client (application) id: a UUID.
    ClientId(String),
    /// A user-assigned one, by its object (principal) id: a UUID.
    ObjectId(String),
    /// A user-assigned one, by its Azure resource id: `/subscriptions/…`.
    ResourceId(String),
}

impl Identity {
    /// A user-assigned identity by its client id.
    ///
    /// # Errors
    /// [`Error::Configuration`] if it is not a UUID.
    pub fn client_id(id: &str) -> Result<Self, Error> {
        Self::ClientId(id.trim().to_ascii_lowercase()).checked()
    }

    /// A user-assigned identity by its object id.
    ///
    /// # Errors
    /// [`Error::Configuration`] if it is not a UUID.
    pub fn object_id(id: &str) -> Result<Self, Error> {
        Self::ObjectId(id.trim().to_ascii_lowercase()).checked()
    }

    /// A user-assigned identity by its Azure resource id.
    ///
    /// # Errors
    /// [`Error::Configuration`] if it does not start with `/subscriptions/` or holds spaces or controls.
    pub fn resource_id(id: &str) -> Result<Self, Error> {
        Self::ResourceId(id.trim().to_owned()).checked()
    }

    /// The query parameter of IMDS v2 that selects the identity, and its value as it stands (not encoded).
    /// The name for resource ids is `mi_res_id`; IMDS v1 calls it `msi_res_id`, which v2 refuses.
    pub fn selector(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::SystemAssigned => None,
            Self::ClientId(id) => Some(("client_id", id)),
            Self::ObjectId(id) => Some(("object_id", id)),
            Self::ResourceId(id) => Some(("mi_res_id", id)),
        }
    }

    /// Itself, if its id has the right form: the variants can be made without the constructors.
    pub(crate) fn checked(self) -> Result<Self, Error> {
        const PREFIX: &str = "/subscriptions/";
        match &self {
            Self::SystemAssigned => {}
            Self::ClientId(id) | Self::ObjectId(id) => {
                if !is_uuid(id) {
                    let field = self.selector().map_or("identity", |(name, _)| name);
                    return Err(Error::configuration(
                        field,
                        format!("`{}` is not a UUID", id.escape_debug()),
                    ));
                }
            }
            Self::ResourceId(id) => {
                let prefixed = id
                    .get(..PREFIX.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(PREFIX));
                if !prefixed || id.chars().any(|c| c.is_control() || c.is_whitespace()) {
                    return Err(Error::configuration(
                        "mi_res_id",
                        format!(
                            "`{}` is not an Azure resource id: expected {PREFIX}… without spaces",
                            id.escape_debug()
                        ),
                    ));
                }
            }
        }
        Ok(self)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SystemAssigned => f.pad("system-assigned"),
            Self::ClientId(id) => write!(f, "client id {id}"),
            Self::ObjectId(id) => write!(f, "object id {id}"),
            Self::ResourceId(id) => write!(f, "resource id {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked_and_uuids_put_in_lower_case() {
        let id = Identity::client_id(" 0A0A0A0A-0000-4000-8000-00000000000F ").unwrap();
        assert_eq!(
            id.selector(),
            Some(("client_id", "0a0a0a0a-0000-4000-8000-00000000000f"))
        );
        for (refused, field) in [
            (Identity::client_id("me"), "client_id"),
            (Identity::object_id(""), "object_id"),
            (Identity::resource_id("subscriptions/x"), "mi_res_id"),
            (Identity::resource_id("/subscriptions/a b"), "mi_res_id"),
            (Identity::ClientId("me".into()).checked(), "client_id"),
        ] {
            assert_eq!(refused.unwrap_err().field(), Some(field));
        }
    }
}
