//! rustls as a peer within the process.

use std::{io, net::SocketAddr, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::pki::{Pki, ServerCertificate};

pub(crate) struct RustlsServer {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    pub(crate) address: SocketAddr,
}

impl RustlsServer {
    /// A server that requires a client certificate of `pki`.
    pub(crate) async fn start(pki: &Pki, version: &'static SupportedProtocolVersion) -> Self {
        Self::with(pki, &pki.server, version, &[]).await
    }

    /// [`RustlsServer::start`] with another certificate and a choice of application protocols.
    pub(crate) async fn with(
        pki: &Pki,
        certificate: &ServerCertificate,
        version: &'static SupportedProtocolVersion,
        protocols: &[&str],
    ) -> Self {
        let provider = Arc::new(default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(pki.ca_der.clone())).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from(certificate.der.clone())],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certificate.key.serialize_der())),
            )
            .unwrap();
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            address: listener.local_addr().unwrap(),
            listener,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        }
    }

    /// A new connection to the server.
    pub(crate) async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// A new connection with the smallest buffers the system gives, so that writes stop half-way.
    pub(crate) async fn dial_narrow(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(1).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// The server's side of the next connection.
    pub(crate) async fn accept(&self) -> io::Result<TlsStream<TcpStream>> {
        let (tcp, _) = self.listener.accept().await?;
        self.acceptor.accept(tcp).await
    }
}
