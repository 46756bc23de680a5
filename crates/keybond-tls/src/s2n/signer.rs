//! The signature of a handshake, made by a held key while the handshake waits.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use keybond_keys::{HeldKey, KeyError, SignatureScheme};
use s2n_tls::{
    callbacks::{ConnectionFuture, OperationType, PrivateKeyCallback, PrivateKeyOperation},
    connection::Connection,
    enums::{HashAlgorithm, SignatureAlgorithm},
    error::Error,
};

use super::renegotiation::Control;

/// Answers s2n's requests for a signature.
pub(super) struct Signer {
    pub(super) key: Arc<HeldKey>,
}

/// Why there was no signature; s2n hands it back as its application error.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum SignFailure {
    #[error(transparent)]
    Key(KeyError),
    #[error("only {0} was left to choose")]
    NoCommonScheme(String),
}

impl From<SignFailure> for Error {
    fn from(failure: SignFailure) -> Self {
        Self::application(Box::new(failure))
    }
}

impl PrivateKeyCallback for Signer {
    fn handle_operation(
        &self,
        connection: &mut Connection,
        operation: PrivateKeyOperation,
    ) -> Result<Option<Pin<Box<dyn ConnectionFuture>>>, Error> {
        // Called from C, through which a panic must not go.
        catch_unwind(AssertUnwindSafe(|| self.begin(connection, operation)))
            .unwrap_or_else(|_| Err(panicked().into()))
    }
}

impl Signer {
    fn begin(
        &self,
        connection: &mut Connection,
        operation: PrivateKeyOperation,
    ) -> Result<Option<Pin<Box<dyn ConnectionFuture>>>, Error> {
        let scheme = match operation.kind()? {
            OperationType::Sign(signature, hash) => scheme(*signature, *hash).ok_or_else(|| {
                SignFailure::NoCommonScheme(format!("{signature:?} with {hash:?}"))
            })?,
            other => return Err(SignFailure::NoCommonScheme(format!("{other:?}")).into()),
        };
        if !self.key.supports(scheme) {
            return Err(SignFailure::NoCommonScheme(scheme.to_string()).into());
        }
        let mut digest = vec![0; operation.input_size()?];
        operation.input(&mut digest)?;
        let key = Arc::clone(&self.key);
        let control = connection.application_context::<Arc<Control>>().cloned();
        Ok(Some(Box::pin(Signing {
            operation: Some(operation),
            signature: Mutex::new(Box::pin(
                async move { key.sign_digest(scheme, &digest).await },
            )),
            scheme,
            control,
            begun: false,
        })))
    }
}

type Signature = Pin<Box<dyn Future<Output = Result<Vec<u8>, KeyError>> + Send>>;

/// A signature in the making.
struct Signing {
    operation: Option<PrivateKeyOperation>,
    // s2n wants the future to be Sync; a mutex that is never locked makes it so.
    signature: Mutex<Signature>,
    scheme: SignatureScheme,
    control: Option<Arc<Control>>,
    begun: bool,
}

impl ConnectionFuture for Signing {
    fn poll(
        self: Pin<&mut Self>,
        connection: &mut Connection,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        if !this.begun {
            // What was said before the signature leaves first: the server need not wait for the key to judge it.
            this.begun = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let signature = this
            .signature
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let polled = catch_unwind(AssertUnwindSafe(|| signature.as_mut().poll(context)));
        let signature = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Ok(signature))) => signature,
            Ok(Poll::Ready(Err(error))) => return Poll::Ready(Err(SignFailure::Key(error).into())),
            Err(_) => return Poll::Ready(Err(panicked().into())),
        };
        if let Some(operation) = this.operation.take() {
            operation.set_output(connection, &signature)?;
        }
        if let Some(control) = &this.control {
            control.signed(this.scheme);
        }
        Poll::Ready(Ok(()))
    }
}

fn panicked() -> SignFailure {
    SignFailure::Key(KeyError::Local {
        what: "signature".into(),
        cause: "the key's store panicked".into(),
    })
}

fn scheme(signature: SignatureAlgorithm, hash: HashAlgorithm) -> Option<SignatureScheme> {
    Some(match (signature, hash) {
        (SignatureAlgorithm::RSA_PSS_RSAE, HashAlgorithm::SHA256) => SignatureScheme::RsaPssSha256,
        (SignatureAlgorithm::RSA_PSS_RSAE, HashAlgorithm::SHA384) => SignatureScheme::RsaPssSha384,
        (SignatureAlgorithm::RSA_PSS_RSAE, HashAlgorithm::SHA512) => SignatureScheme::RsaPssSha512,
        (SignatureAlgorithm::RSA_PKCS1, HashAlgorithm::SHA256) => SignatureScheme::RsaPkcs1Sha256,
        (SignatureAlgorithm::RSA_PKCS1, HashAlgorithm::SHA384) => SignatureScheme::RsaPkcs1Sha384,
        (SignatureAlgorithm::RSA_PKCS1, HashAlgorithm::SHA512) => SignatureScheme::RsaPkcs1Sha512,
        // Nothing else is ours to sign, SHA-1 least of all.
        _ => return None,
    })
}
