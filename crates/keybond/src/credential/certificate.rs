//! Reads an issued certificate and holds it against everything that is known: the key, the client, the
//! tenant, the clock, the purpose.

use std::time::{Duration, SystemTime};

use ::der::{Decode as _, Encode as _, Tag, Tagged as _, oid::ObjectIdentifier};
use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use keybond_keys::HeldKey;
use x509_cert::{
    Certificate, TbsCertificate,
    ext::pkix::{ExtendedKeyUsage, KeyUsage},
};

use crate::error::{At, CertificateProblem, Error, Malformation};

/// How far the issuer's clock may be ahead of this machine's.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

const CN: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const DC: ObjectIdentifier = ObjectIdentifier::new_unwrap("0.9.2342.19200300.100.1.25");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
const ANY_PURPOSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");

/// What a certificate that passed every check says.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) x5t_s256: String,
}

/// Whose a certificate has to be.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) key: &'a HeldKey,
    pub(crate) client_id: &'a str,
    pub(crate) tenant_id: &'a str,
}

/// Checks a certificate (DER) that was issued, now or some time ago, to `owner`.
pub(crate) fn check(
    certificate_der: &[u8],
    owner: Owner<'_>,
    now: SystemTime,
    at: &At,
) -> Result<Facts, Error> {
    let refuse = |problem| Error::Certificate {
        at: at.clone(),
        problem,
    };
    let certificate = Certificate::from_der(certificate_der).map_err(|_| unreadable(at))?;
    let certificate = certificate.tbs_certificate();
    let spki = certificate
        .subject_public_key_info()
        .to_der()
        .map_err(|_| unreadable(at))?;
    if spki != owner.key.public_key().spki_der() {
        return Err(refuse(CertificateProblem::AnotherKey));
    }
    let found = single(certificate, CN).unwrap_or_default();
    if !found.eq_ignore_ascii_case(owner.client_id) {
        return Err(refuse(CertificateProblem::AnotherClient {
            expected: owner.client_id.to_owned(),
            found,
        }));
    }
    // An issuer may leave the tenant out; what it must not do is name another.
    if let Some(found) = single(certificate, DC)
        && !found.eq_ignore_ascii_case(owner.tenant_id)
    {
        return Err(refuse(CertificateProblem::AnotherTenant {
            expected: owner.tenant_id.to_owned(),
            found,
        }));
    }
    let validity = certificate.validity();
    let not_before = validity.not_before.to_system_time();
    let not_after = validity.not_after.to_system_time();
    if now >= not_after {
        return Err(refuse(CertificateProblem::Expired { not_after, now }));
    }
    if not_before > now + CLOCK_SKEW {
        return Err(refuse(CertificateProblem::NotYetValid { not_before, now }));
    }
    if let Some(extension) = forbids_clients(certificate).map_err(|_| unreadable(at))? {
        return Err(refuse(CertificateProblem::NotForClients { extension }));
    }
    let hash = digest(&SHA256, certificate_der);
    Ok(Facts {
        not_before,
        not_after,
        x5t_s256: BASE64_URL_SAFE_NO_PAD.encode(hash),
    })
}

/// The client id that a certificate of a managed identity names, in lower case.
#[cfg(any(windows, test))]
pub(crate) fn client_id_in(certificate: &TbsCertificate) -> Option<String> {
    let name = single(certificate, CN)?;
    crate::random::is_uuid(&name).then(|| name.to_ascii_lowercase())
}

/// The text of the subject's attribute. More than one, or none that is text, is no name: an empty text.
fn single(certificate: &TbsCertificate, oid: ObjectIdentifier) -> Option<String> {
    let mut values = certificate.subject().iter().filter(|pair| pair.oid == oid);
    let value = &values.next()?.value;
    let text = match value.tag() {
        Tag::PrintableString | Tag::Utf8String | Tag::Ia5String if values.next().is_none() => {
            std::str::from_utf8(value.value()).unwrap_or_default()
        }
        _ => "",
    };
    Some(text.escape_debug().collect())
}

/// The extension that keeps the certificate from authenticating a client, if one does.
fn forbids_clients(certificate: &TbsCertificate) -> ::der::Result<Option<&'static str>> {
    if let Some((_, usage)) = certificate.get_extension::<KeyUsage>()?
        && !usage.digital_signature()
    {
        return Ok(Some("keyUsage"));
    }
    if let Some((_, purposes)) = certificate.get_extension::<ExtendedKeyUsage>()?
        && !purposes
            .0
            .iter()
            .any(|purpose| [CLIENT_AUTH, ANY_PURPOSE].contains(purpose))
    {
        return Ok(Some("extendedKeyUsage"));
    }
    Ok(None)
}

fn unreadable(at: &At) -> Error {
    let expected = "an X.509 certificate in DER";
    at.malformed("certificate", Malformation::Unexpected { expected })
}
