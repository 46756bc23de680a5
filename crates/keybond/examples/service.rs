//! Other HTTP code on top of a held key: whatever sends through a `tower` service sends with bound tokens.
//!
//! `cargo run --example service -- https://mine.vault.azure.net/secrets/motto?api-version=7.4 [RESOURCE]`, with the
//! variables that `keybond emulate --print-env` prints if this is no Azure VM.

use std::{error::Error, path::Path};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use keybond::{
    KeyProvider, ManagedIdentity,
    tls::{TrustRoots, default_connector},
};
use tower_service::Service;

/// Code that knows nothing of keys, tokens or certificates.
async fn fetch<S, B>(service: &mut S, url: &str) -> Result<Bytes, Box<dyn Error>>
where
    S: Service<http::Request<Empty<Bytes>>, Response = http::Response<B>>,
    S::Error: Error + 'static,
    B: http_body::Body<Data = Bytes>,
    B::Error: Error + 'static,
{
    std::future::poll_fn(|context| service.poll_ready(context)).await?;
    let request = http::Request::get(url).body(Empty::new())?;
    let response = service.call(request).await?;
    Ok(response.into_body().collect().await?.to_bytes())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("which URL?")?;
    let mut roots = TrustRoots::system()?;
    if let Some(file) = std::env::var_os("KEYBOND_CA_FILE") {
        roots.add_pem_file(Path::new(&file))?;
    }
    let client = ManagedIdentity::builder()
        .key_provider(KeyProvider::in_memory())
        .tls(default_connector(&roots)?)
        .build()?;
    let mut service = client.service();
    if let Some(resource) = arguments.next() {
        service = service.resource(&resource);
    }
    let body = fetch(&mut service, &url).await?;
    std::io::Write::write_all(&mut std::io::stdout(), &body)?;
    Ok(())
}
