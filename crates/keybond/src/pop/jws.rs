//! JWS in compact form (RFC 7515 §3.1), signed by a held key.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keybond_keys::{HeldKey, KeyError, SignatureScheme};
use serde_json::{Map, Value};

/// Why a proof cannot be made.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PopError {
    /// The key did not sign.
    #[error("the key did not sign the proof: {0}")]
    Key(#[from] KeyError),
    /// The URL of the request cannot be named in a proof.
    #[error("url: {problem}, expected an absolute http or https URL with a host")]
    Url {
        /// What is wrong with it.
        problem: String,
    },
    /// The method or another argument is not what HTTP allows.
    #[error("{field}: {problem}")]
    Argument {
        /// The argument.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No randomness for a nonce.
    #[error("no randomness for the proof")]
    Random,
}

impl PopError {
    /// A stable name for programs and runbooks.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Key(error) => error.code(),
            Self::Url { .. } => "pop_invalid_url",
            Self::Argument { .. } => "pop_invalid_argument",
            Self::Random => "pop_no_randomness",
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Key(error) if error.retryable())
    }

    /// One sentence: what a human can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Key(error) => error.remedy(),
            Self::Url { .. } => "Pass the URL exactly as it will be requested.".into(),
            Self::Argument { .. } => "Correct the argument.".into(),
            Self::Random => "Check the operating system's random number generator.".into(),
        }
    }
}

/// Signs `header` and `claims`; `alg` is added to the header.
pub(super) async fn sign(
    key: &HeldKey,
    scheme: SignatureScheme,
    mut header: Map<String, Value>,
    claims: &Map<String, Value>,
) -> Result<String, PopError> {
    header.insert("alg".into(), scheme.jose_name().into());
    let part = |members: &Map<String, Value>| {
        URL_SAFE_NO_PAD.encode(Value::Object(members.clone()).to_string())
    };
    let mut jws = format!("{}.{}", part(&header), part(claims));
    let signature = key.sign(scheme, jws.as_bytes()).await?;
    jws.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut jws);
    Ok(jws)
}

/// A fresh identifier of 128 random bits, base64url.
pub(super) fn fresh_id() -> Result<String, PopError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| PopError::Random)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// An HTTP method: a token of RFC 9110 §5.6.2.
pub(super) fn check_method(method: &str) -> Result<(), PopError> {
    http::Method::from_bytes(method.as_bytes())
        .map(drop)
        .map_err(|_| PopError::Argument {
            field: "method",
            problem: "not an HTTP method",
        })
}

/// The URL a proof is about.
pub(super) fn parse_url(text: &str) -> Result<url::Url, PopError> {
    let invalid = |problem: &str| PopError::Url {
        problem: problem.to_owned(),
    };
    let url = url::Url::parse(text).map_err(|error| invalid(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid("another scheme than http or https"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(invalid("no host"));
    }
    Ok(url)
}
