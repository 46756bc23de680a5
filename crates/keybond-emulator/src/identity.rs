//! Who the emulated machine is: its managed identities, and which protocols it speaks.

use serde::{Deserialize, Serialize};

/// A managed identity assigned to the emulated machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// System- or user-assigned.
    pub kind: IdentityKind,
    /// The client id: a GUID. It is the certificate's common name.
    pub client_id: String,
    /// The object id of the service principal: a GUID.
    pub object_id: String,
    /// The Azure resource id of a user-assigned identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<String>,
}

impl Identity {
    /// The machine's own identity.
    pub fn system_assigned(client_id: impl Into<String>, object_id: impl Into<String>) -> Self {
        Self {
            kind: IdentityKind::SystemAssigned,
            client_id: client_id.into(),
            object_id: object_id.into(),
            resource_id: None,
        }
    }

    /// An identity with a life of its own, assigned to the machine.
    pub fn user_assigned(
        client_id: impl Into<String>,
        object_id: impl Into<String>,
        resource_id: impl Into<String>,
    ) -> Self {
        Self {
            kind: IdentityKind::UserAssigned,
            client_id: client_id.into(),
            object_id: object_id.into(),
            resource_id: Some(resource_id.into()),
        }
    }

    /// What the emulator has if nothing else is asked for: one identity of each kind.
    pub fn defaults() -> Vec<Self> {
        vec![
            Self::system_assigned(
                "a0000000-0000-4000-8000-00000000c001",
                "a0000000-0000-4000-8000-00000000b001",
            ),
            Self::user_assigned(
                "a0000000-0000-4000-8000-00000000c002",
                "a0000000-0000-4000-8000-00000000b002",
                "/subscriptions/a0000000-0000-4000-8000-00000000d001/resourcegroups/keybond/providers/Microsoft.ManagedIdentity/userAssignedIdentities/keybond-demo",
            ),
        ]
    }
}

/// The two kinds of managed identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IdentityKind {
    /// Belongs to the machine and dies with it.
    SystemAssigned,
    /// A resource of its own.
    UserAssigned,
}

impl IdentityKind {
    /// The name in `identity_type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SystemAssigned => "SystemAssigned",
            Self::UserAssigned => "UserAssigned",
        }
    }
}

/// Which protocols the emulated Instance Metadata Service speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Profile {
    /// Version 2 (certificates) and version 1 (bearer tokens).
    #[default]
    V2,
    /// Version 1 only: the paths of version 2 answer 404.
    V1Only,
}

/// The way a query names a user-assigned identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selector<'a> {
    Client(&'a str),
    Object(&'a str),
    Resource(&'a str),
}

/// The identity a request is about: the selected user-assigned one; without a selector the
/// system-assigned one, else the only user-assigned one.
pub(crate) fn select<'a>(
    identities: &'a [Identity],
    selector: Option<&Selector<'_>>,
) -> Option<&'a Identity> {
    let mut users = identities
        .iter()
        .filter(|identity| identity.kind == IdentityKind::UserAssigned);
    match selector {
        Some(selector) => users.find(|identity| match selector {
            Selector::Client(id) => identity.client_id.eq_ignore_ascii_case(id),
            Selector::Object(id) => identity.object_id.eq_ignore_ascii_case(id),
            Selector::Resource(id) => identity
                .resource_id
                .as_deref()
                .is_some_and(|own| own.eq_ignore_ascii_case(id)),
        }),
        None => identities
            .iter()
            .find(|identity| identity.kind == IdentityKind::SystemAssigned)
            .or_else(|| users.next().filter(|_| users.next().is_none())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_selector_the_system_assigned_or_the_only_one_is_meant() {
        let system = Identity::system_assigned("s", "so");
        let first = Identity::user_assigned("u1", "o1", "/r1");
        let second = Identity::user_assigned("u2", "o2", "/r2");
        let all = [first.clone(), system.clone(), second.clone()];
        assert_eq!(select(&all, None), Some(&system));
        assert_eq!(select(std::slice::from_ref(&first), None), Some(&first));
        assert_eq!(select(&[first, second.clone()], None), None);
        assert_eq!(
            select(&all, Some(&Selector::Resource("/R2"))),
            Some(&second)
        );
        assert_eq!(select(&all, Some(&Selector::Object("u2"))), None);
    }
}
