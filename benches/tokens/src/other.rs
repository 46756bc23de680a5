//! What keybond is compared with: the managed identity of `azure_identity`, answered within the process.

use std::{sync::Arc, time::Duration};

use azure_core::{
    credentials::TokenCredential,
    http::{
        AsyncRawResponse, ClientOptions, HttpClient, Request, StatusCode, Transport,
        headers::Headers,
    },
};
use azure_identity::{ManagedIdentityCredential, ManagedIdentityCredentialOptions};

#[derive(Debug)]
struct InProcess {
    takes: Duration,
}

#[async_trait::async_trait]
impl HttpClient for InProcess {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        if request.url().as_str().contains("slow") {
            tokio::time::sleep(self.takes).await;
        }
        let body = serde_json::json!({
            "access_token": "x".repeat(1_500),
            "expires_on": "4102444800",
            "resource": "https://vault.azure.net",
            "token_type": "Bearer",
        });
        Ok(AsyncRawResponse::from_bytes(
            StatusCode::Ok,
            Headers::new(),
            body.to_string(),
        ))
    }
}

/// A credential whose fetches for hosts with `slow` in their name take this long.
pub fn credential(takes: Duration) -> Arc<dyn TokenCredential> {
    let options = ManagedIdentityCredentialOptions {
        client_options: ClientOptions {
            transport: Some(Transport::new(Arc::new(InProcess { takes }))),
            ..ClientOptions::default()
        },
        ..ManagedIdentityCredentialOptions::default()
    };
    ManagedIdentityCredential::new(Some(options)).unwrap()
}
