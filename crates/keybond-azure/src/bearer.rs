//! Bearer tokens, for those who ask for them knowingly.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};
use keybond::ManagedIdentity;

use crate::{
    convert::{moment, one_scope},
    failure,
};

/// A credential of the Azure SDK that gives bearer tokens of a managed identity, from whichever source is here:
/// the metadata service, App Service, Service Fabric, Machine Learning, Cloud Shell or Azure Arc. They are bound
/// to nothing: whoever steals one can use it. For tokens that cannot be stolen see
/// [`BoundIdentity`](crate::BoundIdentity).
///
/// Tokens are cached, refreshed ahead and fetched once for all callers by the identity. Dropping the future of a
/// call stops nobody else's.
#[derive(Clone)]
pub struct BearerCredential(ManagedIdentity);

impl BearerCredential {
    /// The bearer tokens of an identity.
    pub fn new(identity: ManagedIdentity) -> Arc<Self> {
        Arc::new(Self(identity))
    }
}

impl fmt::Debug for BearerCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BearerCredential").field(&self.0).finish()
    }
}

#[async_trait]
impl TokenCredential for BearerCredential {
    /// A bearer token for one scope.
    ///
    /// # Errors
    /// Of the kind `Credential`, with the [`keybond::Error`] as the source.
    async fn get_token(
        &self,
        scopes: &[&str],
        _: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        let token = Box::pin(self.0.bearer_token(one_scope(scopes)?))
            .await
            .map_err(failure::of_credential)?;
        let expires_on = moment(token.expires_on())?;
        Ok(AccessToken::new(token.secret().to_owned(), expires_on))
    }
}
