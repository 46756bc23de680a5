//! TLS servers that ask for a client certificate and take any: who may do what is decided, and
//! explained, by the services behind them. Possession of the private key is proved here.

use std::{io, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{
        WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
    },
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime},
    server::{
        Acceptor,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::{error::EmulatorError, x509::Certificate};

/// What TLS servers with this key (PKCS #8) and certificate speak.
#[derive(Clone)]
pub(crate) struct Tls {
    /// TLS 1.2 and 1.3, asking for a client certificate.
    asking: Arc<ServerConfig>,
    /// TLS 1.3, not asking.
    silent: Arc<ServerConfig>,
}

impl Tls {
    pub(crate) fn new(
        pkcs8: Vec<u8>,
        certificate: Vec<u8>,
        authority: Vec<u8>,
    ) -> Result<Self, EmulatorError> {
        let asking = server_config(pkcs8, certificate, authority)?;
        let mut silent = ServerConfig::builder_with_provider(asking.crypto_provider().clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(asking.cert_resolver.clone());
        silent.alpn_protocols.clone_from(&asking.alpn_protocols);
        Ok(Self {
            asking: Arc::new(asking),
            silent: Arc::new(silent),
        })
    }

    /// Shakes hands; `ask_under_tls13`: whether a client that knows TLS 1.3 is asked for its
    /// certificate. One that does not is asked in any case.
    pub(crate) async fn accept<W: AsyncRead + AsyncWrite + Unpin>(
        &self,
        wire: W,
        ask_under_tls13: bool,
    ) -> io::Result<TlsStream<W>> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), wire).await?;
        // Only who knows TLS 1.3 offers its suites.
        let knows_tls13 = start.client_hello().cipher_suites().iter().any(|suite| {
            suite
                .as_str()
                .is_some_and(|name| name.starts_with("TLS13_"))
        });
        let config = if knows_tls13 && !ask_under_tls13 {
            &self.silent
        } else {
            &self.asking
        };
        start.into_stream(config.clone()).await
    }
}

/// A server configuration for TLS 1.2 and 1.3 with this key (PKCS #8) and certificate.
fn server_config(
    pkcs8: Vec<u8>,
    certificate: Vec<u8>,
    authority: Vec<u8>,
) -> Result<ServerConfig, EmulatorError> {
    let provider = aws_lc_rs::default_provider();
    let verifier = AnyCertificate {
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(
            vec![certificate.into(), authority.into()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8)),
        )?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: clients must present their certificate whether or not a hint names its issuer.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match Certificate::parse(end_entity) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(_) => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
